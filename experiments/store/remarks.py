"""What images show as they are read, the cheap part of `python -m data.doctor`: a line each, and the run goes on.

Sizes and values of masks are not among it: those that cannot be used are refused as they are opened. No mask of the
pool is opened for it.
"""

from collections import defaultdict
from itertools import combinations

import numpy as np
import torch

SHOWN = 4  # names in a line


def remarks(stores, classes):
    """Yield what is suspicious in {"train": Store, "val": Store or None, "test": ...}, the last two labelled."""
    named = {name: store for name, store in stores.items() if store}
    for one, other in combinations(named, 2):
        yield from shared_sources(one, named[one], other, named[other])
        yield from copies(one, named[one], other, named[other])
    yield from unseen_classes({name: store for name, store in named.items() if name != "train"}, classes)


def shared_sources(one, first, other, second):
    """Patients, slides or videos with images on two sides."""
    known = {item.source for item in first.split.items} - {""}
    found = [item.source for item in second.split.items if item.source in known]
    if found:
        sources = list(dict.fromkeys(found))
        what = f"{len(sources)} source{'s' * (len(sources) > 1)} ({listed(sources)})"
        yield f"{what} of {one} also {'have' if len(sources) > 1 else 'has'} {len(found)} of the {other} images."


def copies(one, first, other, second):
    """Images on two sides that are equal pixel by pixel, but for those of one colour."""
    alike = defaultdict(list)
    for i, key in enumerate(zip(first.sizes, first.sums, strict=True)):
        alike[key].append(i)
    pairs = []
    for j, key in enumerate(zip(second.sizes, second.sums, strict=True)):
        image = second.image(j)
        if key in alike and (image != image[0, 0]).any():
            pairs += [(i, j) for i in alike[key] if torch.equal(first.image(i).cpu(), image.cpu())][:1]
    if pairs:
        ids = listed(f"{second.ids[j]} as {first.ids[i]}" for i, j in pairs)
        yield f"{len(pairs)} of the {other} images are in {one} too, pixel by pixel ({ids})."


def unseen_classes(stores, classes):
    """Classes that no mask of these Stores has: nothing measures them."""
    if stores:
        pixels = sum(store.mask_pixels for store in stores.values())
        absent = [classes[number] for number in np.flatnonzero(pixels[: len(classes)] == 0)]
        if absent:
            where = " or ".join(stores)
            yield f"No mask of {where} has a pixel of {listed(absent)}: nothing measures what is not there."


def unlabelled_classes(store, classes):
    """The same of the masks that a run learnt from."""
    absent = [classes[number] for number in np.flatnonzero(store.mask_pixels[: len(classes)] == 0)]
    if absent and store.mask_pixels.any():
        yield f"No image that was labelled has a pixel of {listed(absent)}."


def listed(words):
    words = list(words)
    return ", ".join(words[:SHOWN]) + (f" and {len(words) - SHOWN} more" if len(words) > SHOWN else "")
