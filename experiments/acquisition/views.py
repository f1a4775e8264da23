"""Test-time augmentation: passes over turned, mirrored and noisy copies of an image, brought back to its frame.

Wang et al. 2019, https://arxiv.org/abs/1807.07356.
"""

import math

import numpy as np
import torch

from experiments.components.randomness import generator


def augmented(model, x, ids, place, k, rotation, noise, flip):
    """Yield (logits (B, C, H, W), seen (B, H, W) bool) of k views: the images x as they are, then augmented copies.

    A copy is turned by up to `rotation` degrees either way about its centre, mirrored either way half of the times
    if `flip`, and has Gaussian noise of standard deviation `noise`; beyond the border it shows the mirrored image.
    What is drawn depends on place, id and the view's number alone.
    """
    height, width = x.shape[-2:]
    yield model(x), torch.ones_like(x[:, 0], dtype=torch.bool)
    for view in range(1, k):
        drawn = [generator(*place, "view", id, view) for id in ids]
        turns = torch.stack([turn(*rng.random(3), rotation, flip, height, width) for rng in drawn])
        there, back = (grid(matrices, x) for matrices in (turns, turns.inverse()))
        copy = torch.nn.functional.grid_sample(x, there, padding_mode="reflection", align_corners=False)
        if noise:
            grains = np.stack([rng.standard_normal(x.shape[1:], dtype=np.float32) for rng in drawn])
            copy += noise * torch.from_numpy(grains).to(x)
        logits = torch.nn.functional.grid_sample(model(copy), back, padding_mode="border", align_corners=False)
        yield logits, (back.abs() <= 1).all(-1)


def turn(angle, across, along, rotation, flip, height, width):
    """(2, 2) from the coordinates of a view to those of its image, each -1 to 1; the draws are in [0, 1)."""
    angle = math.radians(rotation) * (2 * angle - 1)
    x, y = ((-1.0 if flip and draw < 0.5 else 1.0) for draw in (across, along))
    cos, sin, aspect = math.cos(angle), math.sin(angle), height / width
    return torch.tensor([[x * cos, -y * sin * aspect], [x * sin / aspect, y * cos]], dtype=torch.float32)


def grid(matrices, x):
    """(B, H, W, 2) where grid_sample must look, for matrices (B, 2, 2)."""
    theta = torch.nn.functional.pad(matrices, (0, 1)).to(x)
    return torch.nn.functional.affine_grid(theta, [*x.shape], align_corners=False)
