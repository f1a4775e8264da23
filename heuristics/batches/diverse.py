"""Diversity constraint (DC): of the best images by score those least like each other and the labelled ones.

AL-MGS's Entropy_DC (https://github.com/lkf-Labs/AL-MGS): of the 30 images of highest entropy the 20 with the smallest
sum of the largest cosine similarity to another candidate and the largest one to a labelled image. Each is judged on its
own. With `greedy`, which is not published, it is judged against those already picked: k-centre, Sener & Savarese 2018,
https://arxiv.org/abs/1708.00489.
"""

from math import ceil

from sacred import Ingredient

from experiments.acquisition.ranking import ranking
from experiments.components.settings import Range
from heuristics.coreset import k_centre, row_by_row
from heuristics.simple_diversity import cosine, isolation

ingredient = Ingredient("diverse")
NEEDS = ("features",)


@ingredient.config
def settings():
    candidates = 0  # the best by score, of which a query is chosen; 0: half as many again as a query, as published
    start_cycle = 0  # before this cycle the best are taken as they are
    greedy = False  # True: one after the other, each the least like those before it
    layer = "decoder"  # whose output is compared: a name in the model's LAYERS
    grid = 8  # cells on each side that it is pooled to
    pooling = "max"  # or mean


ALLOWED = {
    "candidates": Range(least=0),
    "start_cycle": Range(least=0),
    "grid": Range(least=1),
    "pooling": ("mean", "max"),
}


@ingredient.capture
def pick(scores, pool, n, rng, candidates, start_cycle, greedy, layer, grid, pooling):
    """n positions, the least similar first."""
    order = ranking(scores, pool.ids, rng)
    if pool.cycle < start_cycle:
        return order[:n]
    best = order[: max(n, candidates or ceil(1.5 * n))]
    rows, labelled = (images.features(layer, grid, pooling) for images in (pool, pool.labelled))
    if greedy:
        picked = k_centre(rows[best], labelled, n, row_by_row(cosine))
    else:
        picked = ranking(isolation(rows[best], labelled, cosine).cpu(), [pool.ids[i] for i in best], rng)[:n]
    return [best[i] for i in picked]
