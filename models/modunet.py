"""ModUNet: the U-Net of AL-MGS and StochasticBatchAL, max pooling, transposed convolutions and six dropout sites.

Gaillochet et al. 2023, https://arxiv.org/abs/2301.07670, after Ronneberger et al. 2015. Four levels double the width
from w to 8 w; width 64 and 3 -> 2 classes give 6,822,594 parameters. It answers at the size of any image of at least
8 x 8.
"""

import torch
from sacred import Ingredient
from torch import nn
from torch.nn import functional

from experiments.components.settings import Range

ingredient = Ingredient("modunet")

MEAN, STD = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)  # both systems feed [0, 1] as it is
HAS = ("features",)
LAYERS = {
    "encoder": ["downs.0", "downs.1", "downs.2", "centre"],
    "bottleneck": "centre",
    "decoder": "ups.2.join",
    "scales": ["ups.0.join", "ups.1.join", "ups.2.join"],
}


@ingredient.config
def settings():
    width = 16  # channels of the first level; the published setting is 64, sixteen times the arithmetic
    p = 0.5  # dropout probability at six sites, in training and in every stochastic pass


ALLOWED = {"width": Range(least=2, most=1024), "p": Range(least=0, below=1)}


@ingredient.capture
def build(channels, classes, width, p):
    """An untrained ModUNet from (B, channels, H, W) in [0, 1] to logits (B, classes, H, W)."""
    return ModUNet(channels, classes, width, p)


class ModUNet(nn.Module):
    def __init__(self, channels, classes, width=64, p=0.5):
        super().__init__()
        a, b, c, d = (width << level for level in range(4))
        self.downs = nn.ModuleList([block(channels, a // 2, a), block(a, a, b), block(b, b, c)])
        self.drops = nn.ModuleList(nn.Dropout(p) for _ in self.downs)
        self.centre = block(c, c, d)
        self.ups = nn.ModuleList([Up(d, c, p), Up(c, b, p), Up(b, a, p)])
        self.head = nn.Conv2d(a, classes, 1)

    def forward(self, x):
        skips = []
        for down, drop in zip(self.downs, self.drops, strict=True):
            skips.append(down(x))
            x = drop(functional.max_pool2d(skips[-1], 2))
        x = self.centre(x)
        for up in self.ups:
            x = up(x, skips.pop())
        return self.head(x)


class Up(nn.Module):
    """Twice the resolution, zeros up to the skip's size, both joined and convolved."""

    def __init__(self, before, after, p):
        super().__init__()
        self.grow = nn.ConvTranspose2d(before, before, 2, 2)
        self.drop = nn.Dropout(p)
        self.join = block(before + after, after, after)

    def forward(self, x, skip):
        x = self.grow(x)
        x = functional.pad(x, (0, skip.shape[-1] - x.shape[-1], 0, skip.shape[-2] - x.shape[-2]))
        return self.join(self.drop(torch.cat([x, skip], dim=1)))


def block(before, between, after):
    """(3 x 3 convolution with bias, batch norm, leaky ReLU) twice."""
    layers = []
    for source, target in ((before, between), (between, after)):
        layers += [nn.Conv2d(source, target, 3, padding=1), nn.BatchNorm2d(target), nn.LeakyReLU(0.01, inplace=True)]
    return nn.Sequential(*layers)
