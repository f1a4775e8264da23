"""BALD: mutual information of prediction and weights, H[mean_t p_t] - mean_t H[p_t], in nats.

Houlsby et al. 2011, https://arxiv.org/abs/1112.5745; with MC dropout Gal et al. 2017,
https://arxiv.org/abs/1703.02910. Few passes K underestimate it; `corrected` multiplies by K / (K - 1), which removes
the bias of independent passes to first order: 10 find 10.9 % less than 150, corrected 1.0 % less. With balanced masks
it is 2.1 % less as it is and would be 8.8 % more.
"""

from sacred import Ingredient

from experiments.acquisition.prediction import balanced, entropy
from experiments.errors import Refused

ingredient = Ingredient("bald")
UNIT = "nats"


@ingredient.config
def settings():
    corrected = False  # True: times K / (K - 1), for scores near those of many passes; no pick of equal K changes
    reduction = "mean"  # how the map becomes one score: mean, max, q90, foreground ...


@ingredient.capture
def check(corrected):
    if corrected and balanced():
        raise Refused("bald.corrected is for independent passes, balanced ones it makes worse: set one of the two.")


@ingredient.capture
def uncertainty(prediction, corrected=False):
    """(B, H, W) nats, 0 to log C; rounding below 0 is cut."""
    bald = (entropy(prediction.mean) - prediction.expected_entropy).clamp_min(0)
    return bald * prediction.count / (prediction.count - 1).clamp_min(1) if corrected else bald
