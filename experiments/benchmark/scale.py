"""Pools of many small images: memory and images a second of loading and of scoring, each size in its own process."""

import tempfile
from pathlib import Path
from time import perf_counter

import torch

from experiments.benchmark import items, timing, work
from experiments.benchmark.report import Row
from experiments.network.inference import Network
from experiments.store import Item, Split, Store, decode

OPTIONS = {
    "size": (32, "pixels a side of an image"),
    "width": (4, "of the U-Net"),
    "passes": (2, "of MC dropout"),
    "batch": (0, "images at once, as prediction.batch: 0 is what suits the device"),
    "small": (1_000, "images of the smallest pool; there is one of ten and one of a hundred times as many"),
}
FILES = 256  # different PNG files; the pool shows them again and again under other ids


def run(options, device):
    """(rows, notes)."""
    counts = [options.small, 10 * options.small, 100 * options.small]
    with tempfile.TemporaryDirectory() as folder:
        items.write(folder, work.draw(min(FILES, options.small), options.size, options.size))
        arguments = (folder, options.width, options.passes, options.batch, str(device))
        found = {n: timing.peak_of(pool, n, *arguments) for n in counts}
    rows = []
    for n, ((loading, scoring), peak) in found.items():
        rows += [
            Row(f"N = {n:,}: memory", peak, "MiB"),
            Row(f"N = {n:,}: loading", n / loading, "images/s"),
            Row(f"N = {n:,}: scoring", n / scoring, "images/s"),
        ]
    return rows, [extrapolated(found, options)]


def pool(n, folder, width, passes, batch, device):
    """Work that loads n images and scores them: (seconds of loading, seconds of scoring)."""
    device = torch.device(device)
    files = sorted(path for path in Path(folder).glob("*.png") if "_" not in path.stem)
    images = [Item(f"{number:07}", files[number % len(files)], Path()) for number in range(n)]
    split = Split(images, lambda path: decode(path, "PNG", "RGB"), lambda path: None)
    network = Network(work.models(width, device)[1])
    network(torch.zeros(1, 3, 32, 32, device=device))

    def load_and_score():
        began = perf_counter()
        store = Store(split, device)
        loaded = perf_counter()
        pool = work.pool_of(store, network, passes, batch=batch)
        work.bald_scores(pool)  # ends with the scores in memory, on a GPU too
        return loaded - began, perf_counter() - loaded

    return load_and_score


def extrapolated(found, options):
    """What the two largest pools say of 10^6 images."""
    (fewer, (_, low)), (more, ((loading, scoring), high)) = list(found.items())[-2:]
    slope = (high - low) / (more - fewer)
    held = options.size**2 * 4 / 2**20
    minutes = [seconds / more * 1e6 / 60 for seconds in (loading, scoring)]
    return (
        f"Memory is what a process adds to its imports and network. From {fewer:,} to {more:,} images it grew by "
        f"{slope * 1024:.1f} KiB an image, of which {held * 1024:.1f} KiB are its pixels and its mask, uint8; the rest "
        "are its id, its place in lists and what loading holds twice for a moment. Nothing else depends on the number "
        f"of images, so 10^6 would take {high + slope * (1e6 - more):,.0f} MiB in RAM (images that need more than a "
        f"quarter of the machine's lie in a memory-mapped file instead), {minutes[0]:.1f} minutes to load and "
        f"{minutes[1]:.1f} to score, as each image costs the same: {more / loading:,.0f} and {more / scoring:,.0f} "
        "images a second."
    )
