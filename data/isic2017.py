"""ISIC 2017: 2,750 dermoscopic images of skin lesions, the lesion's outline as a mask.

Codella et al. 2018, https://arxiv.org/abs/1710.05006

Terms: CC0. From https://challenge.isic-archive.com/data/#2017, part 1: 2,000 images to train, 150 to validate, 600 to
test. Where the masks of the 600 are not there, the official 150 are the test images and a fold of train validates.
The lesion is on average 19 % of a training image. Groups are the diagnoses of part 3, where its tables are there:
1,372 nevi, 374 melanomas, 254 seborrheic keratoses.
"""

import csv
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
from experiments.errors import Refused, shown
from experiments.store import IGNORE, Item, decode  # noqa: F401  a dataset has IGNORE

CLASSES = ("background", "lesion")
CHANNELS = 3
HAS = ("groups", "validation")
HEADLINE = "dice"
SOURCE = "https://challenge.isic-archive.com/data/#2017"
# the official folders, and those of the published code for it
LAYOUTS = (
    ("ISIC-2017_{}_Data", "ISIC-2017_{}_Part1_GroundTruth", "ISIC-2017_{}_Part3_GroundTruth.csv"),
    ("{}_Data", "{}_GroundTruth", "{}_Part3_GroundTruth.csv"),
)

ingredient = Ingredient("isic2017")


@ingredient.config
def settings():
    root = "data/ISIC-2017"  # ISIC-2017_Training_Data, ISIC-2017_Training_Part1_GroundTruth, _Validation_ ...
    height = 128  # of every image, whose own sizes differ (to 6,748 x 4,499); 0 keeps them
    width = 128  # squashed to a square, as published (512)
    crop = 0  # side of the training window in pixels; 0 trains on whole images
    folds = 10  # where the official test has no masks: one of 10 parts of train validates, each with its diagnoses
    fold = 0  # which part validates, 0 to folds - 1


ALLOWED = SIDES | WINDOW | FOLDS


@ingredient.capture
def load(rng, root, height, width, crop, folds, fold):
    remedy = f"unpack Training and Validation, Data and Part1_GroundTruth, from {SOURCE} there"
    layout = next((each for each in LAYOUTS if Path(root, each[0].format("Training")).is_dir()), LAYOUTS[0])
    parts = ("Training", "Validation")
    refuse_absent("isic2017", root, [form.format(part) for part in parts for form in layout[:2]], remedy)
    train, val, test = (
        list_images(Path(root), *(form.format(part) for form in layout), remedy) for part in (*parts, "Test_v2")
    )
    if not train:
        raise Refused(f"{Path(root, layout[0].format('Training'))} holds no JPEG images: {remedy}.")
    if not test:
        (train, val), test = hold_out(train, rng, folds, fold), val
    return three_splits(
        train, val, test, partial(read_colour, format="JPEG"), read_mask, crop, height=height, width=width
    )


def list_images(root, images, masks, table, remedy):
    """An Item per image or mask by name, its group the diagnosis where a table has it; [] without a folder of masks."""
    if not (root / masks).is_dir():
        return []
    groups = read_diagnoses(root / table, remedy)
    return refuse_missing(
        [
            Item(name, root / images / f"{name}.jpg", root / masks / f"{name}_segmentation.png", groups.get(name, ""))
            for name in in_folders((root / images, ".jpg"), (root / masks, "_segmentation.png"))
        ],
        remedy,
    )


def read_diagnoses(path, remedy):
    """{image: diagnosis} of a table of part 3; {} where there is none. Raises Refused for another table."""
    if not path.exists():
        return {}
    found = {}
    for row in csv.DictReader(read_lines(path, remedy), restval=""):
        said = [row.get(column, "") for column in ("melanoma", "seborrheic_keratosis")]
        if not row.get("image_id") or any(value not in ("0.0", "1.0", "0", "1") for value in said):
            raise Refused(f"{path} has a row {shown(row)}, not as image_id,melanoma,seborrheic_keratosis: {remedy}.")
        melanoma, keratosis = map(float, said)
        found[row["image_id"]] = "melanoma" if melanoma else "keratosis" if keratosis else "nevus"
    return found


def read_mask(path, height, width):
    """Lesion 1, elsewhere 0: the file has 255 and 0."""
    lesion = sized(decode(path, "PNG", "L"), height, width, Image.Resampling.NEAREST)
    return (lesion > 127).astype(np.uint8)
