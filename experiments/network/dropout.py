"""Dropout whose mask is a function of (key of image and pass, layer, element) alone.

MC dropout (Gal & Ghahramani 2016, https://arxiv.org/abs/1506.02142) keeps dropout on at prediction time. Drawn
from a global generator the masks would depend on the batch an image is in; here each image brings its own key,
so any batch size, order or resumed run sees the same masks. The bits are splitmix64 (Steele et al. 2014,
https://doi.org/10.1145/2660193.2660195) of key and element number, four 16-bit lanes each: integers only, the
same on every device. baal's patching puts the module in place of nn.Dropout.
"""

from functools import lru_cache

import torch
from torch import nn

GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit number
MIX = (-4658895280553007687, -7723592293110705685)  # 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


class Keys:
    """What all dropout layers of one model share: `now` holds the batch's keys (B,) int64, None = dropout off.

    Balanced masks: K passes with the same keys and as `shift` a `turn` by 0, 1 / K, 2 / K ... drop each element in
    exactly K p of them where that is whole, otherwise in one of the two nearest numbers; each pass by itself is
    Bernoulli as ever (systematic sampling, Madow 1949, https://doi.org/10.1214/aoms/1177729988). `bits` {layer: lanes}
    then spares all passes but the first the drawing. The mean of 8 balanced passes has less than .8 of the squared
    error of 8 independent ones (tests/test_inference.py).
    """

    def __init__(self):
        self.now, self.shift, self.bits = None, None, None


class KeyedDropout(nn.Module):
    """Element-wise dropout of p, rounded to 1/65536; kept elements are scaled by 1 / (1 - p)."""

    def __init__(self, p, keys, layer):
        super().__init__()
        self.p, self.keys, self.layer = round(p * 65536) / 65536, keys, layer

    def forward(self, x):
        if self.keys.now is None or self.p == 0:
            return x
        mask = keep(self.lanes(x), self.p, self.keys.shift, x.dtype)
        return x * mask if torch.is_grad_enabled() else mask.mul_(x)

    def lanes(self, x):
        bits = self.keys.bits
        if bits is None or torch.compiler.is_compiling():  # there drawing is cheap; CUDA graphs reuse the memory
            return lanes(self.keys.now, self.layer, x)
        if self.layer not in bits:
            bits[self.layer] = lanes(self.keys.now, self.layer, x)
        return bits[self.layer]


def patch(model):
    """Replace every nn.Dropout of `model` by keyed dropout, in place; returns the Keys that steer them."""
    from baal.bayesian.common import replace_layers_in_module

    keys, count = Keys(), iter(range(10**6))

    def keyed(module):
        if isinstance(module, nn.Dropout):
            return KeyedDropout(module.p, keys, next(count))
        return None

    if not replace_layers_in_module(model, keyed):
        print("The model has no dropout: its stochastic passes are all the same.", flush=True)
    return keys


def lanes(keys, layer, like):
    """Uniform int16 of the shape and device of `like` (B, C, H, W), channels last in memory."""
    batch, *rest = like.shape
    count = like[0].numel()
    bits = splitmix64(keys + layer, -(-count // 4))
    return bits.view(torch.int16)[:, :count].view(batch, *rest[1:], rest[0]).movedim(-1, 1)


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
