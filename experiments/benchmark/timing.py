"""Timing of variants in turn, memory of a process of its own, and yardsticks of the machine as it is now."""

import gc
import multiprocessing
import os
import resource
import sys
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import NamedTuple
from unittest.mock import patch

import numpy as np
import torch
from tqdm import tqdm

from experiments.benchmark.report import Row


class Time(NamedTuple):
    """Seconds that a unit of work takes; on a GPU `wall` is that between two CUDA events, `memory` MiB allocated."""

    wall: float
    cpu: float
    memory: float = 0.0


def rounds(variants, count, device, seed=0):
    """{name: [Time of a unit, in each round]} of {name: (function, units of its work)}.

    Each function is called once to warm up, then once a round, in an order that is drawn for each round.
    """
    times, rng = {name: [] for name in variants}, np.random.default_rng(seed)
    with tqdm(total=len(variants) * (count + 1), leave=False, disable=None, mininterval=0) as bar:
        for name, (function, _) in variants.items():
            bar.set_description(f"warming up, {name}")
            function()
            bar.update()
        for number in range(count):
            for name in rng.permutation(list(variants)).tolist():
                bar.set_description(f"round {number + 1}/{count}, {name}")
                function, units = variants[name]
                gc.collect()
                wall, cpu, memory = once(function, device)
                times[name].append(Time(wall / units, cpu / units, memory))
                bar.update()
    return times


def once(function, device):
    if device.type != "cuda":
        wall, cpu = perf_counter(), process_time()
        function()
        return Time(perf_counter() - wall, process_time() - cpu)
    torch.cuda.reset_peak_memory_stats(device)
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize(device)
    cpu = process_time()
    begin.record()
    function()
    end.record()
    torch.cuda.synchronize(device)
    memory = torch.cuda.max_memory_allocated(device) / 2**20
    return Time(begin.elapsed_time(end) / 1000, process_time() - cpu, memory)


def seconds(what, times, target=""):
    """The Row of how long a unit takes."""
    walls = [time.wall for time in times]
    return Row(what, median(walls), "s", min(walls), max(walls), median(time.cpu for time in times), target)


def rate(what, times, unit):
    """The Row of how many units a second are done."""
    walls = [1 / time.wall for time in times]
    return Row(what, median(walls), unit, min(walls), max(walls), median(1 / time.cpu for time in times))


def ratio(what, above, below, target="", unit="x"):
    """The Row of how many times `below` goes into `above`: median, least and largest of the rounds' own ratios."""
    walls = [a.wall / b.wall for a, b in zip(above, below, strict=True)]
    cpus = [a.cpu / b.cpu for a, b in zip(above, below, strict=True)]
    return Row(what, median(walls), unit, min(walls), max(walls), median(cpus), target)


def together(*parts):
    """The times of works that are done one after the other, round by round."""
    return [Time(*map(sum, zip(*of_round, strict=True))) for of_round in zip(*parts, strict=True)]


def memory_rows(times):
    """What each variant allocated on the GPU; nothing on a CPU, where only a process of its own could tell."""
    return [
        Row(f"{name}: GPU memory", max(time.memory for time in found), "MiB")
        for name, found in times.items()
        if found[0].memory
    ]


def convolution(device, size=256):
    """(function, GFLOP): a 3 x 3 convolution of 64 to 64 channels, channels last."""
    layer = torch.nn.Conv2d(64, 64, 3, padding=1, bias=False).to(device, memory_format=torch.channels_last)
    x = torch.randn(1, 64, size, size, device=device).to(memory_format=torch.channels_last)

    def run():
        with torch.inference_mode():
            layer(x)

    return run, 2 * 64 * 64 * 9 * size**2 / 1e9


def product(device, precision):
    """(function, GFLOP): a product of two large square matrices, the most arithmetic a second that a device can do."""
    side = 8192 if device.type == "cuda" else 1024
    a, b = torch.randn(2, side, side, device=device, dtype=getattr(torch, precision))
    return lambda: a @ b, 2 * side**3 / 1e9


def gflop(model, x):
    """GFLOP of one forward pass, an addition and a multiplication counted as two."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(x)
    return counter.get_total_flops() / 1e9


def share(what, work, times, peak):
    """The Row of the part of the measured `peak` (seconds a GFLOP) that `work` GFLOP a unit come to."""
    walls = [work * p.wall / t.wall for t, p in zip(times, peak, strict=True)]
    cpus = [work * p.cpu / t.cpu for t, p in zip(times, peak, strict=True)]
    return Row(what, median(walls), "", min(walls), max(walls), median(cpus))


def reading(table):
    """(function, GB): each number of a tensor read once."""
    return table.sum, table.nbytes / 1e9


def peak_of(function, *arguments, keep=True):
    """(result, MiB): `function(*arguments)` in a process of its own gives work to do; how much that adds to memory.

    `function` gets everything ready and returns the work, a function; only what the work adds to the process's
    resident memory, at its peak, is counted: neither the imports nor the images. Without `keep` the C library (glibc)
    may not keep large freed blocks for later.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(theirs, torch.get_num_threads(), function, arguments))
    with patch.dict(os.environ, {} if keep else {"MALLOC_MMAP_THRESHOLD_": str(2**17)}):
        process.start()
    theirs.close()
    try:
        return ours.recv()
    except EOFError:
        raise RuntimeError("The child process died: its message is above.") from None
    finally:
        process.join()


def _child(pipe, threads, function, arguments):
    torch.set_num_threads(threads)
    work = function(*arguments)
    gc.collect()
    before = start_of_peak()
    result = work()
    pipe.send((result, peak() - before))


def start_of_peak():
    """MiB resident now; the peak is counted from here on where the system can do that (Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass
    return peak()


def peak():
    """Most MiB that were resident. On Linux not getrusage's, which hands the parent's peak down to a child."""
    status = Path("/proc/self/status")
    if status.is_file():
        return int(status.read_text().partition("VmHWM:")[2].split()[0]) / 1024
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
