"""Signals, closed pipes and refusals of the operating system, as a command meets them."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
import weakref
from contextlib import contextmanager
from pathlib import Path
from tempfile import gettempdir

import pytest
from conftest import ROOT, command, ledger_bytes, settings
from PIL import Image

from experiments.errors import Refused, Terminated, process
from experiments.errors.process import refusal, signals_noted, stop_asked, stop_if_asked
from experiments.records.files import append_line, write


def wait_for(condition, process=None, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline and (process is None or process.poll() is None)
        time.sleep(0.02)


def python(code, *more, **options):
    """A process that runs this code from the root."""
    return subprocess.Popen([sys.executable, "-W", "ignore", "-c", code, *map(str, more)], cwd=ROOT, **options)


class Released:
    pass


@pytest.mark.parametrize(
    "number, error", [("SIGINT", KeyboardInterrupt), ("SIGTERM", Terminated), ("SIGHUP", Terminated)]
)
def test_a_signal_in_a_callback_is_not_lost(number, error):
    """An exception raised in its handler would be: Python ignores those of a weak reference's callback."""
    number, before = getattr(signal, number), {each: signal.getsignal(each) for each in process.SIGNALS}
    with signals_noted(lambda number: None):
        released = Released()
        kept = weakref.ref(released, lambda reference: os.kill(os.getpid(), number))
        stop_if_asked()
        del released
        assert kept() is None
        wait_for(stop_asked)
        for _ in range(2):
            with pytest.raises(error):
                stop_if_asked()
            os.kill(os.getpid(), signal.SIGTERM)  # a second one changes nothing
    stop_if_asked()
    os.kill(os.getpid(), signal.SIGTERM)  # nor does one while the process ends
    for each, handler in before.items():
        signal.signal(each, handler)


def test_ignored_signals_stay_ignored():
    """As nohup asks for."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals_noted(lambda number: None):
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(0.1)
            assert not stop_asked() and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL  # a command that was not asked leaves no trace
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_step_that_does_not_end_is_ended():
    code = """if True:
        import hashlib, os
        from experiments.errors import process
        process.GRACE = 0.2
        with process.signals_noted(lambda number: os._exit(number)):
            print("working", flush=True)
            hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # half an hour without a look at signals"""
    process = python(code, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"working\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == signal.SIGTERM
    process.communicate()


@pytest.mark.parametrize("closed", ["pipe", "full disk"])
def test_output_that_cannot_be_written_is_dropped(closed):
    code = """if True:
        import sys
        from experiments.errors.process import drop_unwritable_output
        drop_unwritable_output()
        for number in range(20_000):
            print(number, flush=number % 2)
            print(number, file=sys.stderr)
        open(sys.argv[1], "w").write("end")"""
    with open("/dev/full", "w") as full:
        target = full if closed == "full disk" else subprocess.PIPE
        note = Path(f"/tmp/{os.getpid()}_{closed[:4]}")
        process = python(code, note, stdout=target, stderr=target)
        if closed == "pipe":
            assert process.stdout.readline() == b"0\n"
            process.stdout.close(), process.stderr.close()
        assert process.wait(60) == 0
    assert note.read_text() == "end"
    note.unlink()


@contextmanager
def small_disk(folder):
    """A disk of its own at this folder, which takes one file system page and two names."""
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k,nr_inodes=2", "none", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("no permission to mount a small disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def ways_to_be_refused(tmp_path):
    """{name: (what is tried, what is said)}"""
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "loop").symlink_to("loop")
    name = "x" * 300
    return {
        "a file in the way": (lambda: (tmp_path / "file" / "sub").mkdir(), "Not a directory): move away"),
        "a folder in the way": (lambda: open(tmp_path, "w"), "Is a directory): move away"),
        "/proc": (lambda: os.makedirs("/proc/results"), "/proc/results cannot be used (No such file or directory): "),
        "a long name": (lambda: os.mkdir(tmp_path / name), f"{name} cannot be used (File name too long): shorten"),
        "a circle": (lambda: open(tmp_path / "loop" / "x"), "loop/x cannot be used (Too many levels"),
        "written whole": (lambda: write(tmp_path / name, b""), f"{name} cannot be written (File name too long): short"),
        "appended": (lambda: append_line(tmp_path / "file" / "x", ""), "file/x cannot be written (Not a directory): "),
        "a full device": (
            lambda: append_line("/dev/full", ""),
            "/dev/full cannot be written (No space left on device)",
        ),
    }


@pytest.mark.parametrize("way", [
    "a file in the way", "a folder in the way", "/proc", "a long name", "a circle", "written whole", "appended",
    "a full device",
])  # fmt: skip
def test_what_the_system_refuses_is_one_line_with_advice(tmp_path, way):
    attempt, said = ways_to_be_refused(tmp_path)[way]
    with pytest.raises((OSError, Refused)) as error:
        attempt()
    told = refusal(error.value)
    assert said in str(told) and "\n" not in str(told) and told.code == 1


def test_limits_are_told_with_what_lifts_them():
    files = [
        OSError(errno.EMFILE, os.strerror(errno.EMFILE), "x.png"),
        OSError(errno.ENOSPC, "No space left on device"),
    ]
    assert [str(refusal(error)) for error in files] == [
        "x.png cannot be used (Too many open files): raise the limit of open files, `ulimit -n 4096`.",
        f"A file in the results folder or in {gettempdir()} cannot be used (No space left on device): free the disk.",
    ]
    assert "Memory ran out" in str(refusal(MemoryError()))
    assert refusal(KeyError("a fault")) is None and refusal(RuntimeError("another")) is None


def test_a_limit_of_open_files_is_not_the_images_fault(tmp_path):
    """In a process of its own, which has no file left to open."""
    code = """if True:
        import resource, sys
        from PIL import PngImagePlugin
        from experiments.errors import process
        from experiments.store.reading import decode
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
        try:
            decode(sys.argv[1], "PNG", "RGB")
        except OSError as error:
            print(process.refusal(error))"""
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
    out, _ = python(code, tmp_path / "a.png", stdout=subprocess.PIPE, text=True).communicate()
    said = "cannot be used (Too many open files): raise the limit of open files, `ulimit -n 4096`."
    assert out == f"{tmp_path / 'a.png'} {said}\n"


def records(results):
    return [json.loads(path.read_bytes()) for path in sorted(Path(results).rglob("sacred/*.json"))]


def run_files(runs):
    return [json.loads(path.read_bytes()) for path in sorted(Path(runs).glob("*/run.json"))]


def test_hangup_then_terminate_leaves_a_whole_record(phantom_root, tmp_path):
    """A real run: its terminal goes, then the machine shuts down while it is stopping."""
    line = settings(phantom_root, tmp_path / "results", cycles=2, runs_dir=str(tmp_path / "runs"))
    process = command("smoke", cwd=tmp_path, **line)
    ledger = tmp_path / "results/bald_0/ledger.jsonl"
    wait_for(lambda: ledger.exists() and ledger.read_bytes().count(b"\n"), process)
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGHUP)
    time.sleep(0.1)
    process.terminate()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 143 and "Traceback" not in out + err and "the same command continues" in err
    assert [record["status"] for record in records(tmp_path / "results")] == ["INTERRUPTED"]
    assert [run["status"] for run in run_files(tmp_path / "runs")] == ["INTERRUPTED"]
    assert not [*tmp_path.rglob("*.lock"), *(tmp_path / "runs").glob("*/lock"), *tmp_path.rglob("*.part")]


def test_a_closed_pipe_and_a_late_signal_do_not_change_how_a_run_ends(phantom_root, tmp_path, undisturbed):
    """`python active.py ... | head -1` with a database that never answers; SIGTERM while the run waits for it."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"mongodb://127.0.0.1:{silent.getsockname()[1]}/x"
        line = settings(phantom_root, tmp_path / "results", mongo_url=url, runs_dir=str(tmp_path / "runs"))
        process = command("smoke", cwd=tmp_path, **line)
        assert process.stdout.readline()
        process.stdout.close()
        wait_for(lambda: [r["status"] for r in records(tmp_path / "results")] == ["COMPLETED"], process)
        process.terminate()
        began = time.monotonic()
        assert process.wait(60) == 0 and time.monotonic() - began < 20  # 2 s on a machine with nothing else to do
        process.stderr.close()
    assert [record["status"] for record in records(tmp_path / "results")] == ["COMPLETED"]
    assert [run["status"] for run in run_files(tmp_path / "runs")] == ["COMPLETED"]
    assert ledger_bytes(tmp_path / "results") == ledger_bytes(undisturbed)


@pytest.mark.parametrize("place", ["file/sub", "/proc/results", "x" * 300, "full/results"])
def test_a_place_that_takes_no_results_is_one_line(experiment, phantom_root, tmp_path, capfd, place):
    (tmp_path / "file").write_text("in the way")
    words = [f"{k}={v}" for k, v in settings(phantom_root, tmp_path / place, cycles=0).items()]
    capfd.readouterr()
    with small_disk(tmp_path / "full") if place.startswith("full") else pytest.MonkeyPatch.context():
        if place.startswith("full"):
            (tmp_path / "full" / "taken").write_text("")
        with pytest.raises(SystemExit) as ended:
            experiment.run_commandline(["active.py", "with", "smoke", *words])
    err = capfd.readouterr().err.splitlines()
    assert ended.value.code == 1 and len(err) == 1 and str(tmp_path / place)[:200] in err[0], err
    assert process.ADVICE and any(advice in err[0] for advice in process.ADVICE), err


def test_runs_dir_that_takes_nothing_ends_no_run(smoke, tmp_path, capfd):
    (tmp_path / "file").write_text("in the way")
    capfd.readouterr()
    run = smoke(cycles=0, runs_dir=str(tmp_path / "file" / "runs"))
    out, err = capfd.readouterr()
    lines = [line for line in (out + err).splitlines() if line.startswith("runs_dir=")]
    assert run.status == "COMPLETED" and len(lines) == 1 and "Traceback" not in out + err
    assert "(Not a directory): move away what is there" in lines[0] and "run goes on" in lines[0]
