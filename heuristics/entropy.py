"""Predictive entropy H[mean_t p_t], in nats: total uncertainty of the averaged prediction.

Shannon 1948; as an acquisition function ("max entropy") in Gal et al. 2017, https://arxiv.org/abs/1703.02910.
With `prediction.dropout=False` it is the entropy of one deterministic pass. baal's Entropy averages the passes'
logits instead of their probabilities and so differs.
"""

from sacred import Ingredient

from experiments.acquisition.prediction import entropy

ingredient = Ingredient("entropy")
UNIT = "nats"


@ingredient.config
def settings():
    reduction = "mean"  # how the map becomes one score: mean, max, q90, foreground ...


@ingredient.capture
def uncertainty(prediction):
    """(B, H, W) nats, 0 to log C."""
    return entropy(prediction.mean)
