"""The n images with the highest scores."""

import numpy as np
from sacred import Ingredient

from experiments.randomness import uniform

ingredient = Ingredient("top")


@ingredient.capture
def pick(scores, pool, n, rng):
    """n positions, best first."""
    return ranking(scores, pool.ids, rng)[:n]


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
