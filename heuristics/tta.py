"""Test-time augmentation: alpha H[mean_v p_v] + (1 - alpha) mean_v H[p_v] over augmented views, entropy in nats.

Wang et al. 2019, https://arxiv.org/abs/1807.07356, whose measure is the entropy of the mean: alpha=1. The mix is that
of StochasticBatchAL and AL-MGS, see `alpha_mix`. The views, `mc_iters` of them, are the image and copies turned by up
to `prediction.rotation` degrees with noise, without dropout. The published code calls a pixel that some view lost
certain; here it has the mean of the views that saw it.
"""

from sacred import Ingredient

from experiments.components.settings import Range
from heuristics.alpha_mix import mix

ingredient = Ingredient("tta")
UNIT = "nats"
SOURCE = "tta"


@ingredient.config
def settings():
    alpha = 0.5  # 1 is the entropy of the mean, 0 the mean of the entropies; the published value is .5
    reduction = "mean"  # how the map becomes one score: mean, max, q90, foreground ...


ALLOWED = {"alpha": Range(least=0, most=1)}


@ingredient.capture
def uncertainty(prediction, alpha):
    """(B, H, W) nats, 0 to log C."""
    return mix(prediction, alpha)
