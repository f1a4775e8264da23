"""Folder: images and masks of your own, given by their paths, the masks' values and how they are split.

Images may be PNG, JPEG, BMP, GIF or TIFF, grey, colour or of more channels, of 8 or 16 bits; the pages of a TIFF are
slices, images of one source. A mask's values become classes by `classes` or `values`, never by a guess.
"""

import os
from functools import lru_cache, partial
from itertools import accumulate
from pathlib import Path
from threading import Lock

import numpy as np
from PIL import Image
from sacred import Ingredient

from data._pairs import as_part, list_items, no_folder, tiles, told
from data._splits import deal, official, read_list
from data._values import propose, read_mask, read_meaning, read_original, spelled
from experiments.components.settings import Range
from experiments.errors import BadData, Refused
from experiments.store import IGNORE, Split, Splits  # noqa: F401  a dataset has IGNORE
from experiments.store.reading import pixels, resized

LAST = Lock()  # of last_decoded: images are read in threads
CLASSES, CHANNELS, HAS = (), 3, ("validation",)  # classes and channels are settings: load gives them

ingredient = Ingredient("folder")


@ingredient.config
def settings():
    root = "data/Folder"  # what the other paths start from
    images = "images"  # the images' folder, "." for root itself
    masks = "masks"  # the masks' folder, which may be the same
    image_pattern = "{name}.*"  # what of an image's path names it; * is anything but /
    mask_pattern = "{name}.*"  # how its mask is then called: {name}_mask.png, {part}annot/{name}.png
    unlabelled = False  # True: images without a mask are the pool, and the run asks people for their masks
    several = False  # True: an image's masks are several files, one object each
    classes = ""  # background,gland: the names of the mask values 0, 1, 2 ...
    values = ""  # 0:background,1-255:gland,11:ignore or #00ff00:road,#000000:ignore where the values are others
    ignore = -1  # the mask value that counts nowhere, as 255; -1: none
    snap = False  # True: other values are the nearest declared one, as JPEG needs
    confirm = False  # True: the proposed meaning of the values is right
    train_file = ""  # a list of images, a name or path in each line; "": what is in no other list
    val_file = ""  # what validates; "": the share val is drawn
    test_file = ""  # what tests; "": the share test is drawn
    val = 0.2  # share of the training images that validates where val_file is not given, whole sources
    test = 0.2  # share that tests where test_file is not given, the same in every run
    source = ""  # what images of one patient share: a regular expression on their names, as ^(p[0-9]+)_
    channels = 3  # 3: RGB, or grey three times; 1: grey; else as many as the TIFF files have
    black = 0  # the value of 16-bit images that is shown as 0
    white = 65535  # and as 255; 4095 for 12 bits
    percentile = 0.0  # above 0, as 0.5: from this to 100 - this of each image's own values instead
    resize = 1.0  # 0.5 halves both sides
    crop = 0  # side of the training window in pixels after resizing; 0 trains on whole images
    tile = 0  # cuts larger images into tiles of at most this side after resizing, all of one source; 0: whole images
    name = "folder"  # two folders of one name draw the same random numbers


ALLOWED = {
    "ignore": Range(least=-1, most=65535),
    "val": Range(least=0, below=1),
    "test": Range(least=0, below=1),
    "channels": Range(least=1, most=64),
    "black": Range(least=0, most=65534),
    "white": Range(least=1, most=65535),
    "percentile": Range(least=0, below=50),
    "resize": Range(above=0, most=4),
    "crop": Range(least=0),
    "tile": Range(least=16, zero="whole images"),
}


@ingredient.capture
def load(rng, root, images, masks, image_pattern, mask_pattern, unlabelled, several, classes, values, ignore, snap,
         confirm, train_file, val_file, test_file, val, test, source, channels, black, white, percentile, resize,
         crop, tile, name,
):  # fmt: skip
    if black >= white:
        raise Refused(f"folder.black={black} is not below folder.white={white}.")
    root = Path(root).expanduser()
    places = os.path.expanduser(images), os.path.expanduser(masks)
    files = {"train": train_file, "val": val_file, "test": test_file}
    apart = {} if any(files.values()) or "/" in image_pattern + mask_pattern else official(root, *places)
    how = image_pattern, mask_pattern, several, source, unlabelled
    held = list_parts(root, places, apart, *how)
    held = {part: tiles(found, tile, resize) if tile else found for part, found in held.items()}
    items = [item for found in held.values() for item in found]
    lists = {part: read_list(root, file, items) for part, file in files.items() if file}
    if apart:
        ends = list(accumulate(map(len, held.values()), initial=0))
        lists = {part: list(range(*ends[n : n + 2])) for n, part in enumerate(held)}
    train, validation, tests = deal(items, lists, {"val": val, "test": test}, rng, name)
    seen = [item.mask for item in [*validation, *tests]]  # anybody's to see, unlike the pool's
    names, ranges = read_meaning(classes, values, ignore) or propose(seen, confirm)
    told(f"Mask values: {spelled(names, ranges)}; any other is {'the nearest of these' if snap else 'refused'}.")
    made = partial(
        Split,
        read_image=partial(
            read_image, channels=channels, black=black, white=white, percentile=percentile, resize=resize
        ),
        read_mask=partial(read_mask, ranges=ranges, snap=snap, resize=resize),
        read_original=partial(read_original, ranges=ranges, snap=snap),
    )
    return Splits(
        made(train),
        made(validation) if validation else None,
        made(tests) if tests else None,
        crop,
        classes=names,
        channels=channels,
        headline="dice" if len(names) == 2 else "miou",
        name=name,
        grows=unlabelled,
    )


def list_parts(root, places, apart, image_pattern, mask_pattern, several, source, unlabelled):
    """{part: Items}, of all images as one part where they are not in folders of their own."""
    how = image_pattern, mask_pattern, several, source, unlabelled
    if not apart:
        return {"": list_items(*(root / place for place in places), *how)}
    held = {}
    for part, (images, masks) in apart.items():
        if part == "train" and not masks.parent.is_dir():
            raise no_folder(masks.parent, "masks")
        if part != "train" and not masks.is_dir():
            told(f"{masks} is no folder: the images of {images} have no masks, and are left out.")
            continue
        found = list_items(images, masks, *how)
        held[part] = [
            item._replace(id=f"{part}/{item.id}", source=item.source if source else f"{part}/{item.source}")
            for item in found
        ]
    told("Split as the folders are: " + ", ".join(f"{len(found)} {part}" for part, found in held.items()) + ".")
    return held


def read_image(image, **how):
    """(H, W, channels) uint8; the tiles of an image, which follow each other, are cut out of it as it was last read."""
    image = as_part(image)
    if not image.whole:
        return decoded(image, **how)
    with LAST:
        return image.cut(last_decoded(image._replace(whole=(), rows=(), columns=()), **how))


def decoded(image, channels, black, white, percentile, resize):
    array = pixels(image.paths[0], image.page)
    if array.dtype == np.uint16:
        how = f"percentiles {percentile:g} and {100 - percentile:g} of each" if percentile else f"{black} and {white}"
        told(f"Images of 16 bits are shown with 8: {how} become 0 and 255.")
        low, high = np.percentile(array, [percentile, 100 - percentile]) if percentile else (black, white)
        array = np.rint((array.astype(np.float32) - low) * (255 / max(high - low, 1))).clip(0, 255).astype(np.uint8)
    if array.ndim == 3 and channels == 1 and array.shape[-1] == 3:
        array = np.array(Image.fromarray(array).convert("L"))
    if array.ndim == 2:
        array = array[..., None].repeat(3 if channels == 3 else 1, axis=-1)
    if array.shape[-1] != channels:
        raise BadData(f"{image} has {array.shape[-1]} channels, not {channels}: set folder.channels, or convert it.")
    if resize == 1:
        return array
    planes = [np.array(resized(Image.fromarray(plane), resize, smooth=True)) for plane in np.moveaxis(array, -1, 0)]
    return np.stack(planes, axis=-1)


last_decoded = lru_cache(maxsize=1)(decoded)
