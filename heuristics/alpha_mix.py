"""Entropy mix ("JSD"): alpha H[mean_t p_t] + (1 - alpha) mean_t H[p_t] of predictive and expected entropy, in nats.

Published as "JSD" by StochasticBatchAL and AL-MGS (Gaillochet et al. 2023, https://arxiv.org/abs/2301.07670), whose
code adds the two entropies with these weights; the Jensen-Shannon divergence is their difference, which is `bald`.
"""

from sacred import Ingredient

from experiments.acquisition.prediction import entropy
from experiments.components.settings import Range

ingredient = Ingredient("alpha_mix")
UNIT = "nats"


@ingredient.config
def settings():
    alpha = 0.5  # 1 is `entropy`, 0 is `expected_entropy`; the published value is .5
    reduction = "mean"  # how the map becomes one score: mean, max, q90, foreground ...


ALLOWED = {"alpha": Range(least=0, most=1)}


@ingredient.capture
def uncertainty(prediction, alpha):
    """(B, H, W) nats, 0 to log C."""
    return mix(prediction, alpha)


def mix(prediction, alpha):
    return alpha * entropy(prediction.mean) + (1 - alpha) * prediction.expected_entropy
