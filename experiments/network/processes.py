"""The processes that torchrun starts, as one run: rank 0 tells the others what to do, and none outlives the rest.

Li et al. 2020, PyTorch Distributed, https://arxiv.org/abs/2006.15704. gloo joins them on CPUs, nccl on GPUs, where it
was not tried.
"""

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
_state = {"count": 1, "step": None}


def started():
    """How many processes torchrun has started, 1 without it."""
    return int(os.environ.get("WORLD_SIZE", 1)) if "TORCHELASTIC_RUN_ID" in os.environ else 1


def count():
    """How many train this run: 1 unless `begin` was called."""
    return _state["count"]


def group():
    """The process group of what all do in a step of training."""
    return _state["step"]


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
    """Meet the others, who wait for it, once."""
    if not torch.distributed.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        torch.distributed.init_process_group(backend, timeout=PATIENCE)
        _state["step"] = torch.distributed.new_group(timeout=STEP)


def send(message):
    """Give all other ranks a message; called by rank 0 alone."""
    try:
        join()
        torch.distributed.broadcast_object_list([message], 0)
    except RuntimeError as error:
        stop_if_lost(error)
        raise


def received():
    """Wait for rank 0's next message."""
    message = [None]
    torch.distributed.broadcast_object_list(message, 0)
    return message[0]


def is_lost(error):
    """Whether a RuntimeError says that another process is gone, or has not answered in time."""
    return any(word in str(error) for word in LOST)


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
