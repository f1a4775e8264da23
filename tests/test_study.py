"""A study: its grid, its runs in processes of their own, and that nothing which ends one of them changes a number.

A few kills, about a minute; ASKMASK_KILLS=50 makes as many at random moments and three at each of 12 named points:
`ASKMASK_KILLS=50 python -m pytest -s tests/test_study.py -k killed_at`.
"""

import io
import json
import os
import pty
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import ROOT, events, settings

from experiments.errors import Refused

KILLS = int(os.environ.get("ASKMASK_KILLS", 1))
ONCE = {"heuristic": "random,bald", "run": "0-1", "dataset": "phantom"}


# imports everything once; each command of its input starts the real driver as a process of its own, or waits for one
STARTER = """if True:
    import json, os, sys, warnings
    warnings.simplefilter("ignore")
    from experiments.study import __main__ as study, ending, forked
    forked.import_libraries([("model", "unet")])
    os.environ["OMP_NUM_THREADS"] = "1"
    for line in sys.stdin:
        words, out, before = json.loads(line)
        if out is None:
            print(os.waitstatus_to_exitcode(os.waitpid(words, 0)[1]), flush=True)
            continue
        number = os.fork()
        if number == 0:
            os.setpgid(0, 0)
            sys.argv[1:] = words
            file = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(file, 1), os.dup2(file, 2)
            exec(before)
            code = study.command(words)
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(code)
        print(number, flush=True)
"""


class Started:
    """A study at work."""

    def __init__(self, starter, words, out, before=""):
        self.starter, self.out, self.pid = starter, out, starter(words, str(out), before)

    def ended(self, code=0):
        """What it printed, once it has ended with this exit code."""
        found, text = self.starter(self.pid, None), self.out.read_text()
        assert found == code, text
        return text


@pytest.fixture(scope="module")
def study(phantom_root, tmp_path_factory):
    """study(results, *words): start one of four runs on the small phantom, after this code has run in its process."""
    line, pipe = [sys.executable, "-W", "ignore", "-c", STARTER], subprocess.PIPE
    with subprocess.Popen(line, cwd=ROOT, text=True, stdin=pipe, stdout=pipe) as process:

        def starter(words, out, before=""):
            process.stdin.write(json.dumps([words, out, before]) + "\n")
            process.stdin.flush()
            return int(process.stdout.readline())

        def study(results, *words, before="", **updates):
            asked = settings(phantom_root, results) | ONCE | {"runs_dir": ""} | updates
            asked.pop("results_dir")
            words = ["smoke", *(f"{key}={value}" for key, value in asked.items()), "--results", str(results), *words]
            return Started(starter, words, tmp_path_factory.mktemp("out") / "out", before)

        yield study
        process.stdin.close()


def kept(results):
    """{path: bytes} of all that the runs leave: arrays, ledgers, weights, pictures; not seconds, locks and records."""
    paths = [path for path in Path(results).rglob("*") if path.is_file()]
    own = [path for path in paths if not {"sacred", "study"} & set(path.relative_to(results).parts[:-1])]
    return {
        str(path.relative_to(results)): path.read_bytes()
        for path in own
        if path.name not in ("timing.jsonl", "lock", "report.html")
    }


@pytest.fixture(scope="module")
def whole(study, tmp_path_factory):
    """(results folder, what was printed) of an undisturbed study, two runs at once."""
    results = tmp_path_factory.mktemp("study")
    return results, study(results, "--jobs", "2").ended()


@pytest.fixture
def study_on_terminal(whole, phantom_root, tmp_path):
    """What a terminal gets of a study of one run."""
    pytest.importorskip("rich")
    asked = settings(phantom_root, tmp_path) | {
        "heuristic": "random",
        "dataset": "phantom",
        "runs_dir": "",
        "cycles": 0,
    }
    asked.pop("results_dir")
    line = [sys.executable, "-W", "ignore", "-m", "experiments.study", "smoke", "--results", str(tmp_path)]
    line += [f"{key}={value}" for key, value in asked.items()]
    ours, its = pty.openpty()
    own = os.environ | {"OMP_NUM_THREADS": "1", "TERM": "xterm"}
    with subprocess.Popen(line, cwd=ROOT, stdin=its, stdout=its, stderr=its, env=own) as process:
        os.close(its)
        shown = b""
        with suppress(OSError):  # EIO once the other end is closed
            while part := os.read(ours, 4096):
                shown += part
    os.close(ours)
    assert process.returncode == 0, shown.decode()
    return shown.decode()


@pytest.fixture
def grid(experiment):
    from experiments.study import grid

    return grid


def test_a_study_is_made_and_judged(whole):
    results, out = whole
    assert {path.name for path in results.glob("*.npy")} == {f"{h}_{r}.npy" for h in ("random", "bald") for r in (0, 1)}
    assert "4 of 4 runs done" in out and "bald: undecided" in out and "2 pairs, 3 are needed" in out
    assert (results / "report.html").exists() and out.endswith(f"{results}/report.html\n")
    [kept_study] = (results / "study").glob("*.yaml")
    for heuristic in ("random", "bald"):
        assert events(results, heuristic)[0]["settings"]["study"][:12] == kept_study.stem
    assert not list((results / "study").glob("*.lock"))


def test_its_runs_are_the_plain_ones(whole, undisturbed):
    """Bit for bit, but for the study's hash in the first line of the ledger."""
    plain, ours = kept(undisturbed), kept(whole[0])
    for name in ("bald_0.npy", "bald_0/dice.npy", "bald_0/budget.npy"):
        assert plain[name] == ours[name]
    one, other = events(undisturbed), events(whole[0])
    other[0]["settings"]["study"] = one[0]["settings"]["study"] = ""
    assert one == other


def test_a_first_cycle_is_trained_once(whole, undisturbed):
    """By whichever run came first; bald 0, which took it over, is still the plain run, as the test above says."""
    results, _ = whole
    first = [json.loads((results / f"{h}_0" / "timing.jsonl").read_text().splitlines()[0]) for h in ("random", "bald")]
    assert first[0]["train"] > 0 and first[1]["train"] == 0


def test_what_runs_shared_is_removed_once_all_is_done(whole, study, tmp_path):
    """And only then: runs that are yet to come take it over."""
    results, out = whole
    assert sorted(path.name for path in (results / "study").iterdir() if path.is_dir()) == []
    [said] = [line for line in out.splitlines() if " removed, " in line]
    assert said.startswith(f"{results}/study/first_cycles and {results}/study/images removed, ")
    study(tmp_path, "--only", "0", cycles=0).ended()
    assert list((tmp_path / "study" / "first_cycles").glob("*.json"))
    assert list((tmp_path / "study" / "images").glob("*.images"))


def test_strategies_that_train_too_have_a_first_cycle_of_their_own(smoke, tmp_path):
    for to, more in (("one", {}), ("two", {"shared_dir": str(tmp_path / "shared")})):
        smoke(to=to, heuristic="random", **more)
        smoke(to=to, heuristic="learning_loss", **more)
    assert len(list((tmp_path / "shared").glob("*.json"))) == 1
    assert kept(tmp_path / "one") == kept(tmp_path / "two")


def test_a_damaged_first_cycle_is_trained_again(smoke, tmp_path, undisturbed):
    shared = tmp_path / "shared"
    smoke(to="one", heuristic="random", shared_dir=str(shared))
    for file in ("json", "safetensors"):
        [path] = shared.glob(f"*.{file}")
        path.write_bytes(path.read_bytes()[:-9])
        smoke(to=file, shared_dir=str(shared))
        assert kept(tmp_path / file) == kept(undisturbed)


def test_a_first_cycle_of_other_settings_is_not_taken_over(smoke, tmp_path):
    shared = str(tmp_path / "shared")
    smoke(to="one", heuristic="random", shared_dir=shared)
    for number, other in enumerate([{"trainer.lr": 0.001}, {"evaluation.passes": 2}, {"start": 3}]):
        smoke(to=f"other {number}", shared_dir=shared, cycles=0, **other)
    assert len(list((tmp_path / "shared").glob("*.json"))) == 4


def test_again_there_is_nothing_to_do(whole, study):
    results, _ = whole
    before = kept(results)
    out = study(results).ended()
    assert "4 runs, 4 of them done." in out and "Importing" not in out and "bald: undecided" in out
    assert kept(results) == before


def alive(study):
    """Process ids of the children of a study that lives."""
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(study.pid)], capture_output=True, text=True)
    return [int(number) for number in found.stdout.split()]


def gone(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def until(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def lines(results, event, count=1):
    """Whether so many ledgers have an event."""
    found = [path.read_text() for path in Path(results).glob("*/ledger.jsonl")]
    return sum(f'"event": "{event}"' in text for text in found) >= count


POINTS = {  # what is there when the kill comes
    "the study is stored": lambda r: any(r.glob("study/*.yaml")),
    "a run is claimed": lambda r: any(r.glob("study/*.lock")),
    "a run's folder": lambda r: any(r.glob("*/lock")),
    "a ledger": lambda r: lines(r, "start"),
    "weights": lambda r: any(r.glob("*/checkpoint/*.safetensors")),
    "a test": lambda r: lines(r, "evaluated"),
    "an array": lambda r: any(r.glob("*.npy")),
    "a table of scores": lambda r: any(r.glob("*/queries/*.csv")),
    "a query": lambda r: lines(r, "queried"),
    "a curve": lambda r: any(r.glob("*/learning_curve.png")),
    "the third run": lambda r: lines(r, "start", 3),
    "the last run": lambda r: lines(r, "start", 4),
}
LONG = KILLS > 1


def strike(started, who):
    """SIGKILL for the driver, its workers or all of them; returns the workers."""
    workers = alive(started)
    for pid in {"driver": [started.pid], "workers": workers, "all": [started.pid, *workers]}[who]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return workers


def test_a_killed_worker_is_followed_by_another(whole, study, tmp_path):
    started = study(tmp_path, "--jobs", "2")
    until(lambda: lines(tmp_path, "evaluated"))
    strike(started, "workers")
    assert "4 of 4 runs done" in started.ended()
    assert kept(tmp_path) == kept(whole[0])


def test_two_studies_share_a_folder_and_one_outlives_the_other(whole, study, tmp_path):
    """No cell is run by both, no worker outlives its driver, and what it leaves is taken over."""
    first, second = study(tmp_path, "--jobs", "1"), study(tmp_path, "--jobs", "1")
    until(lambda: lines(tmp_path, "evaluated", 2))
    workers = strike(first, "driver")
    until(lambda: all(map(gone, workers)), 10)
    first.ended(-signal.SIGKILL), second.ended()
    assert kept(tmp_path) == kept(whole[0])
    starts = sorted(len(list(path.glob("*.json"))) for path in tmp_path.glob("*/sacred"))
    assert sum(starts) <= 5 and starts[0] == 1


def test_a_signal_is_passed_on_and_a_failed_run_stops_nobody(whole, study, tmp_path):
    (tmp_path / "bald_1").mkdir()
    (tmp_path / "bald_1" / "queries").write_text("in the way")
    started = study(tmp_path, "--jobs", "2")
    until(lambda: lines(tmp_path, "evaluated"))
    workers = alive(started)
    os.kill(started.pid, signal.SIGTERM)
    assert started.ended(143).strip().endswith("Stopped: the same command continues.")
    assert all(map(gone, workers))
    out = study(tmp_path, "--jobs", "2").ended(1)
    assert "3 of 4 runs done" in out and str(tmp_path / "study" / "bald_1.log") in out.splitlines()[-1]
    assert "bald 1 failed: " in out and "move away what is there" in out
    left_out = [name for name in kept(whole[0]) if name.startswith("bald_1")]
    expected = {name: data for name, data in kept(whole[0]).items() if name not in left_out}
    assert {name: data for name, data in kept(tmp_path).items() if not name.startswith("bald_1")} == expected


def test_a_damaged_ledger_stops_nobody_and_is_named(whole, study, tmp_path):
    results = shutil.copytree(whole[0], tmp_path / "results")
    ledger = results / "random_1" / "ledger.jsonl"
    ledger.write_bytes(ledger.read_bytes().replace(b'"images": 2', b'"images": 3'))
    out = study(results).ended(1)
    assert "4 runs, 3 of them done." in out and "Two runs are needed" in out
    assert "random 1 failed" in out.splitlines()[-1] and "ledger.jsonl is damaged in line" in out.splitlines()[-1]


def test_other_settings_in_the_same_folder_are_refused_at_once(whole, study, tmp_path):
    before = kept(whole[0])
    out = study(whole[0], **{"trainer.lr": 0.1}).ended(1)
    assert "holds a run of another configuration (trainer.lr 0.004 -> 0.1)" in out and kept(whole[0]) == before


@pytest.fixture
def disk(tmp_path):
    """(folder that is a disk of its own, function that gives it other options, such as size=300k or ro)."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options):
        line = ["mount", "-t", "tmpfs", "-o", options, "none", folder]
        return subprocess.run(line, capture_output=True).returncode

    if mount("size=300k"):
        pytest.skip("no permission to mount a small disk")
    yield folder, lambda options: mount(f"remount,{options}")
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_stops_runs_that_the_same_command_finishes(whole, study, disk):
    """A line for each, no traceback; nothing of what was written before is lost or half."""
    folder, options = disk
    for size in ("300k", "700k"):
        options(f"size={size}")
        out = study(folder, "--jobs", "2").ended(1)
        assert "No space left on device" in out and "free the disk" in out and "Traceback" not in out
    options("size=100m")
    assert "4 of 4 runs done" in study(folder, "--jobs", "2").ended()
    assert_same(folder, whole)


def test_results_that_cannot_be_written_are_told_and_finished_ones_judged(whole, study, disk):
    folder, options = disk
    options("size=100m")
    study(folder, "--only", "0").ended()
    options("ro")
    before = kept(folder)
    out = study(folder, "--jobs", "2").ended(1)
    assert "Read-only file system" in out.splitlines()[-1] and "Traceback" not in out and kept(folder) == before
    options("rw")
    assert "4 of 4 runs done" in study(folder, "--jobs", "2").ended()
    assert_same(folder, whole)
    options("ro")
    assert "4 runs, 4 of them done." in (out := study(folder).ended()) and "bald: undecided" in out


def test_a_changed_dataset_is_told(whole, study, phantom_root, tmp_path):
    """Runs made from other images are told apart; one that would go on with them is refused, until they are back."""
    root = {"phantom.root": str(shutil.copytree(phantom_root, tmp_path / "data"))}
    results, asked = tmp_path / "results", {"heuristic": "random,first", "run": "0"}
    study(results, "--only", "0", cycles=0, **root, **asked).ended()
    images = sorted(path for path in (tmp_path / "data").rglob("train_*.bmp") if "anno" not in path.name)
    replaced = images[0].read_bytes()
    shutil.copyfile(images[1], images[0])
    out = study(results, cycles=0, **root, **asked).ended()
    assert "runs that are compared were not made from the same images and masks" in out
    out = study(results, cycles=1, **root, **asked).ended(1)
    assert "1 of 2 runs done" in out and "Traceback" not in out
    assert "random 0 failed: " in out.splitlines()[-1] and "images" in out.splitlines()[-1]
    images[0].write_bytes(replaced)
    assert "1 of 1 runs done" in study(results, "--only", "0", cycles=1, **root, **asked).ended()
    assert (results / "random_0.npy").read_bytes() == (whole[0] / "random_0.npy").read_bytes()


def test_changed_code_is_told(whole, study, tmp_path):
    """A study with a run that other code began goes on when that is said to be meant, to the same numbers if it is."""
    results, ledger = tmp_path / "results", "random_0/ledger.jsonl"
    shutil.copytree(whole[0], results)
    first, *_ = [json.loads(line) for line in (results / ledger).read_text().splitlines()]
    first["made"]["sources"] = "0" * len(first["made"]["sources"])
    for name in ("sha256", "masks"):
        first.pop(name, None)
    (results / ledger).write_text(json.dumps(first) + "\n")  # begun by other code, and stopped
    for name in ("sacred", "checkpoint"):
        shutil.rmtree(results / "random_0" / name)
    [said] = study(results).ended(1).splitlines()
    assert "sources 00000000 -> " in said and "resume=anyway" in said
    assert "4 of 4 runs done" in study(results, resume="anyway").ended()
    assert (results / "random_0.npy").read_bytes() == (whole[0] / "random_0.npy").read_bytes()


def test_a_loss_of_no_number_stops_its_run_alone(study, tmp_path):
    out = study(tmp_path, heuristic="random", run="0", cycles=0, **{"trainer.lr": "0.004,1e30"}).ended(1)
    assert "1 of 2 runs done" in out and (tmp_path / "trainer.lr=0.004" / "random_0.npy").exists()
    said = out.splitlines()[-1]
    assert "failed: " in said and "trainer.lr" in said and "Traceback" not in out
    log = Path(said.rpartition(" - ")[2])
    assert log.name == "random_0.log" and "trainer.lr" in log.read_text()


# whatever reads the time of day gets another day's each time
JUMPING = """if True:
    import datetime, itertools, time
    real, now, jumps = time.time, datetime.datetime, itertools.cycle([0, 86400, -86400, 3600, -7200, 10**9])
    time.time = lambda: real() + next(jumps)
    class Jumping(now):
        @classmethod
        def now(cls, tz=None):
            return now.now(tz) + datetime.timedelta(seconds=next(jumps))
        @classmethod
        def utcnow(cls):
            return now.utcnow() + datetime.timedelta(seconds=next(jumps))
    datetime.datetime = Jumping
"""


def test_a_clock_that_jumps_changes_nothing(whole, study, tmp_path):
    started = study(tmp_path, "--jobs", "2", before=JUMPING)
    until(lambda: lines(tmp_path, "evaluated", 2))
    killed(started, "all")
    assert "4 of 4 runs done" in study(tmp_path, "--jobs", "2", before=JUMPING).ended()
    assert_same(tmp_path, whole)
    assert "4 runs, 4 of them done." in study(tmp_path).ended()  # what has happened tomorrow, has happened


def test_a_study_is_judged_by_its_own_runs(grid, whole, tmp_path):
    """Not by those of another comparison, which lies in a folder below."""
    from experiments.study import ending

    results = shutil.copytree(whole[0], tmp_path / "results")
    shutil.copytree(whole[0], results / "trainer.lr=0.1")
    cells = [grid.Cell((), results, h, r, 1) for h in ("random", "bald") for r in (0, 1)]
    [(what, table)] = ending.judged(cells, {})
    assert what == f"phantom ({results})" and set(table["label"]) == {"random", "bald"}
    other = [replace(cell, results=results / "trainer.lr=0.1") for cell in cells]
    assert [what for what, _ in ending.judged(other, {})] == [f"phantom, trainer.lr=0.1 ({results}/trainer.lr=0.1)"]
    none = replace(cells[0], results=results / "none")  # what cannot be judged says so, beside what can
    said = "\n".join(ending.lines([*other[:1], none, *cells], {}))
    assert "trainer.lr=0.1): Two runs are needed" in said and "none is not a folder" in said
    assert "bald: undecided" in said and ending.undecided([none], {}) == []


def test_a_verdict_in_words(experiment):
    from experiments.study.ending import sentence

    row = {"verdict": "better", "difference": 0.02, "low": 0.01, "high": 0.03, "runs": 5, "more_runs": 0, "note": ""}
    said = sentence(SimpleNamespace(**row, saved_text="4.0 images saved (3.0 to 5.0)"))
    assert said == "better, +0.020 (+0.010 to +0.030) over 5 paired runs; 4.0 images saved (3.0 to 5.0)"
    row |= {"verdict": "undecided", "more_runs": 14}
    assert sentence(SimpleNamespace(**row, saved_text="")).endswith("over 5 paired runs, 14 more runs")


def test_neither_a_database_nor_jobs_nor_what_runs_share_changes_a_number(whole, study, tmp_path, mongo):
    """The same files one run after another, each with a first cycle of its own and a database, as two at once."""
    import pymongo

    url = f"mongodb://127.0.0.1:{mongo}/study"
    assert "4 of 4 runs done" in study(tmp_path, "--jobs", "1", "--apart", "--mongo", url).ended()
    assert kept(tmp_path) == kept(whole[0])
    first = [json.loads(path.read_text().splitlines()[0]) for path in tmp_path.glob("*/timing.jsonl")]
    assert len(first) == 4 and all(cycle["train"] > 0 for cycle in first)
    with pymongo.MongoClient(url) as client:
        assert [run["status"] for run in client["study"].runs.find()] == ["COMPLETED"] * 4
    assert url not in "".join(path.read_text() for path in (tmp_path / "study").glob("*.yaml"))


def killed(started, who):
    """Whether SIGKILL met the driver of a study, its workers or all of them; what it left is ended by SIGTERM then."""
    met = not gone(started.pid) and (bool(strike(started, who)) or who != "workers")
    time.sleep(0.3 * (who == "workers"))  # in which the driver begins their runs again
    with suppress(ProcessLookupError):
        os.kill(started.pid, signal.SIGTERM)
    started.starter(started.pid, None)
    return met


def assert_same(results, whole):
    """Every file of the runs as undisturbed ones leave it; no label lost or asked for twice."""
    assert kept(results) == kept(whole[0])
    for path in Path(results).glob("*/ledger.jsonl"):
        found = [json.loads(line) for line in path.read_text().splitlines()]
        asked = [query["id"] for event in found for query in event.get("queries", [])]
        labelled = [event["images"] for event in found if event["event"] == "evaluated"]
        assert len(asked) == len(set(asked)) == labelled[-1]


@pytest.mark.skipif(not LONG, reason="ASKMASK_KILLS=50 takes long")
@pytest.mark.parametrize("who", ["driver", "workers", "all"])
def test_killed_at_each_named_point(whole, study, tmp_path, who):
    met = []
    for reached in POINTS.values():
        started = study(tmp_path, "--jobs", "2")
        until(lambda reached=reached, started=started: reached(tmp_path) or gone(started.pid))
        met.append(killed(started, who))
    print(dict(zip(POINTS, met, strict=True)))
    assert sum(met) >= len(POINTS) - 2  # before the first claim there is no worker to kill
    study(tmp_path, "--jobs", "2").ended()
    assert_same(tmp_path, whole)


@pytest.mark.skipif(not LONG, reason="ASKMASK_KILLS=50 takes long")
def test_killed_at_random_times(whole, study, tmp_path):
    """ASKMASK_KILLS times, each in a study that is not done, of as many studies as that takes."""
    draw, kills, number, [asked] = random.SystemRandom(), 0, 0, (whole[0] / "study").glob("*.yaml")
    longest = (whole[0] / "report.html").stat().st_mtime - asked.stat().st_mtime
    while kills < KILLS:
        results, number = tmp_path / str(number), number + 1
        while kills < KILLS and not (results / "report.html").exists():
            started, who = study(results, "--jobs", "2"), draw.choice(["driver", "workers", "all"])
            time.sleep(longest * draw.random() ** 2)
            met = killed(started, who)
            kills += met
            print(f"study {number}: {who}{'' if met else ', too late'}")
        study(results, "--jobs", "2").ended()
        assert_same(results, whole)
        shutil.rmtree(results)


def test_a_dry_run_says_what_it_will_cost(study, tmp_path):
    out = study(tmp_path, "--jobs", "2", "--dry-run").ended()
    assert "4 runs, 0 of them done." in out and "the first cycle of bald 0 took training" in out
    assert re.search(r"About \d+ s with 2 at once", out) and not list(tmp_path.iterdir())


def test_commands_and_only(whole, study, tmp_path):
    """The lines are those of the runs, and `--only K` does the K-th of them."""
    printed = study(tmp_path, "--commands").ended().splitlines()
    assert [line.partition(" with ")[0] for line in printed] == ["python active.py"] * 4
    assert "heuristic=bald" in printed[2] and "run=0" in printed[2]
    assert "1 of 1 runs done" in study(tmp_path, "--only", "2").ended()
    assert "1 runs, 1 of them done." in study(tmp_path, "--only", "2").ended()
    expected = {name: data for name, data in kept(whole[0]).items() if name.startswith("bald_0")}
    assert kept(tmp_path) == expected
    assert "there are 4 runs" in study(tmp_path, "--only", "4").ended(1)


def test_the_slurm_template_stops_in_time_and_queues_again(study, tmp_path):
    """Run by bash as Slurm would; `scontrol` is a note of how it was called, for there is no cluster here."""
    (tmp_path / "bin").mkdir()
    for name, text in {"scontrol": f'echo "$@" >> {tmp_path}/asked', "python": f'exec {sys.executable} "$@"'}.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    words = f"smoke dataset=phantom heuristic=random cycles=300 runs_dir= --results {tmp_path}/results"
    own = {"STUDY": words, "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "0"}
    path = {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    template = ["bash", str(ROOT / "experiments" / "study" / "study.sbatch")]
    with subprocess.Popen(template, cwd=ROOT, env=os.environ | own | path, stderr=subprocess.PIPE) as task:
        until(lambda: lines(tmp_path / "results", "start"))
        task.send_signal(signal.SIGUSR1)
        _, errors = task.communicate(timeout=60)
    assert task.returncode == 0 and b"the same command continues" in errors
    assert (tmp_path / "asked").read_text() == "requeue 7_0\n"


def test_runs_are_added_until_it_is_decided(study, tmp_path):
    """Two of each, then one more of both at each look; again, there is nothing to do."""
    asked = ("--until", "decided", "--most", "4", "--jobs", "2")
    out = study(tmp_path, *asked, cycles=0, heuristic="random,first").ended()
    counts = [int(n) for n in re.findall(r"(\d+) runs, \d+ of them done", out)]
    assert counts == [4, 6, 8] and "first: undecided, +0.000" in out and "over 4 paired runs" in out
    assert "p values of single tests" in (tmp_path / "report.html").read_text()
    assert "Importing" not in study(tmp_path, *asked, cycles=0, heuristic="random,first").ended()


def test_the_table_shows_where_a_study_is(whole):
    rich = pytest.importorskip("rich.console")
    from experiments.study import grid, table, workers

    results, _ = whole
    cells = [grid.Cell((), results, h, r, 1) for h in ("random", "bald") for r in (0, 1, 2)]
    progress = workers.Progress(cells, done={cell.folder for cell in cells if cell.run < 2})
    progress.failed[cells[2].folder] = (cells[2], "it diverged", "log")
    console = rich.Console(width=100, record=True, file=io.StringIO())
    console.print(table.table(progress, table.Clock(cells, progress.done)))
    shown = console.export_text()
    assert "4 of 6 runs done, 1 failed" in shown and re.search(r"random\s.*2/3\s.*1\s", shown)


def test_a_terminal_is_drawn_on_and_left_clean(study_on_terminal):
    """The real command on a pseudo-terminal."""
    assert "runs done" in study_on_terminal and "\x1b[" in study_on_terminal


def test_values(grid):
    assert grid.values_of("run", "0-2,7") == [0, 1, 2, 7]
    assert grid.values_of("heuristic", "random,bald") == ["random", "bald"]
    assert grid.values_of("trainer.lr", "0.1,1e-3") == [0.1, 0.001]
    assert grid.values_of("trainer.loss", "ce,dice") == ["ce", "dice"]
    assert grid.values_of("bald.reduction", "mean,max") == ["mean", "max"]
    assert grid.values_of("folder.values", "0:background,1-255:gland") == ["0:background,1-255:gland"]
    assert grid.values_of("noted", "['bald']") == [["bald"]] and grid.values_of("noted", ["bald"]) == [["bald"]]
    with pytest.raises(Refused, match="no value"):
        grid.values_of("run", "3-1")


def test_a_file_says_the_same_as_words(grid, tmp_path):
    file = tmp_path / "study.yaml"
    file.write_text("with: smoke\nheuristic: random,bald\nrun: 0-1\ntrainer: {lr: [0.1, 0.01]}\n")
    words = grid.read(["smoke", "heuristic=random,bald", "run=0-1", "trainer.lr=0.1,0.01"])
    assert grid.written(grid.read([str(file)])) == grid.written(words)
    assert grid.digest(words) != grid.digest(words | {"run": [0]})


def test_cells_have_own_folders_only_where_they_clash(grid, phantom_root):
    base = ["smoke", "dataset=phantom", f"phantom.root={phantom_root}", "run=0-1"]
    cells = grid.cells(grid.read([*base, "heuristic=random,bald", "bald.reduction=mean,max"]), "r")
    names = {"random", "bald,bald.reduction=mean", "bald,bald.reduction=max"}
    assert {str(cell.folder) for cell in cells} == {f"r/{name}_{run}" for name in names for run in (0, 1)}
    assert ["bald" in cell.usual for cell in cells] == [False] * 2 + [True] * 4
    cells = grid.cells(grid.read([*base, "heuristic=random,bald", "trainer.lr=0.1,0.01"]), "r")
    assert {str(cell.results) for cell in cells} == {"r/trainer.lr=0.1", "r/trainer.lr=0.01"} and len(cells) == 8
    assert cells[0].settings["trainer"]["lr"] == 0.1 and [c.settings["seed"] for c in cells[:2]] == [0, 1]
    with pytest.raises(Refused, match="start=500 is more than"):
        grid.cells(grid.read([*base, "heuristic=random", "start=500"]), "r")


def test_each_group_of_a_file_is_a_grid_of_its_own(grid, phantom_root, tmp_path):
    file = tmp_path / "study.json"
    each = [{"heuristic": "random"}, {"heuristic": "bald", "batch": "top,stochastic"}]
    file.write_text(
        json.dumps({"with": "smoke", "phantom.root": str(phantom_root), "dataset": "phantom", "each": each})
    )
    cells = grid.cells(grid.read([str(file)]), "r")
    assert [cell.label for cell in cells] == ["random", "bald,batch=top", "bald,batch=stochastic"]
    file.write_text(json.dumps({"each": [{"heuristic": "random", "run": 3}]}))
    with pytest.raises(Refused, match="run is the same for all"):
        grid.read([str(file)])
