"""The n images with the highest scores."""

from sacred import Ingredient

from experiments.acquisition.ranking import ranking

ingredient = Ingredient("top")


@ingredient.capture
def pick(scores, pool, n, rng):
    """n positions, best first."""
    return ranking(scores, pool.ids, rng)[:n]
