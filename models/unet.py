"""U-Net with strided encoder, nearest up-sampling and 11 element-wise dropout sites, for any image size.

Ronneberger et al. 2015, https://arxiv.org/abs/1505.04597, in the form of the published GlaS baselines: width 16
and 3 -> 2 classes give 14,154,706 parameters. Six encoder levels double the width from w to 32 w.
"""

import torch
from sacred import Ingredient
from torch import nn

from experiments.components.settings import Range

ingredient = Ingredient("unet")

MEAN, STD = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)  # the baselines feed [0, 1] as it is
HAS = ("features",)
LAYERS = {
    "encoder": ["first", "downs.0", "downs.1", "downs.2", "downs.3", "downs.4"],
    "bottleneck": "downs.4",
    "decoder": "ups.4",
    "scales": ["ups.0", "ups.1", "ups.2", "ups.3", "ups.4"],
}


@ingredient.config
def settings():
    width = 8  # channels of the first level; the published setting is 16, four times the arithmetic
    p = 0.1  # dropout probability, in training and in every stochastic pass


ALLOWED = {"width": Range(least=1, most=256), "p": Range(least=0, below=1)}


@ingredient.capture
def build(channels, classes, width, p):
    """An untrained UNet from (B, channels, H, W) in [0, 1] to logits (B, classes, H, W)."""
    return UNet(channels, classes, width, p)


class UNet(nn.Module):
    def __init__(self, channels, classes, width=16, p=0.1):
        super().__init__()
        widths = [width << level for level in range(6)]
        self.first = double_conv(channels, width, p)
        self.downs = nn.ModuleList(double_conv(w, 2 * w, p, stride=2) for w in widths[:-1])
        self.ups = nn.ModuleList(Up(w, p) for w in reversed(widths[:-1]))
        self.head = nn.Conv2d(width, classes, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x):
        skips = [self.first(x)]
        for down in self.downs:
            skips.append(down(skips[-1]))
        x = skips.pop()
        for up in self.ups:
            x = up(x, skips.pop())
        return self.head(x)


class Up(nn.Module):
    """Refine the low resolution, grow it to the skip's size, join both."""

    def __init__(self, width, p):
        super().__init__()
        self.refine = double_conv(2 * width, 2 * width)
        self.join = double_conv(3 * width, width, p)

    def forward(self, x, skip):
        x = nn.functional.interpolate(self.refine(x), size=skip.shape[-2:], mode="nearest")
        return self.join(torch.cat([x, skip], dim=1))


def double_conv(before, after, p=None, stride=1):
    """(3 x 3 convolution, batch norm, ReLU) twice, the first with `stride`; then dropout unless p is None."""
    layers = []
    for source, step in ((before, stride), (after, 1)):
        layers += [
            nn.Conv2d(source, after, 3, step, padding=1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers, *([] if p is None else [nn.Dropout(p)]))
