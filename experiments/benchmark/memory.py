"""Memory of scoring: a network of one 1 x 1 convolution, so that only what surrounds it is seen."""

import numpy as np
import torch

from experiments.benchmark import peers, timing, work
from experiments.benchmark.report import Row
from experiments.network.inference import Network

NOTE = (
    "Memory: what scoring adds to a process of its own, at its peak, over the images, the network, which is a 1 x 1 "
    "convolution with dropout, and the code, loaded by scoring one image of 8 x 8 before. K passes over N images of "
    "{size} x {size}. Where it says `freed blocks kept` glibc is as it comes and keeps large freed ones "
    "for later; elsewhere it gives them back at once, so that only what is in use counts."
)


def run(options, device):
    """(rows, notes)."""
    cpu, size, batch = torch.device("cpu"), options.size, options.batch
    rows = []
    for keep, how in ((False, ""), (True, ", freed blocks kept")):
        few, many, same = (
            timing.peak_of(askmask, k, n, size, batch, cpu, keep=keep)[1] for k, n in ((5, 8), (100, 64), (20, 64))
        )
        stacked = timing.peak_of(baal, 20, 64, size, cpu, keep=keep)[1]
        rows += [
            Row(f"memory of AskMask, K = 5, N = 8{how}", few, "MiB"),
            Row(f"memory of AskMask, K = 100, N = 64{how}", many, "MiB"),
            Row(f"memory of AskMask, K = 20, N = 64{how}", same, "MiB"),
            Row(f"memory of baal, K = 20, N = 64{how}", stacked, "MiB"),
            Row(f"memory, K = 100 and N = 64 / K = 5 and N = 8{how}", many / few, "x", target="<= 1.1"),
            Row(f"memory, AskMask / baal, K = 20, N = 64{how}", same / stacked, "x", target="<= 0.01"),
        ]
    return rows, [NOTE.format(size=size)]


def trivial():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(3, 2, 1), torch.nn.Dropout(0.1)).eval()


def images(n, size):
    return list(np.random.default_rng(0).integers(0, 256, (n, size, size, 3), dtype=np.uint8))


def askmask(k, n, size, batch, device):
    """The work of scoring n images."""
    network = Network(work.ready(trivial(), device))

    def pool(n, size):
        empty = np.zeros((size, size), dtype=np.uint8)
        store = work.store_of([(image, empty) for image in images(n, size)], device)
        return work.pool_of(store, network, k, batch=batch)

    work.bald_scores(pool(1, 8))
    large = pool(n, size)
    return lambda: len(work.bald_scores(large))


def baal(k, n, size, device):
    """The work of scoring n images."""
    model = peers.always_dropping(trivial())

    def score(dataset):
        return len(peers.baal_scores(model, dataset, k, device, **peers.MODES["baal"]))

    score(peers.tensors(images(1, 8)))
    dataset = peers.tensors(images(n, size))
    return lambda: score(dataset)
