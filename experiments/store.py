"""The data path: every image decoded once into uint8, a mask only when its image is labelled.

A dataset file describes its images (`Item`, `Split`); the `Store` keeps one split's pixels in two flat
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

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from experiments.errors import BadData
from experiments.network.device import at_once

IGNORE = 255  # the mask value of pixels that no loss and no metric counts
RAM = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")  # bytes
MAX_PIXELS = 100_000_000  # refuse a header that promises more: a decompression bomb, not a micrograph


class Item(NamedTuple):
    """One image of a dataset. `group` is known before labelling (a grade), `patient` keeps splits honest."""

    id: str
    image: Path
    mask: Path
    group: str = ""
    patient: str = ""


@dataclass(frozen=True)
class Split:
    """Part of a dataset as baal's ActiveLearningDataset wants it: indexable, one uint8 image each.

    `read_image(path)` gives (H, W, channels) uint8, `read_mask(path)` gives (H, W) uint8 class numbers
    or IGNORE. Indexing gives images alone, so that nothing that holds a Split can open a mask by accident.
    """

    items: Sequence[Item]
    read_image: Callable[[Path], np.ndarray]
    read_mask: Callable[[Path], np.ndarray]

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.read_image(self.items[index].image)

    @property
    def ids(self):
        return [item.id for item in self.items]

    @property
    def groups(self):
        return [item.group for item in self.items]


class Splits(NamedTuple):
    """What `load` of a dataset returns. `val` and `test` may be None; `crop` is the training window, 0 = whole."""

    train: Split
    val: Split | None
    test: Split | None
    crop: int


def decode(path, format, mode, resize=1.0):
    """Decode `path` as (H, W, 3) uint8 for mode "RGB", or (H, W) uint8 for mode "L".

    `resize` scales both sides, antialiased for RGB, nearest for L. A palette mask gives its indices, never its
    colours. Raises BadData naming the file when it is missing, of another format, damaged or far too large.
    """
    try:
        with Image.open(path, formats=[format]) as image:
            if image.width * image.height > MAX_PIXELS:
                raise BadData(f"{path} claims {image.width} x {image.height} pixels, over {MAX_PIXELS}: replace it.")
            if mode == "RGB":
                image = image.convert("RGB")
            elif image.mode not in ("L", "P"):
                raise BadData(f"{path} is a {image.mode} image, a mask needs 8 bits a pixel: replace it.")
            if resize != 1:
                size = [max(1, round(side * resize)) for side in image.size]
                filters = Image.Resampling
                image = image.resize(size, filters.BILINEAR if mode == "RGB" else filters.NEAREST)
            return np.array(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BadData(f"{path} cannot be read as a {format} image ({error}): replace the file.") from error


class Store:
    """All pixels of one Split: images decoded at once, masks IGNORE until `label` opens them.

    The images lie on `device` where they fit in half of its free memory, otherwise in RAM, and with their masks in
    temporary memory-mapped files where they take more than `memory` bytes, by default a quarter of the RAM.
    """

    def __init__(self, split, device, memory=RAM // 4):
        self.split, self.device = split, torch.device(device)
        self.ids, self.groups = split.ids, split.groups
        images = tqdm(read_ahead(split), "reading images", len(split), leave=False, disable=None, delay=1)
        self.pixels, sizes, self.fingerprint = _flat(images, self.device, memory)
        self.sizes = sizes
        self.least = tuple(map(min, zip(*sizes, strict=True)))  # height and width that every image has
        self.starts = [0, *accumulate(h * w for h, w in sizes)]
        place = self.pixels.device
        self.heights, self.widths = torch.tensor(sizes, device=place).T
        self.offsets = torch.tensor(self.starts[:-1], device=place)
        self.masks = _ignored(self.pixels, memory)

    def __len__(self):
        return len(self.ids)

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
            self.mask(index).copy_(torch.from_numpy(mask))

    def batches(self, indices, size=0):
        """Yield (indices, images (B, H, W, channels) uint8) of equal size, in order within a size; only to be read.

        At most `size` at once, 0: as many as the device does best at once; what is left of a size in powers of two, for
        torch keeps what it prepares for every shape, and a pool has a new number of images in each cycle.
        """
        by_size = sorted(indices, key=lambda i: (self.sizes[i], i))
        for (height, width), same in groupby(by_size, key=self.sizes.__getitem__):
            same = list(same)
            step = size or at_once(height * width, self.device)
            while same:
                count = step if len(same) >= step else 1 << len(same).bit_length() - 1
                batch, same = same[:count], same[count:]
                images = [self.image(i) for i in batch]
                yield batch, (images[0][None] if len(batch) == 1 else torch.stack(images)).to(self.device)

    def _span(self, index):
        return slice(self.starts[index], self.starts[index + 1])

    def _open_mask(self, index):
        item = self.split.items[index]
        mask = self.split.read_mask(item.mask)
        if mask.shape != self.sizes[index]:
            (h, w), (height, width) = mask.shape, self.sizes[index]
            raise BadData(f"{item.mask} is {w} x {h}, its image {width} x {height}: replace the mask.")
        return mask


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
    """Decode into one (P, channels) uint8 tensor; also the sizes and a sha256 of every byte."""
    sizes, parts, digest, spill = [], [], sha256(), None
    held = 0
    for image in images:
        flat = np.ascontiguousarray(image).reshape(-1, image.shape[-1])
        sizes.append(image.shape[:2])
        digest.update(repr(image.shape).encode())
        digest.update(flat)
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
        if device.type != "cuda" or pixels.nbytes < torch.cuda.mem_get_info(device)[0] // 2:
            pixels = pixels.to(device)
    return pixels, sizes, digest.hexdigest()


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
