"""SegFormer, MobileNetV2-DeepLabV3+, UperNet and DPT of transformers, by name, hub repository or local folder.

Xie et al. 2021, https://arxiv.org/abs/2105.15203; Sandler et al. 2018, https://arxiv.org/abs/1801.04381; Xiao et al.
2018, https://arxiv.org/abs/1807.10221; Ranftl et al. 2021, https://arxiv.org/abs/2103.13413. Needs
requirements-hf.txt. Only safetensors are read, and no code comes with them.
"""

import json
from functools import cache

from sacred import Ingredient
from torch import nn
from torch.nn import functional

from experiments.components.settings import Range
from experiments.errors import Refused
from experiments.records.progress import say
from experiments.store.reading import read_text
from models import _hub

told = cache(say)  # build is called more than once in a run
ingredient = Ingredient("hf")

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's; the model carries its own where it has others
HAS = ("features", "pretrained")
LAYERS = {
    "encoder": ["taps.0", "taps.1", "taps.2", "taps.3"],
    "bottleneck": "taps.3",
    "decoder": "taps.4",
    "scales": ["taps.0", "taps.1", "taps.2", "taps.3"],
}

WIDTHS = [64, 128, 320, 512]  # of SegFormer B1 to B5
TINY = {"depths": [3, 3, 9, 3], "hidden_sizes": [96, 192, 384, 768]}  # ConvNeXt's
CONFIGS = {  # {name: (transformers' name of the family, what differs from its defaults)}
    "segformer_b0": ("segformer", {"depths": [2, 2, 2, 2], "hidden_sizes": [32, 64, 160, 256]}),
    "segformer_b1": ("segformer", {"depths": [2, 2, 2, 2], "hidden_sizes": WIDTHS}),
    "segformer_b2": ("segformer", {"depths": [3, 4, 6, 3], "hidden_sizes": WIDTHS, "decoder_hidden_size": 768}),
    "segformer_b3": ("segformer", {"depths": [3, 4, 18, 3], "hidden_sizes": WIDTHS, "decoder_hidden_size": 768}),
    "segformer_b4": ("segformer", {"depths": [3, 8, 27, 3], "hidden_sizes": WIDTHS, "decoder_hidden_size": 768}),
    "segformer_b5": ("segformer", {"depths": [3, 6, 40, 3], "hidden_sizes": WIDTHS, "decoder_hidden_size": 768}),
    "mobilenet_v2": ("mobilenet_v2", {"output_stride": 16}),
    "upernet": ("upernet", {"backbone_config": {"model_type": "convnext", "out_indices": [1, 2, 3, 4], **TINY}}),
    "dpt": ("dpt", {}),
}


@ingredient.config
def settings():
    network = "segformer_b0"  # family and size of a network that is drawn; `weights` bring their own
    weights = ""  # a repository of the hub as nvidia/mit-b0, or a folder; one with a config.json alone is drawn
    p = 0.1  # dropout probability before the last convolution, in training and in every stochastic pass
    drop_path = 0.0  # stochastic depth of the encoder, .1 as published; above 0 each pass runs the whole encoder
    auxiliary = 0.4  # weight in the loss of the auxiliary head of UperNet and DPT; 0: without it
    encoder_lr = 1.0  # learning rate of the encoder, in times that of the head; .1 for a pretrained one


ALLOWED = {
    "network": tuple(CONFIGS),
    "p": Range(least=0, below=1),
    "drop_path": Range(least=0, below=1),
    "auxiliary": Range(least=0),
    "encoder_lr": Range(least=0),
}


@ingredient.capture
def check(weights):
    """Raise Refused without transformers, or if `weights` name a folder that holds no model."""
    _hub.require("hf", weights)


@ingredient.capture
def has(weights):
    """What these settings leave of HAS: a network that is drawn has learnt nothing."""
    return ("features",) if _hub.drawn(weights) else HAS


@ingredient.capture
def build(channels, classes, network, weights, p, drop_path, auxiliary, encoder_lr):
    """A network from normalised (B, channels, H, W), sides multiples of 32, to logits (B, classes, H, W).

    While it trains [(1, logits), (auxiliary, logits)] where there is an auxiliary head. Raises Refused for weights that
    cannot be had or do not fit.
    """
    from transformers import CONFIG_MAPPING, AutoModelForSemanticSegmentation

    family, sizes = CONFIGS[network]
    config = read_config(weights) if weights else CONFIG_MAPPING[family](**sizes)
    if config.model_type not in FAMILIES:
        raise Refused(f"hf.weights={weights} are of a {config.model_type}: there are {', '.join(FAMILIES)} here.")
    config.num_labels, config.use_auxiliary_head = classes, auxiliary > 0
    for part in (config, getattr(config, "backbone_config", None)):
        for key, value in (("num_channels", channels), ("drop_path_rate", drop_path)):
            if hasattr(part, key):
                setattr(part, key, value)
    if _hub.drawn(weights):
        net, files = AutoModelForSemanticSegmentation.from_config(config), {}
    else:
        net, lacks, files = _hub.loaded("hf", AutoModelForSemanticSegmentation, weights, config=config)
        _hub.refuse_unlike("hf", weights, lacks, f"{ENCODERS[config.model_type]}.")
        missing = len(lacks["mismatched_keys"]) + len(lacks["missing_keys"])
        if missing:
            told(f"{missing} tensors of the head are not in {weights} for these classes: they are drawn.")
    model = Network(net, config.model_type, p, auxiliary, encoder_lr)
    model.mean, model.std = normalisation(weights, config.model_type, channels)
    model.pretrained = files
    return model


def read_config(weights):
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(weights)
    except (OSError, ValueError) as error:
        raise _hub.unreadable("hf", weights, error) from error


def normalisation(weights, family, channels):
    """(mean, std) that the weights were trained with, of so many channels."""
    mean, std = ((0.5,) * 3, (0.5,) * 3) if family in ("mobilenet_v2", "dpt") else (MEAN, STD)
    if weights:
        from transformers.utils import cached_file

        file = cached_file(weights, "preprocessor_config.json", _raise_exceptions_for_missing_entries=False)
        told = json.loads(read_text(file)) if file else {}
        mean, std = told.get("image_mean", mean), told.get("image_std", std)
    return (mean, std) if channels == len(mean) else ((sum(mean) / len(mean),), (sum(std) / len(std),))


class Network(nn.Module):
    """A network cut before its last dropout and convolution; its features have the same names in each family."""

    multiple = 32

    def __init__(self, net, family, p, auxiliary=0.0, encoder_lr=1.0):
        super().__init__()
        self.classifier, self.auxiliary = cut(net, family)
        self.trunk, self.dropout = Trunk(net, family), nn.Dropout(p)
        self.taps = nn.ModuleList(nn.Identity() for _ in range(5))
        self.weight, self.encoder_lr = auxiliary, encoder_lr

    def groups(self):
        return [{"params": list(self.trunk.encoder().parameters()), "lr": self.encoder_lr}]

    def forward(self, x):
        parts = self.trunk(x)
        maps = [self.taps[i](parts[i]) for i in range(5)]  # by number: a trunk that torch.fx cannot trace is a leaf
        logits = grown(self.classifier(self.dropout(maps[4])), x)
        if self.training and self.auxiliary is not None:
            return [(1.0, logits), (self.weight, grown(self.auxiliary(parts[5]), x))]
        return logits


def grown(logits, x):
    return functional.interpolate(logits, size=x.shape[-2:], mode="bilinear", align_corners=False)


class Trunk(nn.Module):
    """Four maps of the encoder, fine to coarse, what the last convolution reads, and what an auxiliary head reads."""

    def __init__(self, net, family):
        super().__init__()
        self.net, self.family = net, family

    def encoder(self):
        return getattr(self.net, ENCODERS[self.family])

    def forward(self, x):
        return FAMILIES[self.family](self.net, x)


ENCODERS = {"segformer": "segformer", "mobilenet_v2": "mobilenet_v2", "upernet": "backbone", "dpt": "dpt"}
LAST = {
    "segformer": "decode_head.classifier",
    "mobilenet_v2": "segmentation_head.classifier",
    "upernet": "decode_head.classifier",
    "dpt": "head.head.4",
}
UNUSED = {  # dropout before the last convolution, which is ours, and what no logits depend on
    "segformer": ["decode_head.dropout"],
    "mobilenet_v2": ["segmentation_head.dropout", "mobilenet_v2.conv_1x1"],
    "upernet": [],
    "dpt": ["head.head.3", "head.head.5", "dpt.layernorm", "neck.fusion_stage.layers.0.residual_layer1"],
}


def cut(net, family):
    """(last convolution, auxiliary head or None), taken out of the network with all that its logits do not need."""
    last, auxiliary = net.get_submodule(LAST[family]), getattr(net, "auxiliary_head", None)
    net.auxiliary_head = None
    for path in [LAST[family], *UNUSED[family]]:
        net.set_submodule(path, nn.Identity())
    if auxiliary is not None:
        auxiliary = nn.Sequential(auxiliary.convs, auxiliary.classifier) if family == "upernet" else auxiliary.head
    return last, auxiliary


def segformer(net, x):
    maps = net.segformer(x, output_hidden_states=True).hidden_states
    return [*maps, net.decode_head(maps)]


def mobilenet_v2(net, x):
    maps = net.mobilenet_v2(x, output_hidden_states=True).hidden_states
    return [*(maps[block] for block in (1, 4, 11, 15)), net.segmentation_head(maps[-1])]


def upernet(net, x):
    maps = net.backbone.forward_with_filtered_kwargs(x).feature_maps
    return [*maps, net.decode_head(maps), maps[2]]


def dpt(net, x):
    height, width = (side // net.config.patch_size for side in x.shape[-2:])
    states = net.dpt(x, output_hidden_states=True).hidden_states
    maps = net.neck.reassemble_stage([states[1 + i] for i in net.config.backbone_out_indices], height, width)
    fused = net.neck.fusion_stage([conv(each) for conv, each in zip(net.neck.convs, maps, strict=True)])
    return [*maps, net.head(fused), fused[-1]]


FAMILIES = {"segformer": segformer, "mobilenet_v2": mobilenet_v2, "upernet": upernet, "dpt": dpt}
