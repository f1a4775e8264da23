"""An initial set: every image that has a mask already, as where people have begun to label a folder.

Where fewer are asked for, some of these at random; where more, others at random too.
"""

import numpy as np
from sacred import Ingredient

from experiments.errors import Refused

ingredient = Ingredient("annotated")
NEEDS_MODEL = False
ANNOTATED = True  # as an initial set, start is the number of training images that have a mask


@ingredient.config
def settings():
    pass


@ingredient.capture
def score(pool, rng):
    """(N,) 1 for an image that has a mask, 0 for others. Raises Refused if none has."""
    if not any(pool.annotated):
        raise Refused("annotated finds no mask beside those that validate or test: draw a few, or set initial=random.")
    return np.array(pool.annotated, dtype=np.float64)
