"""Expected entropy mean_t H[p_t], in nats: the mean over the passes, aleatoric uncertainty.

Published by the GlaS baselines as "max entropy", which it is not; see Gal et al. 2017,
https://arxiv.org/abs/1703.02910, where BALD = predictive entropy - expected entropy.
"""

from sacred import Ingredient

ingredient = Ingredient("expected_entropy")
UNIT = "nats"
PUBLISHED_AS = ("max",)


@ingredient.config
def settings():
    reduction = "mean"  # how the map becomes one score: mean, max, q90, foreground ...


@ingredient.capture
def uncertainty(prediction):
    """(B, H, W) nats, 0 to log C."""
    return prediction.expected_entropy
