"""Dropout whose mask is a function of (key of image and pass, layer, element) alone.

MC dropout (Gal & Ghahramani 2016, https://arxiv.org/abs/1506.02142) keeps dropout on at prediction time. Drawn
from a global generator the masks would depend on the batch an image is in; here each image brings its own key,
so any batch size, order or resumed run sees the same masks. The bits are splitmix64 (Steele et al. 2014,
https://doi.org/10.1145/2660193.2660195) of key and element number, four 16-bit lanes each: integers only, the
same on every device. baal's patching puts the module in place of nn.Dropout.
"""

import torch
from torch import nn

GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit number
MIX = (-4658895280553007687, -7723592293110705685)  # 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


class Keys:
    """What all dropout layers of one model share: `now` holds the batch's keys (B,) int64, None = dropout off."""

    def __init__(self):
        self.now = None


class KeyedDropout(nn.Module):
    """Element-wise dropout of p, rounded to 1/65536; kept elements are scaled by 1 / (1 - p)."""

    def __init__(self, p, keys, layer):
        super().__init__()
        self.p, self.keys, self.layer = round(p * 65536) / 65536, keys, layer

    def forward(self, x):
        if self.keys.now is None or self.p == 0:
            return x
        return x * keep_mask(self.keys.now, self.layer, x, self.p)


def patch(model):
    """Replace every nn.Dropout of `model` by keyed dropout, in place; returns the Keys that steer them."""
    from baal.bayesian.common import _patching_wrapper

    keys, count = Keys(), iter(range(10**6))

    def keyed(module):
        if isinstance(module, nn.Dropout):
            return KeyedDropout(module.p, keys, next(count))
        return None

    _patching_wrapper(model, inplace=True, patching_fn=keyed)
    return keys


def keep_mask(keys, layer, like, p):
    """0 where dropped, 1 / (1 - p) where kept: the shape, dtype and device of `like` (B, C, H, W), channels last."""
    batch, *rest = like.shape
    shape = (batch, *rest[1:], rest[0])
    count = like[0].numel()
    bits = splitmix64(keys + layer, -(-count // 4))
    lanes = bits.view(torch.int16)[:, :count]
    threshold = round(p * 65536) - 32768
    kept = (lanes >= threshold).to(like.dtype).mul_(1 / (1 - p))
    return kept.view(shape).movedim(-1, 1)


def splitmix64(keys, count):
    """(B,) int64 keys -> (B, count) int64 uniform bits; the shifts are masked, for int64's own are arithmetic."""
    steps = torch.arange(1, count + 1, device=keys.device).mul_(GOLDEN)
    z = keys[:, None] * MIX[1] + steps
    z.bitwise_xor_((z >> 30).bitwise_and_((1 << 34) - 1)).mul_(MIX[0])
    z.bitwise_xor_((z >> 27).bitwise_and_((1 << 37) - 1)).mul_(MIX[1])
    return z.bitwise_xor_((z >> 31).bitwise_and_((1 << 33) - 1))
