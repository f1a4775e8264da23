"""GlaS: 165 H&E images of colon glands, benign and malignant, with a mask each (the Warwick-QU set).

Sirinukunwattana et al. 2017, https://arxiv.org/abs/1603.00275
"""

import csv
import os
import re
from collections import Counter
from functools import partial
from pathlib import Path

from sacred import Ingredient

from experiments.components.settings import Range
from experiments.errors import Refused
from experiments.store import IGNORE, Item, Split, Splits, decode, refuse_averaged  # noqa: F401  a dataset has IGNORE
from experiments.store.reading import read_text

CLASSES = ("background", "gland")
CHANNELS = 3
HAS = ("groups", "validation")
HEADLINE = "dice"  # as the published baselines report
BEFORE = {"split": "images"}  # what a ledger means that is older than a setting
SOURCE = "https://warwick.ac.uk/fac/cross_fac/tia/data/glascontest/"
NAME = re.compile(r"(train|testA|testB)_([0-9]+)")  # nothing else in Grade.csv may name a file

ingredient = Ingredient("glas")


@ingredient.config
def settings():
    root = "data/GlaS"  # the unpacked archive: Grade.csv, train_1.bmp, train_1_anno.bmp ...
    resize = 1.0  # 0.5 halves both sides: about 4 times faster, nuclei still visible
    crop = 416  # side of the training window in pixels after resizing; 0 trains on whole images
    folds = 5  # GlaS has no validation set: one of 5 parts of train, each with its share of both grades, serves
    fold = 0  # which part validates, 0 to folds - 1
    split = "patients"  # keeps each patient's images in one part; "images", as published, lets most lie on both sides


ALLOWED = {"resize": Range(above=0, most=4), "crop": Range(least=0), "folds": Range(least=2), "fold": Range(least=0)}


@ingredient.capture
def load(rng, root, resize, crop, folds, fold, split):
    if not os.path.exists(Path(root, "Grade.csv")):
        raise Refused(
            f"GlaS is not at {root}: unpack the archive from {SOURCE} there (Grade.csv, train_1.bmp, "
            "train_1_anno.bmp ...), or set glas.root=..., or use dataset=phantom."
        )
    return read_folder(root, rng, resize, crop, folds, fold, split, f"unpack the archive from {SOURCE} there again")


def read_folder(root, rng, resize, crop, folds, fold, split, remedy):
    """Splits of a folder in the layout of GlaS; `remedy` ends the message about a file that is wrong."""
    if not (isinstance(resize, int | float) and 0 < resize <= 4):
        raise Refused(f"resize is {resize}: choose a factor above 0, at most 4; 1.0 keeps the size.")
    if not (isinstance(crop, int) and crop >= 0):
        raise Refused(f"crop is {crop}: choose a side in whole pixels, or 0 for whole images.")
    if not (isinstance(folds, int) and isinstance(fold, int) and 0 <= fold < folds and folds >= 2):
        raise Refused(f"fold is {fold} of folds={folds}: choose 2 folds or more, fold from 0 to folds - 1.")
    if split not in ("patients", "images"):
        raise Refused(f"split is {split!r}: choose patients, or images as published.")
    items = list_items(Path(root), remedy)
    pool = [item for item in items if item.id.startswith("train")]
    test = [item for item in items if item.id.startswith("test")]
    if not pool:
        raise Refused(f"{root}/Grade.csv lists no training images (train_1 ...): {remedy}.")
    chosen = validation_fold(pool, rng, folds, fold, split)
    made = partial(
        Split,
        read_image=partial(decode, format="BMP", mode="RGB", resize=resize),
        read_mask=partial(read_mask, resize=resize),
        read_original=partial(read_mask, resize=1.0),
    )
    train = made([item for i, item in enumerate(pool) if i not in chosen])
    val = made([item for i, item in enumerate(pool) if i in chosen])
    return Splits(train, val, made(test) if test else None, crop)


def list_items(root, remedy):
    """One Item per row of Grade.csv, train_2 before train_10; Refused if rows and files do not match."""
    present = {path.name for path in root.iterdir()}
    items = [read_row(root, row, remedy) for row in read_rows(root / "Grade.csv", remedy)]
    for name, count in Counter(item.id for item in items).items():
        if count > 1:
            raise Refused(f"{root}/Grade.csv lists {name} {count} times: {remedy}.")
    for path in (path for item in items for path in (item.image, item.mask)):
        if path.name not in present:
            raise Refused(f"{path} is missing, though Grade.csv lists its image: {remedy}.")
    images = {name for name in present if name.endswith(".bmp") and not name.endswith("_anno.bmp")}
    unlisted = images - {item.image.name for item in items}
    if unlisted:
        raise Refused(f"{root / min(unlisted)} is not in Grade.csv: remove it, or {remedy}.")
    return sorted(items, key=lambda item: (item.id.split("_")[0], int(item.id.split("_")[1])))


def read_rows(path, remedy):
    try:
        lines = read_text(path, "utf-8-sig").splitlines()  # the published file ends its lines with CR alone
    except (OSError, UnicodeDecodeError) as error:
        raise Refused(f"{path} cannot be read ({error}): {remedy}.") from error
    return csv.DictReader(lines, skipinitialspace=True, restval="")


def read_row(root, row, remedy):
    name, patient, grade = (row.get(column, "").strip() for column in ("name", "patient ID", "grade (GlaS)"))
    if not (NAME.fullmatch(name) and patient and grade):
        found = f"name {name!r}, patient ID {patient!r}, grade (GlaS) {grade!r}"
        raise Refused(f"{root}/Grade.csv has a row with {found}, not as train_1,4, benign: {remedy}.")
    return Item(name, root / f"{name}.bmp", root / f"{name}_anno.bmp", group=grade, source=patient)


def validation_fold(pool, rng, folds, fold, split):
    """Indices into `pool` that validate: every grade in its own proportion, of whole patients as nearly as these allow.

    Patients have 1 to 16 images, often of one grade. Parts of whole patients are numbered from the one that comes
    nearest to its share of each grade.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    grades, patients = [item.group for item in pool], [item.source for item in pool]
    counts, state = Counter(grades), int(rng.integers(2**31))
    grade, least = min(counts.items(), key=lambda pair: pair[1])
    if least < folds:
        raise Refused(f"folds is {folds}, but only {least} training images are {grade}: choose fewer folds.")
    if split == "images":
        return set(
            list(StratifiedKFold(folds, shuffle=True, random_state=state).split(grades, grades))[fold][1].tolist()
        )
    if len(set(patients)) < folds:
        raise Refused(f"folds is {folds}, but only {len(set(patients))} patients are in training: choose fewer folds.")

    def unevenness(part):
        found = Counter(grades[i] for i in part)
        return sum(abs(found[grade] - count / folds) for grade, count in counts.items())

    dealt = StratifiedGroupKFold(folds, shuffle=True, random_state=state).split(grades, grades, patients)
    return set(sorted((part.tolist() for _, part in dealt), key=unevenness)[fold])


def read_mask(path, resize):
    """Gland 1, elsewhere 0: the file numbers the glands of an image 1, 2, 3 ..."""
    glands = decode(path, format="BMP", mode="L", resize=resize)
    refuse_averaged(glands, path)
    return (glands > 0).astype("uint8")
