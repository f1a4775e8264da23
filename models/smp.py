"""Any architecture and encoder of segmentation_models_pytorch: U-Nets, FPN, DeepLabV3, SegFormer, from ImageNet or not.

Iakubovskii 2019, https://github.com/qubvel-org/segmentation_models.pytorch. Dropout on the encoder's maps and before
the head is ours, as is the auxiliary head, a small FCN (Zhao et al. 2017, https://arxiv.org/abs/1612.01105). Needs
requirements-smp.txt.
"""

from hashlib import file_digest
from pathlib import Path

import torch
from sacred import Ingredient
from torch import nn
from torch.nn import functional

from experiments.components.settings import Range
from experiments.errors import Refused, hint, listed
from experiments.network.checkpoint import hash_weights
from experiments.store.reading import MAX_WEIGHTS, regular

ingredient = Ingredient("smp")

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's; the model carries its encoder's own
HAS = ("features", "pretrained")
LAYERS = {"encoder": "features", "bottleneck": "deepest", "decoder": "decoded"}
ARCHITECTURES = (
    "Unet", "UnetPlusPlus", "MAnet", "Linknet", "FPN", "PSPNet", "PAN", "DeepLabV3", "DeepLabV3Plus", "UPerNet",
    "Segformer",
)  # fmt: skip


@ingredient.config
def settings():
    architecture = "Unet"  # its class
    encoder = "resnet18"  # as resnet50, mit_b0, or with tu- before it any of timm that gives feature maps
    weights = ""  # imagenet, which is fetched, a file of the encoder's weights, or "" for none
    p = 0.1  # dropout probability before the head and where the decoder has some of its own
    p_features = 0.1  # of the encoder's maps; with 0 the passes of a U-Net share all but the head
    decoder_channels = 0  # of the decoder of DeepLabV3, FPN and others that have one number; 0: the library's
    auxiliary = 0.0  # weight in the loss of an auxiliary head on the last but one map, as .4; 0: without it
    encoder_lr = 1.0  # learning rate of the encoder, in times that of the rest; .1 for a pretrained one


ALLOWED = {
    "architecture": ARCHITECTURES,
    "p": Range(least=0, below=1),
    "p_features": Range(least=0, below=1),
    "decoder_channels": Range(least=1, zero="the library's default"),
    "auxiliary": Range(least=0),
    "encoder_lr": Range(least=0),
}
SIZED = {  # what architectures call the one number of their decoder's channels
    "FPN": "decoder_segmentation_channels",
    "PSPNet": "psp_out_channels",
    "PAN": "decoder_channels",
    "DeepLabV3": "decoder_channels",
    "DeepLabV3Plus": "decoder_channels",
    "UPerNet": "decoder_channels",
    "Segformer": "decoder_segmentation_channels",
}


@ingredient.capture
def check(architecture, decoder_channels):
    """Raise Refused without the library, or for decoder channels that an architecture has not."""
    library()
    if decoder_channels and architecture not in SIZED:
        raise Refused(f"smp.decoder_channels is of {', '.join(SIZED)}: leave it 0 with {architecture}.")


def library():
    try:
        import segmentation_models_pytorch
    except (ImportError, RuntimeError) as error:  # the latter from a torchvision that does not go with this torch
        said = " ".join(str(error).split())[:160]
        raise Refused(f"model=smp cannot load its library ({said}): pip install -r requirements-smp.txt") from error
    return segmentation_models_pytorch


@ingredient.capture
def has(weights):
    """What these settings leave of HAS: a network that is drawn has learnt nothing."""
    return HAS if weights else ("features",)


@ingredient.capture
def build(channels, classes, architecture, encoder, weights, p, p_features, decoder_channels, auxiliary, encoder_lr):
    """A network from normalised (B, channels, H, W), sides multiples of 32, to logits (B, classes, H, W).

    While it trains [(1, logits), (auxiliary, logits)] where there is an auxiliary head. Raises Refused for an encoder
    or weights that cannot be had.
    """
    smp = library()
    published = weights == "imagenet"
    sized = {SIZED[architecture]: decoder_channels} if decoder_channels else {}
    try:
        made = getattr(smp, architecture)
        net = made(
            encoder, encoder_weights=weights if published else None, in_channels=channels, classes=classes, **sized
        )
    except (KeyError, ValueError, RuntimeError, OSError) as error:
        known = smp.encoders.get_encoder_names()
        said = " ".join(str(error).split())[:160]
        fix = f"There are {listed(known)}" if encoder not in known else "Name other weights, or none"
        raise Refused(f"smp.encoder={encoder} cannot be had ({said}).{hint(encoder, known)} {fix}.") from error
    net.encoder._drop_connect_rate = 0.0  # of EfficientNets: a function that draws, which no key reaches
    model = Network(net, classes, p, p_features, auxiliary, encoder_lr)
    model.multiple = 128 if architecture == "PAN" else 32  # it pools its deepest map three times
    if weights:
        model.pretrained = {f"{encoder} {weights}": read(net.encoder, weights, published)}
    mean, std = normalisation(smp, net.encoder, encoder, weights)
    model.mean, model.std = (mean, std) if channels == 3 else ((sum(mean) / 3,), (sum(std) / 3,))
    freeze_unused(model, channels)
    return model


def read(encoder, weights, published):
    """sha256 of the encoder's weights, read from a file unless they are the library's."""
    if published:
        return hash_weights(encoder.state_dict())
    try:
        if Path(weights).suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(regular(weights, MAX_WEIGHTS))
        else:
            state = torch.load(regular(weights, MAX_WEIGHTS), map_location="cpu", weights_only=True)
        encoder.load_state_dict(state)
    except Exception as error:  # whatever torch, pickle and safetensors raise at a file that is none
        said = " ".join(str(error).split())[:200]
        raise Refused(f"smp.weights={weights} holds no weights of this encoder ({said}): name another file.") from error
    with open(weights, "rb") as file:
        return file_digest(file, "sha256").hexdigest()


def normalisation(smp, encoder, name, weights):
    """(mean, std) of three channels that the encoder's published weights were trained with."""
    told = getattr(getattr(encoder, "model", None), "default_cfg", {})  # timm's
    if weights == "imagenet" and not told:
        told = smp.encoders.get_preprocessing_params(name, "imagenet")
    return tuple(told.get("mean", MEAN)), tuple(told.get("std", STD))


def freeze_unused(model, channels):
    """Freeze the parameters that no logits depend on, as the last stages of an encoder under a PSPNet."""
    model.eval()
    model(torch.zeros(1, channels, 128, 128)).sum().backward()
    for path, parameter in model.named_parameters():
        if parameter.grad is None and not path.startswith("auxiliary."):
            parameter.requires_grad_(False)
    model.zero_grad(set_to_none=True)
    model.train()


class Network(nn.Module):
    """An encoder-decoder with dropout on the encoder's maps and before the head, and features of the same names."""

    def __init__(self, net, classes, p, p_features, auxiliary=0.0, encoder_lr=1.0):
        super().__init__()
        self.encoder, self.decoder, self.head = net.encoder, net.decoder, net.segmentation_head
        for module in self.decoder.modules():
            if isinstance(module, nn.Dropout | nn.Dropout2d):
                module.p = p
        widths = net.encoder.out_channels
        self.seen = [
            i for i, width in enumerate(widths) if i and width
        ]  # the first is the image, of mit_b0 one is empty
        self.drops = nn.ModuleList(nn.Dropout(p_features if i in self.seen else 0.0) for i in range(len(widths)))
        self.features, self.deepest, self.decoded, self.drop = Maps(), nn.Identity(), nn.Identity(), nn.Dropout(p)
        self.auxiliary = fcn(widths[-2], classes) if auxiliary else None
        self.weight, self.encoder_lr = auxiliary, encoder_lr

    def groups(self):
        return [{"params": list(self.encoder.parameters()), "lr": self.encoder_lr}]

    def forward(self, x):
        maps = self.encoder(x)
        maps = [self.drops[i](maps[i]) for i in range(len(self.drops))]  # by number: an encoder may be a leaf
        self.features([maps[i] for i in self.seen])
        maps[-1] = self.deepest(maps[-1])
        logits = self.head(self.drop(self.decoded(self.decoder(maps))))
        if self.training and self.auxiliary is not None:
            more = functional.interpolate(self.auxiliary(maps[-2]), size=x.shape[-2:], mode="bilinear")
            return [(1.0, logits), (self.weight, more)]
        return logits


class Maps(nn.Module):
    """The encoder's maps, for who looks at features."""

    def forward(self, maps):
        return maps


def fcn(width, classes):
    """The auxiliary head of mmsegmentation: a 3 x 3 convolution to a quarter of the channels, dropout, classes."""
    less = max(width // 4, classes)
    convolution = nn.Conv2d(width, less, 3, padding=1, bias=False)
    return nn.Sequential(
        convolution, nn.BatchNorm2d(less), nn.ReLU(inplace=True), nn.Dropout(0.1), nn.Conv2d(less, classes, 1)
    )
