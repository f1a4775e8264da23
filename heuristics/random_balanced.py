"""Balanced random: images at random in equal parts from every image-level group.

The groups of the whole pool must be known before labelling. It is heuristic=random with batch=balanced, by name.
"""

from sacred import Ingredient

from heuristics.batches.balanced import share_out
from heuristics.random import draws

ingredient = Ingredient("random_balanced")
NEEDS = ("groups",)
NEEDS_MODEL = False


@ingredient.capture
def select(pool, n, rng):
    """n positions. Raises Refused if the dataset has no groups."""
    return share_out(draws(pool, rng), pool, n, rng)
