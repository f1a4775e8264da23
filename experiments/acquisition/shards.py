"""Shards of one large pool: whole batches of it, computed elsewhere and in any order, to the bits of one process.

What an image's passes draw is keyed by its id, and what a batch becomes depends on the images in it and the number of
threads alone. So a pool that is cut between its batches has the rows that it has whole.
"""

import math
from typing import NamedTuple

import numpy as np
import torch


class Answer(NamedTuple):
    """What was found of one shard of n images, in their order."""

    rows: "torch.Tensor"  # (n, ...)
    passes: np.ndarray  # (n,) how many passes have seen each image, 0 where none were made
    noted: dict  # {name: (n,) float64} as of Pool.noted


def answer(pool, work):
    """The Answer for a Pool of one shard's images: `work(pool)` makes a row for each."""
    rows = work(pool)
    return Answer(torch.as_tensor(rows).cpu(), pool.passes, pool.noted())


def cut(batches, sizes, count):
    """[indices in rising order] of at most `count` shards of whole `batches` [indices], about equal in pixels.

    `sizes` {index: (height, width)}. A Store makes of a shard the batches that it was cut from: of each size full ones,
    and then powers of two in falling order.
    """
    ends = np.cumsum([sum(math.prod(sizes[index]) for index in batch) for batch in batches])
    shards = {}
    for batch, end in zip(batches, ends, strict=True):
        shards.setdefault(int((end - 1) * count // ends[-1]), []).extend(batch)
    return [sorted(shard) for shard in shards.values()]
