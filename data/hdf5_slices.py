"""HDF5 slices: volumes cut into slices, as StochasticBatchAL stores Hippocampus and PROMISE12.

Gaillochet et al. 2023, https://arxiv.org/abs/2301.07670, code https://github.com/Minimel/StochasticBatchAL

Terms: those of the volumes, Task04_Hippocampus of the Medical Segmentation Decathlon (CC BY-SA 4.0) and PROMISE12.
Needs `pip install h5py==3.16.0`. In preprocessed/train and preprocessed/test lie data.hdf5 and label.hdf5, a slice
under each key, and slice_info.json, which says for each its volume, scan_name, and its place there, slice_position.
Item.source is the volume. The published validation slices are whole volumes of train; here their share is drawn.
"""

import json
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from sacred import Ingredient

from data._pairs import natural
from data._slices import ALLOWED as SLICES
from data._slices import as_bytes, as_classes, check_classes, hold_out, joined, package
from experiments.components.settings import Range
from experiments.errors import BadData, Refused
from experiments.store import IGNORE, Item  # noqa: F401  a dataset has IGNORE
from experiments.store.reading import MAX_PIXELS, MAX_WEIGHTS, read_text, regular, resized

CLASSES, CHANNELS, HAS = (), 1, ("validation",)  # classes are settings: load gives them
HEADLINE = "class_dice"  # many a slice holds no foreground, so the pixels of all count together
VOLUMES = True
SOURCE = "https://github.com/Minimel/StochasticBatchAL"
FILES = ("data.hdf5", "label.hdf5", "slice_info.json")

ingredient = Ingredient("hdf5_slices")


@ingredient.config
def settings():
    root = "data/Task04_Hippocampus/preprocessed"  # train and test, with data.hdf5, label.hdf5, slice_info.json
    classes = ["background", "anterior", "posterior"]  # names of the mask's values; [background, prostate] of PROMISE12
    values = []  # the mask's values in the order of the classes; [] are 0, 1, 2 ...
    black = 0.0  # the value of the images that is shown as 0
    white = 1.0  # and as 255
    resize = 1.0  # 0.5 halves both sides
    empty = "keep"  # drop: slices without foreground leave the pool, for which its masks are read
    val = 0.05  # share of the slices of train that validates, whole volumes
    crop = 0  # side of the training window in pixels after resizing; 0 trains on whole slices


ALLOWED = {key: value for key, value in SLICES.items() if key != "test"} | {"resize": Range(above=0, most=4)}


@ingredient.capture
def load(rng, root, classes, values, black, white, resize, empty, val, crop):
    package("h5py", "3.16.0", "hdf5_slices")
    check_classes("hdf5_slices", classes, values)
    if black >= white:
        raise Refused(f"hdf5_slices.black={black} is not below hdf5_slices.white={white}.")
    pool, test = (list_slices(Path(root, part)) for part in ("train", "test"))
    train, validation = hold_out(pool, val, rng, "hdf5_slices", "val")
    mask = partial(read_mask, classes=tuple(classes), values=tuple(values))
    reads = {
        "read_image": partial(read_image, black=black, white=white, resize=resize),
        "read_mask": partial(mask, resize=resize),
        "read_original": partial(mask, resize=1),
    }
    more = {"crop": crop, "classes": tuple(classes), "channels": channels_of(pool[0].image)}
    return joined(train, validation, test, reads, empty, **more)


def list_slices(folder):
    """An Item for each slice, volume by volume, in their order. Raises Refused where files are absent or do not fit."""
    for name in FILES:
        if not (folder / name).is_file():
            raise Refused(
                f"hdf5_slices: {folder / name} is not there: make it with the preprocessing of {SOURCE}, or set "
                "hdf5_slices.root=..."
            )
    images, masks = (keys_of(folder / name) for name in FILES[:2])
    if images != masks:
        other = min({*images} ^ {*masks})
        raise Refused(f"hdf5_slices: the slice {other} is in one of {folder}/data.hdf5 and label.hdf5 alone.")
    try:
        about = json.loads(read_text(folder / FILES[2]))
        rows = [(str(about[str(n)]["scan_name"]), int(about[str(n)]["slice_position"])) for n in range(len(images))]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Refused(
            f"{folder / FILES[2]} does not say scan_name and slice_position of {len(images)} slices ({error!r})."
        ) from error
    begins = {}
    for number, (scan, _) in enumerate(rows):
        begins.setdefault(scan, number)
    order = sorted(range(len(rows)), key=lambda n: (begins[rows[n][0]], rows[n][1]))
    items = []
    for number in order:
        scan, position = rows[number]
        image, mask = (folder / name / images[number] for name in FILES[:2])
        items.append(Item(f"{folder.name}_{scan}_{position:04}", image, mask, source=f"{folder.name}_{scan}"))
    return items


def keys_of(path):
    """The names of the arrays in a file, 2 before 10."""
    with opened(path) as file:
        return sorted(file, key=lambda key: natural((key,)))


def opened(path):
    """The h5py file, which closes itself. Raises BadData."""
    import h5py

    try:
        return h5py.File(regular(path, MAX_WEIGHTS), "r")
    except OSError as error:
        raise BadData(f"{path} cannot be read as an HDF5 file ({error}): replace it.") from error


def array_of(path):
    """The array that a path names by its file's and, behind it, its key. Raises BadData."""
    import h5py

    with opened(path.parent) as file:
        if not isinstance(file.get(path.name, getlink=True), h5py.HardLink):  # a link may lead anywhere
            raise BadData(f"{path.parent} holds {path.name} as a link: copy what it leads to into the file.")
        found = file[path.name]
        if not isinstance(found, h5py.Dataset) or found.external or found.is_virtual or found.dtype.kind not in "uif":
            raise BadData(f"{path.parent} holds no plain array of numbers at {path.name}: make the file anew.")
        if found.ndim not in (2, 3) or not 0 < found.size <= MAX_PIXELS:
            raise BadData(f"{path.parent} holds {found.shape} at {path.name}, not (channels, H, W): make it anew.")
        try:
            array = found[()]
        except (OSError, RuntimeError) as error:
            raise BadData(f"{path.parent} is damaged at {path.name} ({error}): replace the file.") from error
    return array


def channels_of(path):
    shape = array_of(path).shape
    return shape[0] if len(shape) == 3 else 1


def read_image(path, black, white, resize):
    """(H, W, channels) uint8 of (channels, H, W) or (H, W)."""
    array = as_bytes(array_of(path), black, white, path)
    planes = [Image.fromarray(plane) for plane in (array if array.ndim == 3 else array[None])]
    return np.stack([np.array(resized(plane, resize, smooth=True)) for plane in planes], axis=-1)


def read_mask(path, classes, values, resize):
    """(H, W) uint8 of (H, W) or (1, H, W)."""
    array = array_of(path)
    array = array[0] if array.ndim == 3 and len(array) == 1 else array
    if array.ndim != 2:
        raise BadData(f"{path} is a mask of {array.shape}, not (H, W).")
    return np.array(resized(Image.fromarray(as_classes(array, values, classes, path)), resize, smooth=False))
