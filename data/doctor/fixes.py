"""What to do about each kind of fault, and the corrected copy: only what has one unambiguous mend is mended."""

import os
import shutil
from collections import defaultdict
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from data.doctor.files import ENDINGS, SUFFIXES
from experiments.errors import Refused
from experiments.store import IGNORE
from experiments.store.reading import MAX_IMAGE, MAX_PIXELS, regular

FIXES = {
    "layout": "",
    "missing": "put it there, or take its partner out",
    "no file": "put the image itself there",
    "empty file": "fetch it again",
    "unknown format": "convert it to PNG",
    "huge header": "cut it into tiles, or fetch it again",
    "truncated": "fetch it again",
    "damaged": "fetch it again",
    "unreadable": "see how the dataset's file reads it",
    "animated": "save one frame as PNG",
    "several pages": "save each page as an image of its own",
    "CMYK": "convert it to RGB (--fix does)",
    "16-bit image": "scale it to 8 bits, every image by the same factor",
    "float image": "scale it to 8 bits, every image by the same factor",
    "transparent image": "lay it on a background and save it as RGB",
    "EXIF rotation": "turn the pixels and drop the tag (--fix does where the mask's size tells which way)",
    "16-bit mask": "save it with 8 bits a pixel (--fix does where its values fit)",
    "float mask": "save it as whole numbers (--fix does where they are whole)",
    "RGBA mask": "save class numbers instead of colours (--fix does where the colours are greys)",
    "RGB mask": "save class numbers instead of colours (--fix does where the colours are greys)",
    "LA mask": "drop the transparency (--fix does where it hides nothing)",
    "1-bit mask": "save it with 8 bits a pixel (--fix does)",
    "JPEG mask": "JPEG invents values: export it anew as PNG",
    "palette mask": "save class numbers as grey values (--fix does where the palette's greys are classes)",
    "wrong extension": "rename it, or convert it to what it is called (--fix does)",
    "cut off": "fetch it again",
    "one colour": "take it out, or fetch it again",
    "0/255 mask": "save the class as 1 (--fix does)",
    "interpolated mask": "resize it anew, by nearest neighbour",
    "undeclared value": "correct the mask, or declare the class",
    "all ignored": "annotate it, or take it out",
    "rotated size": "turn the image or the mask by 90 degrees",
    "other size": "replace the mask by the one of this image",
    "outside the root": "copy the file into the folder",
    "name no UTF-8": "rename it",
    "duplicate stem": "take one out",
    "case clash": "rename one",
    "duplicate id": "give each its own name",
    "shared mask": "give each image its own mask",
    "shared image": "keep one of the masks",
    "source in two splits": "move all images of a source to one side",
    "copy": "keep one, or both on one side with one mask",
    "near-duplicate": "keep one, or both on one side as one source",
    "copied mask": "replace it by the mask of this image",
    "no foreground": "look whether the image is empty too",
    "no background": "look whether the image is full too",
    "absent class": "move an image that has it into training, or drop the class",
    "misaligned": "lay it over its image: transpose, turn or move it",
}


def mend(faults, root, target, classes):
    """Copy `root` to the new folder `target` and mend there what is unambiguous; returns the paths that were mended.

    Nothing in `root` is written. Raises Refused unless target is absent or empty and apart from root.
    """
    root, target = Path(root), Path(target)
    if target.resolve().is_relative_to(root.resolve()) or root.resolve().is_relative_to(target.resolve()):
        raise Refused(f"--fix {target} and {root} lie in one another: name a folder apart.")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise Refused(f"--fix {target} is there already: name a new folder.")
    copy_tree(root, target)
    kinds, items = defaultdict(set), {}
    for fault in faults:
        whole = [fault.path in (item.image, item.mask) and isinstance(fault.path, Path) for item in fault.items]
        if whole == [True]:  # no page, no tile, no one of several masks
            kinds[fault.path].add(fault.kind)
            items[fault.path] = fault.items[0]
    done = []
    for path, found in kinds.items():
        inside = Path(os.path.abspath(path)).is_relative_to(os.path.abspath(root))
        copy = target / os.path.relpath(path, root) if inside else None
        if inside and copy.is_file() and not any(p.is_symlink() for p in (copy, *copy.parents) if p != target.parent):
            pixels = mended(path, items[path], found, classes)
            if pixels is not None:
                copy.unlink()
                lossy = {"quality": 95, "subsampling": 0} if ENDINGS[path.suffix.lower()] == "JPEG" else {}
                pixels.save(copy, ENDINGS[path.suffix.lower()], **lossy)
                done.append(path)
    return done


def copy_tree(root, target):
    """Regular files and links, no more; a copy can be written though the original cannot."""
    for folder, _, files in os.walk(root):
        place = target / os.path.relpath(folder, root)
        place.mkdir(parents=True, exist_ok=True)
        for name in files:
            source = os.path.join(folder, name)
            if os.path.islink(source):
                os.symlink(os.readlink(source), place / name)
            elif os.path.isfile(source):
                shutil.copyfile(source, place / name)


def mended(path, item, kinds, classes):
    """The Pillow image that an image or mask with faults of these kinds should be; None where that is not certain."""
    if path.suffix.lower() not in ENDINGS or not kinds & MENDS.keys():
        return None
    try:
        with Image.open(regular(path, MAX_IMAGE), formats=list(SUFFIXES)) as image:
            if image.width * image.height > MAX_PIXELS:
                return None
            image.load()
            for kind in MENDS:
                if kind in kinds and image is not None:
                    image = MENDS[kind](image, item, path == item.mask)
            if image is not None and path == item.mask:
                image = whole_numbers(image)
                if image is not None and len(classes) == 2 and set(np.unique(image)) == {0, IGNORE}:
                    image = Image.fromarray(np.asarray(image) // IGNORE)
            return image
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError):
        return None


def upright(image, item, is_mask):
    """Turned as its EXIF tag says, where that and not the pixels as they lie gives the other file's size."""
    turned = ImageOps.exif_transpose(image)
    with Image.open(item.image if is_mask else item.mask, formats=list(SUFFIXES)) as other:
        size = ImageOps.exif_transpose(other).size if is_mask else other.size
    return turned if turned.size == size != image.size else None


def rgb(image, item, is_mask):
    return image.convert("RGB")


def as_it_is(image, item, is_mask):
    return image


def palette_greys(image, item, is_mask):
    """The greys of a palette as numbers."""
    return image.convert("RGB") if image.mode == "P" else image


MENDS = {
    "EXIF rotation": upright,
    "CMYK": rgb,
    "palette mask": palette_greys,
    **dict.fromkeys(
        (
            "wrong extension",
            "16-bit mask",
            "float mask",
            "RGBA mask",
            "RGB mask",
            "LA mask",
            "1-bit mask",
            "0/255 mask",
        ),
        as_it_is,
    ),
}


def whole_numbers(image):
    """A mask as 8-bit numbers: one of equal channels, transparent nowhere, of whole values to 255; otherwise None."""
    if image.mode == "P":
        return image
    values = np.array(image)
    if image.mode in ("LA", "RGBA"):
        if (values[..., -1] != values[0, 0, -1]).any():
            return None
        values = values[..., :-1]
    if values.ndim == 3:
        if (values != values[..., :1]).any():
            return None
        values = values[..., 0]
    numbers = values.astype(np.uint8) if np.isfinite(values).all() else None
    return Image.fromarray(numbers) if numbers is not None and (numbers == values).all() else None
