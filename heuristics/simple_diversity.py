"""SDS, simple diversity sampling: the images least like their nearest neighbour in the pool and among the labelled.

As in AL-MGS (https://github.com/lkf-Labs/AL-MGS), where the smallest sums of the two largest cosine similarities are
taken: these are the largest sums of the two smallest distances. For Euclidean and Manhattan distances its code
sums the largest ones, those to the farthest images: here they are to the nearest. As published every image is judged on
its own, so that two copies may both be chosen where they are far from all that is labelled.
"""

import numpy as np
import torch
from sacred import Ingredient

from experiments.components.settings import Range
from heuristics.coreset import euclidean

ingredient = Ingredient("simple_diversity")
NEEDS = ("features",)


@ingredient.config
def settings():
    distance = "cosine"  # or euclidean, manhattan
    layer = "decoder"  # whose output is compared: a name in the model's LAYERS
    grid = 8  # cells on each side that it is pooled to; published are cells of 64 x 64 pixels, 5 x 11 of an image
    pooling = "max"  # or mean


ALLOWED = {
    "distance": ("cosine", "euclidean", "manhattan"),
    "grid": Range(least=1),
    "pooling": ("mean", "max"),
}


@ingredient.capture
def score(pool, rng, distance, layer, grid, pooling):
    """(N,) distance to the nearest image of the pool + distance to the nearest labelled one."""
    rows, labelled = (images.features(layer, grid, pooling) for images in (pool, pool.labelled))
    order, scores = np.argsort(pool.ids), np.empty(len(pool))
    scores[order] = isolation(rows[order], labelled, DISTANCES[distance]).cpu().numpy()
    return scores


def isolation(rows, labelled, distance):
    """(N,) how far each row (N, D) is from its nearest fellow, and from the nearest of `labelled` (M, D) if any."""
    terms = [nearest(rows, rows, distance, fellows=True), nearest(rows, labelled, distance)]
    return sum(term.nan_to_num(posinf=0) for term in terms)


def nearest(rows, others, distance, fellows=False):
    """(N,) distance to the nearest of `others`, inf without any; as `fellows` row k is not compared with other k."""
    if not len(others):
        return rows.new_full((len(rows),), torch.inf)
    found = []
    for start in range(0, len(rows), step := max(1, 2**24 // len(others))):
        distances = distance(rows[start : start + step], others)
        if fellows:
            distances.diagonal(start).fill_(torch.inf)
        found.append(distances.amin(1))
    return torch.cat(found)


def cosine(rows, others):
    """(N, M) 1 - cosine similarity, 0 to 2; a row of zeros is like no other."""
    rows, others = (torch.nn.functional.normalize(x) for x in (rows, others))
    return (1 - rows @ others.T).clamp_min(0)


def manhattan(rows, others):
    return torch.cdist(rows, others, p=1)


DISTANCES = {"cosine": cosine, "euclidean": euclidean, "manhattan": manhattan}
