"""Margin (breaking ties): one minus the difference between the mean prediction's two largest probabilities.

Luo et al. 2005, https://www.jmlr.org/papers/v6/luo05a.html; as margin sampling also Scheffer et al. 2001.
"""

from sacred import Ingredient

ingredient = Ingredient("margin")


@ingredient.config
def settings():
    reduction = "mean"  # how the map becomes one score: mean, max, q90, foreground ...


@ingredient.capture
def uncertainty(prediction):
    """(B, H, W), 0 to 1."""
    first, second = prediction.mean.topk(2, dim=1).values.unbind(1)
    return 1 - (first - second)
