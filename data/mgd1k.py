"""MGD-1K: 1,000 infrared images of eyelids, the meibomian glands as a mask.

Saha et al. 2022, https://doi.org/10.1016/j.jtos.2022.06.006

Terms: the authors', for research. From https://mgd1k.github.io, in the folders of AL-MGS
(https://github.com/lkf-Labs/AL-MGS): train and test, each with img (or image) and label, files 000.png ..., and the
lists of their numbers train.txt (800) and test.txt (200). There the 200 validate as well as test: here a fold of the
800 validates, and test images that lie in train are not learnt from.
"""

from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from sacred import Ingredient

from data._files import (
    FOLDS,
    SIDES,
    WINDOW,
    hold_out,
    in_folders,
    read_colour,
    read_lines,
    refuse_absent,
    refuse_missing,
    sized,
    three_splits,
)
from experiments.errors import Refused
from experiments.store import IGNORE, Item, decode  # noqa: F401  a dataset has IGNORE

CLASSES = ("background", "gland")
CHANNELS = 3
HAS = ("validation",)
HEADLINE = "dice"

ingredient = Ingredient("mgd1k")


@ingredient.config
def settings():
    root = "data/MGD-1K"  # train/img, train/label, test/img, test/label, train.txt, test.txt
    height = 176  # of every image; 352 as published, 0 keeps the files'
    width = 368  # 736 as published
    crop = 0  # side of the training window in pixels; 0 trains on whole images
    folds = 8  # one of 8 parts of train validates
    fold = 0  # which part validates, 0 to folds - 1


ALLOWED = SIDES | WINDOW | FOLDS


@ingredient.capture
def load(rng, root, height, width, crop, folds, fold):
    remedy = "put the images of https://mgd1k.github.io there as train|test / img / 000.png and label / 000.png"
    return read_folder("mgd1k", root, rng, height, width, crop, folds, fold, remedy)


def read_folder(dataset, root, rng, height, width, crop, folds, fold, remedy):
    """Splits of the folders of AL-MGS, by its lists of numbers or, where there are none, by what lies where."""
    refuse_absent(dataset, root, ["train", "test"], remedy)
    root = Path(root)
    test = numbers(root, "test", remedy)
    pool = [name for name in numbers(root, "train", remedy) if (root / "train.txt").exists() or name not in test]
    parts = (("train", pool), ("test", test))
    leaked = sorted({*pool} & {*test})
    if leaked:
        raise Refused(f"{root}/train.txt and test.txt both list {leaked[0]}: an image that tests may not be learnt.")
    if not pool:
        raise Refused(f"{root}/train holds no image beside those that test: {remedy}.")
    pool, test = (refuse_missing([find(root, part, name) for name in names], remedy) for part, names in parts)
    train, val = hold_out(pool, rng, folds, fold)
    read_image = partial(read_colour, format="PNG")
    return three_splits(train, val, test, read_image, read_mask, crop, height=height, width=width)


def numbers(root, part, remedy):
    """The names of a part's images: its list, or what its folder holds."""
    listed = root / f"{part}.txt"
    if not listed.exists():
        return in_folders((images_of(root / part), ".png"), (root / part / "label", ".png"))
    return [Path(line).stem for line in read_lines(listed, remedy)]


def images_of(folder):
    return folder / "image" if (folder / "image").is_dir() else folder / "img"


def find(root, part, name):
    """The Item of a number; the published train holds the test images as well, so that test may be without them."""
    place = root / part if images_of(root / part).is_dir() else root / "train"
    return Item(name, images_of(place) / f"{name}.png", place / "label" / f"{name}.png")


def read_mask(path, height, width):
    """Gland 1, elsewhere 0: files are grey or coloured, 255 and 0 or near them."""
    gland = decode(path, "PNG", "RGB").max(axis=-1)
    return (sized(gland, height, width, Image.Resampling.NEAREST) > 127).astype(np.uint8)
