"""AMS: variance of the foreground's probability over the passes, weighted by the distance to the predicted foreground.

Lubrano di Scandalea et al. 2019 (with Perone, Boudreau and Cohen-Adad), https://arxiv.org/abs/1907.05143. An object's
edge is always a little uncertain, so what is uncertain far from it counts more. The published code takes the distance
transform of probabilities, which measures the distance to those that are exactly 1; here it is that of the mask,
foreground being everything but the background, class 0.
"""

import numpy as np
import torch
from sacred import Ingredient

from experiments.errors import Refused
from heuristics.variance import by_class

ingredient = Ingredient("ams")
NEEDS = ("background",)


@ingredient.config
def settings():
    variant = "distance"  # the paper's two, "distance" and "ratio", or "votes", that of the GlaS baselines
    reduction = "sum"  # the paper's, which prefers large images; the GlaS baselines take the mean


@ingredient.capture
def check(variant):
    if variant not in VARIANTS:
        raise Refused(f"ams.variant is one of {', '.join(VARIANTS)}, not {variant!r}.")


@ingredient.capture
def uncertainty(prediction, variant):
    """(B, H, W), at least 0.

    "distance": variance of the foreground's probability x distance to the predicted foreground, 1 at the most in each
    image. "ratio": standard deviation x pixels / (1 + predicted foreground pixels). "votes": variance of the passes'
    hard votes x distance to the predicted background.
    """
    return VARIANTS[variant](prediction)


def by_distance(prediction):
    return variance(prediction) * distances(prediction.mean[:, 0] >= 0.5)


def by_ratio(prediction):
    foreground = (prediction.mean[:, 0] < 0.5).sum((1, 2), keepdim=True)
    return variance(prediction).sqrt() * prediction.mean[0, 0].numel() / (1 + foreground)


def by_votes(prediction):
    share = 1 - prediction.votes[:, 0] / prediction.count
    return share * (1 - share) * distances(share > 0.5)


VARIANTS = {"distance": by_distance, "ratio": by_ratio, "votes": by_votes}


def variance(prediction):
    """(B, H, W) population variance of the foreground's probability, which is that of the background's."""
    return by_class(prediction)[:, 0]


def distances(masks):
    """Euclidean distance of the True pixels of masks (B, H, W) to the nearest False one, 0 to 1 in each image.

    Without a False pixel all are as far as can be, 1.
    """
    from scipy.ndimage import distance_transform_edt

    maps = [distance_transform_edt(m) if not m.all() else np.ones(m.shape) for m in masks.cpu().numpy()]
    scaled = np.stack([m / max(m.max(), 1e-9) for m in maps])
    return torch.from_numpy(scaled).to(masks.device, torch.float32)
