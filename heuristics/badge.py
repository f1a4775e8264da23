"""BADGE: k-means++ seeds among the gradient embeddings, loss gradients at the predicted labels, of the images.

Ash et al. 2020, https://arxiv.org/abs/1906.03671, with the gradient that AL-SEG takes for segmentation: that of the
summed cross-entropy with respect to a pixel's logits, p - onehot(argmax p), averaged over the cells of a grid. The
paper's own, with respect to the last layer's weights, would average over the image all that tells pixels apart. The
images are the seeds of k-means++, the first being the one with the longest gradient as in the published code.
"""

import numpy as np
import torch
from sacred import Ingredient

from experiments.acquisition import selection
from experiments.acquisition.pool import pooled
from experiments.acquisition.prediction import winner
from experiments.acquisition.ranking import shuffled
from experiments.components.settings import Range
from experiments.errors import Refused

ingredient = Ingredient("badge")


@ingredient.config
def settings():
    size = 400  # about how many numbers an image's gradient keeps, over all classes and cells; AL-SEG's


ALLOWED = {"size": Range(least=1)}


@ingredient.capture
def select(pool, n, rng, size):
    """n positions in the order in which they were drawn."""
    order, rows = gathered(pool, lambda prediction: gradients(prediction, size), "deterministic")
    return order[seeds(rows, n, rng, shuffled([pool.ids[i] for i in order], rng))]


def gathered(images, of, source=""):
    """(positions in the order of their ids, rows (N, D) in that order): what `of` makes of the Predictions.

    Raises Refused naming an image whose row is not finite.
    """
    order = np.argsort(np.asarray(images.ids))
    found = selection.rows(images, of, source)
    found = found[torch.from_numpy(order).to(found.device)]
    for i in (~found.isfinite().all(1)).nonzero().flatten().tolist():
        raise Refused(f"The predictions for image {images.ids[order[i]]} are not finite.")
    return order, found


def gradients(prediction, size):
    """(B, classes * cells) average gradient of each logit in each of as many square cells as make about `size`."""
    p = prediction.mean
    gradient = p - torch.zeros_like(p).scatter_(1, winner(p)[:, None], 1)
    grid = max(1, round((size / p.shape[1]) ** 0.5))
    return pooled(gradient * prediction.valid[:, None], grid, "mean")


def seeds(rows, n, rng, ties):
    """n numbers of rows (N, D): the longest, then in proportion to the squared distance to the nearest one chosen.

    Of the longest, and of the duplicates when nothing else is left, those that come first in `ties`, all numbers.
    """
    picked = [int(ties[rows.norm(dim=1).cpu().numpy()[ties].argmax()])]
    nearest = rows.new_full((len(rows),), torch.inf)
    while len(picked) < n:
        nearest = torch.minimum(nearest, squared_distances(rows, rows[picked[-1]]))
        weights = nearest.double().cpu().numpy()
        if not weights.any():
            return [*picked, *ties[~np.isin(ties, picked)][: n - len(picked)].tolist()]
        picked.append(int(rng.choice(len(rows), p=weights / weights.sum())))
    return picked


def squared_distances(rows, row):
    """(N,) by differences, so that they are 0 for a duplicate."""
    return torch.cat([(part - row).square().sum(1) for part in rows.split(4096)])
