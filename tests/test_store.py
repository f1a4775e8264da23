"""Images that do not fit in memory are the same images; every one is decoded once, in order, ahead of its use."""

import os
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments.components import defaults
from experiments.errors import BadData
from experiments.store import IGNORE, Item, Split, Store, read_ahead
from experiments.training import augment

SIZES = [(20, 24), (16, 16), (20, 24), (30, 18), (16, 16)] * 16


def image(i):
    return np.random.default_rng(i).integers(0, 256, (*SIZES[i], 3), dtype=np.uint8)


def mask(i):
    return (image(i)[..., 0] > 128).astype(np.uint8)


def make_split(read_image=lambda path: image(int(path.name))):
    items = [Item(f"im{i}", Path(str(i)), Path(str(i))) for i in range(len(SIZES))]
    return Split(items, read_image, lambda path: mask(int(path.name)))


@pytest.fixture(scope="module")
def held():
    return Store(make_split(), "cpu")


@pytest.mark.parametrize("memory", [0, 30_000])
def test_a_store_in_files_is_the_store_in_memory(held, memory, monkeypatch):
    """The larger `memory` is exceeded on the way, so that what was held so far goes to the file first."""
    files, make = [], tempfile.TemporaryFile
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda: files.append(os.dup((file := make()).fileno())) or file)
    spilled = Store(make_split(), "cpu", memory)
    assert [os.fstat(file).st_size for file in files] == [held.pixels.nbytes, held.masks.nbytes]
    assert spilled.fingerprint == held.fingerprint and torch.equal(spilled.pixels, held.pixels)
    assert (spilled.masks == IGNORE).all() and len(spilled.masks) == len(held.masks)
    spilled.label([3, 1])
    assert (spilled.mask(3).numpy() == mask(3)).all() and (spilled.mask(0) == IGNORE).all()
    place = spilled._span(3)
    written = os.pread(files[1], place.stop - place.start, place.start)
    assert written == mask(3).tobytes()  # the masks lie in the file, not beside it
    for file in files:
        os.close(file)


def test_crops_of_a_store_in_files_are_the_same(held):
    spilled = Store(make_split(), "cpu", memory=0)
    settings = defaults(augment.ingredient)
    draw = augment.draw.__wrapped__
    drawn = draw(n=8, rng=np.random.default_rng(0), **settings)
    shown = torch.arange(8)
    for ours, theirs in zip(augment.crops(spilled, shown, drawn, 16, 16), augment.crops(held, shown, drawn, 16, 16),
                            strict=True):  # fmt: skip
        assert torch.equal(ours, theirs)


def test_images_are_decoded_once_in_order_and_ahead():
    decoded, threads = [], set()

    def read(path):
        decoded.append(int(path.name))
        threads.add(threading.get_ident())
        return image(int(path.name))

    images = read_ahead(make_split(read), window=4)
    for i in range(len(SIZES)):
        np.testing.assert_array_equal(next(images), image(i))
        assert len(decoded) <= i + 6  # no further ahead than that, whatever the memory
    assert sorted(decoded) == list(range(len(SIZES)))
    assert threading.get_ident() not in threads
    with pytest.raises(StopIteration):
        next(images)


def test_an_image_that_cannot_be_read_is_named():
    def read(path):
        if path.name == "7":
            raise BadData(f"{path} cannot be read")
        return image(int(path.name))

    with pytest.raises(BadData, match="7 cannot be read"):
        Store(make_split(read), "cpu")
