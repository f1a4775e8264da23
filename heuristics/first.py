"""The first images in file order, or fixed ones, as the published GlaS baselines start from [0, 1, 2, 3]."""

from sacred import Ingredient

from experiments.components.settings import Range
from experiments.errors import Refused

ingredient = Ingredient("first")
NEEDS_MODEL = False


@ingredient.config
def settings():
    indices = []  # positions in the training set; empty takes the first ones


ALLOWED = {"indices": Range(least=0)}


@ingredient.capture
def select(pool, n, rng, indices):
    """n positions in the pool. Raises Refused if `indices` does not name n different images of it."""
    wanted = list(indices) or list(range(n))
    if len(set(wanted)) != n or not all(0 <= i < len(pool) for i in wanted):
        raise Refused(f"first.indices must name {n} different images between 0 and {len(pool) - 1}, not {wanted}.")
    return wanted
