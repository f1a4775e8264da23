"""One run trained by two processes of torchrun, over gloo on this machine."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import exact
import pytest
import torch
from conftest import ROOT, SMALL, events, free_port, ledger_bytes, settings

from experiments.components import configure
from experiments.errors import Refused, Terminated
from experiments.network import processes, ready
from experiments.training import ranks, recompute
from experiments.training.losses import crop_losses
from experiments.training.trainer import errors_explained

pytestmark = pytest.mark.usefixtures("single_thread")
CE = {"trainer.loss": "ce"}  # which spares each process MONAI's import
PLAIN = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONWARNINGS")}
PLAIN |= {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}


@contextmanager
def joined():
    """Here is rank 0 of two; gives the process that is rank 1."""
    env = {"TORCHELASTIC_RUN_ID": "test", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GLOO_SOCKET_IFNAME": "lo"}
    env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    more = {"RANK": "1", "LOCAL_RANK": "1", "PYTHONPATH": str(ROOT / "tests")}
    line, pipe = [sys.executable, ROOT / "active.py"], subprocess.PIPE
    other = subprocess.Popen(line, env=PLAIN | env | more, stderr=pipe, text=True)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (env | {"RANK": "0", "LOCAL_RANK": "0"}).items():
            patch.setenv(name, value)
        patch.setitem(processes._state, "count", 2)
        try:
            yield other
        finally:
            if torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()
            other.kill()
            other.communicate()


@pytest.fixture(scope="module")
def rank_1():
    with joined() as other:
        yield other
        if torch.distributed.is_initialized():
            processes.send(None)
            assert other.wait(60) == 0


def made(name, double=True):
    """A small model as a run has it, the same every time; both ranks can build it."""
    configure(exact, {"exact": {"name": name, "double": double}})
    return ready.build(exact, 3, 2, (0, "drawn"), torch.device("cpu"))[0]


def gradients(model, x, masks, keys, forward=None, split=False):
    """[float64 gradients, then buffers] of one step of `model`, split over both ranks or not."""
    forward, how = forward or model, ("ce", "float32")
    ready.train(model)
    if split:
        with ranks.Split(model, forward, *how).step(x, masks, keys) as (x, masks, model.dropout_keys.now, share):
            (crop_losses(forward, x, masks, *how).mean() * share).backward()
    else:
        model.dropout_keys.now = keys
        crop_losses(forward, x, masks, *how).mean().backward()
    return [p.grad.double() for p in model.parameters() if p.requires_grad], [b.double() for b in model.buffers()]


def worst(found, expected):
    return max((a - b).abs().max().item() for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("name", ("lite", "modunet", "unet"))
def test_gradients_and_statistics_are_those_of_one_process(rank_1, name):
    """Three crops on two ranks. In float64 to rounding; in float32 torch's own batch norm is further from that."""
    x, keys = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(1)), torch.arange(3) * 2**40
    masks = torch.randint(2, (3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    masks[0, :9] = 255
    step = x.double(), masks, keys
    truth, buffers = gradients(made(name), *step)
    for again in (False, True):
        model = made(name)
        forward = recompute.Recomputing(model) if again else model
        found, seen = gradients(model, *step, forward, split=True)
        assert worst(found, truth) < 1e-11 and worst(seen, buffers) < 1e-12
        assert not any("forward" in vars(module) for module in model.modules())
    alone, split = (gradients(made(name, double=False), x, masks, keys, split=two)[0] for two in (False, True))
    assert worst(split, truth) < max(1e-5, 2 * worst(alone, truth))
    assert worst(truth, [torch.zeros(())] * len(truth)) > 0.01


def run(experiment, root, results, **more):
    experiment.run(config_updates=settings(root, results, **CE, **more), named_configs=["smoke"])


def queried(results):
    return [[query["id"] for query in event["queries"]] for event in events(results) if "queries" in event]


def files(results):
    left = ("timing.jsonl", "lock")
    paths = [p for p in results.rglob("*") if p.is_file() and p.name not in left and "sacred" not in p.parts]
    return {str(p.relative_to(results)): p.read_bytes() for p in paths}


@pytest.fixture(scope="module")
def two(rank_1, phantom_root, tmp_path_factory, experiment):
    """The results folder of an undisturbed run of both ranks."""
    results = tmp_path_factory.mktemp("two")
    run(experiment, phantom_root, results)
    return results


def test_both_ranks_are_one_run(two, phantom_root, experiment, monkeypatch, tmp_path):
    """The picks of one process; the ledger has their number, and one process does not go on with it."""
    monkeypatch.setitem(processes._state, "count", 1)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    alone = tmp_path / "alone"
    run(experiment, phantom_root, alone)
    assert queried(two) == queried(alone) != []
    assert events(two)[0]["made"] == events(alone)[0]["made"] | {"ranks": 2}
    assert files(two).keys() == files(alone).keys()
    losses = [[e["metrics"]["val.loss"] for e in events(r) if "metrics" in e] for r in (two, alone)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-3)
    shutil.copytree(two, tmp_path / "two")
    with pytest.raises(Refused, match=r"other versions, sources or devices \(ranks 2 -> "):
        run(experiment, phantom_root, tmp_path / "two", cycles=2)


def test_members_and_blocks_computed_again(rank_1, phantom_root, tmp_path, experiment):
    """Of a model that normalises, grows its images and has a rate of its own for its encoder."""
    more = SMALL["lite"] | {"model": "lite", "cycles": 0, "members": 2, "evaluation.passes": 2}
    run(experiment, phantom_root, tmp_path, **more, **{"trainer.gradient_checkpointing": True, "trainer.batch": 3})
    assert [event["event"] for event in events(tmp_path)] == ["start", "evaluated"]


@pytest.mark.parametrize(
    "asked",
    (
        {"trainer.compiled": True},
        {"heuristic": "learning_loss"},
        {"model": "frozen", **SMALL["frozen"]},
        {"device": "cuda:1"},
    ),
    ids=lambda asked: "".join(asked),
)
def test_what_one_process_must_do_is_refused(rank_1, experiment, phantom_root, tmp_path, asked):
    with pytest.raises(Refused, match="takes one process: leave out torchrun"):
        run(experiment, phantom_root, tmp_path, **asked)
    assert not any(tmp_path.iterdir())


class Own(torch.nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x).relu()


def test_a_batch_norm_that_does_more_is_refused(rank_1):
    step = torch.rand(2, 3, 8, 8), torch.zeros(2, 8, 8, dtype=torch.uint8), torch.arange(2)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 1), Own(2))
    with pytest.raises(Refused, match="Own of this model is a batch norm that sees"):
        with ranks.Split(model, model, "ce", "float32").step(*step):
            pass


def start(root, results):
    """torchrun of two processes, with pipes."""
    words = [f"{key}={value}" for key, value in (settings(root, results) | CE).items()]
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
    line += ["--nproc-per-node", "2", str(ROOT / "active.py"), "with", "smoke", *words]
    return subprocess.Popen(line, cwd=ROOT, env=PLAIN, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def children(process):
    """{rank: process id} of what torchrun has started."""
    found = {}
    for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        names = dict(word.partition(b"=")[::2] for word in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"))
        if b"RANK" in names:
            found[int(names[b"RANK"])] = int(pid)
    return found


def alive(pid):
    """Whether a process runs; one that has ended may wait for its parent to know."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def when(ledger, lines, act):
    """Call act() in a thread once the ledger has so many lines."""

    def wait():
        while not ledger.exists() or ledger.read_bytes().count(b"\n") < lines:
            time.sleep(0.005)
        act()

    Thread(target=wait, daemon=True).start()


def test_killed_processes_end_all_and_the_run_goes_on(two, rank_1, phantom_root, tmp_path, experiment):
    """Rank 0, torchrun, then rank 1 are killed, each further on; the same command ends as an undisturbed one."""
    ledger = tmp_path / "bald_0" / "ledger.jsonl"
    for lines, who in ((1, 0), (2, "torchrun")):
        process = start(phantom_root, tmp_path)
        deadline, ranks = time.monotonic() + 120, {}
        while len(ranks) < 2 or not ledger.exists() or ledger.read_bytes().count(b"\n") < lines:
            assert process.poll() is None and time.monotonic() < deadline, process.communicate()
            time.sleep(0.02)
            ranks = children(process)
        os.kill(ranks.get(who, process.pid), signal.SIGKILL)
        process.communicate(timeout=60)
        assert process.returncode != 0
        while any(map(alive, ranks.values())):
            assert time.monotonic() < deadline
            time.sleep(0.02)
    when(ledger, 3, rank_1.kill)
    with pytest.raises(Terminated, match="Another process of torchrun has ended"):
        run(experiment, phantom_root, tmp_path)
    torch.distributed.destroy_process_group()
    with joined() as other:
        run(experiment, phantom_root, tmp_path)
        assert ledger_bytes(tmp_path) == ledger_bytes(two)
        assert files(tmp_path) == files(two)
        other_rank_runs_out_of_memory(other)


def other_rank_runs_out_of_memory(other):
    step = torch.rand(2, 3, 256, 256).double(), torch.zeros(2, 256, 256, dtype=torch.uint8), torch.arange(2)
    model = made("unet")
    has = int(Path(f"/proc/{other.pid}/statm").read_text().split()[0]) * resource.getpagesize()
    resource.prlimit(other.pid, resource.RLIMIT_AS, (has + 2**23, has + 2**23))
    with (
        pytest.raises(Terminated, match="Another process of torchrun has ended"),
        errors_explained("", torch.device("cpu")),
    ):
        with ranks.Split(model, model, "ce", "float32").step(*step) as (x, masks, model.dropout_keys.now, share):
            crop_losses(model, x, masks, "ce", "float32").mean().backward()
    assert other.wait(60) == 1
    assert other.stderr.read() == "Rank 1: Memory ran out: lower trainer.batch, the crop or the width.\n"
