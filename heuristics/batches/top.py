"""The n images with the highest scores."""

import numpy as np
from sacred import Ingredient

ingredient = Ingredient("top")


@ingredient.capture
def pick(scores, pool, n, rng):
    """n positions, best first."""
    return ranking(scores, pool.ids)[:n]


def ranking(scores, ids):
    """All positions, best first; equal scores in the order of their ids, whatever the order of the files."""
    return np.lexsort((np.asarray(ids), -np.asarray(scores, dtype=np.float64))).tolist()
