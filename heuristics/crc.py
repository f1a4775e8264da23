"""CRC-AL: images whose conformal prediction sets, with per-class miss rate at most alpha, are most ambiguous.

Erhan & Ure 2025, https://doi.org/10.3390/ai6100270; thresholds as in Angelopoulos et al. 2024,
https://arxiv.org/abs/2208.02814. A pixel's prediction set holds the classes whose probability reaches their
threshold, the largest that misses the class at a rate of at most alpha (conformal risk control). Which classes share
sets is an image's embedding, the mean of its risk map its mass; two images are as far apart as one is from their common
centre of mass, and a query goes to the images farthest from all that is labelled or chosen.

The published thresholds come from the images that the model was trained on (calibrate=labelled) and so promise nothing:
the model is surer of them than of others. They also miss the bound by interpolating, and by 1 / (n + 1) for 1 / n.
Here alpha holds for images like those calibrated on: validation images, if trainer.select_by has not fitted the model
to them much, or a share of the labelled images that training never sees, which are as the queries made them.
"""

import math

import numpy as np
import torch
from sacred import Ingredient
from tqdm import tqdm

from experiments.acquisition import conformal
from experiments.acquisition.ranking import shuffled
from experiments.components.randomness import key, uniform
from experiments.components.settings import Range
from experiments.errors import Refused

ingredient = Ingredient("crc")


@ingredient.config
def settings():
    alpha = 0.1  # rate at which a class may be missed: takes 9 images that have it; .05, as published, takes 19
    calibrate = "validation"  # on these images, or on "held_out" labelled ones, or on all "labelled" ones as published
    share = 0.25  # chance of a labelled image to be held out, the same in every cycle and run
    resolution = 1000  # thresholds are multiples of its inverse
    tau = 0.5  # 1: distances of embeddings alone, 0: risk alone
    select_by = "top_diverse_k"  # mean and smallest distance to what is labelled or chosen; "k_centre": smallest alone


ALLOWED = {
    "alpha": Range(above=0, below=1),
    "calibrate": ("validation", "held_out", "labelled"),
    "share": Range(above=0, below=1),
    "resolution": Range(least=1),
    "tau": Range(least=0, most=1),
    "select_by": ("top_diverse_k", "k_centre"),
}


@ingredient.capture
def needs(calibrate):
    return ("validation",) if calibrate == "validation" else ()


@ingredient.capture
def hold_out(ids, calibrate, share):
    """Those of these labelled ids that training must not see: by a draw of each id alone, so that none ever changes."""
    return [id for id in ids if calibrate == "held_out" and drawn(id, share)]


@ingredient.capture
def check_pool(pool, alpha, calibrate, share):
    """Refuse a class that too few images have to calibrate on, as soon as there are some."""
    images, chosen = CALIBRATORS[calibrate](pool, share)
    if len(images):
        conformal.refuse_few((images.masks([i]) for i in chosen), pool.classes, alpha, "crc.alpha")


@ingredient.capture
def select(pool, n, rng, alpha, calibrate, share, resolution, tau, select_by):
    """n positions, best first. What the thresholds are and do is printed, and kept as pool.memory["crc"]."""
    images, chosen = CALIBRATORS[calibrate](pool, share)
    conformal.refuse_few((images.masks([i]) for i in chosen), pool.classes, alpha, "crc.alpha")
    thresholds = conformal.calibrate(annotated(images, chosen), alpha, resolution)
    pool.memory["crc"] = conformal.measure(annotated(images, chosen), thresholds, pool.classes)
    words = "{} if p >= {threshold:g} (risk {risk:.3f}, set size {set_size:.2f}, {images} images)"
    tqdm.write("crc: " + ", ".join(words.format(name, **row) for name, row in pool.memory["crc"].items()))
    u, v = map(torch.cat, zip(confusions(pool.labelled, thresholds), confusions(pool, thresholds), strict=True))
    order = np.argsort(pool.ids)
    ties = torch.from_numpy(shuffled([pool.ids[i] for i in order], rng)).to(u.device)
    return order[diverse(u, v, len(pool.labelled), n, tau, RULES[select_by], ties)].tolist()


def drawn(id, share):
    return uniform(key("crc", "held_out"), [id])[0] < share


CALIBRATORS = {
    "validation": lambda pool, share: (pool.validation, range(len(pool.validation))),
    "held_out": lambda pool, share: (
        pool.labelled,
        [i for i, id in enumerate(pool.labelled.ids) if drawn(id, share)],
    ),
    "labelled": lambda pool, share: (pool.labelled, range(len(pool.labelled))),
}
RULES = {
    "top_diverse_k": lambda mean, smallest: mean + smallest,
    "k_centre": lambda mean, smallest: smallest,
}


def annotated(images, chosen):
    """Yield (p (B, K, H, W), masks (B, H, W)) of the chosen positions, of one pass without dropout."""
    chosen = set(chosen)
    for positions, prediction in images.predictions("deterministic"):
        kept = [b for b, position in enumerate(positions) if position in chosen]
        if kept:
            masks = images.masks([positions[b] for b in kept])
            yield prediction.mean[kept], masks.to(prediction.mean.device)


def confusions(images, thresholds):
    """(u (N,), v (N, K * K)) of all images, in the order of their ids. Raises Refused for a prediction of NaN."""
    u, v = thresholds.new_empty(len(images)), thresholds.new_empty(len(images), len(thresholds) ** 2)
    for positions, prediction in images.predictions("deterministic"):
        u[positions], v[positions] = confusion(prediction.mean, prediction.valid, thresholds)
    for position in u.isnan().nonzero().flatten().tolist():
        raise Refused(f"The prediction for image {images.ids[position]} is not a number.")
    order = np.argsort(images.ids)
    return u[order], v[order]


def confusion(p, valid, thresholds):
    """(u (B,), v (B, K * K)): the mean of each risk map and the embedding, of p (B, K, H, W).

    M_ij counts the pixels whose set holds i and j; v is M_ij^2 / sum_j M_ij^2, and w_i the entropy of its row i. The
    risk of a pixel is the share in sum w of the classes in its set, so that the diagonal of M gives the mean risk.
    """
    sets = ((p >= thresholds.to(p.dtype)[:, None, None]) & valid[:, None]).flatten(2).to(p.dtype)
    together = (sets @ sets.mT).double()  # exact up to 2 ** 24 pixels
    squares = together.square()
    v = squares / squares.sum(2, keepdim=True).clamp_min(1)
    weights = torch.special.entr(v).sum(2)
    risk = (weights * together.diagonal(dim1=1, dim2=2)).sum(1) / valid.sum((1, 2))
    u = risk / weights.sum(1).clamp_min(torch.finfo(torch.float64).tiny)
    return u.where(p.sum((1, 2, 3)).isfinite(), math.nan), v.flatten(1)


def distances(u, v, reference, tau):
    """(N,): ||v_i - v_j||^tau (u_j / (u_i + u_j))^(1 - tau) of all rows j to the row i; without any risk halfway."""
    share = (u / (u[reference] + u)).nan_to_num(0.5)
    return torch.linalg.vector_norm(v - v[reference], dim=1) ** tau * share ** (1 - tau)


def diverse(u, v, known, n, tau, rule, ties):
    """n of the rows after the first `known`, counted from there: each the farthest from those and the ones before.

    `rule` makes one number of mean and smallest distance. The first of all has the largest u. Ties go to the row that
    comes first in `ties`, all numbers (N,) of the rows to choose from.
    """
    ties = ties + known
    references, met = [*range(known)] or [int(ties[u[ties].argmax()])], 0
    total, smallest = torch.zeros_like(u), torch.full_like(u, math.inf)
    while len(references) < known + n:
        for reference in references[met:]:
            apart = distances(u, v, reference, tau)
            total, smallest = total + apart, smallest.minimum(apart)
            total[reference] = smallest[reference] = -math.inf
        met = len(references)
        references.append(int(ties[rule(total / met, smallest)[ties].argmax()]))
    return [reference - known for reference in references[known:]]
