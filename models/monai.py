"""MONAI's two-dimensional networks by name: U-Nets, SegResNet, Swin UNETR, not pretrained.

Cardoso et al. 2022, https://arxiv.org/abs/2211.02701. UNet is Kerfoot et al. 2019, AttentionUnet Oktay et al. 2018,
BasicUNet Falk et al. 2019, SegResNet Myronenko 2018, DynUNet nnU-Net's (Isensee et al. 2021), SwinUNETR Hatamizadeh et
al. 2022; FlexibleUNet is a U-Net on a ResNet.
"""

from importlib.util import find_spec

from sacred import Ingredient
from torch import nn

from experiments.components.settings import Range
from experiments.errors import Refused

ingredient = Ingredient("monai")

MEAN, STD = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)  # its examples scale to [0, 1]
HAS = ("features",)
LAYERS = {"encoder": ["taps.0", "taps.1", "taps.2"], "bottleneck": "taps.2", "decoder": "taps.3"}
LEVEL = ".1.submodule"  # where UNet and AttentionUnet have their next level

# {name: (arguments by width w, dropout p and backbone, three levels of the encoder and what the head reads)}
NETWORKS = {
    "UNet": (
        lambda w, p, backbone: {
            "channels": [w << level for level in range(5)],
            "strides": [2] * 4,
            "num_res_units": 2,
            "dropout": p,
        },
        [f"model{LEVEL}.0", f"model{2 * LEVEL}.0", f"model{4 * LEVEL}", "model.1"],
    ),
    "AttentionUnet": (
        lambda w, p, backbone: {"channels": [w << level for level in range(5)], "strides": [2] * 4, "dropout": p},
        [f"model{2 * LEVEL}.0", f"model{3 * LEVEL}.0", f"model{4 * LEVEL}", "model.1"],
    ),
    "BasicUNet": (
        lambda w, p, backbone: {"features": [w, w, 2 * w, 4 * w, 8 * w, w], "dropout": p},
        ["down_2", "down_3", "down_4", "upcat_1"],
    ),
    "SegResNet": (
        lambda w, p, backbone: {"init_filters": w, "dropout_prob": p},
        ["down_layers.1", "down_layers.2", "down_layers.3", "up_layers.2"],
    ),
    "DynUNet": (
        lambda w, p, backbone: {
            "kernel_size": [3] * 5,
            "strides": [1, 2, 2, 2, 2],
            "upsample_kernel_size": [2] * 4,
            "filters": [w << level for level in range(5)],
            "dropout": p,
        },
        ["downsamples.1", "downsamples.2", "bottleneck", "upsamples.3"],
    ),
    "FlexibleUNet": (
        lambda w, p, backbone: {
            "backbone": backbone,
            "decoder_channels": [16 * w, 8 * w, 4 * w, 2 * w, w],
            "dropout": p,
        },
        ["encoder.layer2", "encoder.layer3", "encoder.layer4", "decoder"],
    ),
    "SwinUNETR": (
        lambda w, p, backbone: {"feature_size": w, "drop_rate": p},
        ["encoder3", "encoder4", "encoder10", "decoder1"],
    ),
}
STEPS = {"SegResNet": 8, "SwinUNETR": 12}  # of which the width must be a multiple: groups of a norm, heads


@ingredient.config
def settings():
    network = "UNet"  # its class in MONAI
    width = 16  # channels of the first level, doubled from level to level; of SwinUNETR 12, 24 ...
    backbone = "resnet18"  # of FlexibleUNet
    p = 0.1  # dropout probability, in training and in every stochastic pass


ALLOWED = {
    "network": tuple(NETWORKS),
    "width": Range(least=4, most=512),
    "backbone": ("resnet10", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    "p": Range(least=0, below=1),
}


@ingredient.capture
def check(network, width):
    """Raise Refused for a width that the network cannot have, or without a package that it needs."""
    if width % STEPS.get(network, 1):
        raise Refused(f"monai.width={width} suits no {network}: it takes a multiple of {STEPS[network]}.")
    if network == "SwinUNETR" and not find_spec("einops"):
        raise Refused("monai.network=SwinUNETR needs einops: pip install einops==0.8.2")


@ingredient.capture
def build(channels, classes, network, width, backbone, p):
    """An untrained network from (B, channels, H, W) in [0, 1], sides multiples of 32, to logits (B, classes, H, W)."""
    from monai.networks import nets  # takes seconds to import

    arguments, levels = NETWORKS[network]
    made = getattr(nets, network)(
        spatial_dims=2, in_channels=channels, out_channels=classes, **arguments(width, p, backbone)
    )
    return Tapped(made, levels)


class Tapped(nn.Module):
    """A network whose features of the same levels have the same names, whatever it is."""

    multiple = 32

    def __init__(self, network, levels):
        super().__init__()
        self.taps = nn.ModuleList(nn.Identity() for _ in levels)
        for path, tap in zip(levels, self.taps, strict=True):
            put_after(network, network.get_submodule(path), tap)
        self.network = network

    def forward(self, x):
        return self.network(x)


def put_after(network, module, tap):
    """Let everything that calls a module of a network, under whichever name, see it through `tap`."""
    both = Then(module, tap)
    for parent in list(network.modules()):
        for name, child in parent._modules.items():
            if child is module:
                setattr(parent, name, both)


class Then(nn.Module):
    """A module with any arguments, and what is done to its output."""

    def __init__(self, module, tap):
        super().__init__()
        self.module, self.tap = module, tap

    def forward(self, *inputs):
        return self.tap(self.module(*inputs))
