"""Evaluation, the same for every heuristic: test images at full size, averaged over passes and in a single pass.

The Bayesian model average is over probabilities: Wilson & Izmailov 2020, https://arxiv.org/abs/2002.08791.
"""

import torch
from sacred import Ingredient

from experiments.acquisition.prediction import pass_keys, predict, winner
from experiments.errors import Refused
from experiments.evaluation import metrics
from experiments.settings import Range

ingredient = Ingredient("evaluation")


@ingredient.config
def settings():
    passes = 5  # stochastic passes whose probabilities are averaged; the published setting is 20
    dropout = True  # False: test.* are those of the single deterministic pass
    batch = 0  # images at once, 0: as many as suit the device; changes speed and memory only
    distances = False  # True: test.hd95, test.hd and test.assd too, a few milliseconds for each image and class
    spacing = [1.0, 1.0]  # height and width of a pixel as the run sees it, in the unit that distances are to have


PER_IMAGE = (metrics.dice, metrics.iou, metrics.precision, metrics.recall)

ALLOWED = {
    "passes": Range(least=1, note="evaluation.dropout=False makes none"),
    "batch": Range(least=1, zero="what suits the device"),
    "spacing": Range(above=0),
}


@ingredient.capture
def check(spacing):
    """Raise Refused unless the spacing is two numbers."""
    if len(spacing) != 2:
        raise Refused(f"evaluation.spacing is the height and width of a pixel, as [0.5, 0.5], not {spacing}.")


@ingredient.capture
def evaluate(model, store, place, classes, passes, dropout, batch, distances, spacing, volumes=False,
             advance=lambda pixels: None):  # fmt: skip
    """Metrics of all images of a labelled Store: (scalars, per-image arrays as nested lists [image][class], bins).

    `dice`, `iou`, `miou` and `class_dice` are those of metrics.overlaps, `accuracy`, `ece` and those of
    metrics.over_pixels are over pixels; `deterministic_*` are those of one pass without dropout. With `volumes` the
    slices of a source count as one image in `volume_dice` and `volume_iou`. With `distances` there are those of
    metrics.surface_distances too, not of the deterministic pass. A class that is in neither truth nor prediction of an
    image is None there. Without a foreground pixel in all images there are no overlaps, and no arrays. `bins` are those
    of metrics.calibration_bins.
    """
    from experiments.network.inference import Network  # needs torch at once

    network, scalars, arrays, calibration = Network(model), {}, {}, {}
    for prefix, stochastic in (("", dropout), ("deterministic_", False))[: 2 if dropout else 1]:
        counted = torch.zeros(len(store), classes, 3, dtype=torch.int64)
        soft = torch.zeros(len(store), classes, 3, dtype=torch.float64)
        apart = torch.zeros(len(store), classes, len(metrics.DISTANCES), dtype=torch.float64)
        bins, pending = 0, []
        for members, images in store.batches(range(len(store)), batch):
            ids = [store.ids[i] for i in members]
            keys = pass_keys(place, "test", ids, passes) if stochastic else None
            mean = predict(network, images, ids, keys).mean
            masks = torch.stack([store.mask(i) for i in members]).to(mean.device)
            labels = winner(mean)
            pending.append((members, metrics.counts(labels, masks, classes), metrics.soft_counts(mean, masks)))
            bins = bins + metrics.calibration_bins(mean, masks)
            if distances and not prefix:
                apart[members] = metrics.surface_distances(labels, masks, classes, store.foreground, spacing)
            advance(masks.numel() * (passes if stochastic else 1))
        for members, batch_counts, batch_soft in pending:
            counted[members], soft[members] = batch_counts.cpu(), batch_soft.cpu()
        bins = bins.cpu()
        overlaps = metrics.overlaps(counted, store.foreground)
        measured = {**overlaps, "accuracy": metrics.accuracy(counted).item(), "ece": metrics.ece(bins).item()}
        calibration[f"{prefix}bins"] = bins.tolist()
        if overlaps:
            measured |= metrics.over_pixels(counted, soft, store.foreground)
            kinds = (metrics.dice, metrics.iou) if prefix else PER_IMAGE
            arrays |= {f"{prefix}{m.__name__}": plain(m(counted)) for m in kinds}
        if overlaps and volumes:
            whole = metrics.of_volumes(counted, [item.source for item in store.split.items])
            for m in (metrics.dice, metrics.iou):
                measured[f"volume_{m.__name__}"] = metrics.over_images(m(whole), store.foreground).item()
        if overlaps and distances and not prefix:
            for name, values in zip(metrics.DISTANCES, apart.unbind(-1), strict=True):
                arrays[name] = plain(values)
                measured[name] = values[:, store.foreground].nanmean(1).nanmean().item()
        scalars |= {prefix + name: value for name, value in measured.items()}
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
