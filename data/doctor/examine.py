"""Read every image and mask of a dataset once, several at a time, and gather the Faults that the checks find."""

import os
import warnings
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from functools import cache, partial
from itertools import chain
from multiprocessing import get_context
from threading import Thread
from typing import NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from data.doctor.alignment import copied_masks, misaligned
from data.doctor.files import ANYWAY, FILE, LISTING, NO_NUMBERS, harmless, look, neighbours
from data.doctor.fixes import FIXES
from data.doctor.pixels import IMAGE, MASK, PAIR, other_colours, spoilt, undeclared
from data.doctor.sets import SET, SIDE, Record, digest
from experiments.errors import Refused
from experiments.errors.process import stop_if_asked
from experiments.store import Item, Splits
from experiments.store.reading import files_of

TOGETHER = 32  # images that are read at a time
SMALL = 2**14  # pixels of an image up to which Python is most of the work, which threads only get in the way of
MANY = 1000  # such images that are worth other processes
SHRUNK = 2**20  # pixels that are made thumbnails of in one call
SETS = SET | {"copied mask": copied_masks, "misaligned": misaligned}
UNREADABLE = (Refused, OSError, ValueError, SyntaxError, EOFError)


class Fault(NamedTuple):
    """One thing that is wrong: its kind, the file, what was found there, and the item or items that it concerns."""

    kind: str
    path: os.PathLike
    found: str
    items: tuple[Item, ...] = ()

    @property
    def fix(self):
        return FIXES[self.kind]


def examine(splits: Splits, classes, root):
    """The Faults of a dataset, file by file and then of the set: masks are opened, of the pool too.

    `classes` names the values that masks may hold, () for any; `root` is the folder that all files should lie in.
    """
    named = {name: split for name, split in zip(("train", "val", "test"), splits, strict=False) if split}
    items = {
        name: [item._replace(image=files_of(item.image), mask=files_of(item.mask)) for item in split.items]
        for name, split in named.items()
    }
    around = neighbours(items)
    faults = [Fault(kind, *found) for kind, check in LISTING.items() for found in check(items, root, around)]
    work = [
        (name, split, items[name][start : start + TOGETHER], start)
        for name, split in named.items()
        for start in range(0, len(split), TOGETHER)
    ]
    records, total = [], sum(map(len, named.values()))
    read = partial(_read_some, classes=classes, users=cache(partial(_users, items)))
    with (
        warnings.catch_warnings(),
        tqdm(total=total, desc="reading images and masks", leave=False, disable=None, delay=1) as bar,
        ExitStack() as stack,
    ):
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        first = list(map(read, work[:1]))
        small = all(np.prod(record.size) <= SMALL for part in first for record, _ in part)
        count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
        if not small:
            each = stack.enter_context(ThreadPoolExecutor(min(8, os.cpu_count() or 1))).map(read, work[1:])
        elif count > 1 and total > MANY:
            each = forked(read, work[1:], count)
        else:
            each = map(read, work[1:])
        for part in chain(first, each):
            stop_if_asked()
            bar.update(len(part))
            for record, found in part:
                records.append(record)
                faults += found
    faults = list({(fault.kind, str(fault.path), fault.found): fault for fault in reversed(faults)}.values())[::-1]
    for kind, check in SETS.items():
        faults += [
            Fault(kind, _file_of(kind, record), found, tuple(r.item for r in (record, like) if r))
            for record, found, like in check(records, classes)
        ]
    return faults


def forked(read, work, count):
    """Yield read(part) of each part of `work`, in order, by `count` processes, none of which outlives this one.

    Raises Refused where one of them is killed.
    """
    alive, end = os.pipe()

    def begin():
        os.close(end)
        Thread(target=lambda: os._exit(len(os.read(alive, 1))), daemon=True).start()
        _Forked.read, _Forked.work = read, work

    try:
        with ProcessPoolExecutor(count, get_context("fork"), begin) as pool:
            yield from pool.map(_Forked.part, range(len(work)))
    except BrokenProcessPool as error:
        raise Refused("A process that read files was killed, as happens where memory is full: try again.") from error
    finally:
        os.close(end)
        os.close(alive)


class _Forked:
    """What a forked process reads: it was there when it was forked, only numbers are sent."""

    @staticmethod
    def part(number):
        return _Forked.read(_Forked.work[number])


def _users(items):
    """How many images and masks each file holds."""
    return Counter(path for part in items.values() for item in part for path in (*item.image, *item.mask))


def _file_of(kind, record):
    return record.item.image if kind in ("copy", "near-duplicate") else record.item.mask


def _read_some(work, classes, users):
    name, split, files, start = work
    found, waiting = [], []
    for position, (_, images, masks, *_) in enumerate(files, start):
        record, faults, image = _read(name, split, position, images, masks, classes, users)
        found.append((record, faults))
        if image is None:
            continue
        if waiting and waiting[0][1].shape != image.shape:
            _shrink(waiting)
        waiting.append((record, image))
        if len(waiting) * image.shape[0] * image.shape[1] > SHRUNK:
            _shrink(waiting)
    _shrink(waiting)
    return found


def _shrink(waiting):
    """Give each Record of [(Record, image (H, W, channels))], all of one size, its thumbnail, and empty the list.

    Pillow shrinks them as one column of images, for each of its calls costs as much as a small image's decoding.
    """
    images = [image[..., :3] if image.shape[-1] > 2 else image[..., 0] for _, image in waiting]
    if not images:
        return
    high, wide = images[0].shape[:2]
    column = Image.fromarray(images[0] if len(images) == 1 else np.concatenate(images))
    if high % SIDE == wide % SIDE == 0:
        thumbs = np.asarray(column.reduce((wide // SIDE, high // SIDE)))
    else:
        thumbs = np.asarray(column.resize((SIDE, SIDE * len(images)), Image.Resampling.BOX))
    thumbs = thumbs if thumbs.ndim == 3 else thumbs[..., None].repeat(3, -1)
    for (record, _), thumb in zip(waiting, thumbs.reshape(-1, SIDE, SIDE, 3), strict=True):
        record.thumb = thumb
    waiting.clear()


def _read(name, split, position, images, masks, classes, users):
    """(Record without its thumbnail, [Fault], image or None) of one image and its mask, which lie in these files."""
    item = split.items[position]
    record, faults = Record(name, item), []

    def add(kind, path, found):
        faults.append(Fault(kind, path, found, (item,)))

    image = _opened(split.__getitem__, position, images, "image", users, classes, add)
    mask = _opened(split.read_mask, item.mask, masks, "mask", users, classes, add)
    if image is not None:
        found = {kind: found for kind, check in IMAGE.items() if (found := check(image))}
        record.flat = "one colour" in found
        for kind in found if not faults else ():
            add(kind, item.image, found[kind])
        record.size, record.digest = image.shape[:2], digest(image)
    if mask is not None:
        fits = True
        if image is not None:
            for kind, check in PAIR.items():
                if found := check(record.size, mask.shape):
                    add(kind, item.mask, found)
                    fits = False
        _check_values(record, mask, classes, add, fits)
    return record, faults, image


def _check_values(record, mask, classes, add, fits):
    path = record.item.mask
    if mask.dtype == np.uint8:
        record.counts = np.bincount(mask.ravel(), minlength=256)
        values = np.flatnonzero(record.counts).tolist()
    else:
        values = np.unique(mask).tolist()
    if values and not (0 <= values[0] and values[-1] < len(classes)):  # classes alone are no fault
        kind, found = next(((k, f) for k, check in MASK.items() if (f := check(mask, classes, values))), ("", ""))
        if undeclared(values, classes):
            header = look(path, "mask")
            kind = "JPEG mask" if header.format == "JPEG" else "palette mask" if header.mode == "P" else kind
        if found:
            add(kind, path, found)
    if record.counts is not None and fits:
        record.mask_thumb = mask[_middles(mask.shape)].copy()  # no view, which would keep the whole mask
        record.mask_digest = digest(mask)


@cache
def _middles(size):
    """Indices of SIDE x SIDE pixels of a mask of this size (H, W), evenly apart."""
    if all(side % SIDE == 0 for side in size):
        return tuple(slice(side // SIDE // 2, None, side // SIDE) for side in size)
    return np.ix_(*((2 * np.arange(SIDE) + 1) * side // (2 * SIDE) for side in size))


def _opened(read, place, files, role, users, classes, add):
    """What `read(place)` gives, None where it cannot; faults of its files are added."""
    try:
        pixels = read(place)
        if role == "mask" and getattr(pixels, "ndim", 0) != 2:
            raise ValueError(f"its shape is {pixels.shape}")
    except UNREADABLE as error:
        headers = [look(path, role, whole=True) for path in files]
        seen = ((k, header.path, f) for header in headers for k, check in FILE.items() if (f := check(header)))
        kind, path, found = next(seen, ("unreadable", files[0], ""))
        if kind == "unreadable":
            found = " ".join(str(error).split()).removeprefix(f"{path} ").rstrip(".")
            kind = "interpolated mask" if "resized by averaging" in found else kind
            if role == "mask" and " beside " in found:  # values that the dataset declares
                kind = "JPEG mask" if headers[0].format == "JPEG" else "undeclared value"
        add(kind, path, found)
        return None
    for path in files:
        if harmless(path, role):
            continue
        header = look(path, role)
        for kind in ANYWAY:
            if (found := FILE[kind](header)) and not (kind == "several pages" and users()[path] > 1):
                add(kind, path, found)
        for kind in ("16-bit image", "float image"):
            if (found := FILE[kind](header)) and (NO_NUMBERS in found or spoilt(pixels)):
                add(kind, path, found)
        if role == "mask" and header.colours and (found := other_colours(header.colours, pixels, classes)):
            add("palette mask", path, found)
    return pixels
