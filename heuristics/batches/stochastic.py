"""Stochastic batches: the random group of images with the highest mean score is the query.

Gaillochet et al. 2023, https://arxiv.org/abs/2301.07670. Disjoint groups as in StochasticBatchAL and AL-MGS, or groups
drawn anew from the whole pool as there with `resample` and in AL-SEG. Draws are keyed by image id.
"""

import numpy as np
from sacred import Ingredient

from experiments.acquisition.ranking import ranking
from experiments.components.randomness import uniform
from experiments.components.settings import Range

ingredient = Ingredient("stochastic")


@ingredient.config
def settings():
    size = 0  # images of a group; 0: a group is a whole query, as published
    resample = False  # True: groups are drawn independently and may share images
    groups = 0  # how many are drawn with resample; 0: as many as would be disjoint
    reduction = "mean"  # of the members' scores: mean, max or sum


ALLOWED = {
    "size": Range(least=0),
    "groups": Range(least=0),
    "reduction": ("mean", "max", "sum"),
}


@ingredient.capture
def pick(scores, pool, n, rng, size, resample, groups, reduction):
    """n positions: the best groups, each with its best image first. Images left over by disjoint groups come last."""
    scores = np.asarray(scores, dtype=np.float64)
    size = min(size or n, n)
    count = (groups if resample else 0) or max(1, len(pool) // size)
    drawn = draw_groups(pool.ids, size, count, resample, int(rng.integers(2**63)))
    order = ranking(REDUCTIONS[reduction](scores[drawn], axis=1), [pool.ids[first] for first in drawn[:, 0]], rng)
    picked = {}
    for i in queue(ranking(scores, pool.ids, rng), drawn, order):
        picked[i] = None
        if len(picked) == n:
            break
    return list(picked)


def queue(best, drawn, order):
    """All positions, as they are wanted: group by group, then by score, as in `best`; some more than once."""
    place = np.argsort(best)
    for group in order:
        yield from sorted(drawn[group].tolist(), key=place.__getitem__)
    yield from best


def draw_groups(ids, size, count, resample, salt):
    """(count, size) positions: slices of one random order, or each the start of an order of its own."""
    if resample:
        return np.array([np.argsort(uniform(salt + k, ids))[:size] for k in range(count)])
    return np.argsort(uniform(salt, ids))[: count * size].reshape(count, size)


REDUCTIONS = {"mean": np.mean, "max": np.max, "sum": np.sum}
