"""Power, softmax and softrank batches: the n images with the highest scores after Gumbel noise.

Kirsch et al. 2023, https://arxiv.org/abs/2106.12059: the n best images are often alike, n drawn ones less so. The noise
is on the logarithms of the scores (power, as in PowerBALD), on the scores (softmax), or on minus the logarithms of the
ranks (softrank), and keyed by image id.
"""

import numpy as np
from sacred import Ingredient

from experiments.acquisition.ranking import ranking
from experiments.components.randomness import uniform
from experiments.components.settings import Range
from experiments.errors import Refused

ingredient = Ingredient("power")


@ingredient.config
def settings():
    kind = "power"  # draw in proportion to score ** beta, or "softmax": exp(beta score), or "softrank": rank ** -beta
    beta = 1.0  # the larger, the closer to the n best; softmax needs one that suits the scale of the scores


ALLOWED = {"kind": ("power", "softmax", "softrank"), "beta": Range(least=0)}


@ingredient.capture
def pick(scores, pool, n, rng, kind, beta):
    """n positions, best first. Raises Refused where "power" meets a score below 0."""
    if kind == "power" and min(scores) < 0:
        raise Refused("power.kind=power draws in proportion to scores of at least 0: use softmax or softrank.")
    gumbel = -np.log(-np.log(uniform(int(rng.integers(2**63)), pool.ids) + 2.0**-65))
    return ranking(beta * LOGITS[kind](np.asarray(scores), pool.ids, rng) + gumbel, pool.ids, rng)[:n]


def log_scores(scores, *which):
    return np.log(np.maximum(scores, np.finfo(float).tiny))


def minus_log_ranks(scores, ids, rng):
    ranks = np.empty(len(scores))
    ranks[ranking(scores, ids, rng)] = np.arange(1, len(scores) + 1)
    return -np.log(ranks)


LOGITS = {"power": log_scores, "softmax": lambda scores, *which: scores, "softrank": minus_log_ranks}
