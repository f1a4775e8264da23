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
from experiments.store import IGNORE, SEEN, Item, Split, Store, look, read_ahead, refuse_ignored_foreground, taken
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
    settings.pop("operations")
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


CLASSES = ("background", "cell", "vessel")


def store_of(*masks, read_image=lambda path: np.zeros((4, 6, 3), np.uint8), classes=CLASSES):
    """A Store of blank images whose masks are these arrays."""
    items = [Item(f"im{i}", Path(f"im{i}.png"), Path(f"im{i}_mask.png")) for i in range(len(masks))]
    by_name = {item.mask: mask for item, mask in zip(items, masks, strict=True)}
    return Store(Split(items, read_image, by_name.__getitem__), "cpu", classes=classes)


def filled(*values):
    """(4, 6) uint8, a stripe of each value."""
    return np.resize(np.array(values, np.uint8), (4, 6))


@pytest.mark.parametrize(
    ("mask", "found"),
    [
        (filled(0, 1, 3), "the values 3, "),
        (filled(0, 128), "the values 128, "),
        (filled(*range(60)), "3, 4, 5, 6, 7, 8, 9, 10 ..., "),
        (filled(0, 1).astype(np.int64) * 300, "the values 300, "),
        (filled(0, 1).astype(np.int64) - 1, "the values -1, "),
        (filled(0, 1) * 0.5, "the values 0.5, "),
    ],
)
def test_values_that_are_no_class_are_refused_when_the_mask_is_opened(mask, found):
    store = store_of(filled(0, 2), mask)
    with pytest.raises(BadData) as caught:
        store.label([0, 1])
    assert all(part in str(caught.value) for part in ("im1_mask.png", found, "0 background, 1 cell, 2 vessel", "255"))
    assert (store.masks == IGNORE).all() and not store.mask_pixels.any()  # none was labelled
    store.label([0])


def test_declared_values_in_any_type_are_taken_and_counted():
    whole = filled(0, 1, 2, IGNORE)
    store = store_of(whole, whole.astype(np.int64), whole == 1, np.asfortranarray(whole))
    store.label(range(4))
    assert all((store.mask(i).numpy() == whole).all() for i in (0, 1, 3))
    assert store.mask_pixels[[0, 1, 2, IGNORE]].tolist() == [18 + 18, 18 + 6, 18, 18] and store.mask_pixels.sum() == 96


@pytest.mark.parametrize("mask", [np.zeros((4, 6, 1), np.uint8), np.zeros((6, 4), np.uint8)])
def test_masks_of_another_shape_are_refused(mask):
    with pytest.raises(BadData, match="im0_mask.png is"):
        store_of(mask).label([0])


@pytest.mark.parametrize("image", [np.zeros((4, 6), np.uint8), np.zeros((4, 6, 3), np.float32)])
def test_images_of_another_kind_are_refused(image):
    with pytest.raises(BadData, match="im0.png is read as .*: read_image gives"):
        store_of(filled(0), read_image=lambda path: image)


def refused(*stores):
    with pytest.raises(BadData) as caught:
        refuse_ignored_foreground(stores, "isic2")
    return str(caught.value)


def test_255_where_a_class_was_meant_is_refused_as_soon_as_masks_are_opened():
    train, test = (store_of(filled(0, IGNORE), filled(0), classes=("background", "lesion")) for _ in range(2))
    refuse_ignored_foreground([train, test], "isic2")  # nothing was opened yet
    test.label([0, 1])
    message = refused(train, test)
    assert "masks of isic2 opened so far hold 0 and 255 only and no pixel of class 1 lesion" in message
    assert "255 means ignore" in message and "`> 127`" in message
    train.label([0])
    assert "0 and 255 only" in refused(train)


def test_empty_images_with_a_part_ignored_are_taken_where_others_have_foreground():
    border, empty, drawn = filled(0, IGNORE), filled(0), filled(0, 1)
    train, test = store_of(border, empty, drawn), store_of(empty, drawn)
    train.label([1])
    refuse_ignored_foreground([train], "mine")  # nothing is ignored: an empty image
    test.label([0, 1])
    train.label([0])
    refuse_ignored_foreground([train, test], "mine")
    alone = store_of(border, drawn)
    alone.label([0, 1])
    refuse_ignored_foreground([alone], "mine")


def test_what_was_looked_at_is_given_to_no_reader_that_lies_at_the_same_place():
    for number in range(100):
        look([number].__getitem__, 0)  # as by a run that was refused, whose dataset is gone
        assert taken([-1].__getitem__, 0) == -1
    SEEN.clear()
