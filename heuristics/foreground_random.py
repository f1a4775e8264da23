"""Foreground-aware random: images drawn in proportion to the share of foreground that the model predicts in them.

Efraimidis & Spirakis 2006, https://doi.org/10.1016/j.ipl.2005.11.003, without replacement. That baselines should know
of foreground: Lueth et al. 2025 (nnActive), https://arxiv.org/abs/2511.19183. Theirs looks at the true masks of the
pool, as a person who looks before choosing, ours at the model's predictions: results of the two do not compare.
Where no class is a background everything is foreground, and this is `random`.
"""

import numpy as np
from sacred import Ingredient

from experiments.acquisition.prediction import in_foreground
from experiments.acquisition.selection import per_image
from experiments.components.settings import Range
from heuristics.random import draws

ingredient = Ingredient("foreground_random")


@ingredient.config
def settings():
    least = 0.01  # weight of an image without predicted foreground: every image can be drawn


ALLOWED = {"least": Range(least=0, most=1)}


@ingredient.capture
def score(pool, rng, least):
    """(N,) weight / e, e exponential: the n largest are a weighted sample of n."""
    return np.maximum(foreground(pool), least) / -np.log1p(-draws(pool, rng) - 2.0**-65)


def foreground(pool):
    """(N,) share of pixels that one deterministic pass calls foreground."""
    return per_image(pool, lambda prediction: in_foreground(prediction).float().mean((1, 2)), "deterministic")
