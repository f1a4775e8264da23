"""Randomness is derived, never carried: any draw is a function of what it is for, so resuming cannot shift it.

A key is a 64-bit number hashed from (seed, dataset, cycle, purpose, image id, ...); generators start from keys.
"""

from hashlib import blake2b

import numpy as np


def key(*parts):
    """A 64-bit int from any mix of ints and strings; ("a", "bc") and ("ab", "c") differ."""
    digest = blake2b(digest_size=8)
    for part in parts:
        text = repr(part).encode()
        digest.update(len(text).to_bytes(4, "little") + text)
    return int.from_bytes(digest.digest(), "little")


def generator(*parts):
    """A numpy Generator that depends on `parts` alone."""
    return np.random.default_rng(key(*parts))


def uniform(salt, ids):
    """One number in [0, 1) for each id, whatever the order or the company of the ids: (N,) float64."""
    return np.array([key(salt, id) for id in ids], dtype=np.float64) / 2.0**64
