"""Faults that images show beside one another: SET {kind: check of all Records}.

Every image and mask is kept as a thumbnail of 32 x 32 and a digest, so that 10,000 of them take 50 MB.
"""

from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from experiments.store import IGNORE, Item, foreground

SIDE = 32  # of thumbnails, in pixels
BITS = 12  # of 64 in which the hashes of near-duplicates may differ
SAME = 0.9  # correlation of near-duplicates' details
RARE = 0.1  # a mask without foreground is suspicious where at most this share of them is
CHUNK = 256  # images compared at once


@dataclass
class Record:
    """What is kept of one image and its mask once they were read; None where they could not be."""

    split: str
    item: Item
    thumb: np.ndarray | None = None  # (SIDE, SIDE, 3) uint8, greys three times
    digest: int | None = None  # of the image's pixels
    size: tuple = ()  # of the image, (H, W)
    counts: np.ndarray | None = None  # (256,) pixels of each value of the mask
    mask_thumb: np.ndarray | None = None  # (SIDE, SIDE) uint8
    mask_digest: int | None = None
    flat: bool = False  # one colour


# each yields (Record, what was found, the record it is like or None), given the records and the names of the classes


def copies(records, classes):
    """Images that are equal pixel by pixel."""
    first = {}
    for record in seen(records):
        like = first.setdefault(record.digest, record)
        if like is not record:
            yield record, f"the same pixels as {place(like)}", like


def near_duplicates(records, classes):
    """Images alike but for noise, brightness, compression or scale; not those of one source in one split.

    A gradient hash of 64 bits proposes, the correlation of what is finer than a 3 x 3 mean of the thumbnails decides.
    """
    unique = list({record.digest: record for record in seen(records)}.values())
    if len(unique) < 2:
        return
    hashes = np.concatenate([gradient_hashes(greys(part)) for part in chunks(unique)])
    details, ready = np.empty((len(unique), SIDE * SIDE), np.float32), np.zeros(len(unique), bool)
    splits = np.array([record.split for record in unique])
    sources = np.array([record.item.source for record in unique])
    for start in range(0, len(unique), CHUNK):
        rows = np.arange(start, min(start + CHUNK, len(unique)))
        near = np.bitwise_count(hashes[rows, None] ^ hashes[None, : rows[-1]]) <= BITS
        near &= np.arange(rows[-1]) < rows[:, None]  # each pair once
        asked = np.flatnonzero(near.any(0)).tolist() + rows[near.any(1)].tolist()
        for part in chunks([n for n in dict.fromkeys(asked) if not ready[n]]):
            details[part], ready[part] = fine(greys([unique[n] for n in part])), True
        for i in rows[near.any(1)]:
            others = np.flatnonzero(near[i - start])
            kin = (sources[others] == sources[i]) & (splits[others] == splits[i]) & (sources[i] != "")
            others = others[~kin]
            if len(others):
                alike = details[others] @ details[i]
                best = int(alike.argmax())
                if alike[best] > SAME:
                    like = unique[others[best]]
                    yield unique[i], f"nearly {place(like)} (details correlate by {alike[best]:.2f})", like


def chunks(things):
    return (things[start : start + CHUNK] for start in range(0, len(things), CHUNK))


def greys(records):
    """(N, SIDE, SIDE) float32."""
    return np.stack([r.thumb for r in records]) @ np.full(3, 1 / 3, np.float32)


def seen(records):
    return (record for record in records if record.digest is not None and not record.flat)


def place(record):
    return f"{record.item.image} of {record.split}"


def gradient_hashes(grey):
    """(N,) uint64 of (N, SIDE, SIDE): which of 8 x 8 blocks is brighter than the one to its right."""
    blocks = grey.reshape(len(grey), 8, SIDE // 8, 8, SIDE // 8).mean((2, 4))
    bits = (blocks > np.roll(blocks, -1, 2)).reshape(len(grey), 64)
    return np.packbits(bits, axis=1).view(np.uint64)[:, 0]


def fine(grey):
    """(N, SIDE * SIDE) of unit length: the thumbnails without what a 3 x 3 mean leaves."""
    padded = np.pad(grey, ((0, 0), (1, 1), (1, 1)), mode="edge")
    three = padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]
    mean = (three[:, :, :-2] + three[:, :, 1:-1] + three[:, :, 2:]) / 9
    details = (grey - mean).reshape(len(grey), -1)
    details -= details.mean(1, keepdims=True)
    return details / np.maximum(np.linalg.norm(details, axis=1, keepdims=True), 1e-6)


def digest(pixels):
    """A number of 64 bits, equal for equal pixels of one shape; another in each process."""
    return hash((pixels.shape, pixels.tobytes()))


def alike(one, other):
    """Whether two images are near-duplicates: these may well have one mask."""
    if one.thumb is None or other.thumb is None:
        return False
    first, second = fine(greys([one, other]))
    return first @ second > SAME


def opened(records):
    """The records whose masks could be read, and their counts (N, 256)."""
    known = [record for record in records if record.counts is not None]
    return known, np.stack([record.counts for record in known]) if known else np.zeros((0, 256), int)


def without_foreground(records, classes):
    """Masks of the background alone, in a set where that is rare."""
    start = foreground(classes).start
    yield from _rare(records, lambda counts: ~counts[:, start:].any(1), "it is background alone")  # nor is any ignored


def without_background(records, classes):
    """Masks of the foreground alone, in a set where that is rare."""
    if classes and classes[0] == "background":
        yield from _rare(records, lambda counts: counts[:, 0] == 0, "no pixel is background")


def _rare(records, is_so, said):
    known, counts = opened(records)
    labelled = counts[:, :IGNORE].any(1)
    found, total = np.flatnonzero(is_so(counts) & labelled), int(labelled.sum())
    if total > 2 and len(found) <= max(1, RARE * total):
        for i in found:
            yield known[i], f"{said}, as in {len(found)} of {total} masks", None


def absent_classes(records, classes):
    """Classes that no training mask has: a model cannot learn them."""
    train, counts = opened([record for record in records if record.split == "train"])
    for number, name in enumerate(classes):
        if train and not counts[:, number].any():
            yield train[0], f"class {number} {name} is in none of {len(train)} training masks", None


SET = {
    "copy": copies,
    "near-duplicate": near_duplicates,
    "no foreground": without_foreground,
    "no background": without_background,
    "absent class": absent_classes,
}


def by_kind(faults):
    found = defaultdict(list)
    for fault in faults:
        found[fault.kind].append(fault)
    return found
