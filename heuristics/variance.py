"""Variance of the class probabilities over the passes, averaged over the classes (population variance).

Kendall & Gal 2017, https://arxiv.org/abs/1703.04977.
"""

from sacred import Ingredient

ingredient = Ingredient("variance")


@ingredient.config
def settings():
    reduction = "mean"  # how the map becomes one score: mean, max, q90, foreground ...


@ingredient.capture
def uncertainty(prediction):
    """(B, H, W), 0 to 1/4."""
    return (prediction.second_moment - prediction.mean.square()).clamp_min(0).mean(1)
