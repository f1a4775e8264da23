"""Images and their masks paired by patterns of their names: files, pages of files, tiles."""

import os
import re
from collections import Counter, defaultdict
from functools import cache
from itertools import pairwise, product
from pathlib import Path
from typing import NamedTuple
from unicodedata import normalize

from experiments.errors import Refused
from experiments.records.progress import say
from experiments.store import Item
from experiments.store.reading import FORMATS, format_of, pages, size

CONVERT = {  # what is seen beside images and is none that can be read: how it becomes one
    (".dcm", ".dicom", ".ima"): "DICOM: export 8- or 16-bit PNG, the same window for every image",
    (".nii", ".nii.gz", ".mha", ".mhd", ".nrrd"): "a volume: save its slices as PNG, or as pages of a TIFF",
    (".npy", ".npz", ".h5", ".hdf5", ".mat"): "an array: save each image as PNG or TIFF",
    (".svs", ".ndpi", ".mrxs", ".scn", ".czi", ".lif", ".nd2", ".vsi"): "a microscope's format: export tiles as TIFF",
    (".webp", ".jp2", ".heic", ".avif", ".tga", ".ppm", ".pgm", ".exr"): "no PNG, JPEG, BMP, GIF or TIFF: save as PNG",
}
DRAWN = {  # what stands in for masks where no image does
    (".json", ".geojson", ".xml", ".svg", ".roi"): "no picture: draw its outlines or boxes as PNG masks",
}
SHOWN, LISTED, BRIEF = 3, 6, 32  # examples in a message, names of what a folder holds, characters of these
told = cache(say)  # load is called more than once in a run


class Part(NamedTuple):
    """A page of a file, several files that are one mask, or a tile of either."""

    paths: tuple
    page: int = 0
    pages: int = 1
    whole: tuple = ()  # (height, width) of the image that this is a tile of
    rows: tuple = ()  # the tile's first and the next one's, in pixels after resizing
    columns: tuple = ()

    def __str__(self):
        more = f" and {len(self.paths) - 1} more" if len(self.paths) > 1 else ""
        return f"{self.paths[0]}{more}" + (f", page {self.page + 1}" if self.pages > 1 else "")

    def scaled(self, shape):
        """The same part of the image at another size (height, width)."""
        if not self.whole:
            return self
        rows, columns = (
            tuple(round(n * new / old) for n in ends)
            for ends, new, old in zip((self.rows, self.columns), shape, self.whole, strict=True)
        )
        return self._replace(whole=tuple(shape), rows=rows, columns=columns)

    def cut(self, array):
        """The tile of a whole image's or mask's array, which is all of it where this is no tile."""
        return array[slice(*self.rows), slice(*self.columns)] if self.whole else array


def as_part(place):
    return place if isinstance(place, Part) else Part((place,))


def list_items(images, masks, image_pattern, mask_pattern, several, source, unlabelled=False):
    """One Item an image or page, train_2 before train_10; Refused where images and masks do not pair one to one.

    With `unlabelled` images may have no mask: theirs is None.
    """
    if images.is_file() and masks.is_file():
        return numbered({(images.stem,): [images]}, {(images.stem,): [masks]}, source)
    image_of, mask_of = regex(image_pattern, "image"), regex(mask_pattern, "mask")
    if set(image_of.groupindex) != set(mask_of.groupindex):
        raise Refused(f"folder.image_pattern={image_pattern} and mask_pattern={mask_pattern} name different parts.")
    if images.resolve() == masks.resolve() and image_pattern == mask_pattern:
        within = sorted(entry.name for entry in os.scandir(images) if entry.is_dir()) if images.is_dir() else []
        folders = f" or, of {', '.join(within[:LISTED])}, folder.images=... folder.masks=..." if within[1:] else ""
        raise Refused(
            f"Images and masks are both in {images}: say how masks are called, as folder.mask_pattern="
            f"{{name}}_mask.png{folders}."
        )
    none_yet = unlabelled and not masks.is_dir()
    found_masks = {} if none_yet else match(masks, mask_of, "masks", image_of.groupindex, may_be_none=unlabelled)
    known = {path for paths in found_masks.values() for path in paths}
    found = match(images, image_of, "images", image_of.groupindex, but=known)
    refuse(found, images, lambda key: len(found[key]) > 1, "images have the same name", "keep one file of each name")
    refuse(
        found,
        images,
        lambda key: not unlabelled and key not in found_masks,
        "images have no mask",
        f"put theirs into {masks} as {mask_pattern}{so_called(found, found_masks)}, set folder.masks=... "
        "folder.mask_pattern=..., or folder.unlabelled=True for people to draw them",
    )
    if not several:
        refuse(
            found_masks,
            masks,
            lambda key: key in found and len(found_masks[key]) > 1,
            "images have several masks",
            "keep one, or set folder.several=True where each file is one object",
        )
    lone = len(found_masks.keys() - found.keys())
    if lone:
        told(f"{lone} masks in {masks} have no image and are left out.")
    return numbered(found, found_masks, source)


def so_called(images, masks):
    """How masks {key: paths} seem to be called after images of one name: the pattern to set, "" if it shows none."""
    name = next((key[0] for key in sorted(images, key=natural) if len(key) == 1 and key not in masks), "/")
    same = sorted(path.name for [path, *_] in masks.values() if path.name.startswith(name) and path.stem != name)
    return f" or, as they seem called, set folder.mask_pattern={{name}}{same[0].removeprefix(name)}" if same else ""


def numbered(found, found_masks, source):
    """The Items of images and masks {key: paths}, one for each page, train_2 before train_10."""
    items = []
    for key in sorted(found, key=natural):
        [path], own, title = found[key], tuple(found_masks.get(key, ())), "/".join(key)
        count = pages(path)
        for page in range(count):
            id = title if count == 1 else f"{title}_{page:03d}"
            mask = (own[0] if count == len(own) == 1 else Part(own, page, count)) if own else None
            shared = source_of(id, source) if source else title
            items.append(Item(id, path if count == 1 else Part((path,), page, count), mask, source=shared))
    twice = [id for id, count in Counter(item.id for item in items).items() if count > 1]
    if twice:
        raise Refused(f"Two images would be called {twice[0]}: rename one.")
    return items


def tiles(items, side, resize):
    """These items with every large one cut into equal parts of at most side x side pixels, of one source as before."""
    made = []
    for item in items:
        image, mask = as_part(item.image), item.mask and as_part(item.mask)
        whole = tuple(max(1, round(length * resize)) for length in size(image.paths[0], image.page))
        rows, columns = (
            [length * k // count for k in range(count + 1)] for length in whole for count in [-(-length // side)]
        )
        if len(rows) == len(columns) == 2:
            made.append(item)
            continue
        for down, across in product(pairwise(rows), pairwise(columns)):
            place = {"whole": whole, "rows": down, "columns": across}
            id = f"{item.id}_y{down[0]:05d}_x{across[0]:05d}"
            made.append(item._replace(id=id, image=image._replace(**place), mask=mask and mask._replace(**place)))
    return made


def regex(pattern, what):
    """The compiled form of `{part}/{name}_*.png`, its words in braces as named groups."""
    pieces = re.split(r"\{(\w+)\}", pattern)  # every second one a name
    texts, names = pieces[::2], pieces[1::2]
    if not names or len(set(names)) < len(names) or not all(name.isidentifier() for name in names):
        raise Refused(f"folder.{what}_pattern={pattern} names no image: write it as {{name}}.* or {{name}}_{what}.png.")
    fixed = [re.escape(text).replace(r"\*", "[^/]*") for text in texts]
    fields = [f"(?P<{name}>.+)" for name in names]
    return re.compile("".join(piece for pair in zip(fixed, [*fields, ""], strict=True) for piece in pair), re.S)


def match(folder, pattern, what, names, but=(), may_be_none=False):
    """{key: paths} of the image files under a folder that a pattern matches, without hidden ones and those in `but`."""
    if not folder.is_dir():
        raise no_folder(folder, what)
    found, seen, drawn = defaultdict(list), 0, None
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith((".", "__MACOSX"))]
        for name in sorted(name for name in files if not name.startswith(".")):
            path = Path(place, name)
            matched = pattern.fullmatch(path.relative_to(folder).as_posix())
            how = next((how for ends, how in CONVERT.items() if name.lower().endswith(ends)), None)
            if how and matched:
                raise Refused(f"{path} is {how}.")
            readable = path.suffix.lower() in FORMATS
            seen += readable
            drawn = drawn or next(
                (f"{path} is {how}" for ends, how in DRAWN.items() if name.lower().endswith(ends)), None
            )
            if matched and readable and path not in but:
                found[tuple(normalize("NFC", matched[name]) for name in names)].append(path)  # macOS writes e and ´
    if not found and not may_be_none and not seen and drawn:
        raise Refused(f"{drawn}, and set folder.{what}=...")
    if not found and not may_be_none:
        held = f"{seen} PNG, JPEG, BMP, GIF or TIFF files" + (", none of which fits the pattern" if seen else "")
        raise Refused(f"{folder} holds {held}: put the {what} there, or set folder.{what}=... and the patterns.")
    return found


def no_folder(folder, what):
    """The Refused that names what lies where a folder should be: folders and, without any, images."""
    there = os.listdir(folder.parent) if folder.parent.is_dir() else []
    names = sorted(
        (name for name in there if not name.startswith((".", "__MACOSX"))), key=lambda name: natural((name,))
    )
    names = [name for name in names if (folder.parent / name).is_dir()] or [name for name in names if format_of(name)]
    brief = ", ".join(name if len(name) <= BRIEF else f"{name[:BRIEF]}..." for name in names[:LISTED])
    more = f" ... ({len(names)})" if len(names) > LISTED else ""
    held = f" ({folder.parent} holds {brief}{more})" if names else ""
    return Refused(f"{folder} is no folder{held}: put the {what} there, or set folder.root=... folder.{what}=...")


def refuse(found, folder, wrong, what, fix):
    """Raise Refused with three examples if some of what was `found` in a folder are wrong."""
    bad = sorted(filter(wrong, found), key=natural)
    if bad:
        names = (" and ".join(str(path.relative_to(folder)) for path in found[key][:2]) for key in bad[:SHOWN])
        more = " ..." if len(bad) > SHOWN else ""
        raise Refused(f"{folder}: {len(bad)} of {len(found)} {what} ({', '.join(names)}{more}): {fix}.")


def natural(key):
    """Sorts names with numbers in them by these."""
    return [
        [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split("([0-9]+)", text)] for text in key
    ], key


def source_of(id, pattern):
    try:
        found = re.search(pattern, id)
    except re.error as error:
        raise Refused(f"folder.source={pattern} is no regular expression ({error}).") from error
    if not found:
        raise Refused(f"folder.source={pattern} fits no part of the name {id}: every image needs a source.")
    return found[1] or "" if found.re.groups else found[0]
