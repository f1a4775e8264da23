"""Cityscapes: 3,475 finely annotated street scenes of 21 cities with 19 classes.

Cordts et al. 2016, https://arxiv.org/abs/1604.01685

Terms: research that is not commercial, after registration. From https://www.cityscapes-dataset.com,
leftImg8bit_trainvaltest and gtFine_trainvaltest: 2,975 images of 18 cities to train, of which whole cities validate,
and the 500 of val, of three others, to test, for the official test has no masks. What is none of the 19 is ignored.
"""

from functools import partial
from pathlib import Path

from sacred import Ingredient

from data._files import (
    FOLDS,
    SIDES,
    WINDOW,
    hold_out,
    read_classes,
    read_colour,
    refuse_absent,
    refuse_missing,
    three_splits,
)
from experiments.errors import Refused
from experiments.store import IGNORE, Item

CLASSES = (
    "road",
    "sidewalk",
    "building",
    "wall",
    "fence",
    "pole",
    "traffic light",
    "traffic sign",
    "vegetation",
    "terrain",
    "sky",
    "person",
    "rider",
    "car",
    "truck",
    "bus",
    "train",
    "motorcycle",
    "bicycle",
)
CHANNELS = 3
HAS = ("validation",)
HEADLINE = "miou"
SOURCE = "https://www.cityscapes-dataset.com"
IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)  # of the classes in labelIds
OF_IDS = {value: IGNORE for value in range(34)} | {value: number for number, value in enumerate(IDS)}

ingredient = Ingredient("cityscapes")


@ingredient.config
def settings():
    root = "data/Cityscapes"  # leftImg8bit/train/aachen ..., gtFine/train/aachen ...
    masks = "labelIds"  # the masks that are read, as they are published; or labelTrainIds, made by the official scripts
    height = 256  # of every image; 512 or 344 as published, 0 keeps the files' 1,024
    width = 512  # 1,024 or 688 as published, 0 keeps the files' 2,048
    crop = 0  # side of the training window in pixels; 0 trains on whole images
    folds = 9  # one of 9 parts of train validates, of about 2 cities each
    fold = 0  # which part validates, 0 to folds - 1


ALLOWED = SIDES | WINDOW | FOLDS | {"masks": ("labelIds", "labelTrainIds")}


@ingredient.capture
def load(rng, root, masks, height, width, crop, folds, fold):
    remedy = f"unpack leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip of {SOURCE} there"
    parts = ("train", "val")
    refuse_absent(
        "cityscapes", root, [f"{kind}/{part}" for part in parts for kind in ("leftImg8bit", "gtFine")], remedy
    )
    if masks == "labelTrainIds":
        remedy += ", and make labelTrainIds by cityscapesscripts (csCreateTrainIdLabelImgs), or set cityscapes.masks="
    pool, test = (refuse_missing(list_scenes(Path(root), part, masks), remedy) for part in parts)
    if not pool:
        raise Refused(f"{root}/leftImg8bit/train holds no city with images: {remedy}.")
    train, val = hold_out(pool, rng, folds, fold)
    read_mask = partial(read_classes, classes=OF_IDS if masks == "labelIds" else {})
    read_image = partial(read_colour, format="PNG")
    return three_splits(train, val, test, read_image, read_mask, crop, height=height, width=width)


def list_scenes(root, part, masks):
    """An Item per image or mask, by city and name, in the order of time within each city's sequences."""
    found = set()
    for kind, ending in (("leftImg8bit", "_leftImg8bit.png"), ("gtFine", f"_gtFine_{masks}.png")):
        files = (root / kind / part).glob(f"[!.]*/[!.]*{ending}")
        found |= {(path.parent.name, path.name.removesuffix(ending)) for path in files}
    return [
        Item(
            name,
            root / "leftImg8bit" / part / city / f"{name}_leftImg8bit.png",
            root / "gtFine" / part / city / f"{name}_gtFine_{masks}.png",
            source=city,
        )
        for city, name in sorted(found)
    ]
