"""The plainest reading of a folder: images/ and masks/ paired by name, for one that its dataset refuses to list."""

import os
from pathlib import Path

import numpy as np
from PIL import Image

from data.doctor.files import ENDINGS, SUFFIXES
from experiments.errors import BadData
from experiments.store import Item, Split, Splits
from experiments.store.reading import MAX_IMAGE, MAX_PIXELS, regular

FORMATS = list(SUFFIXES)


def paired(root):
    """Splits of root/images and root/masks, or of train/, val/ and test/ in it that hold these; None if it has none.

    What lacks a partner stands with the name that the partner should have. `read_mask` takes numbers of 8 bits alone.
    """
    root = Path(root)
    parts = [root / name if whole(root / name) else None for name in ("train", "val", "test")]
    if not parts[0]:
        parts = [root if whole(root) else None, None, None]
    if not parts[0]:
        return None
    return Splits(*(Split(items(part), read_image, read_mask) if part else None for part in parts), 0)


def whole(folder):
    return (folder / "images").is_dir() and (folder / "masks").is_dir()


def items(part):
    images, masks = ({path.stem: path for path in files(part / name)} for name in ("images", "masks"))
    endings = [next((path.suffix for path in some.values()), ".png") for some in (images, masks)]
    names = sorted(images.keys() | masks.keys())
    return [
        Item(
            name,
            images.get(name) or part / "images" / (name + endings[0]),
            masks.get(name) or part / "masks" / (name + endings[1]),
        )
        for name in names
    ]


def files(folder):
    names = sorted(os.listdir(folder), reverse=True)
    return [folder / name for name in names if f".{name.rpartition('.')[2].lower()}" in ENDINGS]


def read_image(path):
    return opened(path, as_colours)


def as_colours(image, path):
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def read_mask(path):
    return opened(path, as_numbers)


def as_numbers(image, path):
    if image.mode not in ("L", "P"):
        raise BadData(f"{path} is a {image.mode} image, a mask needs 8 bits a pixel: replace it.")
    return np.asarray(image)


def opened(path, array):
    """What `array` makes of the opened image."""
    try:
        with Image.open(regular(path, MAX_IMAGE), formats=FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise BadData(f"{path} claims {width} x {height} pixels, over {MAX_PIXELS}: replace it.")
            return array(image, path)
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise BadData(f"{path} cannot be read as an image ({error}): replace the file.") from error
