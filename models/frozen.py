"""Frozen encoder: a light head on features of a pretrained network that are computed once of each image.

Hypercolumns, Hariharan et al. 2015, https://arxiv.org/abs/1411.5752: the encoder's last four maps, each brought to few
channels, side by side at the finest one's resolution. Whole images are trained on, mirrored and turned: other
augmentation would show the encoder what it has not seen.
"""

import torch
from sacred import Ingredient
from torch import nn
from torch.nn.functional import interpolate

from experiments.components import load
from experiments.errors import Refused
from experiments.network.remembered import Remembered
from experiments.settings import Range
from experiments.store import RAM

ingredient = Ingredient("frozen")

MEAN, STD = (0.0,), (1.0,)  # the encoder's own are inside
NAMES = {"encoder": "model"}
WHOLE = True
HAS = ("features", "pretrained")
LAYERS = {
    "encoder": "encoder",
    "bottleneck": "deepest",
    "decoder": "body",
    "scales": ["narrow.0", "narrow.1", "narrow.2", "narrow.3", "body"],
}
MAPS = 4  # of the encoder's, from the deepest up


@ingredient.config
def settings():
    encoder = "lite"  # a file in models/, whose LAYERS["encoder"] are looked at; its own settings say which weights
    width = 48  # channels that each map is brought to; twice as many where they are together
    p = 0.1  # dropout probability before the last layer, in training and in every stochastic pass


ALLOWED = {"width": Range(least=1, most=1024), "p": Range(least=0, below=1)}


@ingredient.capture
def check(encoder):
    """Raise Refused for an encoder that is none."""
    if encoder == ingredient.path or "features" not in getattr(load("model", encoder), "HAS", ()):
        raise Refused(f"frozen.encoder={encoder} has no features to look at: name another file in models/.")


@ingredient.capture
def has(encoder):
    file = load("model", encoder)
    return file.has() if hasattr(file, "has") else getattr(file, "HAS", ())


@ingredient.capture
def build(channels, classes, encoder, width, p):
    """Logits (B, classes, H, W) of images (B, channels, H, W) in [0, 1], from features of the model `encoder`."""
    file = load("model", encoder)
    net = file.build(channels=channels, classes=classes)
    paths = file.LAYERS["encoder"]
    paths = [paths] if isinstance(paths, str) else paths
    mean, std = getattr(net, "mean", file.MEAN), getattr(net, "std", file.STD)
    model = Frozen(
        Remembered(net, paths, channels, mean, std, getattr(net, "multiple", 1), memory=RAM // 4), classes, width, p
    )
    model.pretrained = getattr(net, "pretrained", {})
    return model


class Frozen(nn.Module):
    def __init__(self, encoder, classes, width, p):
        super().__init__()
        self.encoder, self.deepest = encoder, nn.Identity()
        self.strides = encoder.strides[-MAPS:]
        self.narrow = nn.ModuleList(nn.Conv2d(wide, width, 1) for wide in encoder.widths[-MAPS:])
        self.body = nn.Sequential(
            nn.Conv2d(len(self.strides) * width, 2 * width, 3, padding=1, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(inplace=True),
        )
        self.drop, self.head = nn.Dropout(p), nn.Conv2d(2 * width, classes, 1)

    def forward(self, x):
        height, width = x.shape[-2:]
        maps = self.encoder(x)
        maps = [maps[k] for k in range(-len(self.strides), 0)]
        maps[-1] = self.deepest(maps[-1])
        rows, columns = maps[0].shape[-2:]
        joined = [
            grown(narrow(m), stride // self.strides[0])[..., :rows, :columns]
            for narrow, m, stride in zip(self.narrow, maps, self.strides)
        ]
        logits = self.head(self.drop(self.body(torch.cat(joined, 1))))
        return grown(logits, self.strides[0])[..., :height, :width]


def grown(x, factor):
    return interpolate(x, scale_factor=float(factor), mode="bilinear") if factor > 1 else x
