"""Decoded images kept in a file of `cache_dir`, from which later runs on the same data take them; never masks.

One file holds the images of training, validation and test as runs see them: decoded, resized, cut. An image is taken
from it where path, size and time of change of its files are those of what was decoded; not by a hash, which would read
all that a cache is to spare. The settings of what reads the images are in the file's name; a cache made by other source
files of the dataset, or other versions of what decodes, is made anew.

Layout: the images' bytes one after the other, a JSON index with their check sums, its length, MAGIC. Files are replaced
whole, and read by `pread`: where another machine removed one from a network disk, a map in memory would end the run.
"""

import json
import os
import struct
import zlib
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from importlib.metadata import version
from inspect import isfunction
from pathlib import Path

import numpy as np

from experiments.errors.process import reason_and_advice, stop_if_asked
from experiments.records.files import hold, release, replace
from experiments.records.progress import say
from experiments.records.provenance import hash_sources
from experiments.store import Split
from experiments.store.reading import files_of

MAGIC = b"AskMask1"
MAX_INDEX = 2**30  # bytes
DECODERS = ("pillow", "numpy", "tifffile")


def read(splits, dataset, folder, make):
    """[make(split), a Store, or None] of train, val and test, their images from the cache in `folder`, "" for none.

    `dataset` is the module of the splits. What is missing, changed or damaged is decoded, and the file then made anew.
    Nothing that is wrong with the cache ends a run: one line says it.
    """
    found = splits[:3]
    if folder:
        try:
            how = json.dumps([split and spelled(split.read_image) for split in found])
            paths = sorted(repr(item.image) for split in found if split for item in split.items)
        except TypeError as error:
            say(f"cache_dir: {dataset.__name__} reads images by {error}, which has no name, so they are not kept.")
            folder = ""
    if not folder:
        return [split and make(split) for split in found]
    name = sha256("\n".join([how, *paths]).encode()).hexdigest()[:16]
    made = {"sources": hash_sources([dataset], start=()), "versions": [version(each) for each in DECODERS]}
    cache = Cache(Path(folder, f"{dataset.ingredient.path}-{name}.images"), made)
    try:
        stores = [split and make(KeptSplit(**vars(split), cache=cache)) for split in found]
        cache.save([store for store in stores if store])
    finally:
        cache.close()
    return stores


def spelled(how):
    """What reads images as JSON values: its functions' names and all arguments, partials and caches taken apart.

    Raises TypeError for what has no name that says all of it: an object, a function with variables around it.
    """
    how = getattr(how, "__wrapped__", how)  # of functools.cache
    if isinstance(how, partial):
        return [spelled(how.func), spelled(how.args), spelled(how.keywords)]
    if isfunction(how) and not how.__closure__:
        return f"{how.__module__}.{how.__qualname__}"
    if isinstance(how, dict):
        return [[key, spelled(value)] for key, value in how.items()]
    if isinstance(how, list | tuple):
        return [spelled(each) for each in how]
    if how is None or isinstance(how, str | int | float | Path):
        return repr(how)
    raise TypeError(getattr(how, "__qualname__", type(how).__name__))


def stamp(image):
    """The place of an image, and the size and time of change of its files, in one word; None where it is in no file."""
    said = [repr(image)]
    for file in files_of(image):
        if not os.path.isfile(file):
            return None
        found = os.stat(file)
        said += [os.path.abspath(file), found.st_size, found.st_mtime_ns]
    return sha256(json.dumps(said).encode()).hexdigest()[:32]


@dataclass(frozen=True, kw_only=True)
class KeptSplit(Split):
    """A Split whose images come from a cache as far as they are in it."""

    cache: "Cache"

    def __getitem__(self, index):
        image = self.items[index].image
        word = self.cache.stamps[repr(image)] = stamp(image)  # before it is decoded: a later change is another stamp
        found = self.cache.get(word)
        return super().__getitem__(index) if found is None else found


class Cache:
    """The file at `path`, of which nothing is taken unless what it holds was `made` so."""

    def __init__(self, path, made):
        self.path, self.made, self.file = path, made, None
        self.index = {}  # {stamp: (place, shape, check sum)}
        self.stamps, self.taken, self.spoilt = {}, set(), set()
        self.refused = False  # by the operating system
        try:
            self.file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            self.index = self.read_index()
        except FileNotFoundError:
            pass
        except OSError as error:
            self.go_on_without("read", error)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, struct.error):
            say(f"{path} is damaged: it is made anew.")

    def read_index(self):
        """Of the opened file. Raises OSError, or what a damaged one raises."""
        end = os.fstat(self.file).st_size - 16
        length, magic = struct.unpack("<Q8s", os.pread(self.file, 16, max(end, 0)))
        if magic != MAGIC or not 0 < length <= min(end, MAX_INDEX):
            raise ValueError
        found, index, place = json.loads(os.pread(self.file, length, end - length)), {}, 0
        for word, (*shape, check) in found["images"].items():
            if len(shape) != 3 or not all(type(side) is int and side > 0 for side in shape):
                raise ValueError
            index[word] = place, shape, check
            place += shape[0] * shape[1] * shape[2]
        if place != end - length:
            raise ValueError
        return index if found["made"] == self.made else {}

    def get(self, word):
        """(H, W, channels) uint8 of the image with that stamp; None where it is absent or damaged."""
        if word not in self.index:
            return None
        place, shape, check = self.index[word]
        try:
            data = os.pread(self.file, shape[0] * shape[1] * shape[2], place)
        except OSError:
            return None
        if zlib.crc32(data) != check:
            self.spoilt.add(word)
            return None
        self.taken.add(word)
        return np.frombuffer(data, np.uint8).reshape(shape)

    def save(self, stores):
        """Replace the file by the images of these Stores unless all of them came from it, and say what was done."""
        if self.refused:
            return
        stamps, kept = self.stamps, len(self.taken)
        if self.spoilt:
            say(f"{self.path} is damaged: {len(self.spoilt)} of its images were decoded anew.")
        if None in stamps.values():
            say(f"cache_dir: {next(image for image in stamps if stamps[image] is None)} is no file: none is kept.")
        elif {*stamps.values()} == self.taken:
            say(f"{kept} decoded images were taken from {self.path}.")
        else:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                lock = self.path.with_suffix(".lock")
                held = hold(lock)
                if not held:
                    say(f"{lock} is held: {self.path} is left to the run that writes it.")
                    return
                try:
                    replace(self.path, self.parts(stores))
                finally:
                    release(lock, held)
                say(f"{len(stamps)} decoded images, {kept} of them as they were, are kept in {self.path}.")
            except OSError as error:
                self.go_on_without("written", error)

    def parts(self, stores):
        """The bytes of the file, image by image."""
        index = {}
        for store in stores:
            for number, item in enumerate(store.split.items):
                stop_if_asked()
                word = self.stamps[repr(item.image)]
                if word not in index:
                    image = store.image(number).cpu().numpy()
                    index[word] = *image.shape, zlib.crc32(image)
                    yield image
        said = json.dumps({"made": self.made, "images": index}).encode()
        yield said + struct.pack("<Q8s", len(said), MAGIC)

    def go_on_without(self, tried, error):
        self.refused = True
        reason, advice = reason_and_advice(error)
        say(f"{self.path} cannot be {tried} ({reason}): the run goes on without it. To mend that, {advice}.")

    def close(self):
        self.index = {}
        if self.file is not None:
            os.close(self.file)
