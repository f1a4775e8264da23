"""A run that was killed and goes on leaves every file as an undisturbed one, byte for byte.

A handful of kills of one model, one of each other; ASKMASK_KILLS=20 makes as many at random moments, about 2 min.
"""

import json
import os
import random
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT, SMALL, answer, asked, events, lab_settings, settings
from PIL import Image

from experiments.components import names

KILLS = int(os.environ.get("ASKMASK_KILLS", 2))
WITHOUT = {"lite": {"lite.weights": "none"}}  # what need not be installed
TIMES = {"timing.jsonl", "lock"}  # seconds never repeat; nothing is in the lock

# imports everything once; for each line of its input a forked process runs, or dies by SIGKILL after its first event or
# before one of its operations on the disk or of its steps, forward or in training; the answer is its exit code, how
# many of either it made, and what it was refused with
FORKS = """if True:
    import json, os, signal, sys, warnings
    warnings.simplefilter("ignore")
    sys.path.append(os.path.join(os.getcwd(), "tests"))
    import schemas, baal.active, monai.losses, torch, active, analysis.plots, analysis.runs
    from experiments.acquisition import pictures
    from experiments.components import FOLDERS, load, names
    from experiments.network import dropout, inference
    from experiments.errors import Refused
    from experiments.records.ledger import Ledger
    from experiments.records.progress import Progress

    modules = [load(entry, name) for entry in FOLDERS for name in names(entry) if name[:3] != "zz_"]

    def counted(function, kind):
        def call(*args, **more):
            made[kind] += 1
            if kill == [kind, made[kind]]:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **more)
        return call

    def appended(book, *args, **values):
        event = append(book, *args, **values)
        if kill == "event":
            os.kill(os.getpid(), signal.SIGKILL)
        return event

    append, advance = Ledger.append, Progress.advance
    for line in sys.stdin:
        updates, kill = json.loads(line)
        read, write = os.pipe()
        if os.fork() == 0:
            made, Ledger.append, Progress.advance = {"disk": 0, "step": 0}, appended, counted(advance, "step")
            os.fsync, os.replace, os.unlink = (counted(f, "disk") for f in (os.fsync, os.replace, os.unlink))
            sys.stdout = sys.stderr
            try:
                active.ex.run(config_updates=updates, named_configs=["smoke"])
            except Refused as refused:
                made["refused"] = str(refused)
            os.write(write, json.dumps(made).encode())
            os._exit(0)
        os.close(write)
        done = os.read(read, 9999).decode()
        os.close(read)
        print(json.dumps([os.waitstatus_to_exitcode(os.wait()[1]), json.loads(done or "{}")]), flush=True)
"""


@pytest.fixture(scope="module")
def run(phantom_root):
    """run(results, kill=None, **settings) -> (exit code, {"disk": operations, "step": steps}) of one run, a process.

    `lab` is the folder of one whose masks people draw.
    """
    line = [sys.executable, "-W", "ignore", "-c", FORKS]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(line, cwd=ROOT, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, **pipes) as process:

        def run(results, kill=None, lab=None, **updates):
            updates = {"cycles": 2} | updates
            asks = lab_settings(lab, results, **updates) if lab else settings(phantom_root, results, **updates)
            process.stdin.write(json.dumps([asks, kill]) + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
            assert answer, process.communicate()[1]
            return json.loads(answer)

        yield run
        process.stdin.close()
        process.stderr.read()


@pytest.fixture(scope="module")
def whole(run, tmp_path_factory):
    """(results folder, operations on the disk) of an undisturbed run."""
    results = tmp_path_factory.mktemp("whole")
    code, made = run(results)
    assert code == 0 and made["disk"] > 50
    return results, made["disk"]


def files(results):
    """{path: bytes} of all that a run leaves but TIMES and Sacred's records, one for each start."""
    paths = [path for path in results.rglob("*") if path.is_file() and path.parent.name != "sacred"]
    return {str(path.relative_to(results)): path.read_bytes() for path in paths if path.name not in TIMES}


def assert_same(results, expected):
    found, expected = files(results), files(expected)
    assert found.keys() == expected.keys()
    assert [name for name in expected if found[name] != expected[name]] == []


def test_killed_after_each_event(run, whole, tmp_path):
    codes = [run(tmp_path, "event")[0] for _ in range(6)]
    assert codes == [-9] * 6
    assert run(tmp_path)[0] == 0
    assert_same(tmp_path, whole[0])
    assert len([name for name in files(tmp_path) if name.endswith(".png")]) == 5  # queries, their answers, the curve


@pytest.mark.parametrize("number", range(KILLS))
def test_killed_before_any_operation_on_the_disk(run, whole, tmp_path, number):
    when = random.SystemRandom().randint(1, whole[1])
    print(f"killed before operation {when} of {whole[1]}")
    assert run(tmp_path, ["disk", when])[0] == -9
    assert run(tmp_path)[0] == 0
    assert_same(tmp_path, whole[0])


@pytest.mark.parametrize("model", names("model"))
def test_killed_in_the_middle_of_a_step(run, tmp_path, model):
    """Every model, while it trains, scores or is tested; its last weights are among the files that are compared."""
    asked = {"model": model, "cycles": 1} | SMALL.get(model, {}) | WITHOUT.get(model, {})
    code, made = run(tmp_path / "whole", **asked)
    if "pip install" in made.get("refused", ""):
        pytest.skip(made["refused"])
    assert code == 0 and "refused" not in made and made["step"] > 10
    when = random.SystemRandom().randint(2, made["step"])
    print(f"killed before step {when} of {made['step']}")
    assert run(tmp_path / "killed", ["step", when], **asked)[0] == -9
    assert run(tmp_path / "killed", **asked)[0] == 0
    assert_same(tmp_path / "killed", tmp_path / "whole")
    assert [name for name in files(tmp_path / "whole") if name.endswith(".safetensors")]


def until_it_ends(run, *where, kill="event", **asks):
    """(what a run is refused with at last, "" where it is finished; how often it was killed, after its every event)."""
    killed = 0
    while True:
        code, made = run(*where, kill, **asks)
        if code == 0:
            return made.get("refused", ""), killed
        assert code == -9
        killed += 1


def test_a_loop_without_ground_truth_killed_between_any_two_steps_is_the_oracle_s(run, lab_root, truth, tmp_path):
    """Three rounds with an audit and repeats, two bad masks in the first: all but who drew is the same, bit for bit.

    Killed while masks are kept, and between the steps of the third round, where there is every kind; of all rounds
    with ASKMASK_KILLS=20.
    """
    asks, results, killed = {"lab": lab_root, "cycles": 3, "audit": 0.5, "repeat": 0.5}, tmp_path / "people", 0
    for number, count in enumerate((2, 3, 3)):
        said, times = until_it_ends(run, results, kill="event" if number == 2 or KILLS > 2 else None, **asks)
        assert said.startswith(f"{count} of {count} masks are awaited")
        place, names = asked(results, f"cycle_00{number}")
        if not number:
            Image.new("L", (9, 9), 1).save(place / "labels" / f"{names[0]}.png")
            with Image.open(truth / "truth" / f"{names[1]}.png") as mask:
                Image.new("L", mask.size, 77).save(place / "labels" / f"{names[1]}.png")
            assert until_it_ends(run, results, **asks) == (said, 0)
        answer(truth, place, names)
        when = random.SystemRandom().randint(1, 6)
        print(f"killed before operation {when} on the disk in round {number}")
        assert run(results, ["disk", when], **asks)[0] == -9
        killed += times
    assert until_it_ends(run, results, kill=None, **asks) == ("", 0) and killed >= 3
    found = events(results, "entropy")
    kinds = {
        event: sum(e["event"] == event for e in found) for event in ("answered", "audited", "repeated", "evaluated")
    }
    assert kinds == {"answered": 3, "audited": 3, "repeated": 2, "evaluated": 4}
    given = {"initial": "given", "given.ids": [query["id"] for query in found[0]["queries"]], "start": 2}
    shutil.copytree(truth / "truth", lab_root / "truth")
    known = {"folder.masks": "truth", "folder.unlabelled": False}
    assert run(tmp_path / "oracle", **asks, **given, **known)[0] == 0
    oracle = events(tmp_path / "oracle", "entropy")

    def alike(events):
        kept = [event for event in events[1:] if event["event"] != "answered"]
        return [{**event, "by": ["" for _ in event["by"]]} if "by" in event else event for event in kept]

    assert alike(found) == alike(oracle)
