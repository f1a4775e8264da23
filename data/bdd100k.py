"""BDD100K: 8,000 annotated dash-cam images of American roads in all weathers, 19 classes as Cityscapes has them.

Yu et al. 2020, https://arxiv.org/abs/1805.04687

Terms: BDD's own, for research that is not commercial. From http://bdd-data.berkeley.edu, "10K Images" and
"Segmentation": 7,000 images to train, of which a fold validates, and 1,000 of val to test, for the official test has no
masks. 255 is ignored. Every image is of another drive.
"""

from functools import partial
from pathlib import Path

from sacred import Ingredient

from data._files import (
    FOLDS,
    SIDES,
    WINDOW,
    hold_out,
    in_folders,
    read_classes,
    read_colour,
    refuse_absent,
    refuse_missing,
    three_splits,
)
from data.cityscapes import CLASSES  # noqa: F401  the same 19
from experiments.errors import Refused
from experiments.store import IGNORE, Item  # noqa: F401  a dataset has IGNORE

CHANNELS = 3
HAS = ("validation",)
HEADLINE = "miou"
SOURCE = "http://bdd-data.berkeley.edu"

ingredient = Ingredient("bdd100k")


@ingredient.config
def settings():
    root = "data/BDD100K"  # images/10k/train, labels/sem_seg/masks/train ...
    height = 180  # of every image; 360, 540 or the files' 720 as published, 0 keeps them
    width = 320  # 640, 960 or the files' 1,280 as published
    crop = 0  # side of the training window in pixels; 0 trains on whole images
    folds = 10  # one of 10 parts of train validates
    fold = 0  # which part validates, 0 to folds - 1


ALLOWED = SIDES | WINDOW | FOLDS


@ingredient.capture
def load(rng, root, height, width, crop, folds, fold):
    remedy = f"unpack 10K Images and Segmentation of {SOURCE} so that images/10k and labels/sem_seg are there"
    images, masks = "images/10k", "labels/sem_seg/masks"
    refuse_absent("bdd100k", root, [f"{kind}/{part}" for part in ("train", "val") for kind in (images, masks)], remedy)
    pool, test = (
        refuse_missing(
            [
                Item(name, Path(root, images, part, f"{name}.jpg"), Path(root, masks, part, f"{name}.png"))
                for name in in_folders((Path(root, images, part), ".jpg"), (Path(root, masks, part), ".png"))
            ],
            remedy,
        )
        for part in ("train", "val")
    )
    if not pool:
        raise Refused(f"{Path(root, images, 'train')} holds no JPEG images: {remedy}.")
    train, val = hold_out(pool, rng, folds, fold)
    read_image = partial(read_colour, format="JPEG")
    return three_splits(train, val, test, read_image, read_classes, crop, height=height, width=width)
