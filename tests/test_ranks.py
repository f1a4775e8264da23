"""One run trained by two processes of torchrun, over gloo on this machine."""

import copy
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import ROOT, events, free_port, ledger_bytes, settings
from test_model import build

from experiments.errors import Refused, Terminated
from experiments.network import processes, ready
from experiments.training import ranks, recompute
from experiments.training.trainer import crop_losses

pytestmark = pytest.mark.usefixtures("single_thread")
PLAIN = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONWARNINGS")}
PLAIN |= {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}


@contextmanager
def joined():
    """Here is rank 0 of two; gives the process that is rank 1."""
    env = {"TORCHELASTIC_RUN_ID": "test", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GLOO_SOCKET_IFNAME": "lo"}
    env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    line, pipe = [sys.executable, ROOT / "active.py"], subprocess.PIPE
    other = subprocess.Popen(line, env=PLAIN | env | {"RANK": "1", "LOCAL_RANK": "1"}, stderr=pipe, text=True)
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
        processes.send(None)
        assert other.wait(20) == 0


def gradients(model, x, masks, keys, forward=None, split=False):
    """[float64 gradients, then buffers] of one step of `model`, split over both ranks or not."""
    forward, losses = forward or model, partial(crop_losses, loss="dice_ce", precision="float32")
    ready.train(model)
    if split:
        with ranks.Split(model, forward, losses).step(x, masks, keys) as (x, masks, model.dropout_keys.now, share):
            (losses(forward, x, masks).mean() * share).backward()
    else:
        model.dropout_keys.now = keys
        losses(forward, x, masks).mean().backward()
    return [p.grad.double() for p in model.parameters() if p.requires_grad], [b.double() for b in model.buffers()]


def worst(found, expected):
    return max((a - b).abs().max().item() for a, b in zip(found, expected, strict=True))


def test_gradients_and_statistics_are_those_of_one_process(rank_1):
    """Three crops on two ranks. In float64 to rounding; in float32 torch's own batch norm is further from that."""
    x, keys = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(1)), torch.arange(3) * 2**40
    masks = torch.randint(2, (3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    masks[0, :9] = 255
    first, step = build("unet", width=2)[0], (x.double(), masks, keys)
    exact, buffers = gradients(copy.deepcopy(first).double(), *step)
    for again in (False, True):
        model = copy.deepcopy(first).double()
        forward = recompute.Recomputing(model) if again else model
        found, seen = gradients(model, *step, forward, split=True)
        assert worst(found, exact) < 1e-11 and worst(seen, buffers) < 1e-12
        assert not any("forward" in vars(module) for module in model.modules())
    alone, split = (gradients(copy.deepcopy(first), x, masks, keys, split=two)[0] for two in (False, True))
    print(worst(found, exact), worst(seen, buffers), worst(split, exact), worst(alone, exact))
    assert worst(split, exact) < 2 * worst(alone, exact)
