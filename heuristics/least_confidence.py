"""Least confidence: one minus the mean prediction's largest probability.

Lewis & Gale 1994, https://arxiv.org/abs/cmp-lg/9407020; for pixels as in SegAL and AL-SEG.
"""

from sacred import Ingredient

ingredient = Ingredient("least_confidence")


@ingredient.config
def settings():
    reduction = "mean"  # how the map becomes one score: mean, max, q90, foreground ...


@ingredient.capture
def uncertainty(prediction):
    """(B, H, W), 0 to 1 - 1 / C."""
    return 1 - prediction.mean.amax(1)
