"""Core-set by greedy k-centre: each image is the one farthest from everything labelled or chosen before it.

Sener & Savarese 2018, https://arxiv.org/abs/1708.00489, their greedy 2-approximation. Without labelled images the
first one is drawn at random, as implementations of it do. With tau < 1 a distance is weighed by how uncertain its two
ends are, as AL-SEG does (https://doi.org/10.3390/ai6100270): the labelled images are then predicted as well.
"""

from functools import partial

import numpy as np
import torch
from sacred import Ingredient

from experiments.acquisition import selection
from experiments.acquisition.prediction import entropy
from experiments.acquisition.ranking import shuffled
from experiments.components.settings import Range
from heuristics.random import draws

ingredient = Ingredient("coreset")
NEEDS = ("features",)


@ingredient.config
def settings():
    layer = "bottleneck"  # whose output is compared: a name in the model's LAYERS
    grid = 1  # cells on each side that it is pooled to; 1: one vector an image
    pooling = "mean"  # or max
    tau = 1.0  # below 1 the mean entropies count as well: distance ** tau x weight ** (1 - tau)


ALLOWED = {"grid": Range(least=1), "pooling": ("mean", "max"), "tau": Range(least=0, most=1)}


@ingredient.capture
def select(pool, n, rng, layer, grid, pooling, tau):
    """n positions, in the order in which the greedy search finds them."""
    candidates, references = (images.features(layer, grid, pooling) for images in (pool, pool.labelled))
    distances = squared_euclidean
    if tau < 1:
        candidates, references = weighted(candidates, pool), weighted(references, pool.labelled)
        distances = row_by_row(partial(barycentric, tau=tau))
    order = np.argsort(pool.ids)
    first = int(np.argmax(draws(pool, rng)[order]))
    ties = shuffled([pool.ids[i] for i in order], rng)
    return order[k_centre(candidates[order], references, n, distances, first, ties)].tolist()


def k_centre(candidates, references, n, distances, first=0, ties=()):
    """n row numbers of candidates (N, D): each time the row farthest from its nearest reference (M, D) or pick.

    `distances(candidates)` gives a function from one row (D,) to (N,). Without references it starts with row `first`.
    Of rows equally far the one is taken that comes first in `ties`, all row numbers; without them the first row. Keeps
    (N,) numbers, and reads the candidates once a pick.
    """
    ties = torch.as_tensor(ties if len(ties) else range(len(candidates)), device=candidates.device)
    nearest, to = candidates.new_full((len(candidates),), torch.inf), distances(candidates)
    for reference in references:
        nearest = nearest.minimum(to(reference))
    picked = []
    for k in range(n):
        pick = ties[nearest[ties].argmax(0, keepdim=True)] if k or len(references) else ties.new_tensor([first])
        nearest = nearest.minimum(to(candidates[pick][0])).index_fill(0, pick, -torch.inf)
        picked.append(pick)
    return torch.cat(picked).tolist()


def squared_euclidean(rows):
    """A function from a row (D,) to the squared distances (N,) of these rows to it, by |a|^2 - 2 ab + |b|^2.

    What rounding leaves between copies is cut: nearer than a thousandth of their length rows count as equal.
    """
    squares = torch.cat([part.square().sum(1) for part in rows.split(4096)])

    def to(other):
        both = squares + other.square().sum()
        found = both - 2 * torch.mv(rows, other)
        return found.masked_fill_(found < 1e-6 * both, 0)

    return to


def row_by_row(distance):
    """The same for any `distance` of (N, D) and (1, D) that is (N, 1)."""
    return lambda rows: lambda other: distance(rows, other[None])[:, 0]


def euclidean(rows, others):
    """(N, M) distances of (N, D) and (M, D), exactly 0 between copies."""
    return torch.cdist(rows, others, compute_mode="donot_use_mm_for_euclid_dist")


def barycentric(rows, others, tau):
    """(N, M): Euclidean distance ** tau x (a row's share of the two weights) ** (1 - tau); weights are last columns.

    At tau = 0 and distance 1 it is how far the other body is from the centre of mass of both.
    """
    weight, other = rows[:, -1:], others[:, -1]
    return euclidean(rows[:, :-1], others[:, :-1]) ** tau * (weight / (weight + other)) ** (1 - tau)


def weighted(rows, images):
    """(N, D + 1): the rows of these images, each with the mean entropy of its image."""
    weights = selection.per_image(images, lambda prediction: selection.mean_uncertainty(entropy_map, prediction))
    return torch.cat([rows, rows.new_tensor(weights)[:, None].clamp_min(1e-12)], 1)


def entropy_map(prediction):
    return entropy(prediction.mean)
