"""The order of a pool by its scores, with its rule for ties: they are drawn, never left to the names of files."""

import numpy as np

from experiments.components.randomness import uniform


def ranking(scores, ids, rng):
    """All positions, best first; equal scores in a random order that the query's rng and the ids decide."""
    falling = -np.asarray(scores, dtype=np.float64)
    order = np.argsort(falling, kind="stable")
    if (np.diff(falling[order]) == 0).any():
        order = shuffled(ids, rng)
        order = order[np.argsort(falling[order], kind="stable")]
    return order.tolist()


def shuffled(ids, rng):
    """(N,) all positions in a random order, in which ties are broken: whatever the order of the files or their names.

    It is drawn by a child of rng, so that what rng draws next is the same with and without ties.
    """
    return np.argsort(uniform(int(rng.spawn(1)[0].integers(2**63)), ids))
