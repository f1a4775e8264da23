"""What published datasets share: lists of names, files that must be there, one size for all, a fold that validates.

Nothing here knows a dataset: a dataset's own file says where its files lie and what their values mean.
"""

import os
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from data.glas import validation_fold
from experiments.components.settings import Range
from experiments.errors import Refused
from experiments.store import Split, Splits
from experiments.store.reading import decode, read_text

SIDES = {name: Range(least=1, most=2**14, zero="the files' own") for name in ("height", "width")}
FOLDS = {"folds": Range(least=2), "fold": Range(least=0)}
WINDOW = {"crop": Range(least=0)}


def refuse_absent(dataset, root, needed, remedy):
    """Raise Refused with the remedy unless everything `needed` is in the folder `root` of the dataset called so."""
    absent = [name for name in needed if not Path(root, name).exists()]
    if absent:
        there = "is not there" if os.path.isdir(root) else "is no folder"
        what = Path(root, absent[0]) if os.path.isdir(root) else root
        raise Refused(f"{dataset}: {what} {there}: {remedy}, or set {dataset}.root=...")


def read_lines(path, remedy):
    """The lines of a list that hold something, without blanks at their ends. Raises Refused naming it."""
    try:
        return [line.strip() for line in read_text(path, "utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise Refused(f"{path} cannot be read ({error}): {remedy}.") from error


def in_folders(*pairs):
    """The names of (folder, ending), in any of these, sorted, without their ending: what one lacks is found missing."""
    found = {p.name.removesuffix(ending) for folder, ending in pairs for p in Path(folder).glob(f"*{ending}")}
    return sorted(name for name in found if not name.startswith("."))


def refuse_missing(items, remedy):
    """Raise Refused for a name that stands twice, for the first of the items' files that is absent, and for no item."""
    present, seen = {}, set()
    for item in items:
        if item.id in seen:
            raise Refused(f"{item.image} is listed twice: {remedy}.")
        seen.add(item.id)
        for path in (item.image, item.mask):
            if path.parent not in present:
                present[path.parent] = set(os.listdir(path.parent)) if path.parent.is_dir() else set()
            if path.name not in present[path.parent]:
                raise Refused(f"{path} is missing: {remedy}.")
    return items


def hold_out(items, rng, folds, fold):
    """(train, val): one of `folds` parts validates, of whole sources where items have one, of every group its share."""
    if not 0 <= fold < folds:
        raise Refused(f"fold is {fold} of folds={folds}: choose a fold from 0 to folds - 1.")
    sources = {item.source for item in items} - {""}
    most = len(sources) if sources else len(items)
    if most < folds:
        what = "sources (cities, animals, patients)" if sources else "images"
        raise Refused(f"folds is {folds}, but there are only {most} {what} to learn from: choose fewer folds.")
    chosen = validation_fold(items, rng, folds, fold, "patients" if sources else "images")
    return [item for i, item in enumerate(items) if i not in chosen], [items[i] for i in sorted(chosen)]


def three_splits(train, val, test, read_image, read_mask, crop, read_original=None, **sides):
    """Splits of three lists of items whose files are read at one height and width; an empty list is an absent split."""
    made = partial(
        Split,
        read_image=partial(read_image, **sides),
        read_mask=partial(read_mask, **sides),
        read_original=read_original or partial(read_mask, **dict.fromkeys(sides, 0)),
    )
    return Splits(made(train), made(val) if val else None, made(test) if test else None, crop)


def read_colour(path, format, height, width):
    """(H, W, 3) uint8 of an image, antialiased where it is made smaller; 0 keeps a side. Raises BadData."""
    return sized(decode(path, format, "RGB"), height, width, Image.Resampling.BILINEAR)


def read_classes(path, height, width, classes=None):
    """(H, W) uint8 of a PNG mask by nearest neighbour, its values looked up in `classes` {value: class}.

    Values that are not in there stay, and are refused when the mask is opened unless they are a class.
    """
    table = np.arange(256, dtype=np.uint8)
    for value, number in (classes or {}).items():
        table[value] = number
    return table[sized(decode(path, "PNG", "L"), height, width, Image.Resampling.NEAREST)]


def sized(pixels, height, width, filter):
    wanted = height or pixels.shape[0], width or pixels.shape[1]
    return pixels if wanted == pixels.shape[:2] else np.array(Image.fromarray(pixels).resize(wanted[::-1], filter))
