"""Axon and myelin: 10 scanning electron micrographs of the spinal cord of 8 rats, cut into tiles; three classes.

Zaimi et al. 2018, https://doi.org/10.1038/s41598-018-22181-4

Terms: MIT. From https://github.com/axondeepseg/data_axondeepseg_sem, a BIDS tree: sub-rat1/micr/*_SEM.png and
derivatives/labels/sub-rat1/micr/*_seg-axonmyelin-manual.png. There is no official split: named rats test and validate,
the others are the pool, so that no rat is on two sides. The micrographs' pixels are .07 to .18 um wide, and are made
equal. Shares of all pixels: background .35, myelin .36, axon .29; 9 pixels of rat 2 have a value of no class and are
ignored.
"""

import json
from functools import lru_cache, partial
from itertools import pairwise
from pathlib import Path
from threading import Lock

import numpy as np
from PIL import Image
from sacred import Ingredient

from data._files import WINDOW, refuse_absent, refuse_missing, sized, three_splits
from experiments.components.settings import Range
from experiments.errors import BadData, Refused
from experiments.store import IGNORE, Item, decode
from experiments.store.reading import MAX_IMAGE, read_text, regular

CLASSES = ("background", "myelin", "axon")
CHANNELS = 3
HAS = ("validation",)
HEADLINE = "class_dice"  # a tile may well lack an axon, so the pixels of all count together
VALUES = {0: 0, 127: 1, 128: 1, 255: 2}
LABELS, MASK = "derivatives/labels", "_seg-axonmyelin-manual.png"
STRAY = 0.001  # largest share of a mask that may have another value, and is ignored
SOURCE = "https://github.com/axondeepseg/data_axondeepseg_sem"
ONE_AT_A_TIME = Lock()
REMEDY = f"clone {SOURCE} there (sub-rat1 ..., derivatives/labels)"

ingredient = Ingredient("axon_myelin")


@ingredient.config
def settings():
    root = "data/AxonMyelinSEM"  # sub-rat1, sub-rat2 ... and derivatives/labels
    test = ["sub-rat2", "sub-rat7", "sub-rat8"]  # the rats that test
    val = ["sub-rat4"]  # the rats that validate; the others are the pool
    pixel = 0.2  # width of a pixel in um after resizing; 0 keeps the files' pixels, of .07 to .18 um
    tile = 128  # each micrograph is cut into equal parts of about this side, in pixels; 0 keeps it whole
    crop = 96  # side of the training window in pixels; 0 trains on whole tiles


ALLOWED = WINDOW | {
    "pixel": Range(least=0.01, most=100, zero="the files'"),
    "tile": Range(least=16, zero="whole micrographs"),
}


@ingredient.capture
def load(rng, root, test, val, pixel, tile, crop):
    refuse_absent("axon_myelin", root, [LABELS], REMEDY)
    images = list_images(Path(root))
    if not images:
        raise Refused(f"{root} holds no sub-*/micr/*_SEM.png: {REMEDY}.")
    rats = list(dict.fromkeys(path.parts[-3] for path in images))
    for rat in [*test, *val]:
        if rat not in rats:
            raise Refused(f"axon_myelin: {root} has no {rat}, which test or validate: there are {', '.join(rats)}.")
    both = sorted({*test} & {*val})
    if both:
        raise Refused(f"axon_myelin: {both[0]} cannot both test and validate.")
    whole = refuse_missing([Item(p.stem, p, mask_of(Path(root), p), source=p.parts[-3]) for p in images], REMEDY)
    items = [part for item in whole for part in tiles_of(item, pixel, tile)]
    pool = [item for item in items if item.source not in (*test, *val)]
    if not pool:
        raise Refused("axon_myelin: every rat tests or validates, none is left to learn from.")
    held = [[item for item in items if item.source in rats] for rats in (val, test)]
    kept = lru_cache(16)(open_image)  # while their tiles are read, and as long as these splits are there
    last = lru_cache(2)(open_mask)
    read_original = partial(original_tile, last)
    return three_splits(pool, *held, partial(read_tile, kept), partial(read_tile, last), crop, read_original)


def list_images(root):
    """The micrographs by rat and number, data9 before data10, with those of which there is but a mask."""
    labels = root / LABELS
    found = {*root.glob("sub-*/micr/sub-*_SEM.png")}
    for path in labels.glob(f"sub-*/micr/sub-*_SEM{MASK}"):
        found.add(root / path.relative_to(labels).with_name(path.name.replace(MASK, ".png")))
    return sorted(found, key=lambda path: (path.parts[-3], len(path.name), path.name))


def mask_of(root, image):
    return root / LABELS / image.parent.relative_to(root) / f"{image.stem}{MASK}"


def tiles_of(item, pixel, tile):
    """The item's tiles, row by row. A tile's path is its file's, then its size and its place in it: a.png/..._0_0_96_96

    Every pixel is in one tile, and tiles of a micrograph differ in size by one pixel at most.
    """
    width, height = size_of(item.image)
    factor = width_of_pixel(item.image) / pixel if pixel else 1
    height, width = max(1, round(height * factor)), max(1, round(width * factor))
    rows, columns = (
        [side * n // parts for n in range(parts + 1)]
        for side in (height, width)
        for parts in [max(1, round(side / tile)) if tile else 1]
    )
    for top, bottom in pairwise(rows):
        for left, right in pairwise(columns):
            place = "_".join(map(str, (height, width, top, bottom, left, right)))
            yield item._replace(id=f"{item.id}_{top}_{left}", image=item.image / place, mask=item.mask / place)


def size_of(path):
    """(width, height) from a PNG's header. Raises BadData."""
    try:
        with Image.open(regular(path, MAX_IMAGE), formats=["PNG"]) as image:
            return image.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BadData(f"{path} cannot be read as a PNG image ({error}): {REMEDY}.") from error


def width_of_pixel(image):
    """In um, from the JSON file of the same name, or the rat's own (BIDS: what is said of a rat holds for its images).

    Raises Refused if neither says it.
    """
    for path in (image.with_suffix(".json"), image.with_name(f"{image.parts[-3]}_SEM.json")):
        if path.exists():
            try:
                said = json.loads(read_text(path))
                width, unit = float(said["PixelSize"][0]), said["PixelSizeUnits"]
                if unit == "um" and 0 < width < 100:
                    return width
            except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
                raise Refused(f"{path} does not say PixelSize and PixelSizeUnits ({error!r}): {REMEDY}.") from error
            raise Refused(f"{path} has PixelSize {width:g} {unit}, not a width in um: {REMEDY}.")
    raise Refused(f"{image} has no JSON file with its PixelSize: {REMEDY}, or set axon_myelin.pixel=0.")


def read_tile(opened, path):
    """The part of a file that a tile's path names, of what `opened(file, height, width)` reads."""
    height, width, top, bottom, left, right = map(int, path.name.split("_"))
    with ONE_AT_A_TIME:  # the tiles of a micrograph are asked for at once, and it is decoded once
        return opened(path.parent, height, width)[top:bottom, left:right]


def original_tile(opened, path):
    """The part of a mask's own pixels that a tile's path names."""
    height, width, *place = map(int, path.name.split("_"))
    whole = opened(path.parent, 0, 0)
    down, across = whole.shape[0] / height, whole.shape[1] / width
    top, bottom, left, right = (round(n * by) for n, by in zip(place, (down, down, across, across), strict=True))
    return whole[top:bottom, left:right]


def open_image(path, height, width):
    """(H, W, 3) uint8."""
    return sized(decode(path, "PNG", "RGB"), height, width, Image.Resampling.BILINEAR)


def open_mask(path, height, width):
    """(H, W) uint8 of classes: some files have an alpha channel beside the values, which says nothing."""
    values = decode(path, "PNG", "RGB")[..., 0]
    table = np.full(256, IGNORE, np.uint8)
    table[list(VALUES)] = list(VALUES.values())
    stray = np.setdiff1d(values, list(VALUES))
    if np.isin(values, stray).mean() > STRAY:
        found = ", ".join(map(str, stray[:8]))
        raise BadData(f"{path} holds the values {found}, not 0 background, 127 or 128 myelin, 255 axon: {REMEDY}.")
    return sized(table[values], height, width, Image.Resampling.NEAREST)
