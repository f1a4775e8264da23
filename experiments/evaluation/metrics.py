"""Segmentation metrics from per-image counts; IGNORE pixels are never counted.

What a class scores in an image that lacks it: 0 if it is in the truth or in the prediction alone. If it is in neither,
it is skipped, NaN in the image's values and left out of the image's mean over classes (as nnU-Net's
evaluate_predictions.py does), so that a model is not paid for never finding a rare class. An image whose foreground
classes are all in neither is answered right and scores 1 (MONAI's `ignore_empty=False`); where there are two classes
their values are 1 then, not NaN. Precision of a class that is true but never predicted, and recall of one predicted but
never true, are 0 as well. A distance has no value for a class in neither, of two classes too; for one in the truth or
the prediction alone it is the image's diagonal, the worst that could be, so that a model is not paid for never finding
it.

Over a test set there are two means, and a dataset's HEADLINE says which of them judges: `dice` and `iou`, over images
of the mean over their foreground classes; or `miou` and `class_dice`, over the foreground classes that occur in the
truth, the pixels of all images counted together (as PASCAL VOC does, https://doi.org/10.1007/s11263-014-0733-5).
`precision`, `recall` and `soft_dice` are means of the second kind, distances of the first.
"""

import warnings
from itertools import product
from math import hypot

import torch

from experiments.errors import Refused
from experiments.store import IGNORE

HEADLINES = {"dice": "Dice", "miou": "mIoU", "class_dice": "class Dice"}  # what a dataset may state: in words
OVERLAPS = ("dice", "iou", "miou", "class_dice")
DISTANCES = ("hd95", "hd", "assd")

BINS = 15  # of the calibration error, as Guo et al. 2017


def counts(labels, masks, classes):
    """(B, classes, 3) int64: pixels in both, predicted pixels, true pixels. Labels and masks are (B, H, W)."""
    valid = (masks != IGNORE)[:, None]
    number = torch.arange(classes, device=labels.device).view(1, -1, 1, 1)
    predicted, true = (labels[:, None] == number) & valid, masks[:, None] == number
    return torch.stack([(predicted & true).sum((2, 3)), predicted.sum((2, 3)), true.sum((2, 3))], dim=-1)


def soft_counts(p, masks):
    """`counts` where a pixel belongs to each class by its probability p (B, C, H, W): (B, C, 3) float64.

    Probabilities are rounded to whole numbers of 2^-24, whose sums no order of the pixels changes.
    """
    if p.device.type == "mps":  # has no float64
        p, masks = p.cpu(), masks.cpu()
    parts = (p * 2**24).round_().mul_((masks != IGNORE)[:, None])
    true = masks[:, None] == torch.arange(p.shape[1], device=p.device).view(1, -1, 1, 1)
    predicted = parts.sum((2, 3), dtype=torch.float64)
    both = parts.mul_(true).sum((2, 3), dtype=torch.float64)
    return torch.stack([both / 2**24, predicted / 2**24, true.sum((2, 3))], dim=-1)


def dice(counts):
    """2 |A and B| / (|A| + |B|): (..., classes, 3) -> (..., classes) float64. Dice 1945."""
    both, predicted, true = counts.double().unbind(-1)
    return _share(2 * both, predicted + true)


def iou(counts):
    """|A and B| / |A or B|: (..., classes, 3) -> (..., classes) float64. Jaccard 1912."""
    both, predicted, true = counts.double().unbind(-1)
    return _share(both, predicted + true - both)


def precision(counts):
    """|A and B| / |A| of the prediction A: (..., classes, 3) -> (..., classes) float64."""
    both, predicted, true = counts.double().unbind(-1)
    return _share(both / predicted.clamp(min=1), (predicted + true).clamp(max=1))


def recall(counts):
    """|A and B| / |B| of the truth B: (..., classes, 3) -> (..., classes) float64."""
    both, predicted, true = counts.double().unbind(-1)
    return _share(both / true.clamp(min=1), (predicted + true).clamp(max=1))


def _share(part, whole):
    return torch.where(whole > 0, part / whole, 1.0 if whole.shape[-1] == 2 else torch.nan)


def over_images(values, foreground):
    """The mean over images of the mean over the `foreground` classes that are not NaN: (images, classes) -> ()."""
    values = values[:, foreground]
    return values.nanmean(1).nan_to_num(nan=1.0).mean() if values.isnan().any() else values.mean()


def over_classes(measure, counts, foreground):
    """The mean of `measure` of all images' pixels over the `foreground` classes in the truth: (images, C, 3) -> ()."""
    total = counts.sum(0)
    return measure(total)[foreground][total[foreground, 2] > 0].mean()


def overlaps(counts, foreground):
    """{name: float} of OVERLAPS from (images, classes, 3) counts; {} if no image has a `foreground` pixel."""
    if not counts[:, foreground, 2].any():
        return {}
    values = {
        "dice": over_images(dice(counts), foreground),
        "iou": over_images(iou(counts), foreground),
        "miou": over_classes(iou, counts, foreground),
        "class_dice": over_classes(dice, counts, foreground),
    }
    return {name: value.item() for name, value in values.items()}


def over_pixels(counts, soft, foreground):
    """{name: float} of all images' pixels together, from counts and soft counts (images, classes, 3).

    `fwiou` is the IoU of every class, the background too, weighted by its share of the truth (Long et al. 2015,
    https://arxiv.org/abs/1411.4038); `soft_dice` is that of the probabilities.
    """
    total = counts.sum(0)
    values = {
        "precision": over_classes(precision, counts, foreground),
        "recall": over_classes(recall, counts, foreground),
        "fwiou": (iou(total).nan_to_num() * total[:, 2]).sum() / total[:, 2].sum(),
        "soft_dice": over_classes(dice, soft, foreground),
    }
    return {name: value.item() for name, value in values.items()}


def of_volumes(counts, sources):
    """Sums of the counts (images, classes, 3) of each source's slices: (sources, classes, 3), as they first occur."""
    number = {source: n for n, source in enumerate(dict.fromkeys(sources))}
    volumes = counts.new_zeros(len(number), *counts.shape[1:])
    return volumes.index_add_(0, torch.tensor([number[source] for source in sources]), counts)


def surface_distances(labels, masks, classes, foreground, spacing=(1.0, 1.0)):
    """(B, classes, 3) float64 DISTANCES between the outlines of labels and masks (B, H, W), NaN outside `foreground`.

    Volumes are (B, D, H, W), their outlines surfaces, and `spacing` begins with the distance between slices.

    They are the Hausdorff distance's 95th percentile (the larger of both directions'), itself, and the average of all
    outline pixels of either to the other, in the unit of `spacing`, the height and width of a pixel. IGNORE pixels are
    taken out of both.
    """
    from monai.metrics.utils import get_edge_surface_distance  # takes a second

    labels, masks = labels.cpu(), masks.cpu()
    found = torch.full((len(masks), classes, len(DISTANCES)), torch.nan, dtype=torch.float64)
    for image, number in product(range(len(masks)), range(classes)[foreground]):
        true = masks[image] == number
        predicted = (labels[image] == number) & (masks[image] != IGNORE)
        if true.any() and predicted.any():
            with warnings.catch_warnings(category=FutureWarning, action="ignore"):  # MONAI 1.6 warns of its own call
                both_ways = get_edge_surface_distance(predicted, true, spacing=list(spacing), symmetric=True)[1]
            there, back = (way.double() for way in both_ways)
            found[image, number, 0] = torch.maximum(there.quantile(0.95), back.quantile(0.95))
            found[image, number, 1] = torch.maximum(there.max(), back.max())
            found[image, number, 2] = torch.cat([there, back]).mean()
        elif true.any() or predicted.any():
            found[image, number] = hypot(*((side - 1) * step for side, step in zip(true.shape, spacing, strict=True)))
    return found


def headline(dataset):
    """The name in a run's metrics that judges runs on this dataset file. Raises Refused for another than HEADLINES."""
    stated = getattr(dataset, "HEADLINE", "dice")
    if stated not in HEADLINES:
        raise Refused(f"HEADLINE of {dataset.__name__} is one of {', '.join(HEADLINES)}, not {stated!r}.")
    return f"test.{stated}"


def accuracy(counts):
    """Share of all images' pixels with the right class."""
    both, _, true = counts.double().sum(0).unbind(-1)
    return both.sum() / true.sum()


def boundary(mask):
    """Pixel edges between two classes in (H, W): the length that an annotator draws. IGNORE has no edges."""
    pairs = ((mask[1:], mask[:-1]), (mask[:, 1:], mask[:, :-1]))
    return sum(((a != b) & (a != IGNORE) & (b != IGNORE)).sum().item() for a, b in pairs)


def calibration_bins(p, masks):
    """(BINS, 3) float64 sums over pixels: pixels, confidence, right answers. p is (B, C, H, W)."""
    if p.device.type == "mps":  # has no float64
        p, masks = p.cpu(), masks.cpu()
    confidence, label = p.max(1)
    confidence, right = confidence.double(), (label == masks).double()
    bin = (confidence * BINS).ceil().long().sub_(1).clamp_(0, BINS - 1)
    bin.masked_fill_(masks == IGNORE, BINS)  # which is left out
    sums = torch.zeros(BINS + 1, 3, dtype=torch.float64, device=p.device)
    rows = torch.stack([torch.ones_like(right), confidence, right], dim=-1)
    return sums.index_add_(0, bin.flatten(), rows.flatten(0, -2))[:BINS]


def ece(bins):
    """Expected calibration error of the winning class over pixels. Guo et al. 2017, https://arxiv.org/abs/1706.04599."""
    pixels, confidence, right = bins.unbind(1)
    return (confidence - right).abs().sum() / pixels.sum()
