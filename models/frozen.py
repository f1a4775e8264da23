"""Frozen encoder: a light head on features of a pretrained network that are computed once of each image.

Hypercolumns, Hariharan et al. 2015, https://arxiv.org/abs/1411.5752: the encoder's last four maps side by side at the
finest one's resolution. The light head narrows each map, looks at 3 x 3 cells and is trained as any model; the linear
one is a linear probe (Alain & Bengio 2016, https://arxiv.org/abs/1610.01644) solved to its optimum, in a second or two.
Whole images are trained on, for the light head mirrored and turned as well: any other change of an image would need its
features anew.
"""

import torch
from sacred import Ingredient
from torch import nn
from torch.nn.functional import interpolate

from experiments.components import load
from experiments.components.settings import Range
from experiments.errors import Refused
from experiments.network.remembered import remember
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
    "scales": ["narrow", "body"],
}
MAPS = 4  # of the encoder's, from the deepest up
FEW = 4  # classes whose logits grow faster one class after the other, to the same bits: two of them four times as fast


@ingredient.config
def settings():
    encoder = "lite"  # a file in models/, whose LAYERS["encoder"] are looked at; its own settings say which weights
    head = "light"  # or linear: solved by L-BFGS, of trainer's settings only loss and select_by count
    width = 48  # channels that the light head brings each map to; twice as many where they are together
    p = 0.1  # dropout probability before the last layer, in training and in every stochastic pass
    l2 = [1e-4, 1e-3, 1e-2, 1e-1, 1.0]  # strengths of the linear head's penalty that are tried in each cycle
    choose = "validation"  # which images choose one: validation, or labelled, by cross-validation


ALLOWED = {
    "head": ("light", "linear"),
    "width": Range(least=1, most=1024),
    "p": Range(least=0, below=1),
    "l2": Range(above=0),
    "choose": ("validation", "labelled"),
}


@ingredient.capture
def check(encoder, l2):
    """Raise Refused for an encoder that is none, or no strength to try."""
    if encoder == ingredient.path or "features" not in getattr(load("model", encoder), "HAS", ()):
        raise Refused(f"frozen.encoder={encoder} has no features to look at: name another file in models/.")
    if not l2:
        raise Refused("frozen.l2 is empty: name at least one strength, as [0.01].")


@ingredient.capture
def has(encoder):
    file = load("model", encoder)
    return file.has() if hasattr(file, "has") else getattr(file, "HAS", ())


@ingredient.capture
def solved(head):
    """Whether training is solving, so that no learned strategy can take part."""
    return head == "linear"


@ingredient.capture
def build(channels, classes, encoder, head, width, p, l2, choose):
    """Logits (B, classes, H, W) of images (B, channels, H, W) in [0, 1], from features of the model `encoder`."""
    file = load("model", encoder)
    remembered = remember(file, channels, classes, memory=RAM // 4)
    model = Light(remembered, classes, p, width) if head == "light" else Linear(remembered, classes, p)
    model.pretrained = remembered.pretrained
    if head == "linear":
        model.solved = {"l2": l2, "choose": choose}
    return model


class Frozen(nn.Module):
    """The encoder's last maps, coarse logits of them, and these grown to the size of the images."""

    def __init__(self, encoder, classes):
        super().__init__()
        self.encoder, self.deepest, self.classes = encoder, nn.Identity(), classes
        self.strides, self.widths = encoder.strides[-MAPS:], encoder.widths[-MAPS:]
        self.stride = self.strides[0]

    def forward(self, x):
        height, width = x.shape[-2:]
        logits = self.coarse(self.features(x))
        if self.classes <= FEW:
            logits = logits.contiguous()
        return grown(logits, self.stride)[..., :height, :width]

    def features(self, x):
        found = self.encoder(x)
        maps = [found[k] for k in range(-len(self.strides), 0)]
        return [*maps[:-1], self.deepest(maps[-1])]

    def beside(self, maps):
        """These maps at the resolution of the first."""
        rows, columns = maps[0].shape[-2:]
        factors = [stride // self.stride for stride in self.strides]
        return [grown(m, factor)[..., :rows, :columns] for m, factor in zip(maps, factors, strict=True)]


class Each(nn.ModuleList):
    """A module for each of several maps."""

    def forward(self, maps):
        return [module(m) for module, m in zip(self, maps, strict=True)]


class Light(Frozen):
    def __init__(self, encoder, classes, p, width):
        super().__init__(encoder, classes)
        together = len(self.widths) * width
        self.narrow = Each(nn.Conv2d(wide, width, 1) for wide in self.widths)
        self.body = nn.Sequential(
            nn.Conv2d(together, 2 * width, 3, padding=1, bias=False), nn.BatchNorm2d(2 * width), nn.ReLU(inplace=True)
        )
        self.drop, self.head = nn.Dropout(p), nn.Conv2d(2 * width, classes, 1)

    def coarse(self, maps):
        return self.head(self.drop(self.body(torch.cat(self.beside(self.narrow(maps)), 1))))


class Linear(Frozen):
    """Each map's share of the logits is grown, not the map: the same numbers with a fraction of the arithmetic."""

    def __init__(self, encoder, classes, p):
        super().__init__(encoder, classes)
        self.norms = Each(nn.BatchNorm2d(wide, affine=False) for wide in self.widths)
        self.drops = Each(nn.Dropout(p) for _ in self.widths)
        self.narrow = Each(nn.Conv2d(wide, classes, 1, bias=k == 0) for k, wide in enumerate(self.widths))
        self.body = nn.Identity()

    def coarse(self, maps):
        return self.body(sum(self.beside(self.narrow(self.drops(self.norms(maps))))))

    @torch.no_grad()
    def standardise(self, batches):
        """Have the moments of these images' maps stand for those of all inputs."""
        for norm, *maps in zip(self.norms, *batches, strict=True):
            values = torch.cat([m.transpose(0, 1).flatten(1) for m in maps], 1)
            norm.running_mean.copy_(values.mean(1))
            norm.running_var.copy_(values.var(1, correction=0))


def grown(x, factor):
    return interpolate(x, scale_factor=float(factor), mode="bilinear") if factor > 1 else x
