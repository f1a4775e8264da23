"""Stochastic batches with a diversity constraint (SB_DC): of the best groups the one with the least similar images.

AL-MGS's Entropy_SB_DC (https://github.com/lkf-Labs/AL-MGS): stochastic batches (Gaillochet et al. 2023,
https://arxiv.org/abs/2301.07670) of which the 5 with the highest mean score are compared by the mean over their images
of the largest cosine similarity within the group plus the largest one to a labelled image.
"""

import numpy as np
from sacred import Ingredient

from experiments.acquisition.ranking import ranking
from experiments.components.settings import Range
from heuristics.batches.stochastic import draw_groups
from heuristics.simple_diversity import cosine, isolation

ingredient = Ingredient("diverse_groups")
NEEDS = ("features",)


@ingredient.config
def settings():
    groups = 5  # with the highest mean scores, which are compared
    start_cycle = 0  # before this cycle the best group is taken, as batch=stochastic does
    layer = "decoder"  # whose output is compared: a name in the model's LAYERS
    grid = 8  # cells on each side that it is pooled to
    pooling = "max"  # or mean


ALLOWED = {
    "groups": Range(least=1),
    "start_cycle": Range(least=0),
    "grid": Range(least=1),
    "pooling": ("mean", "max"),
}


@ingredient.capture
def pick(scores, pool, n, rng, groups, start_cycle, layer, grid, pooling):
    """n positions, the best of the group first."""
    scores, ids = np.asarray(scores, dtype=np.float64), pool.ids
    drawn = draw_groups(ids, n, max(1, len(pool) // n), False, int(rng.integers(2**63)))
    drawn = drawn[ranking(scores[drawn].mean(1), [ids[group[0]] for group in drawn], rng)][:groups]
    best = drawn[0]
    if pool.cycle >= start_cycle:
        rows, labelled = (images.features(layer, grid, pooling) for images in (pool, pool.labelled))
        best = drawn[np.argmax(differences(rows, labelled, drawn))]
    return best[ranking(scores[best], [ids[i] for i in best], rng)].tolist()


def differences(rows, labelled, groups):
    """(G,) mean isolation of the rows of each group (G, n)."""
    return [isolation(rows[group], labelled, cosine).mean().item() for group in groups]
