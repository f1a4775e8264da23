"""BALD: mutual information of prediction and weights, H[mean_t p_t] - mean_t H[p_t], in nats.

Houlsby et al. 2011, https://arxiv.org/abs/1112.5745; with MC dropout Gal et al. 2017,
https://arxiv.org/abs/1703.02910.
"""

from sacred import Ingredient

from experiments.acquisition.prediction import entropy

ingredient = Ingredient("bald")
UNIT = "nats"


@ingredient.config
def settings():
    corrected = False  # True: times K / (K - 1), which halves what K passes lack of many; no pick of equal K changes
    reduction = "mean"  # how the map becomes one score: mean, max, q90, foreground ...


@ingredient.capture
def uncertainty(prediction, corrected=False):
    """(B, H, W) nats, 0 to log C; rounding below 0 is cut."""
    bald = (entropy(prediction.mean) - prediction.expected_entropy).clamp_min(0)
    return bald * prediction.count / (prediction.count - 1).clamp_min(1) if corrected else bald
