"""Evaluation, the same for every heuristic: test images at full size, averaged over passes and in a single pass.

The Bayesian model average is over probabilities: Wilson & Izmailov 2020, https://arxiv.org/abs/2002.08791.
"""

from collections import defaultdict

import torch
from sacred import Ingredient

from experiments.acquisition.prediction import pass_keys, predict, winner
from experiments.components.settings import Range
from experiments.errors import BadData, Refused
from experiments.evaluation import metrics

ingredient = Ingredient("evaluation")


@ingredient.config
def settings():
    passes = 5  # stochastic passes whose probabilities are averaged; the published setting is 20
    dropout = True  # False: test.* are those of the single deterministic pass
    batch = 0  # images at once, 0: as many as suit the device; changes speed and memory only
    distances = False  # True: test.hd95, test.hd and test.assd too, a few milliseconds for each image and class
    spacing = [1.0, 1.0]  # height and width of a pixel as the run sees it, times what its file says, as NIfTI does, in
    # the unit that distances are to have; of volumes [1.5, 0.5, 0.5], the distance between slices first
    original_size = False  # True: test.* at the size of the masks' files, probabilities scaled up; training is as ever


PER_IMAGE = (metrics.dice, metrics.iou, metrics.precision, metrics.recall)

ALLOWED = {
    "passes": Range(least=1, note="evaluation.dropout=False makes none"),
    "batch": Range(least=1, zero="what suits the device"),
    "spacing": Range(above=0),
}


@ingredient.capture
def check(spacing):
    """Raise Refused unless the spacing is two numbers, or three."""
    if len(spacing) not in (2, 3):
        raise Refused(
            "evaluation.spacing is the height and width of a pixel, as [0.5, 0.5], of volumes with the distance "
            f"between slices before them, not {spacing}."
        )


@ingredient.capture
def check_test(test, name, original_size):
    """Raise Refused unless the test images, a Split or None, of the dataset of this name can be tested as asked."""
    if original_size and test and test.read_original is None:
        raise Refused(
            f"evaluation.original_size=True: dataset={name} reads masks at one size only. Leave it out, or give the "
            "dataset's Split a read_original."
        )


@ingredient.capture
def evaluate(model, store, place, classes, passes, dropout, batch, distances, spacing, original_size, volumes=False,
             advance=lambda pixels: None):  # fmt: skip
    """Metrics of all images of a labelled Store: (scalars, per-image arrays as nested lists [image][class], bins).

    `dice`, `iou`, `miou` and `class_dice` are those of metrics.overlaps, `accuracy`, `ece` and those of
    metrics.over_pixels are over pixels; `deterministic_*` are those of one pass without dropout. With `volumes` the
    slices of a source count as one image in `volume_dice` and `volume_iou`. With `distances` there are those of
    metrics.surface_distances too, of volumes in space, not of the deterministic pass. With `original_size` all of them
    are of the probabilities scaled to the size of the masks' files, and of these masks. A class that is in neither
    truth nor prediction of an image is None there. Without a foreground pixel in all images there are no overlaps, and
    no arrays. `bins` are those of metrics.calibration_bins.
    """
    from experiments.network.inference import Network  # needs torch at once

    network, scalars, arrays, calibration = Network(model), {}, {}, {}
    apart = torch.zeros(len(store), classes, len(metrics.DISTANCES), dtype=torch.float64)
    needs, slices = ("without",) if dropout else (), defaultdict(list)
    pending = {"": []} | ({"deterministic_": []} if dropout else {})
    for members, images in store.batches(range(len(store)), batch):
        ids = [store.ids[i] for i in members]
        keys = pass_keys(place, "test", ids, passes) if dropout else None
        found = predict(network, images, ids, keys, needs, means_alone=True)
        for prefix, mean in zip(pending, (found.mean, found.without), strict=False):
            for some, p, masks in beside_truth(store, members, mean, original_size):
                labels = winner(p)
                counts = metrics.counts(labels, masks, classes), metrics.soft_counts(p, masks)
                pending[prefix].append((some, *counts, metrics.calibration_bins(p, masks)))
                if distances and not prefix:
                    for i, label, mask in zip(some, labels.cpu(), masks.cpu(), strict=True):
                        steps = pixel(store, i, spacing, mask.shape)
                        apart[i] = surfaces(label, mask, classes, store, steps[1:])
                        if volumes:
                            slices[store.split.items[i].source].append((i, label.to(torch.uint8), mask, steps))
        advance(found.mean[:, 0].numel() * (passes + 1 if dropout else 1))
    for prefix, parts in pending.items():
        counted = torch.zeros(len(store), classes, 3, dtype=torch.int64)
        soft = torch.zeros(len(store), classes, 3, dtype=torch.float64)
        for members, batch_counts, batch_soft, _ in parts:
            counted[members], soft[members] = batch_counts.cpu(), batch_soft.cpu()
        bins = sum(batch_bins for *_, batch_bins in parts).cpu()
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
                measured[name] = mean_distance(values, store)
            if volumes:
                whole = torch.stack([of_volume(parts, classes, store) for parts in slices.values()])
                for name, values in zip(metrics.DISTANCES, whole.unbind(-1), strict=True):
                    measured[f"volume_{name}"] = mean_distance(values, store)
        scalars |= {prefix + name: value for name, value in measured.items()}
    return scalars, arrays, calibration


@ingredient.capture
def dice(model, store, indices, place, classes, passes, dropout, batch, original_size):
    """(len(indices), classes) float64: Dice of these labelled images of a Store, as `evaluate` has a test image's."""
    from experiments.network.inference import Network  # needs torch at once

    network, found = Network(model), {}
    for members, images in store.batches(indices, batch):
        ids = [store.ids[i] for i in members]
        keys = pass_keys(place, "test", ids, passes) if dropout else None
        mean = predict(network, images, ids, keys, means_alone=True).mean
        for some, p, masks in beside_truth(store, members, mean, original_size):
            values = metrics.dice(metrics.counts(winner(p), masks, classes)).cpu()
            found.update(zip(some, values, strict=True))
    return torch.stack([found[index] for index in indices])


def beside_truth(store, members, mean, original_size):
    """Yield (positions, probabilities (B, C, H, W), masks (B, H, W)) of a batch, one by one at the files' own sizes."""
    if not original_size:
        yield members, mean, torch.stack([store.mask(i) for i in members]).to(mean.device)
        return
    for i, p in zip(members, mean, strict=True):
        mask = store.original_mask(i).to(mean.device)[None]
        yield [i], scaled(p[None], mask.shape[1:]), mask


def scaled(p, size):
    """Probabilities (B, C, H, W) at another size (height, width), between pixels in proportion to what is near."""
    if p.shape[2:] == size:
        return p
    smaller = size[0] < p.shape[2] or size[1] < p.shape[3]
    return torch.nn.functional.interpolate(p, size=tuple(size), mode="bilinear", antialias=smaller)


def pixel(store, index, spacing, size):
    """Distance between slices, height and width of a pixel of an image that is compared with its mask at this size."""
    stated = store.split.items[index].spacing or (1.0, 1.0, 1.0)
    seen = (1, *store.sizes[index])
    asked = spacing if len(spacing) == 3 else (1.0, *spacing)
    return [a * b * s / t for a, b, s, t in zip(stated, asked, seen, (1, *size), strict=True)]


def surfaces(label, mask, classes, store, spacing):
    return metrics.surface_distances(label[None], mask[None], classes, store.foreground, spacing)[0]


def of_volume(parts, classes, store):
    """(classes, 3) distances in space of a volume, of its slices' (position, label, mask, spacing), in order."""
    _, labels, masks, steps = zip(*sorted(parts, key=lambda part: part[0]), strict=True)
    if len({mask.shape for mask in masks}) > 1:
        source = store.split.items[parts[0][0]].source
        raise BadData(f"The slices of {source} differ in size, so it has no distances: evaluation.distances=False.")
    return surfaces(torch.stack(labels), torch.stack(masks), classes, store, steps[0])


def mean_distance(values, store):
    """Over images or volumes of the mean over their foreground classes: (images, classes) with NaN -> float."""
    return values[:, store.foreground].nanmean(1).nanmean().item()


def plain(values):
    """(images, classes) as nested lists for JSON, which has no NaN."""
    return [[None if value != value else value for value in row] for row in values.tolist()]


@ingredient.capture
def constant_answer(store, classes, original_size, measure="dice"):
    """What the best answer that looks at nothing scores, one foreground class everywhere; None without foreground."""
    counted = defaultdict(list)
    for i in range(len(store)):
        mask = (store.original_mask(i) if original_size else store.mask(i))[None]
        for answer in range(classes)[store.foreground]:
            counted[answer].append(metrics.counts(torch.full_like(mask, answer), mask, classes))
    scores = [metrics.overlaps(torch.cat(each), store.foreground).get(measure) for each in counted.values()]
    return None if None in scores else max(scores)
