"""Random crops, right-angle turns, mirroring and colour jitter of a whole batch on the device.

The defaults are those of the published GlaS baseline. Jitter follows torchvision's ColorJitter, but hue is a
rotation in YIQ (https://en.wikipedia.org/wiki/YIQ), so that the whole is one affine map per image.
"""

import numpy as np
import torch
from sacred import Ingredient

from experiments.components.settings import Range
from experiments.store import IGNORE

ingredient = Ingredient("augment")

GREY = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601 luma, the Y of YIQ
YIQ = np.array([GREY, [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
CHROMA = np.eye(3) - GREY  # takes a colour's grey away
# a quarter of the hue circle, from red towards yellow; grey goes to zero
TURN = np.linalg.solve(YIQ, np.array([[0, 0, 0], [0, 0, 1], [0, -1, 0]]) @ YIQ)


@ingredient.config
def settings():
    flip = True  # tissue has no left and right: mirror half of the crops
    rotate = True  # nor an up: turn by 0, 90, 180 or 270 degrees, which never interpolates
    brightness = 0.5  # stain and lamp vary between slides: times a factor in 1 -+ this, 0 = off
    contrast = 0.5  # distance from the crop's mean grey, times a factor in 1 -+ this, 0 = off
    saturation = 0.5  # distance from the pixel's own grey, times a factor in 1 -+ this, 0 = off
    hue = 0.05  # at most this fraction of the hue circle, either way: more changes the stain, 0 = off
    operations = []  # done after these in this order, as [[gamma, .5, .8, 1.2]]: training/operations.py has them all


ALLOWED = {
    "brightness": Range(least=0),
    "contrast": Range(least=0),
    "saturation": Range(least=0),
    "hue": Range(least=0, most=0.5),
}


@ingredient.capture
def draw(n, rng, flip, rotate, brightness, contrast, saturation, hue):
    """All random numbers of `n` crops: a dict of CPU tensors, of `n` rows each, from a numpy Generator.

    It takes the same numbers from `rng` whatever is turned off, so that runs compare on the same crops.
    """
    u = rng.random((n, 8), dtype=np.float32)
    middle, reach = np.array([[1, 1, 1, 0], [brightness, contrast, saturation, hue]], np.float32)
    low, high = np.maximum(middle - reach, [0, 0, 0, -1]), middle + reach
    drawn = {
        "corners": u[:, :2],
        "turns": (u[:, 2] * 4 * bool(rotate)).astype(np.int64),
        "flips": (u[:, 3] < 0.5) & bool(flip),
        "factors": (low + u[:, 4:] * (high - low)).astype(np.float32),
    }
    return {name: torch.from_numpy(values) for name, values in drawn.items()}


def crops(store, indices, parameters, height, width):
    """A crop of each image and its mask: (B, height, width, channels) and (B, height, width) uint8.

    An image smaller than the crop is padded before it is turned, at the bottom and right, with 0 and IGNORE. They are
    cut where the pixels lie, in RAM or on the device, and come to the device.
    """
    indices, parameters = _beside(store, indices, parameters)
    (row, row_i, row_j), (column, column_i, column_j) = _read(parameters, height, width)
    widths, free = store.widths[indices], parameters["corners"]
    top = (free[:, 0] * (store.heights[indices] - height + 1).clamp(min=1)).long()
    left = (free[:, 1] * (widths - width + 1).clamp(min=1)).long()
    first = store.offsets[indices] + (top + row) * widths + left + column
    pixel = _plane(first, row_i * widths + column_i, row_j * widths + column_j, height, width)
    valid = _inside(store, indices, parameters, height, width)
    if valid is not None:
        pixel = pixel.where(valid, 0)
    images = store.pixels.index_select(0, pixel.view(-1)).view(*pixel.shape, -1)
    masks = store.masks.index_select(0, pixel.view(-1)).view(pixel.shape)
    if valid is not None:
        images, masks = images.mul_(valid[..., None]), masks.masked_fill_(~valid, IGNORE)
    return images.to(store.device), masks.to(store.device)


def inside(store, indices, parameters, height, width):
    """(B, height, width) bool, False where `crops` pads; None when no image of the store needs it."""
    valid = _inside(store, *_beside(store, indices, parameters), height, width)
    return valid if valid is None else valid.to(store.device)


def _beside(store, indices, parameters):
    """Both where the pixels of the store lie, which need not be its device."""
    place = store.pixels.device
    return torch.as_tensor(indices, device=place), {name: values.to(place) for name, values in parameters.items()}


def _inside(store, indices, parameters, height, width):
    if store.least[0] >= height and store.least[1] >= width:
        return None
    rows, columns = (_plane(*axis, height, width) for axis in _read(parameters, height, width))
    heights, widths = store.heights[indices], store.widths[indices]
    return (rows < heights[:, None, None]) & (columns < widths[:, None, None])


def colour(images, valid, factors):
    """Jitter (B, H, W, channels) uint8 to (B, channels, H, W) float in [0, 1], in channels_last memory.

    `factors` (B, 4): brightness, contrast, saturation, hue, in this order, clamped once, at the end. Where
    `valid` (B, H, W) is False a pixel becomes 0 and is no part of the mean grey; None counts all. Autocast
    would round the pixels: call it outside.
    """
    size, channels = images.shape[:-1], images.shape[-1]
    pixels = images.reshape(size[0], -1, channels).float()
    if valid is None:
        mean = pixels.mean(1)
    else:
        valid = valid.reshape(size[0], -1, 1)
        pixels *= valid
        mean = pixels.sum(1) / valid.sum(1).clamp(min=1)
    empty = np.zeros((channels, channels))
    spectrum = (GREY, CHROMA, TURN) if channels == 3 else (np.full(channels, 1 / channels), empty, empty)
    grey, chroma, turn = (torch.from_numpy(values).to(factors) for values in spectrum)
    brightness, contrast, saturation, hue = (factors / factors.new_tensor([255, 1, 1, 1])).T[..., None, None]
    angle = 2 * np.pi * hue
    mix = (saturation * angle.cos() - 1) * chroma + saturation * angle.sin() * turn
    mix = brightness * contrast * (torch.eye(channels).to(factors) + mix)
    # saturation and hue leave grey as it is, therefore contrast's term too
    shift = brightness * (1 - contrast) * (mean @ grey)[:, None, None]
    pixels = (pixels @ mix.mT).add_(shift).clamp_(0, 1)  # thrice as fast as baddbmm
    if valid is not None:
        pixels *= valid
    return pixels.view(*size, channels).permute(0, 3, 1, 2)


def _read(parameters, height, width):
    """Where output (i, j) lies in the window: (origin, step per i, step per j) of its row, of its column.

    The output is np.rot90 by `turns`, then mirrored left to right; of an oblong crop only half turns remain.
    """
    turns, flips = parameters["turns"], parameters["flips"]
    if height != width:
        turns = turns - turns % 2
    across = turns % 2 == 1  # rows run along j
    up = (turns >= 2) ^ (flips & across)
    back = ((turns == 1) | (turns == 2)) ^ (flips & ~across)
    rows, columns = 1 - 2 * up.long(), 1 - 2 * back.long()
    row = up * (height - 1), rows * ~across, rows * across
    column = back * (width - 1), columns * across, columns * ~across
    return row, column


def _plane(origin, step_i, step_j, height, width):
    i = torch.arange(height, device=origin.device)[:, None]
    j = torch.arange(width, device=origin.device)
    origin, step_i, step_j = (values[:, None, None] for values in (origin, step_i, step_j))
    return (origin + step_i * i) + step_j * j
