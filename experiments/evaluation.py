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

    `dice` and `iou` are the mean over images of the mean over foreground classes, `pooled_dice` counts all
    images' pixels together, `accuracy` and `ece` are over pixels; `deterministic_*` are those of one pass
    without dropout. `bins` are those of metrics.calibration_bins.
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
        scalars |= {prefix + name: value for name, value in summary(counted, bins).items()}
        calibration[f"{prefix}bins"] = bins.tolist()
        arrays |= {
            f"{prefix}dice": metrics.dice(counted).tolist(),
            f"{prefix}iou": metrics.iou(counted).tolist(),
        }
    return scalars, arrays, calibration


def summary(counts, bins):
    """Plain floats by name, from (images, classes, 3) counts and calibration bins."""
    return {
        "dice": metrics.dice(counts)[:, 1:].mean().item(),
        "iou": metrics.iou(counts)[:, 1:].mean().item(),
        "pooled_dice": metrics.dice(counts.sum(0))[1:].mean().item(),
        "accuracy": metrics.accuracy(counts).item(),
        "ece": metrics.ece(bins).item(),
    }


def constant_dice(store, classes):
    """Mean foreground Dice of the best answer that looks at nothing: one foreground class everywhere."""
    masks = [store.mask(i)[None] for i in range(len(store))]
    scores = []
    for answer in range(1, classes):
        counted = torch.cat([metrics.counts(torch.full_like(mask, answer), mask, classes) for mask in masks])
        scores.append(metrics.dice(counted)[:, 1:].mean().item())
    return max(scores)
