"""Mask discrepancy: how far three views of an image disagree on where its foreground is.

MD-SAM-AL (Aileen0402, https://github.com/Aileen0402/MD-SAM-AL) for SAM2, whose views are masks without a prompt and
with two prompts: 1 - Dice of each pair of masks, and the mean difference of their probabilities. Its views are those of
model=sam2_lora, source=prompts; of other models they are the image and two augmented copies, or three dropout passes.
The published code puts the background's mask into Dice as well; here foreground is everything but the background, class
0, and only pixels that all three views saw count.
"""

from itertools import combinations

import numpy as np
from sacred import Ingredient

from experiments.components.settings import Range
from experiments.errors import Refused

ingredient = Ingredient("mask_discrepancy")


@ingredient.config
def settings():
    source = "tta"  # the views: "prompts" as published, "tta", where the first is the image as it is, or "dropout"
    threshold = 0.6  # foreground is where its probability is above; the published value is .6
    masks = [0.25, 0.2, 0.25]  # weights of 1 - Dice of views 1 and 2, 1 and 3, 2 and 3, as published
    probabilities = [0.1, 0.1, 0.1]  # weights of the mean differences of the same pairs, as published; all sum to 1


ALLOWED = {
    "source": ("prompts", "tta", "dropout"),
    "threshold": Range(least=0, most=1),
    "masks": Range(least=0),
    "probabilities": Range(least=0),
}


@ingredient.capture
def needs(source):
    return ("background", "prompts") if source == "prompts" else ("background",)


@ingredient.capture
def check(masks, probabilities):
    """Raise Refused unless each of the three pairs has its weights."""
    for name, weights in (("masks", masks), ("probabilities", probabilities)):
        if len(weights) != 3:
            raise Refused(f"mask_discrepancy.{name} takes 3 weights, one of each pair of views, not {len(weights)}.")


@ingredient.capture
def score(pool, rng, source, threshold, masks, probabilities):
    """(N,) 0 where the views agree to the sum of the weights."""
    scores, pending = np.empty(len(pool)), []
    for positions, p, seen in pool.views(source, 3):
        pending.append((positions, discrepancy(1 - p[:, :, 0], seen.all(0), threshold, masks, probabilities)))
    for positions, values in pending:
        scores[positions] = values.cpu().numpy()
    return scores


def discrepancy(foreground, counted, threshold, masks, probabilities):
    """(B,) of three views' probabilities (3, B, H, W), over the pixels that are `counted` (B, H, W)."""
    found = (foreground > threshold) & counted
    pixels = counted.sum((1, 2))
    total = 0
    for (a, b), hard, soft in zip(combinations(range(3), 2), masks, probabilities, strict=True):
        difference = ((foreground[a] - foreground[b]).abs() * counted).sum((1, 2)) / pixels
        total = total + hard * (1 - dice(found[a], found[b])) + soft * difference
    return total


def dice(a, b):
    """(B,) of masks (B, H, W); 1 where both are empty."""
    both, sizes = (a & b).sum((1, 2)), a.sum((1, 2)) + b.sum((1, 2))
    return (2 * both / sizes.clamp_min(1)).where(sizes > 0, 1.0)
