"""PASCAL VOC 2012: photographs with 20 classes of things and the background, in the official lists.

Everingham et al. 2015, https://doi.org/10.1007/s11263-014-0733-5

Terms: research; the photographs are Flickr's. From http://host.robots.ox.ac.uk/pascal/VOC/voc2012/, VOCtrainval:
1,464 images to train, of which a fold validates, and 1,449 of val.txt to test, for the official test has no masks.
Masks are palette images of the classes' numbers; their outlines, 255, are ignored. `voc2012.augmented=True` takes the
10,582 images of Hariharan et al. 2011, https://doi.org/10.1109/ICCV.2011.6126343, as trainaug.txt and
SegmentationClassAug, which are to be had for it.
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
    read_lines,
    refuse_absent,
    refuse_missing,
    three_splits,
)
from experiments.errors import Refused
from experiments.store import IGNORE, Item  # noqa: F401  a dataset has IGNORE

CLASSES = (
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "dining table",
    "dog",
    "horse",
    "motorbike",
    "person",
    "potted plant",
    "sheep",
    "sofa",
    "train",
    "tv monitor",
)
CHANNELS = 3
HAS = ("validation",)
HEADLINE = "miou"
AUGMENTED = "SegmentationClassAug", "SegmentationClassTrainAug"  # what the folder of SBD masks is called
SOURCE = "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/"

ingredient = Ingredient("voc2012")


@ingredient.config
def settings():
    root = "data/VOCdevkit/VOC2012"  # JPEGImages, SegmentationClass, ImageSets/Segmentation
    augmented = False  # True: trainaug.txt and SegmentationClassAug (or ...TrainAug), 10,582 images
    height = 256  # of every image, squashed; 480 as published, 0 keeps the files' own, of up to 500
    width = 256  # as height
    crop = 0  # side of the training window in pixels; 0 trains on whole images
    folds = 10  # one of 10 parts of train validates
    fold = 0  # which part validates, 0 to folds - 1


ALLOWED = SIDES | WINDOW | FOLDS


@ingredient.capture
def load(rng, root, augmented, height, width, crop, folds, fold):
    remedy = f"unpack VOCtrainval_11-May-2012.tar of {SOURCE} so that JPEGImages is there"
    name, masks = ("trainaug", AUGMENTED[0]) if augmented else ("train", "SegmentationClass")
    if augmented:
        masks = next((folder for folder in AUGMENTED if Path(root, folder).is_dir()), masks)
    lists = {part: f"ImageSets/Segmentation/{part}.txt" for part in (name, "val")}
    refuse_absent("voc2012", root, ["JPEGImages", "SegmentationClass"], remedy)
    refuse_absent("voc2012", root, [masks, *lists.values()], f"{remedy}{', and SBD beside it' if augmented else ''}")

    def listed(part, masks):
        lines = read_lines(Path(root, lists[part]), remedy)
        names = [Path(line.split()[0]).stem for line in lines]  # the augmented list is also to be had with whole paths
        pairs = [(n, Path(root, "JPEGImages", f"{n}.jpg"), Path(root, masks, f"{n}.png")) for n in names]
        return refuse_missing([Item(*pair) for pair in pairs], remedy)

    pool, test = listed(name, masks), listed("val", "SegmentationClass")
    leaked = sorted({item.id for item in pool} & {item.id for item in test})
    if leaked:
        raise Refused(f"{Path(root, lists[name])} lists {leaked[0]}, an image that tests (val.txt): {remedy}.")
    train, val = hold_out(pool, rng, folds, fold)
    read_image = partial(read_colour, format="JPEG")
    return three_splits(train, val, test, read_image, read_classes, crop, height=height, width=width)
