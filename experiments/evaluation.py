"""Evaluation, the same for every heuristic: test images at full size, averaged over passes and in a single pass.

The Bayesian model average is over probabilities: Wilson & Izmailov 2020, https://arxiv.org/abs/2002.08791.
"""

import torch
from sacred import Ingredient

from experiments import metrics
from experiments.acquisition.prediction import pass_keys, predict, winner
from experiments.settings import Range

ingredient = Ingredient("evaluation")


@ingredient.config
def settings():
    passes = 5  # stochastic passes whose probabilities are averaged; the published setting is 20
    dropout = True  # False: test.* are those of the single deterministic pass
    batch = 0  # images at once, 0: as many as suit the device; changes speed and memory only


ALLOWED = {
    "passes": Range(least=1, note="evaluation.dropout=False makes none"),
    "batch": Range(least=1, zero="what suits the device"),
}


@ingredient.capture
def evaluate(model, store, place, classes, passes, dropout, batch, advance=lambda pixels: None):
    """Metrics of all images of a labelled Store: (scalars, per-image arrays as nested lists [image][class], bins).

    `dice`, `iou`, `miou` and `class_dice` are those of metrics.overlaps, `accuracy` and `ece` are over pixels;
    `deterministic_*` are those of one pass without dropout. A class that is in neither truth nor prediction of an image
    is None there. Without a foreground pixel in all images there are no overlaps, and no arrays. `bins` are those of
    metrics.calibration_bins.
    """
    from experiments.network.inference import Network  # needs torch at once

    network, scalars, arrays, calibration = Network(model), {}, {}, {}
    for prefix, stochastic in (("", dropout), ("deterministic_", False))[: 2 if dropout else 1]:
        counted = torch.zeros(len(store), classes, 3, dtype=torch.int64)
        bins, pending = 0, []
        for members, images in store.batches(range(len(store)), batch):
            ids = [store.ids[i] for i in members]
            keys = pass_keys(place, "test", ids, passes) if stochastic else None
            mean = predict(network, images, ids, keys).mean
            masks = torch.stack([store.mask(i) for i in members]).to(mean.device)
            pending.append((members, metrics.counts(winner(mean), masks, classes)))
            bins = bins + metrics.calibration_bins(mean, masks)
            advance(masks.numel() * (passes if stochastic else 1))
        for members, batch_counts in pending:
            counted[members] = batch_counts.cpu()
        bins = bins.cpu()
        overlaps = metrics.overlaps(counted, store.foreground)
        over_pixels = {"accuracy": metrics.accuracy(counted).item(), "ece": metrics.ece(bins).item()}
        scalars |= {prefix + name: value for name, value in {**overlaps, **over_pixels}.items()}
        calibration[f"{prefix}bins"] = bins.tolist()
        if overlaps:
            arrays |= {f"{prefix}{m.__name__}": plain(m(counted)) for m in (metrics.dice, metrics.iou)}
    return scalars, arrays, calibration


def plain(values):
    """(images, classes) as nested lists for JSON, which has no NaN."""
    return [[None if value != value else value for value in row] for row in values.tolist()]


def constant_answer(store, classes, measure="dice"):
    """What the best answer that looks at nothing scores, one foreground class everywhere; None without foreground."""
    masks = [store.mask(i)[None] for i in range(len(store))]
    scores = []
    for answer in range(classes)[store.foreground]:
        counted = torch.cat([metrics.counts(torch.full_like(mask, answer), mask, classes) for mask in masks])
        scores += [metrics.overlaps(counted, store.foreground).get(measure)]
    return None if None in scores else max(scores)
