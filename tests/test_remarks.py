"""What a run says of its images without being asked: sources and copies on two sides, classes that nothing measures."""

from pathlib import Path

import numpy as np
import pytest

from experiments.store import Item, Split, Store
from experiments.store.remarks import remarks, unlabelled_classes

CLASSES = ("background", "cell", "vessel")


def picture(number, size=(6, 7)):
    return np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)


def store(images, masks=(1, 2), sources=(), opened=True):
    items = [Item(f"im{n}", Path(str(n)), Path(str(n)), source=(*sources, *[""] * 9)[n]) for n in range(len(images))]
    split = Split(
        items,
        lambda path: images[int(path.name)],
        lambda path: np.full(images[int(path.name)].shape[:2], masks[int(path.name) % len(masks)], np.uint8),
    )
    made = Store(split, "cpu", classes=CLASSES)
    if opened:
        made.label(range(len(made)))
    return made


def said(train, val=None, test=None):
    return list(remarks({"train": train, "val": val, "test": test}, CLASSES))


def test_nothing_is_said_of_a_sound_set():
    parts = [store([picture(10 * n), picture(10 * n + 1)], (0, 1, 2)[n:], ("a", "b")[n:]) for n in range(2)]
    assert said(parts[0]) == [] and said(parts[0], test=store([picture(50), picture(51), picture(52)], (0, 1, 2))) == []
    twins = store([picture(1), picture(1)], sources=("a", "a"))
    assert said(twins, test=store([picture(2), picture(3)])) == ["No mask of test has a pixel of background: nothing "
                                                                "measures what is not there."]  # fmt: skip


def test_a_source_on_two_sides_is_named():
    train = store([picture(1), picture(2)], sources=("p1", "p2"))
    whole = (0, 1, 2)
    val = store([picture(n) for n in (3, 4, 5)], whole, ("p2", "p2", "p3"))
    test = store([picture(n) for n in (6, 7, 8)], whole, ("p2", "p1", "p3"))
    assert said(train, val, test) == [
        "1 source (p2) of train also has 2 of the val images.",
        "2 sources (p2, p1) of train also have 2 of the test images.",
        "2 sources (p2, p3) of val also have 2 of the test images.",
    ]


def test_equal_images_on_two_sides_are_named_whatever_their_files():
    """Not those of one colour, of another shape or with an equal check sum alone."""
    blank = np.zeros((6, 7, 3), np.uint8)
    train = store([picture(1), picture(2), blank, picture(3, (6, 7))])
    test = store([blank, picture(2), picture(3, (6, 7)).reshape(7, 6, 3), picture(4), picture(1)], (0, 1, 2))
    assert said(train, test=test) == [
        "2 of the test images are in train too, pixel by pixel (im1 as im1, im4 as im0).",
    ]
    train.sums, test.sums = [7] * 4, [7] * 5
    assert said(train, test=test)[0].startswith("2 of the test images")


def test_classes_that_nothing_measures_or_taught_are_named():
    train, val, test = (store([picture(n)], [n % 2]) for n in range(3))
    assert said(train, val, test) == [
        "No mask of val or test has a pixel of vessel: nothing measures what is not there."
    ]
    assert list(unlabelled_classes(train, CLASSES)) == ["No image that was labelled has a pixel of cell, vessel."]
    assert not list(unlabelled_classes(store([picture(1)], opened=False), CLASSES))


def test_a_run_says_it_once_before_it_trains(smoke, capsys):
    smoke(cycles=0)
    lines = capsys.readouterr().out.splitlines()
    [line] = [n for n, line in enumerate(lines) if "of train also" in line and "test images" in line]
    assert line < next(n for n, text in enumerate(lines) if "training on" in text)


@pytest.mark.parametrize("opened", [True, False])
def test_the_pool_s_masks_say_nothing(opened):
    train = store([picture(1), picture(2)], opened=opened)
    assert said(train) == []
