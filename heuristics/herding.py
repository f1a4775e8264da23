"""Uncertainty Herding (MaxHerding without weights): greedy choice of images that cover most of the pool's uncertainty.

Bae et al. 2025, https://arxiv.org/abs/2412.20644; with weight=none, where every image counts alike, the MaxHerding of
Bae et al. 2024, https://arxiv.org/abs/2407.12212. The next image is the x with the largest

    sum over the pool's images v of U(v) max(0, k(x, v) - c(v)),    k(x, v) = exp(-|x - v|^2 / s^2),

c(v) being the largest k to a labelled or chosen image, on features of length 1. As published s is the smallest distance
between two labelled images; without two of them it is the median distance to the nearest neighbour in the pool. The
paper's U is one minus the margin, at a temperature that is fitted to held-out labels; here it is that of a mask, as it
is: the expected lack of Dice ("dice", ours) or the margin about the predicted foreground ("target"). While nothing is
labelled U is 1. Of images that add as much a drawn one is taken.
"""

from pathlib import Path

import torch
from sacred import Ingredient

from experiments.acquisition import selection
from experiments.acquisition.prediction import winner
from experiments.acquisition.ranking import shuffled
from experiments.errors import Refused
from heuristics.ceal import margin
from heuristics.probcover import at_once
from heuristics.typiclust import unit_features

ingredient = Ingredient("herding")
NEEDS = ("features",)
NEEDS_MODEL = False


@ingredient.config
def settings():
    weight = "dice"  # what an image's neighbourhood counts: its expected lack of Dice, "target": margin, or "none": 1
    layer = "bottleneck"  # whose features are compared; with nothing labelled and no weights, image statistics
    weights = ""  # a safetensors file of this model, trained without labels, to look through instead of the current one


@ingredient.capture
def check(weight, weights):
    if weight not in (*WEIGHTS, "none"):
        raise Refused(f"herding.weight is one of {', '.join(WEIGHTS)}, none, not {weight!r}.")
    if weights and not Path(weights).is_file():
        raise Refused(f"herding.weights={weights} is no file: name a checkpoint's .safetensors or leave it empty.")


@ingredient.capture
def select(pool, n, rng, weight, layer, weights):
    """n positions, in the order in which the greedy search finds them."""
    order, features, labelled = unit_features(pool, layer, weights)
    counts = features.new_ones(len(features))
    if weight != "none" and len(labelled):
        counts = counts.new_tensor(selection.per_image(pool, WEIGHTS[weight], "deterministic"))[order]
    ties = torch.from_numpy(shuffled([pool.ids[i] for i in order], rng)).to(features.device)
    return order[herd(features, labelled, counts, n, width(features, labelled), ties)].tolist()


def lack_of_dice(prediction):
    """(B,) 1 - the Dice that the mean probabilities p expect of their own winners y.

    2 sum p y / (sum p + sum y) over the valid pixels, of the foreground where there are two classes, one of them the
    background, so that an image without any predicted lacks all of it. With others the mean over all classes of
    (2 sum p y + 1) / (sum p + sum y + 1).
    """
    p = prediction.mean * prediction.valid[:, None]
    y = torch.zeros_like(p).scatter_(1, winner(prediction.mean)[:, None], 1) * prediction.valid[:, None]
    both, sizes = 2 * (p * y).sum((2, 3)), (p + y).sum((2, 3))
    if p.shape[1] > 2 or not prediction.first:
        return 1 - ((both + 1) / (sizes + 1)).mean(1)
    return 1 - both[:, 1] / sizes[:, 1].clamp_min(torch.finfo(p.dtype).tiny)


def target_margin(prediction):
    return selection.reducer("target")(margin(prediction.mean), prediction)


WEIGHTS = {"dice": lack_of_dice, "target": target_margin}


def width(features, labelled):
    """The s of the kernel, from features of length 1 of the pool (N, D) and the labelled images (L, D).

    Copies, which are at distance 0, do not count; 1 if there is nothing else.
    """
    for nearest, reduce in ((to_nearest(labelled), torch.min), (to_nearest(features), torch.median)):
        apart = nearest[nearest.isfinite()]
        if len(apart):
            return reduce(apart).item()
    return 1.0


def to_nearest(rows):
    """(N,) distance of each row to the nearest that is no copy of it, inf without any."""
    parts = rows.split(at_once(rows)) if len(rows) else ()
    found = (distances(part, rows) for part in parts)
    return torch.cat([rows.new_empty(0), *(d.masked_fill_(d == 0, torch.inf).amin(1) for d in found)])


def herd(features, labelled, counts, n, width, ties):
    """n rows of features (N, D), each the one that covers most of what the labelled and those before it do not.

    What a row adds only falls as others are taken, so that rows whose last known gain is below the best are not looked
    at again (Minoux 1978). Kernels are held for a chunk of rows at a time. Of gains equal but for rounding the row that
    comes first in `ties`, all row numbers, wins.
    """
    chunk = at_once(features)
    covered = features.new_zeros(len(features))
    for part in labelled.split(chunk) if len(labelled) else ():
        covered = covered.maximum(kernel(part, features, width).amax(0))
    gains, picked = features.new_full((len(features),), torch.inf), []
    for _ in range(n):
        best = -torch.inf
        for rows in gains.argsort(descending=True).split(chunk):
            if gains[rows[0]] < best:
                break
            rows = rows[gains[rows] > -torch.inf]
            gains[rows] = kernel(features[rows], features, width).sub_(covered).clamp_min_(0) @ counts
            best = max(best, gains[rows].amax().item() * (1 - 1e-9)) if len(rows) else best
        pick = ties[(gains[ties] >= best).nonzero()[0, 0]]
        covered = covered.maximum(kernel(features[pick][None], features, width)[0])
        gains[pick] = -torch.inf
        picked.append(int(pick))
    return picked


def kernel(rows, others, width):
    """(N, M) Gaussian kernel of (N, D) and (M, D)."""
    return distances(rows, others).div_(width).square_().neg_().exp_()


def distances(rows, others):
    """(N, M) Euclidean distances of rows of length 1, 0 between copies, where rounding leaves up to 1e-7."""
    found = torch.cdist(rows, others)
    return found.masked_fill_(found < 1e-6, 0)
