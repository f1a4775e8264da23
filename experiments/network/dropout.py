"""Dropout whose mask is a function of (key of image and pass, layer, element) alone.

MC dropout (Gal & Ghahramani 2016, https://arxiv.org/abs/1506.02142) keeps dropout on at prediction time. Drawn
from a global generator the masks would depend on the batch an image is in; here each image brings its own key,
so any batch size, order or resumed run sees the same masks. The bits are splitmix64 (Steele et al. 2014,
https://doi.org/10.1145/2660193.2660195) of key and element number, four 16-bit lanes each: integers only, the
same on every device. Stochastic depth (Huang et al. 2016, https://arxiv.org/abs/1603.09382) and the dropout of whole
channels (Tompson et al. 2015, https://arxiv.org/abs/1411.4280) are keyed alike.
"""

from functools import lru_cache

import torch
from torch import nn

from experiments.errors import Refused

GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit number
MIX = (-4658895280553007687, -7723592293110705685)  # 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


class Keys:
    """What all dropout layers of one model share: `now` holds the batch's keys (B,) int64, None = dropout off.

    Balanced masks: K passes with the same keys and as `shift` a `turn` by 0, 1 / K, 2 / K ... drop each element in
    exactly K p of them where that is whole, otherwise in one of the two nearest numbers; each pass by itself is
    Bernoulli as ever (systematic sampling, Madow 1949, https://doi.org/10.1214/aoms/1177729988). `bits`
    {(layer, shape): lanes} then spares all passes but the first the drawing. The mean of 8 balanced passes has less
    than .8 of the squared error of 8 independent ones (tests/test_inference.py).
    """

    def __init__(self):
        self.now, self.shift, self.bits = None, None, None


class KeyedDropout(nn.Module):
    """Dropout of p, rounded to 1/65536; kept elements are scaled by 1 / (1 - p).

    Of elements, or of all that lies behind the first `axes`: 1 drops whole rows (stochastic depth), 2 whole channels.
    """

    def __init__(self, p, keys, layer, axes=0):
        super().__init__()
        self.p, self.keys, self.layer, self.axes = round(p * 65536) / 65536, keys, layer, axes

    def forward(self, x):
        if self.keys.now is None or self.p == 0:
            return x
        like = x[(slice(None),) * self.axes + (slice(1),) * (x.dim() - self.axes)] if self.axes else x
        mask = keep(self.lanes(like), self.p, self.keys.shift, x.dtype)
        return x * mask if self.axes or torch.is_grad_enabled() else mask.mul_(x)

    def lanes(self, x):
        bits = self.keys.bits
        if bits is None or torch.compiler.is_compiling():  # there drawing is cheap; CUDA graphs reuse the memory
            return lanes(self.keys.now, self.layer, x)
        place = self.layer, x.shape  # a module may be called with more than one
        if place not in bits:
            bits[place] = lanes(self.keys.now, self.layer, x)
        return bits[place]


CHANNELS = nn.Dropout1d, nn.Dropout2d, nn.Dropout3d
ROWS = {"DropPath": "drop_prob", "StochasticDepth": "p"}  # how libraries call stochastic depth, and its probability


def patch(model):
    """Replace every dropout module of `model` with p > 0 by a keyed one, in place; returns the Keys that steer them.

    One that has several names becomes several. What a network drops by functions of torch is out of reach.
    """
    keys, count = Keys(), iter(range(10**6))
    for path, module in list(model.named_modules(remove_duplicate=False)):
        p, axes = drops(module)
        parent, _, name = path.rpartition(".")
        if p and path and getattr(model.get_submodule(parent), name) is module:  # else patched under another name
            setattr(model.get_submodule(parent), name, KeyedDropout(p, keys, next(count), axes))
    return keys


def drops(module):
    """(probability, axes of KeyedDropout) of a dropout module, (0, 0) of any other."""
    if isinstance(module, nn.Dropout):
        return module.p, 0
    if isinstance(module, CHANNELS):
        return module.p, 2
    end = next((end for end in ROWS if type(module).__name__.endswith(end)), None)
    return (getattr(module, ROWS[end], 0) or 0, 1) if end else (0, 0)


def sites(model):
    """The keyed dropout modules of a patched model."""
    return [module for module in model.modules() if isinstance(module, KeyedDropout)]


def lanes(keys, layer, like):
    """Uniform int16 of the shape and device of `like`, whose rows are those of the B images in order.

    As many for each key (B,): several where an image was parted into rows, as by window attention. (B, C, H, W) lies
    channels last in memory. Raises Refused where the first axis is another.
    """
    batch, rows = len(keys), len(like)
    if rows % batch:
        raise Refused(
            f"A dropout of the model sees {tuple(like.shape)}, and the batch has {batch} images: put them first."
        )
    count = like.numel() // batch
    bits = splitmix64(keys + layer, -(-count // 4)).view(torch.int16)[:, :count]
    if rows == batch and like.dim() == 4:
        _, channels, *rest = like.shape
        return bits.view(batch, *rest, channels).movedim(-1, 1)
    return bits.reshape(like.shape)


def keep(lanes, p, shift, dtype):
    """0 where dropped, 1 / (1 - p) where kept; a `shift`, made by `turn`, turns the circle that the lanes lie on."""
    if shift is not None:
        lanes = lanes + shift  # wraps, as int16 does
    threshold = round(p * 65536) - 32768
    mask = torch.empty_like(lanes, dtype=torch.float32).copy_(lanes)
    return mask.sub_(threshold - 1).mul_(65536).clamp_(0, 1 / (1 - p)).to(dtype)  # twice as fast as comparing


@lru_cache(maxsize=256)
def turn(share, device):
    """() int16, by how much lanes are turned by a share in [0, 1) of their circle.

    A tensor, for of each other number torch.compile makes code anew, and of the ninth none any more.
    """
    return torch.tensor((round(share * 65536) + 32768) % 65536 - 32768, dtype=torch.int16, device=device)


def splitmix64(keys, count):
    """(B,) int64 keys -> (B, count) int64 uniform bits; the shifts are masked, for int64's own are arithmetic."""
    known = steps.__wrapped__ if torch.compiler.is_compiling() else steps  # a compiler has no use for the cache
    z = keys[:, None] * MIX[1] + known(count, keys.device)
    shifted = (z >> 30).bitwise_and_((1 << 34) - 1)
    z.bitwise_xor_(shifted).mul_(MIX[0])
    torch.bitwise_right_shift(z, 27, out=shifted).bitwise_and_((1 << 37) - 1)
    z.bitwise_xor_(shifted).mul_(MIX[1])
    torch.bitwise_right_shift(z, 31, out=shifted).bitwise_and_((1 << 33) - 1)
    return z.bitwise_xor_(shifted)


@lru_cache(maxsize=64)
def steps(count, device):
    """(count,) int64 GOLDEN times 1, 2, 3 ..., wrapping.

    The numbers are shifted: of a plain index torch.compile makes C++ in which the overflow is undefined, so that the
    loop ran past the end of its memory.
    """
    return (torch.arange(2, 2 * count + 2, 2, device=device) >> 1).mul_(GOLDEN)
