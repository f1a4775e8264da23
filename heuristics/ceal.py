"""CEAL, cost-effective active learning: uncertain images are queried, confident pixels elsewhere are pseudo-labelled.

Wang et al. 2016, https://arxiv.org/abs/1701.03551; for pixels, with the constants of SegAL, which are in bits. SegAL's
code throws the pseudo labels away; here a query's are trained on in the cycle after it, and then forgotten.
"""

import math

import torch
from sacred import Ingredient

from experiments.acquisition.prediction import entropy, winner
from experiments.components.settings import Range
from experiments.store import IGNORE

ingredient = Ingredient("ceal")


@ingredient.config
def settings():
    criterion = "least_confidence"  # what is asked for: least_confidence, margin or entropy
    reduction = "mean"  # how the map becomes one score: mean, max, q90, foreground ...
    threshold = 0.0275  # bits: a pixel of less entropy in one deterministic pass gets a pseudo label
    decay = 0.001815  # bits that the threshold falls by at every query
    pseudo_crops = 1.0  # crops of pseudo-labelled images in an epoch per labelled one, which bounds a cycle's cost


ALLOWED = {
    "criterion": ("least_confidence", "margin", "entropy"),
    "threshold": Range(least=0),
    "decay": Range(least=0),
    "pseudo_crops": Range(least=0),
}


@ingredient.capture
def uncertainty(prediction, criterion):
    """(B, H, W), of the mean probabilities, larger where the model is less certain."""
    return CRITERIA[criterion](prediction.mean)


@ingredient.capture
def pseudo_labels(pool, threshold, decay):
    """Yield (positions, masks) for the whole pool; none once the threshold has fallen to 0."""
    bits = threshold - decay * pool.cycle
    if bits > 0:
        for positions, prediction in pool.predictions("deterministic"):
            yield positions, confident(prediction.mean, bits)


def confident(p, bits):
    """(B, H, W) uint8: the most probable class where the entropy is below so many bits, IGNORE elsewhere."""
    return winner(p).to(torch.uint8).masked_fill(entropy(p) >= bits * math.log(2), IGNORE)


def least_confidence(p):
    return 1 - p.amax(1)


def margin(p):
    first, second = p.topk(2, dim=1).values.unbind(1)
    return 1 - (first - second)


CRITERIA = {"least_confidence": least_confidence, "margin": margin, "entropy": entropy}
