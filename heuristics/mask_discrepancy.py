"""Mask discrepancy: how far three views of an image disagree on where its foreground is.

MD-SAM-AL (Aileen0402, https://github.com/Aileen0402/MD-SAM-AL) for SAM2, whose views are masks without a prompt and
with two prompts: 1 - Dice of each pair of masks, and the mean difference of their probabilities. Here the views are
the image and two augmented copies, or three dropout passes. The published code puts the background's mask into Dice as
well; here foreground is everything but class 0, and only pixels that all three views saw count.
"""

import numpy as np
from sacred import Ingredient

from experiments.components.settings import Range

ingredient = Ingredient("mask_discrepancy")
WEIGHTS = {(0, 1): 0.25, (0, 2): 0.20, (1, 2): 0.25}  # of 1 - Dice, as published
SOFT = 0.10  # of each difference of probabilities, as published; all six weights sum to 1


@ingredient.config
def settings():
    source = "tta"  # the views: "tta", where the first is the image as it is, or "dropout"
    threshold = 0.6  # foreground is where its probability is above; the published value is .6


ALLOWED = {"source": ("tta", "dropout"), "threshold": Range(least=0, most=1)}


@ingredient.capture
def score(pool, rng, source, threshold):
    """(N,) 0 where the views agree to 1."""
    scores, pending = np.empty(len(pool)), []
    for positions, p, seen in pool.views(source, 3):
        pending.append((positions, discrepancy(1 - p[:, :, 0], seen.all(0), threshold)))
    for positions, values in pending:
        scores[positions] = values.cpu().numpy()
    return scores


def discrepancy(foreground, counted, threshold):
    """(B,) of three views' probabilities (3, B, H, W), over the pixels that are `counted` (B, H, W)."""
    masks = (foreground > threshold) & counted
    pixels = counted.sum((1, 2))
    total = 0
    for (a, b), weight in WEIGHTS.items():
        soft = ((foreground[a] - foreground[b]).abs() * counted).sum((1, 2)) / pixels
        total = total + weight * (1 - dice(masks[a], masks[b])) + SOFT * soft
    return total


def dice(a, b):
    """(B,) of masks (B, H, W); 1 where both are empty."""
    both, sizes = (a & b).sum((1, 2)), a.sum((1, 2)) + b.sum((1, 2))
    return (2 * both / sizes.clamp_min(1)).where(sizes > 0, 1.0)
