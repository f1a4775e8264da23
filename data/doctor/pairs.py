"""The plainest reading of a folder: images/ and masks/ paired by name, for one that its dataset refuses to list."""

import os
from pathlib import Path

import numpy as np
from PIL import Image

from data.doctor.files import ENDINGS, SUFFIXES
from experiments.errors import BadData
from experiments.store import Item, Split, Splits
from experiments.store.reading import MAX_IMAGE, MAX_PIXELS, regular


def paired(root):
    """Splits of root/images and root/masks, or of train/, val/ and test/ in it that hold these; None if it has none.

    What lacks a partner stands with the name that the partner should have. `read_mask` takes numbers of 8 bits alone.
    """
    root = Path(root)
    parts = [root / name if (root / name / "images").is_dir() else None for name in ("train", "val", "test")]
    if not any(parts):
        parts = [root if (root / "images").is_dir() and (root / "masks").is_dir() else None, None, None]
    if not any(parts):
        return None
    return Splits(*(Split(items(part), read_image, read_mask) if part else None for part in parts), 0)


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
    return [folder / name for name in names if os.path.splitext(name)[1].lower() in ENDINGS]


def read_image(path):
    image = opened(path)
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def read_mask(path):
    image = opened(path)
    if image.mode not in ("L", "P"):
        raise BadData(f"{path} is a {image.mode} image, a mask needs 8 bits a pixel: replace it.")
    return np.array(image)


def opened(path):
    try:
        with Image.open(regular(path, MAX_IMAGE), formats=list(SUFFIXES)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise BadData(f"{path} claims {image.width} x {image.height} pixels, over {MAX_PIXELS}: replace it.")
            image.load()
            return image
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise BadData(f"{path} cannot be read as an image ({error}): replace the file.") from error
