"""The data path: every image decoded once into uint8, a mask only when its image is labelled.

A dataset file describes its images (`Item`, `Split`, `Splits`) and states its constants:

    CLASSES   names of the mask values 0, 1, 2 ...; one called "background" is no foreground and in no mean over classes
    CHANNELS  of an image
    IGNORE    the mask value that nothing counts, 255, from here
    HAS       what strategies may ask of it: "groups" if items have one, "validation" if there may be a val
    HEADLINE  the measure that judges its runs: "dice" (the default), "miou" or "class_dice", see evaluation/metrics.py
    VOLUMES   True where items are slices and their source is the volume: each volume is then measured whole, too

Where classes, channels or headline depend on settings, its `Splits` carry them and stand before the constants.

A `Store` keeps one split's pixels in two flat
buffers, (P, channels) for the images and (P,) for the masks, so that a batch of crops of differently sized
images is a single gather on the device. The mask of an image that nobody labelled is IGNORE everywhere.
"""

import os
import tempfile
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from itertools import accumulate, groupby
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

import numpy as np
import torch
from tqdm import tqdm

from experiments.errors import BadData
from experiments.errors.process import stop_if_asked
from experiments.network.device import at_once
from experiments.store.reading import decode, refuse_averaged  # noqa: F401  a dataset file takes all it needs from here

IGNORE = 255  # the mask value of pixels that no loss and no metric counts
RAM = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")  # bytes


class Item(NamedTuple):
    """One image of a dataset: a name that is unique in it, and where its image and its mask lie.

    `mask` is None where there is none yet and people are to draw it.

    `group` is what is known of the image before it is labelled (a grade, a site), for initial sets and batches in equal
    parts. `source` is what images of it share (a patient, a slide, an animal, a video): dataset files keep those of one
    source on one side of a split. Both are "" where nothing is known. `spacing` is the distance between slices, height
    and width of a pixel as the run sees it, () where nothing is known.
    """

    id: str
    image: Path
    mask: Path | None
    group: str = ""
    source: str = ""
    spacing: tuple = ()


# {(name of a reader, file): (reader, what it gave)} of what was decoded before a Store asked for it: no file is decoded
# twice. A name may say where an object lies, so the reader is held: nothing else can lie there
SEEN = {}


def look(reader, place):
    """What a Split's `read_image` or `read_mask` gives for a file, kept until a Store takes it."""
    _, found = SEEN[repr(reader), str(place)] = reader, reader(place)
    return found


def taken(reader, place):
    """The same, kept no longer."""
    known = SEEN.pop((repr(reader), str(place)), None) if SEEN else None
    return reader(place) if known is None else known[1]


@dataclass(frozen=True)
class Split:
    """Images of a dataset that serve one purpose, in a fixed order, with the functions that read their files.

    `read_image(path)` gives (H, W, channels) uint8, shown to the model as [0, 1]; images may differ in size.
    `read_mask(path)` gives (H, W) uint8, as large as the image, of positions in CLASSES or IGNORE. Both raise BadData
    naming the file, as `decode` does; read_image is called in threads. `read_original(path)`, where a dataset has it,
    is read_mask without the scaling, for evaluation.original_size=True. Indexing gives images alone, so that nothing
    that holds a Split can open a mask by accident.
    """

    items: Sequence[Item]
    read_image: Callable[[Path], np.ndarray]
    read_mask: Callable[[Path], np.ndarray]
    read_original: Callable[[Path], np.ndarray] | None = None

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        image = taken(self.read_image, self.items[index].image)
        if image.ndim != 3 or image.dtype != np.uint8:
            found = f"{image.dtype} of shape {image.shape}"
            raise BadData(f"{self.items[index].image} is read as {found}: read_image gives (H, W, channels) uint8.")
        return image

    @property
    def ids(self):
        return [item.id for item in self.items]

    @property
    def groups(self):
        return [item.group for item in self.items]


class Splits(NamedTuple):
    """What `load(rng, ...)` of a dataset returns; it lists files and opens no image.

    `train` is the pool whose masks are asked for, `val` chooses the best weights of a cycle, `test` measures. Without
    val the last weights stay, without test metrics are missing: both may be None. `crop` is the side of the training
    window in pixels, 0 trains on whole images. `classes`, `channels` and `headline` stand for the constants of a file
    in which they depend on settings; `name` is what all randomness but that of `load` is derived from. Where it
    `grows`, images that come between two starts join the pool; all three parts are then read alike.
    """

    train: Split
    val: Split | None
    test: Split | None
    crop: int
    classes: Sequence[str] = ()
    channels: int = 0
    headline: str = ""
    name: str = ""
    grows: bool = False

    def described(self, dataset):
        """These Splits with what they leave open taken from the constants of their dataset file."""
        return self._replace(
            classes=self.classes or dataset.CLASSES,
            channels=self.channels or dataset.CHANNELS,
            headline=self.headline or getattr(dataset, "HEADLINE", "dice"),
            name=self.name or dataset.ingredient.path,
        )


class Store:
    """All pixels of one Split: images decoded at once, masks IGNORE until `label` opens them.

    The images lie on `device` where they fit in half of its free memory, otherwise in RAM, and with their masks in
    temporary memory-mapped files where they take more than `memory` bytes, by default a quarter of the RAM.
    `classes` names the values that masks may hold beside IGNORE; () takes any. `mask_pixels` (256,) counts the pixels
    of each value in the masks opened so far.
    """

    def __init__(self, split, device, memory=RAM // 4, classes=()):
        self.split, self.device, self.classes = split, torch.device(device), tuple(classes)
        self.foreground = foreground(classes)
        self.mask_pixels = np.zeros(256, dtype=np.int64)
        self.ids, self.groups = split.ids, split.groups
        images = tqdm(read_ahead(split), "reading images", len(split), leave=False, disable=None, delay=1)
        self.pixels, sizes, self.sums, self.fingerprint = _flat(images, self.device, memory)
        self.sizes = sizes
        self.least = tuple(map(min, zip(*sizes, strict=True)))  # height and width that every image has
        self.starts = [0, *accumulate(h * w for h, w in sizes)]
        place = self.pixels.device
        self.heights, self.widths = torch.tensor(sizes, device=place).T
        self.offsets = torch.tensor(self.starts[:-1], device=place)
        self.masks = _ignored(self.pixels, memory)
        self.mask_digests = {}  # sha256 of each mask that was opened, by position
        self.drawn = {}  # what gives the mask (H, W) that people drew, by position: it stands before the dataset's

    def __len__(self):
        return len(self.ids)

    def hash_images(self, indices):
        """The sha256 of these images' sizes and pixels, which is the fingerprint where they are all."""
        digest = sha256()
        for index in indices:
            image = self.image(index).cpu().numpy()
            digest.update(repr(image.shape).encode())
            digest.update(np.ascontiguousarray(image))
        return digest.hexdigest()

    def image(self, index):
        """(H, W, channels) uint8 view."""
        return self.pixels[self._span(index)].view(*self.sizes[index], -1)

    def mask(self, index):
        """(H, W) uint8 view, IGNORE everywhere unless labelled."""
        return self.masks[self._span(index)].view(self.sizes[index])

    def label(self, indices):
        """Decode these images' masks; raises BadData and labels none of them if one is not usable."""
        opened = [self._open_mask(index) for index in indices]
        for index, mask in zip(indices, opened, strict=True):
            self.mask_digests[index] = sha256(f"{mask.shape}".encode() + mask.tobytes()).hexdigest()
            self.mask(index).copy_(torch.from_numpy(mask))
            self.mask_pixels += np.bincount(mask.ravel(), minlength=256)

    def original_mask(self, index):
        """(H, W) uint8 of the mask at its file's own size, read anew. Raises BadData."""
        return torch.from_numpy(self._checked_mask(index, self.split.read_original))

    def parts(self, indices, size=0):
        """Yield the indices of each batch of `batches`, whose images are not looked at."""
        by_size = sorted(indices, key=lambda i: (self.sizes[i], i))
        for (height, width), same in groupby(by_size, key=self.sizes.__getitem__):
            same = list(same)
            step = size or at_once(height * width, self.device)
            while same:
                count = step if len(same) >= step else 1 << len(same).bit_length() - 1
                batch, same = same[:count], same[count:]
                yield batch

    def batches(self, indices, size=0):
        """Yield (indices, images (B, H, W, channels) uint8) of equal size, in order within a size; only to be read.

        At most `size` at once, 0: as many as the device does best at once; what is left of a size in powers of two, for
        torch keeps what it prepares for every shape, and a pool has a new number of images in each cycle.
        """
        for batch in self.parts(indices, size):
            images = [self.image(i) for i in batch]
            if self.pixels.device == self.device:
                yield batch, images[0][None] if len(batch) == 1 else torch.stack(images)
            else:  # from pinned memory, so that nothing waits for the copies
                there = images[0].new_empty((len(batch), *images[0].shape), device=self.device)
                for row, image in zip(there, images, strict=True):
                    row.copy_(image, non_blocking=True)
                yield batch, there

    def _span(self, index):
        return slice(self.starts[index], self.starts[index + 1])

    def _open_mask(self, index):
        mask = self._checked_mask(index, self.split.read_mask)
        if mask.shape != self.sizes[index]:
            (h, w), (height, width), path = mask.shape, self.sizes[index], self.split.items[index].mask
            raise BadData(f"{path} is {w} x {h}, its image {width} x {height}: replace the mask.")
        return mask

    def _checked_mask(self, index, read):
        """What `read` makes of a mask, (H, W) uint8 of classes and IGNORE. Raises BadData for anything else."""
        item = self.split.items[index]
        mask = self.drawn[index]() if index in self.drawn else taken(read, item.mask)
        if mask.ndim != 2:
            raise BadData(f"{item.mask} is read with the shape {mask.shape}: read_mask gives (H, W).")
        known = {*range(len(self.classes) or IGNORE), IGNORE}
        other = [value for value in np.unique(mask).tolist() if value not in known]
        if other:
            found, more = ", ".join(f"{v:g}" for v in other[:8]), " ..." if len(other) > 8 else ""
            names = ", ".join(f"{number} {name}" for number, name in enumerate(self.classes))
            raise BadData(
                f"{item.mask} holds the values {found}{more}, which are no class: {names}; {IGNORE} is ignored. "
                "Correct the mask, or have read_mask say which class they are."
            )
        return mask.astype(np.uint8, copy=False)


def foreground(classes):
    """Which positions of an axis of classes are foreground: all without a class called background, else all but 0."""
    return slice(1 if not classes or "background" in classes else 0, IGNORE)


def refuse_ignored_foreground(stores, dataset):
    """Raise BadData if no mask opened so far has foreground and some have IGNORE: 255 was meant as a class.

    What one Store shows is held against all of `stores`, for single images may well be empty with a part ignored.
    """
    first, *others = stores
    pixels = sum((store.mask_pixels for store in others), first.mask_pixels)
    if pixels[IGNORE] and not pixels[first.foreground].sum():
        held = " and ".join(map(str, np.flatnonzero(pixels)))
        wanted = " or ".join(f"{n} {name}" for n, name in enumerate(first.classes) if name != "background")
        raise BadData(
            f"The masks of {dataset} opened so far hold {held} only and no pixel of class {wanted}: {IGNORE} means "
            f"ignore. Where it is meant as a class, have read_mask say so, as by `> 127`."
        )


def read_ahead(split, window=32):
    """Yield every image in order, decoded a few ahead in worker threads."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as workers:
        waiting = deque()
        for i in range(len(split)):
            waiting.append(workers.submit(split.__getitem__, i))
            if len(waiting) > window:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _flat(images, device, memory):
    """Decode into one (P, channels) uint8 tensor; also each image's size and check sum, and a sha256 of every byte."""
    sizes, sums, parts, digest, spill = [], [], [], sha256(), None
    held = 0
    for image in images:
        stop_if_asked()
        flat = np.ascontiguousarray(image).reshape(-1, image.shape[-1])
        sizes.append(image.shape[:2])
        digest.update(repr(image.shape).encode())
        digest.update(flat)
        sums.append(crc32(flat))
        parts.append(flat)
        held += flat.nbytes
        if held > memory:
            spill = spill or tempfile.TemporaryFile()
            spill.writelines(parts)
            parts = []
    if spill is not None:
        spill.flush()
        pixels = torch.from_numpy(np.memmap(spill, np.uint8, "r+").reshape(-1, flat.shape[1]))
        spill.close()
    else:
        pixels = torch.from_numpy(np.concatenate(parts))
        if device.type == "cuda" and pixels.nbytes >= torch.cuda.mem_get_info(device)[0] // 2:
            pixels = pixels.pin_memory()
        else:
            pixels = pixels.to(device)
    return pixels, sizes, sums, digest.hexdigest()


def _ignored(pixels, memory):
    """(P,) uint8 of IGNORE for pixels (P, channels), where they are: in a temporary file too."""
    if pixels.nbytes <= memory or pixels.device.type != "cpu":
        return torch.full((len(pixels),), IGNORE, dtype=torch.uint8, device=pixels.device)
    block = bytes([IGNORE]) * 2**20
    with tempfile.TemporaryFile() as file:
        for start in range(0, len(pixels), len(block)):
            file.write(block[: len(pixels) - start])
        file.flush()
        return torch.from_numpy(np.memmap(file, np.uint8, "r+"))
