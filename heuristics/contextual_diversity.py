"""Contextual diversity (CDAL-CS): k-centre by the KL divergence of the images' class confusions.

Agarwal et al. 2020, https://arxiv.org/abs/2008.05723: an image's confusion is, for each class, the mean predicted
distribution over the pixels that are predicted so, weighed by entropy; two images are as far apart as the symmetric
Kullback-Leibler divergences of these distributions, summed over the classes that both show (the paper's sum is written
here from memory). Two images that share no class are therefore not apart at all. Greedy k-centre from the labelled
images on. AL-SEG fills the distributions of absent classes with the float's epsilon and sums over all classes, so that
a class that only one image shows counts most; the authors' code takes the mean over the shared classes and draws the
first image at random.
"""

import numpy as np
import torch
from sacred import Ingredient

from experiments.acquisition.prediction import entropy, winner
from experiments.acquisition.ranking import shuffled
from heuristics.badge import gathered

ingredient = Ingredient("contextual_diversity")


@ingredient.config
def settings():
    absent = "skip"  # a class that one of two images does not show, as in the paper, or "epsilon" as AL-SEG published


ALLOWED = {"absent": ("skip", "epsilon")}


@ingredient.capture
def select(pool, n, rng, absent):
    """n positions, each the farthest from all before it; without labelled images the first is drawn."""
    order, rows = gathered(pool, confusion, "deterministic")
    labelled = gathered(pool.labelled, confusion, "deterministic")[1] if len(pool.labelled) else rows[:0]
    return order[k_centre(rows, labelled, n, rng, absent, shuffled([pool.ids[i] for i in order], rng))]


def confusion(prediction):
    """(B, C * C): entropy-weighted mean distribution of the pixels of each predicted class, zeros if it is absent."""
    p = prediction.mean.flatten(2)
    weights = (entropy(p) + 1e-12) * prediction.valid.flatten(1)  # pixels without any doubt count alike
    members = torch.zeros_like(p).scatter_(1, winner(p)[:, None], weights[:, None])
    total = members.sum(2, keepdim=True)
    return (members @ p.mT / total.where(total > 0, 1)).flatten(1)


def k_centre(rows, labelled, n, rng, absent, ties):
    """n numbers of rows (N, C * C), each the farthest from the labelled rows and those before it.

    Of rows equally far it is the one that comes first in `ties`, all numbers.
    """
    nearest = rows.new_full((len(rows),), torch.inf)
    for row in labelled:
        nearest = torch.minimum(nearest, distances(rows, row, absent))
    picked = [] if len(labelled) else [int(rng.integers(len(rows)))]
    while len(picked) < n:
        if picked:
            nearest = torch.minimum(nearest, distances(rows, rows[picked[-1]], absent))
            nearest[picked[-1]] = -1
        picked.append(int(ties[np.argmax(nearest.cpu().numpy()[ties])]))
    return picked


def distances(rows, row, absent):
    """(N,) how far rows (N, C * C) are from one row, in nats."""
    classes = round(row.numel() ** 0.5)
    rows, row = rows.unflatten(1, (classes, classes)), row.view(classes, classes)
    return torch.cat([divergence(part, row, absent) for part in rows.split(1024)])


def divergence(a, b, absent):
    """(N,) symmetric Kullback-Leibler divergence of distributions a (N, C, C) and b (C, C), summed over the classes."""
    both = a.any(-1) & b.any(-1)
    a, b = (x.clamp_min(torch.finfo(x.dtype).eps) for x in (a, b))
    by_class = ((a - b) * (a.log() - b.log())).sum(-1) / 2
    return (by_class * both if absent == "skip" else by_class).sum(-1)
