"""Memory of a long run: what a cycle leaves behind is found, and torch meets few shapes.

A few cycles; `ASKMASK_CYCLES=300 python -m pytest tests/test_memory.py -k hundreds` measures what many of them leave.
"""

import gc
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from experiments.records.ledger import Ledger
from experiments.store import Item, Split, Store
from experiments.training import trainer

CYCLES = int(os.environ.get("ASKMASK_CYCLES", 5))


def test_cycles_leave_nothing_behind(smoke, monkeypatch):
    """With Python's own collector off: it looks at old objects so rarely that weights and pictures pile up."""
    counted, real = [], trainer.fit

    def counting(*args, **kwargs):
        counted.append(len(gc.get_objects()))
        return real(*args, **kwargs)

    monkeypatch.setattr(trainer, "fit", counting)
    gc.collect()
    gc.disable()
    try:
        smoke(cycles=3, query=1)
    finally:
        gc.enable()
    growth = np.diff(counted)[1:]  # the first cycle imports and traces
    assert (growth < 400).all(), growth  # the ledger's events; a picture alone is thousands


def test_hundreds_of_cycles_neither_grow_nor_keep_files_open(experiment, tmp_path, monkeypatch, table):
    """What the process holds of its own at the beginning of each training, in MB, of long runs by a line through it."""
    rng = np.random.default_rng(0)
    for part, n in (("train", CYCLES + 8), ("val", 2), ("test", 2)):
        for kind, levels in (("images", 255), ("masks", 2)):
            (tmp_path / "data" / part / kind).mkdir(parents=True)
            for k in range(n):
                pixels = rng.integers(0, levels, (32, 32)).astype(np.uint8)
                Image.fromarray(pixels).convert("L").save(tmp_path / "data" / part / kind / f"{part}{k}.png")
    held, files, real = [], [], trainer.fit

    def measured(*args, **kwargs):
        status = Path("/proc/self/status").read_text()
        held.append(int(status.partition("RssAnon:")[2].split()[0]) / 1000)
        files.append(len(os.listdir("/proc/self/fd")))
        return real(*args, **kwargs)

    monkeypatch.setattr(trainer, "fit", measured)
    own = {"folder": {"root": str(tmp_path / "data"), "classes": "background,box", "crop": 0}, "dataset": "folder"}
    own |= {
        "pool_size": 4,
        "query": 1,
        "cycles": CYCLES,
        "trainer": {"warm_start": True, "replay": False},
        "threads": 1,
    }
    own |= {"results_dir": str(tmp_path / "results"), "runs_dir": str(tmp_path / "runs"), "threads": 1}
    experiment.run(named_configs=["smoke"], config_updates=own)
    assert len(held) == CYCLES + 1
    half = CYCLES // 2 + 1
    assert np.median(files[1:half]) == np.median(files[half:]) and max(files) < min(files[1:]) + 3  # and a heartbeat's
    if CYCLES >= 100:
        slope = 100 * np.polyfit(np.arange(CYCLES - 50), held[51:], 1)[0]
        said = f"{CYCLES} cycles: {slope:.2f} MB per 100 from the 50th on, {held[51]:.1f} to {held[-1]:.1f} MB"
        print(said, [round(value, 1) for value in held[::25]])
        table([said])
        assert slope < 1


def test_a_run_holds_little_of_what_its_ledger_says_of_test_images(tmp_path):
    """A line for each of 10 cycles, of 200 test images and 5 classes."""
    values = np.random.default_rng(0).random((200, 5)).tolist()
    tables = {
        name: values for name in ("dice", "iou", "precision", "recall", "deterministic_dice", "deterministic_iou")
    }
    measured = {"images": 1, "pixels": 9, "pool": 3, "metrics": {"test.dice": 0.5}, "weights": "0" * 64}
    measured |= {"per_image": tables, "calibration": {"bins": values}}
    with Ledger(tmp_path / "bald_0", {}, []) as book:
        book.append("start", queries=[], classes=[], test=[])
        book.append("evaluated", **measured)
        tracemalloc.start()
        try:
            for cycle in range(10):
                book.append("queried", cycle, queries=[])
                book.append("evaluated", cycle + 1, **measured)
            now, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert now < 2 * 10 * 8 * 200 * 5
        book.write_arrays()
    assert np.load(tmp_path / "bald_0" / "dice.npy").shape == (11, 200, 5)
    assert np.load(tmp_path / "bald_0.npy").tolist() == [0.5] * 11


@pytest.mark.parametrize("size", [0, 1, 12, 16])
def test_a_pool_that_shrinks_shows_few_shapes(size):
    """torch keeps what it prepares for a shape, so their number must not grow with that of the cycles."""
    images = [np.full((64, 64, 3), k, dtype=np.uint8) for k in range(40)]
    items = [Item(f"{k}", k, k) for k in range(40)]
    store = Store(Split(items, images.__getitem__, None), torch.device("cpu"))
    most, shapes = size or 2**16 // 64**2, set()
    for n in range(41):
        batches = list(store.batches(range(n), size))
        assert [i for members, _ in batches for i in members] == list(range(n))
        assert all((x[:, 0, 0, 0] == torch.tensor(members)).all() for members, x in batches)
        shapes |= {len(x) for _, x in batches}
    assert shapes == {most, *(2**k for k in range(5) if 2**k < most)}
