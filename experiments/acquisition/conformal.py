"""Conformal risk control: sets of classes for every pixel, such that each class is missed at no more than a set rate.

Angelopoulos et al. 2024, https://arxiv.org/abs/2208.02814, for each class by itself. The loss of an image that has
class k is its false-negative rate: the share of its pixels of class k with p_k below the class's threshold. Over the
draw of n calibration images and a new one that are exchangeable, and unseen by the model, its expectation is at most
alpha where (n R + 1) / (n + 1) <= alpha, R being the mean loss of the n.
"""

import math

import numpy as np
import torch

from experiments.errors import Refused

ROUNDING = 1e-9  # a bound that is met exactly counts as met, whatever the order of the sums


def least(alpha):
    """How many images must have a class: with fewer, not even a class that is in every set meets the bound."""
    return math.ceil(1 / alpha - 1 - ROUNDING)


def refuse_few(masks, classes, alpha, setting):
    """Raise Refused naming a class that too few of these masks have for `alpha`, which that setting gives."""
    present = [np.bincount(mask.cpu().numpy().ravel(), minlength=len(classes)) > 0 for mask in masks]
    for k, name in enumerate(classes):
        n = sum(int(has[k]) for has in present)
        if n < least(alpha):
            fix = f"set {setting}={math.ceil(1000 / (n + 1)) / 1000} or larger, or " if n else ""
            raise Refused(
                f"{setting}={alpha} takes {least(alpha)} images with each class to calibrate on, but only {n} of "
                f"{len(present)} have {name}: {fix}calibrate on more or on others."
            )


def calibrate(batches, alpha, resolution):
    """(K,) float64: the largest thresholds, of 0, 1 / resolution, ... 1, that meet the bound; {p_k >= threshold}.

    `batches` are (p (B, K, H, W), masks (B, H, W)), at least one; pixels of no class do not count, nor does an image
    without class k for k. NaN for a class that fewer than `least(alpha)` images have.
    """
    total = n = 0
    for p, masks in batches:
        rates, pixels = miss_rates(p, masks, resolution)
        total, n = total + rates.sum(0), n + (pixels > 0).sum(0).double()
    met = total + 1 <= alpha * (n[:, None] + 1) + ROUNDING  # from 0 up to the threshold, for no rate falls
    return grid(resolution, met.device)[met.sum(1) - 1].where(n >= least(alpha), math.nan)


def miss_rates(p, masks, resolution):
    """(B, K, resolution + 1) float64 share of the pixels of class k with p_k < j / resolution; (B, K) such pixels.

    Counted in one histogram: an edge is in p's own precision, as a threshold is when a set is made with it.
    """
    images, classes = p.shape[:2]
    edges = grid(resolution, p.device).to(p.dtype)
    own = p.gather(1, masks.clamp(max=classes - 1).long()[:, None])[:, 0]
    place = torch.arange(images, device=p.device)[:, None, None] * classes + masks
    place = place * len(edges) + torch.bucketize(own, edges, right=True) - 1
    counts = torch.bincount(place[masks < classes], minlength=images * classes * len(edges))
    counts = counts.view(images, classes, len(edges))
    pixels = counts.sum(2)
    return (counts.cumsum(2) - counts).double() / pixels.clamp_min(1)[:, :, None], pixels


def grid(resolution, device):
    return torch.arange(resolution + 1, device=device, dtype=torch.float64) / resolution


def measure(batches, thresholds, classes):
    """{class: {name: value}} of the sets {p_k >= threshold}, NaN for a class that no image has.

    `images` that have it, `risk`: their mean false-negative rate, `coverage`: share of all its pixels whose set has
    it, `set_size`: mean number of classes in the sets of its pixels; and its `threshold`.
    """
    numbers = torch.arange(len(classes), device=thresholds.device)[:, None, None]
    images = rates = pixels = hits = sizes = 0
    for p, masks in batches:
        sets, truth = p >= thresholds.to(p.dtype)[:, None, None], masks[:, None] == numbers
        there, hit = truth.sum((2, 3)), (truth & sets).sum((2, 3))
        images, pixels, hits = images + (there > 0).sum(0), pixels + there.sum(0), hits + hit.sum(0)
        rates = rates + ((there - hit).double() / there.clamp_min(1)).sum(0)
        sizes = sizes + (truth * sets.sum(1, keepdim=True)).sum((0, 2, 3))
    pixels = pixels.double()
    columns = {"images": images, "risk": rates / images, "coverage": hits / pixels, "set_size": sizes / pixels}
    columns = {"threshold": thresholds, **columns}
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    return {name: dict(zip(columns, row, strict=True)) for name, row in zip(classes, rows, strict=True)}
