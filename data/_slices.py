"""What slices of volumes share: an optional package, grey values as bytes, mask values as classes, whole volumes dealt.

A slice is called by its file's path with its number in it behind that: hippocampus_001.nii.gz/0007.
"""

from functools import partial
from importlib import import_module
from threading import Lock

import numpy as np

from data._pairs import told
from data._splits import draw
from experiments.components.settings import Range
from experiments.errors import BadData, Refused
from experiments.store import IGNORE, Split, Splits, foreground

ONE_AT_A_TIME = Lock()
SHARES = {name: Range(least=0, below=1) for name in ("val", "test")}
GREYS = {"black": Range(), "white": Range()}
ALLOWED = SHARES | GREYS | {"empty": ("keep", "drop"), "crop": Range(least=0), "values": Range(least=0, most=65535)}


def package(name, version, dataset):
    """The imported package. Raises Refused with what to type where it is not installed."""
    try:
        return import_module(name)
    except ImportError:
        raise Refused(f"dataset={dataset} needs one more package: pip install {name}=={version}") from None


def as_bytes(array, black, white, path):
    """Grey values (...) as uint8, `black` as 0 and `white` as 255. Raises BadData for what is no number."""
    if array.dtype.kind not in "uif":
        raise BadData(f"{path} holds {array.dtype} values: images are of grey values.")
    if not np.isfinite(array).all():
        raise BadData(f"{path} holds values that are no numbers (NaN or infinite): replace them, as by the least one.")
    scaled = (array.astype(np.float32) - np.float32(black)) * np.float32(255 / max(white - black, 1e-6))
    return np.rint(scaled.clip(0, 255)).astype(np.uint8)


def as_classes(array, values, classes, path):
    """A mask's values as uint8 positions in `values`, 0, 1, 2 ... where there are none; 255 is IGNORE."""
    values = list(values) or list(range(len(classes)))
    result, known = np.full(array.shape, IGNORE, np.uint8), array == IGNORE
    for number, value in enumerate(values):
        result[array == value] = number
        known |= array == value
    if not known.all():
        found = ", ".join(f"{value:g}" for value in np.unique(array[~known])[:8])
        declared = ", ".join(f"{value} {name}" for value, name in zip(values, classes, strict=True))
        raise BadData(f"{path} holds the values {found} beside {declared}: name them in classes and values.")
    return result


def check_classes(dataset, classes, values):
    """Raise Refused unless there are two classes or more, and as many values if any."""
    if len(classes) < 2 or len(set(classes)) < len(classes):
        raise Refused(f"{dataset}.classes names two classes or more, each once, the background first.")
    if values and (len(values) != len(classes) or len(set(values)) < len(values)):
        raise Refused(f"{dataset}.values has {len(values)} values for {len(classes)} classes: one for each, in order.")


def slice_of(kept, path, *settings):
    """The slice that a path names of what `kept` reads of its file, slices first."""
    with ONE_AT_A_TIME:  # the slices of a volume are asked for at once, and it is decoded once
        volume = kept(path.parent, *settings)
    return volume[int(path.name)]


def hold_out(items, share, rng, dataset, part):
    """(others, chosen) of these slices: about a `share` of them, of whole volumes, at least one if any are wanted."""
    if not share:
        return items, []
    remedy = f"set {dataset}.{part}=0, or give more volumes."
    chosen, left = draw(items, range(len(items)), share * len(items), rng, part, remedy)
    return [items[i] for i in left], [items[i] for i in chosen]


def joined(train, val, test, reads, empty, **more):
    """Splits of three lists of slices that `reads` read, {read_image: ..., read_mask: ..., read_original: ...}.

    With `empty` "drop" slices without foreground leave the pool, for which its masks are read; a volume that validates
    or tests stays whole.
    """
    made = partial(Split, **reads)
    if empty == "drop":
        masks = ((item, reads["read_mask"](item.mask)) for item in train)
        first = foreground(more.get("classes", ())).start
        kept = [item for item, mask in masks if ((mask >= first) & (mask != IGNORE)).any()]
        told(f"{len(train) - len(kept)} of {len(train)} slices to learn from have no foreground, as their masks say, "
             "and are left out.")  # fmt: skip
        train = kept
    if not train:
        raise Refused("No slices are left to learn from: give fewer to val and test, or keep empty ones.")
    return Splits(made(train), made(val) if val else None, made(test) if test else None, **more)
