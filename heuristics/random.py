"""Images at random: the baseline that a strategy has to beat, and the usual initial set.

Each image's draw is keyed by its id, so the order or number of the files changes nothing for the others.
"""

from sacred import Ingredient

from experiments.components.randomness import uniform

ingredient = Ingredient("random")
NEEDS_MODEL = False
PUBLISHED_AS = ("rand",)


@ingredient.capture
def score(pool, rng):
    """(N,) numbers in [0, 1)."""
    return draws(pool, rng)


def draws(pool, rng):
    return uniform(int(rng.integers(2**63)), pool.ids)
