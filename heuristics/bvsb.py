"""BvSB, best versus second best: the ratio p2 / p1 of the mean prediction's two largest probabilities.

Joshi et al. 2009, https://doi.org/10.1109/cvpr.2009.5206627, who take the difference, see `margin`; the ratio as in
superpixel strategies (Cai et al. 2021). For two classes both rank pixels alike, but the ratio is convex: in a mean over
pixels it counts the most doubtful ones more.
"""

from sacred import Ingredient

ingredient = Ingredient("bvsb")


@ingredient.config
def settings():
    reduction = "mean"  # how the map becomes one score: mean, max, q90, foreground, target ...


@ingredient.capture
def uncertainty(prediction):
    """(B, H, W), 0 to 1."""
    first, second = prediction.mean.topk(2, dim=1).values.unbind(1)
    return second / first
