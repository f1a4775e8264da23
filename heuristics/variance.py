"""Variance of the class probabilities over the passes, averaged over the classes (population variance).

Kendall et al. 2015 (Bayesian SegNet), https://arxiv.org/abs/1511.02680.
"""

import torch
from sacred import Ingredient

ingredient = Ingredient("variance")


@ingredient.config
def settings():
    reduction = "mean"  # how the map becomes one score: mean, max, q90, foreground ...


@ingredient.capture
def uncertainty(prediction):
    """(B, H, W), 0 to 1/4."""
    return by_class(prediction).mean(1)


def by_class(prediction):
    """(B, C, H, W) population variance over the passes of each class's probability.

    The difference of moments near 1 is mostly rounding. Two classes have the same variance: both take that of the less
    probable one, whose moments are small. With more, a class that is nearly sure keeps an error of up to 1e-7.
    """
    variances = (prediction.second_moment - prediction.mean.square()).clamp_min(0)
    if variances.shape[1] > 2:
        return variances
    rarer = torch.where(prediction.mean[:, 0] < prediction.mean[:, 1], variances[:, 0], variances[:, 1])
    return rarer[:, None].expand_as(variances)
