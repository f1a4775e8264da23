"""Segmentation metrics from per-image counts; IGNORE pixels are never counted.

One convention everywhere: a class that is neither in the truth nor predicted scores 1, one that is only in one of
both scores 0 (MONAI's `ignore_empty=False`).
"""

import torch

from experiments.store import IGNORE

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
    return torch.where(predicted + true > 0, 2 * both / (predicted + true), 1.0)


def iou(counts):
    """|A and B| / |A or B|: (..., classes, 3) -> (..., classes) float64. Jaccard 1912."""
    both, predicted, true = counts.double().unbind(-1)
    union = predicted + true - both
    return torch.where(union > 0, both / union, 1.0)


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
