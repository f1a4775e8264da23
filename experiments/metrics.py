"""Segmentation metrics from per-image counts; IGNORE pixels are never counted.

What a class scores in an image that lacks it: 0 if it is in the truth or in the prediction alone. If it is in neither,
it is skipped, NaN in the image's values and left out of the image's mean over classes (as nnU-Net's
evaluate_predictions.py does), so that a model is not paid for never finding a rare class. An image whose foreground
classes are all in neither is answered right and scores 1 (MONAI's `ignore_empty=False`); where there are two classes
their values are 1 then, not NaN.

Over a test set there are two means, and a dataset's HEADLINE says which of them judges: `dice` and `iou`, over images
of the mean over their foreground classes; or `miou` and `class_dice`, over the foreground classes that occur in the
truth, the pixels of all images counted together (as PASCAL VOC does, https://doi.org/10.1007/s11263-014-0733-5).
"""

import torch

from experiments.errors import Refused
from experiments.store import IGNORE

HEADLINES = {"dice": "Dice", "miou": "mIoU", "class_dice": "class Dice"}  # what a dataset may state: in words
OVERLAPS = ("dice", "iou", "miou", "class_dice")

BINS = 15  # of the calibration error, as Guo et al. 2017


def counts(labels, masks, classes):
    """(B, classes, 3) int64: pixels in both, predicted pixels, true pixels. Labels and masks are (B, H, W)."""
    valid = (masks != IGNORE)[:, None]
    number = torch.arange(classes, device=labels.device).view(1, -1, 1, 1)
    predicted, true = (labels[:, None] == number) & valid, masks[:, None] == number
    return torch.stack([(predicted & true).sum((2, 3)), predicted.sum((2, 3)), true.sum((2, 3))], dim=-1)


def dice(counts):
    """2 |A and B| / (|A| + |B|): (..., classes, 3) -> (..., classes) float64. Dice 1945."""
    both, predicted, true = counts.double().unbind(-1)
    return _share(2 * both, predicted + true)


def iou(counts):
    """|A and B| / |A or B|: (..., classes, 3) -> (..., classes) float64. Jaccard 1912."""
    both, predicted, true = counts.double().unbind(-1)
    return _share(both, predicted + true - both)


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
    valid = masks != IGNORE
    confidence, right = confidence[valid].double(), (label == masks)[valid].double()
    bin = (confidence * BINS).ceil().long().sub_(1).clamp_(0, BINS - 1)
    sums = torch.zeros(BINS, 3, dtype=torch.float64, device=p.device)
    return sums.index_add_(0, bin, torch.stack([torch.ones_like(right), confidence, right], dim=1))


def ece(bins):
    """Expected calibration error of the winning class over pixels. Guo et al. 2017, https://arxiv.org/abs/1706.04599."""
    pixels, confidence, right = bins.unbind(1)
    return (confidence - right).abs().sum() / pixels.sum()
