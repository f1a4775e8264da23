"""The processes that torchrun starts, as one run: rank 0 tells the others what to do, and none outlives the rest.

Li et al. 2020, PyTorch Distributed, https://arxiv.org/abs/2006.15704. gloo joins them on CPUs, nccl on GPUs, where it
was not tried.
"""

import json
import os
import signal
import time
from datetime import timedelta
from threading import Thread

import torch

from experiments.errors import Terminated
from experiments.errors.process import stop_if_asked

# between two steps rank 0 scores and tests for as long as it takes, in a step all are at work; a process that ends
# closes its connections, which is noticed at once
PATIENCE, STEP = timedelta(days=30), timedelta(minutes=10)
LOST = ("gloo", "NCCL", "onnection closed", "onnection reset", "Broken pipe")  # in errors that another rank is gone
_state = {"count": 1, "messages": 0}


def started():
    """How many processes torchrun has started, 1 without it."""
    return int(os.environ.get("WORLD_SIZE", 1)) if "TORCHELASTIC_RUN_ID" in os.environ else 1


def count():
    """How many train this run: 1 unless `begin` was called."""
    return _state["count"]


def begin():
    """Take this process as one of torchrun's; it ends with torchrun."""
    _state["count"] = started()
    Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent):
    """SIGTERM to this process once its parent is gone: nobody else would end it."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)


def join():
    """Meet the others, who wait for rank 0, once."""
    if torch.distributed.is_initialized():
        return
    store, rank, ranks = next(torch.distributed.rendezvous("env://", timeout=PATIENCE))
    _state.update(store=torch.distributed.PrefixStore("askmask", store), messages=0)
    if rank == 0:
        send("join")
    else:
        received()
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    torch.distributed.init_process_group(backend, store=store, rank=rank, world_size=ranks, timeout=STEP)


def send(message):
    """Leave a message of JSON values for all other ranks; called by rank 0 alone."""
    number = _state["messages"] = _state["messages"] + 1
    _state["store"].set(f"{number}", json.dumps(message))
    _state["store"].delete_key(f"{number - 2}")  # what comes after a message is computed by all: they have had that one


def received():
    """Wait for rank 0's next message."""
    number = _state["messages"] = _state["messages"] + 1
    _state["store"].wait([f"{number}"], PATIENCE)
    return json.loads(_state["store"].get(f"{number}"))


def give(tensor):
    """A copy of rank 0's tensor into those of all other ranks."""
    torch.distributed.broadcast(tensor, 0)


def is_lost(error):
    """Whether a RuntimeError says that another process is gone, or has not answered in time."""
    return isinstance(error, torch.distributed.DistError) or any(word in str(error) for word in LOST)


def stop_if_lost(error):
    """Raise Terminated if it says so."""
    if count() > 1 and is_lost(error):
        stop_if_asked()
        raise Terminated("Another process of torchrun has ended or hangs: the same command continues.") from error


def device_of(kind):
    """This process's own torch.device of a kind: of GPUs the one of its number on this machine."""
    device = torch.device(kind, int(os.environ["LOCAL_RANK"])) if kind == "cuda" else torch.device(kind)
    if kind == "cuda":
        torch.cuda.set_device(device)
    return device
