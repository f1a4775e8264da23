"""Memory of a long run: what a cycle leaves behind is found, and torch meets few shapes."""

import gc

import numpy as np
import pytest
import torch

from experiments.store import Item, Split, Store
from experiments.training import trainer


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
