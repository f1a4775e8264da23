"""SAM2 with LoRA: a frozen Hiera whose queries and values are adapted, a trained prompt encoder and two mask decoders.

MD-SAM-AL (Aileen0402, https://github.com/Aileen0402/MD-SAM-AL) on Ravi et al. 2024, https://arxiv.org/abs/2408.00714,
and Hu et al. 2021, https://arxiv.org/abs/2106.09685; two decoders as in CPC-SAM (Miao et al. 2024,
https://arxiv.org/abs/2407.05416). Needs requirements-hf.txt. Published: sam2.1_hiera_large at 512 x 512, rank 4, in
training the mean of both decoders' losses without a prompt, .2 cross-entropy and .8 Dice.
"""

import math
from copy import deepcopy

import torch
from sacred import Ingredient
from torch import nn
from torch.nn import functional

from experiments.components.settings import Range
from experiments.errors import Refused
from models import _hub

ingredient = Ingredient("sam2_lora")

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's
HAS = ("features", "pretrained", "prompts")
LAYERS = {"encoder": ["taps.0", "taps.1", "taps.2"], "bottleneck": "taps.2", "decoder": "taps.0"}


# {name: widths, blocks and window of each stage, heads of the first, blocks that attend to the whole image}
SIZES = {
    "trial": ([16, 32, 64, 128], [1, 2, 3, 2], [8, 4, 4, 2], 1, [5]),  # of no use but to try it
    "tiny": ([96, 192, 384, 768], [1, 2, 7, 2], [8, 4, 14, 7], 1, [5, 7, 9]),
    "small": ([96, 192, 384, 768], [1, 2, 11, 2], [8, 4, 14, 7], 1, [7, 10, 13]),
    "base": ([112, 224, 448, 896], [2, 3, 16, 3], [8, 4, 14, 7], 2, [12, 16, 20]),
    "large": ([144, 288, 576, 1152], [2, 6, 36, 4], [8, 4, 16, 8], 2, [23, 33, 43]),
}


@ingredient.config
def settings():
    weights = ""  # a repository of the hub as facebook/sam2.1-hiera-large, or a folder; "": a network that is drawn
    size = "trial"  # of one that is drawn; only pretrained ones are worth anything
    rank = 4  # of the changes to queries and values
    p = 0.1  # dropout probability of the image's embedding, for each decoder; without it they stay equal for ever


ALLOWED = {"size": tuple(SIZES), "rank": Range(least=1, most=1024), "p": Range(least=0, below=1)}


@ingredient.capture
def check(weights):
    """Raise Refused without transformers, or if `weights` name a folder that holds no model."""
    _hub.require("sam2_lora", weights)


@ingredient.capture
def has(weights):
    """What these settings leave of HAS: a network that is drawn has learnt nothing."""
    return ("features", "prompts") if _hub.drawn(weights) else HAS


@ingredient.capture
def build(channels, classes, weights, size, rank, p):
    """A network from normalised (B, 3, H, W), sides multiples of 32, to logits (B, classes, H, W).

    While it trains [(.5, logits), (.5, logits)], of each decoder. Raises Refused for other channels and for weights
    that cannot be had.
    """
    if channels != 3:
        raise Refused(f"model=sam2_lora takes images of 3 channels, and these have {channels}: use another model.")
    base, digests = pretrained(weights) if weights else (drawn(*SIZES[size]), {})
    model = Sam2Lora(base, classes, rank, p)
    model.pretrained = digests
    return model


def drawn(widths, blocks, windows, heads, whole):
    from transformers import Sam2Config, Sam2HieraDetConfig, Sam2Model, Sam2VisionConfig

    spread = {"initializer_range": 0.1}  # by transformers' own, .02, logits are below 1e-3
    backbone = Sam2HieraDetConfig(
        hidden_size=widths[0],
        num_attention_heads=heads,
        blocks_per_stage=blocks,
        embed_dim_per_stage=widths,
        num_attention_heads_per_stage=[heads << stage for stage in range(4)],
        window_size_per_stage=windows,
        global_attention_blocks=whole,
        **spread,
    )
    neck = min(256, 4 * widths[0])
    channels = widths[::-1]
    vision = Sam2VisionConfig(backbone_config=backbone, backbone_channel_list=channels, fpn_hidden_size=neck, **spread)
    decoder = {"hidden_size": neck, "mlp_dim": 8 * neck, "iou_head_hidden_dim": neck}
    prompt = {"hidden_size": neck}
    parts = {"vision_config": vision, "prompt_encoder_config": prompt, "mask_decoder_config": decoder}
    return Sam2Model(Sam2Config(**parts, **spread))


def pretrained(weights):
    """(Sam2Model, {file: sha256}) of a repository or a folder."""
    from transformers import Sam2Model

    if _hub.drawn(weights):
        raise Refused(f"sam2_lora.weights={weights} has no model.safetensors: {_hub.FIX}.")
    base, lacks, files = _hub.loaded("sam2_lora", Sam2Model, weights)
    _hub.refuse_unlike("sam2_lora", weights, lacks, "")
    return base, files


class Lora(nn.Module):
    """A fused linear layer of queries, keys and values, thirds of its OUTPUT, with B A x added to first and last."""

    def __init__(self, fused, rank):
        super().__init__()
        self.fused, width = fused, fused.out_features // 3
        self.a = nn.ParameterList(nn.Parameter(torch.empty(rank, fused.in_features)) for _ in range(2))
        self.b = nn.ParameterList(nn.Parameter(torch.zeros(width, rank)) for _ in range(2))
        for a in self.a:
            nn.init.kaiming_uniform_(a, a=math.sqrt(5))

    def forward(self, x):
        q, k, v = self.fused(x).chunk(3, -1)
        more = [functional.linear(functional.linear(x, a), b) for a, b in zip(self.a, self.b, strict=True)]
        return torch.cat([q + more[0], k, v + more[1]], -1)

    def merged(self):
        """A plain linear layer that computes the same."""
        made = deepcopy(self.fused)
        q, _, v = made.weight.data.chunk(3)
        for third, a, b in zip((q, v), self.a, self.b, strict=True):
            third += b @ a
        return made


class Sam2Lora(nn.Module):
    multiple = 32

    def __init__(self, base, classes, rank=4, p=0.0):
        super().__init__()
        base.requires_grad_(False)
        for block in base.vision_encoder.backbone.blocks:
            block.attn.qkv = Lora(block.attn.qkv, rank)
        self.embed = Embed(base.vision_encoder, base.no_memory_embedding)
        self.taps = nn.ModuleList(nn.Identity() for _ in range(3))
        self.drops = nn.ModuleList(nn.Dropout(p) for _ in range(2))  # the decoders begin equal, and this parts them
        prompt = base.prompt_encoder
        prompt.shared_embedding = base.shared_image_embedding  # equal in converted weights; two are drawn otherwise
        one = of_classes(base.mask_decoder, classes)
        self.decoders = nn.ModuleList(Decoder(prompt, mask) for mask in (one, deepcopy(one)))
        self.classes = classes

    def encode(self, x):
        """The embedding of images: maps at strides 4, 8 and 16."""
        maps = self.embed(x)
        return [self.taps[i](maps[i]) for i in range(3)]  # by number: the encoder is a leaf for torch.fx

    def forward(self, x):
        a, b, c = self.encode(x)
        if self.training:
            return [(0.5, decoder(a, b, drop(c))) for decoder, drop in zip(self.decoders, self.drops, strict=True)]
        return self.decoders[0](a, b, self.drops[0](c))

    def views(self, x):
        """Three logits (B, classes, H, W) of one embedding, as MD-SAM-AL compares them.

        The first decoder without a prompt; the second with points in what the first sees; the first with points in
        what the second sees without one. Before any training the decoders are equal, and so are the last two.
        """
        maps = self.encode(x)
        one, two = self.decoders
        first, second = one.masks(*maps), two.masks(*maps)
        return [grown(first), two(*maps, *points(first)), one(*maps, *points(second))]


class Embed(nn.Module):
    """Images to maps (B, D, H/4, W/4), (B, D, H/8, W/8) and (B, D, H/16, W/16), of any sides, multiples of 32."""

    def __init__(self, encoder, no_memory):
        super().__init__()
        self.encoder, self.no_memory = encoder, no_memory

    def forward(self, x):
        a, b, c = self.encoder(x).fpn_hidden_states
        return [a, b, c + self.no_memory.view(1, -1, 1, 1)]


class Decoder(nn.Module):
    """A mask decoder with the prompt encoder that it shares with another."""

    def __init__(self, prompt, mask):
        super().__init__()
        self.prompt, self.mask = prompt.requires_grad_(True), mask.requires_grad_(True)
        for unused in (prompt.mask_embed, mask.iou_prediction_head, mask.pred_obj_score_head):
            unused.requires_grad_(False)  # no logits depend on them

    def forward(self, *maps_and_points):
        """Logits (B, classes, H, W) of what `masks` takes."""
        return grown(self.masks(*maps_and_points))

    def masks(self, a, b, c, spots=None, labels=None):
        """Logits (B, classes, H / 4, W / 4), as a decoder draws them, of maps at strides 4, 8 and 16.

        spots (B, K, 2) are pixels x, y of the image, labels (B, K) 1 in a foreground.
        """
        batch, _, height, width = c.shape
        if spots is None:
            spots, labels = c.new_zeros(batch, 1, 2), torch.full((batch, 1), -1, device=c.device)
        side = self.prompt.input_image_size  # by which both axes are divided
        spots = (spots + 0.5) * c.new_tensor([side / (16 * width), side / (16 * height)]) - 0.5
        sparse, _ = self.prompt(spots[:, None], labels[:, None], None, None)
        dense = self.prompt.no_mask_embed.weight.view(1, -1, 1, 1).expand(batch, -1, height, width)
        y, x = ((torch.arange(n, device=c.device) + 0.5) / n for n in (height, width))
        place = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).to(c.dtype)
        place = self.prompt.shared_embedding(place).permute(2, 0, 1).expand(batch, -1, -1, -1)
        masks, *_ = self.mask(
            image_embeddings=c,
            image_positional_embeddings=place.to(c.dtype),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=True,
            high_resolution_features=[self.mask.conv_s0(a), self.mask.conv_s1(b)],
        )
        return masks[:, 0]


def grown(masks):
    """Logits (B, C, H / 4, W / 4) at the image's size, (B, C, H, W)."""
    return functional.interpolate(masks, scale_factor=4.0, mode="bilinear", align_corners=False)


def of_classes(decoder, classes):
    """A decoder of so many masks: the first three as those of `decoder`, more of them drawn."""
    made = type(decoder)(decoder.config.__class__(**{**decoder.config.to_dict(), "num_multimask_outputs": classes}))
    state, known = made.state_dict(), decoder.state_dict()
    for name, value in state.items():
        if name in known and known[name].shape == value.shape:
            value.copy_(known[name])
    shared = min(len(made.mask_tokens.weight), len(decoder.mask_tokens.weight))
    state["mask_tokens.weight"][:shared] = known["mask_tokens.weight"][:shared]
    return made


def points(logits):
    """(spots (B, C, 2) as x, y of the image, labels (B, C)) of masks that win in logits (B, C, H / 4, W / 4).

    Of each class the centre of the place deepest inside its largest component; a class that wins nowhere has the first
    one's spot and label 0, as the first class. At the image's size looking for them takes longer than the network.
    """
    from scipy import ndimage

    spots, labels = [], []
    for winner in logits.argmax(1).cpu().numpy():
        spots.append([])
        labels.append([])
        for k in range(logits.shape[1]):
            parts, count = ndimage.label(winner == k)
            if count:
                sizes = ndimage.sum_labels(winner == k, parts, range(1, count + 1))
                depth = ndimage.distance_transform_edt(parts == 1 + sizes.argmax())
                y, x = divmod(int(depth.argmax()), depth.shape[1])
            spots[-1].append((x, y) if count else spots[-1][0] if spots[-1] else (0, 0))
            labels[-1].append(int(k > 0 and count > 0))
    return 4 * logits.new_tensor(spots) + 1.5, torch.tensor(labels, device=logits.device)
