"""Further augmentation of crops and their masks, in the order that `augment.operations` lists, each by its own chance.

An element is [name, chance, numbers ...], or [one_of, chance, [name, numbers ...], [name, numbers ...] ...], of which
one is done. What moves pixels takes the mask along by nearest neighbour; what nothing of the crop comes to lie on is 0,
and IGNORE in the mask. All but gamma, noise and colour are kornia's functions (https://arxiv.org/abs/1910.02190).
"""

import numpy as np
import torch

from experiments.components import settings
from experiments.components.settings import Range
from experiments.errors import Refused, hint, listed
from experiments.store import IGNORE
from experiments.training import augment

ANY, SHARE, POSITIVE = Range(least=0), Range(least=0, below=1), Range(above=0, most=10)
MOVES = {  # what each number says; the amounts are drawn between the last two, or from 0 to one
    "rotate": {"degrees": Range(least=0, most=180)},  # either way about the middle
    "translate": {"share": SHARE},  # of the side, either way
    "scale": {"low": POSITIVE, "high": POSITIVE},  # about the middle
    "affine": {"degrees": Range(least=0, most=180), "share": SHARE, "low": POSITIVE, "high": POSITIVE},  # all three
    "resize": {"low": POSITIVE, "high": POSITIVE},  # then any window as large as the crop, or anywhere in it
    "perspective": {"share": Range(least=0, below=0.5)},  # of the side by which corners move inwards at most
}
LOOKS = {
    "colour": {"brightness": ANY, "contrast": ANY, "saturation": ANY, "hue": Range(least=0, most=0.5)},  # as augment's
    "gamma": {"low": POSITIVE, "high": POSITIVE},  # the exponent of values in [0, 1]
    "noise": {"low": ANY, "high": ANY},  # standard deviation of Gaussian noise on values in [0, 1]
    "blur": {"low": POSITIVE, "high": POSITIVE},  # standard deviation of the Gaussian in pixels
    "motion_blur": {"length": Range(least=3, most=31)},  # pixels, an odd number; any direction
    "sharpen": {"low": ANY, "high": ANY},  # 0 smooths, 1 changes nothing, as Pillow's
    "clahe": {"limit": Range(above=0)},  # of contrast, in 8 x 8 tiles and each channel
}
KINDS = MOVES | LOOKS
DRAWN = 8  # numbers that an operation takes at most


@augment.ingredient.capture
def check(operations):
    """Raise Refused unless each operation has a known name, a chance, and as many numbers in range as it takes."""
    for each in operations:
        name, chance, *rest = each if isinstance(each, list) and len(each) > 1 else (each, 1)
        members = rest if name == "one_of" and rest else [[name, *rest]]
        for member in members:
            known, *numbers = member if isinstance(member, list) and member else [member]
            if not isinstance(known, str) or known not in KINDS:
                near = hint(known, KINDS) if isinstance(known, str) else ""
                raise Refused(
                    f"augment.operations holds {each!r}, not [name, chance, numbers ...] or [one_of, chance, [name, "
                    f"numbers ...], ...].{near} Names are {listed(KINDS, len(KINDS))}."
                )
            if len(numbers) != len(KINDS[known]):
                takes = ", ".join(KINDS[known])
                raise Refused(f"augment.operations: {known} takes {takes}, not {numbers}, in {each!r}.")
            for (what, limits), number in zip(KINDS[known].items(), numbers, strict=True):
                settings.check(f"augment.operations: {what} of {known}", number, 1.0, limits)
            if known == "motion_blur" and numbers[0] % 2 != 1:
                raise Refused(f"augment.operations: length of motion_blur must be odd, not {numbers[0]}.")
        settings.check(f"augment.operations: chance of {name}", chance, 1.0, Range(above=0, most=1))


@augment.ingredient.capture
def draw(n, rng, operations):
    """All random numbers of `n` crops as CPU tensors of `n` rows each; {}, and none taken, without operations."""
    if not operations:
        return {}
    shape = n, len(operations)
    drawn = {"amounts": rng.random((*shape, 1 + DRAWN), dtype=np.float32), "grains": rng.integers(2**63, size=shape)}
    return {name: torch.from_numpy(values) for name, values in drawn.items()}


@augment.ingredient.capture
def apply(x, masks, inside, drawn, operations):
    """The images (B, C, H, W) in [0, 1] and masks (B, H, W) after all operations; the rows of `drawn` are theirs.

    `inside` (B, H, W) is False where there is no image, None where all is.
    """
    if not operations:
        return x, masks
    seen = torch.ones_like(masks, dtype=torch.bool) if inside is None else inside
    for place, start, end, name, numbers in steps(operations):
        chance, u = drawn["amounts"][:, place, 0], drawn["amounts"][:, place, 1:]
        chosen = ((start <= chance) & (chance < end))[:, None, None]
        if name in MOVES:
            changed, moved, left = warp(x, masks, seen, MATRIX[name](u, *x.shape[-2:], *numbers))
            masks, seen = torch.where(chosen, moved, masks), torch.where(chosen, left, seen)
        elif name == "noise":
            changed = x + between(u[:, :1], *numbers)[..., None, None] * normal(drawn["grains"][:, place], x)
        elif name == "colour":
            middle, reach = (torch.tensor(values, device=x.device) for values in ([1.0, 1.0, 1.0, 0.0], numbers))
            least = torch.tensor([0.0, 0.0, 0.0, -1.0], device=x.device)
            factors = between(u[:, :4], torch.maximum(middle - reach, least), middle + reach)
            changed = augment.colour((x * 255).permute(0, 2, 3, 1), seen, factors)
        else:
            changed = LOOK[name](x, u, *numbers)
        x = torch.where(chosen[:, None], changed.clamp(0, 1), x)
    return (x * seen[:, None]).contiguous(memory_format=torch.channels_last), masks


def steps(operations):
    """Yield (place, start, end, name, numbers): done where the chance drawn at this place lies in [start, end)."""
    for place, (name, chance, *rest) in enumerate(operations):
        members = rest if name == "one_of" else [[name, *rest]]
        for k, (member, *numbers) in enumerate(members):
            yield place, chance * k / len(members), chance * (k + 1) / len(members), member, numbers


def warp(x, masks, seen, matrices):
    """Images, masks and seen after pixel (column, row, 1) went to matrices (B, 3, 3) times it."""
    from kornia.geometry.transform import warp_perspective  # takes a third of a second, as below

    flags = torch.stack([masks.float() - IGNORE, seen.float()], dim=1)  # so that what comes from outside, 0, is IGNORE
    x = warp_perspective(x, matrices, x.shape[-2:], padding_mode="border")
    masks, seen = warp_perspective(flags, matrices, x.shape[-2:], mode="nearest").unbind(1)
    return x, (masks + IGNORE).to(torch.uint8), seen > 0


def between(u, low, high):
    return low + u * (high - low)


def normal(keys, like):
    """Standard normal numbers of the shape of `like` (B, ...) from keys (B,) alone. Box and Muller 1958."""
    from experiments.network.dropout import splitmix64  # defines a module, so it needs torch at once

    count = like[0].numel()
    lanes = splitmix64(keys, -(-count // 4)).view(torch.int16).float().add_(32768.5).div_(65536)
    radius, angle = (-2 * lanes[:, ::2].log()).sqrt(), 2 * np.pi * lanes[:, 1::2]
    return torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)[:, :count].view(like.shape)


def affine(u, height, width, degrees, share, low, high):
    turn, shift = between(u[:, 0], -degrees, degrees), between(u[:, 1:3], -share, share)
    return about_middle(turn, shift, between(u[:, 3:4], low, high), height, width)


def resize(u, height, width, low, high):
    factor = between(u[:, 2:3], low, high)
    return about_middle(torch.zeros_like(u[:, 0]), (u[:, :2] - 0.5) * (factor - 1).abs(), factor, height, width)


def about_middle(turn, shift, factor, height, width):
    """(B, 3, 3): turn by degrees (B,), scale by factors (B, 1), shift by shares of the sides (B, 2), x first."""
    from kornia.geometry.transform import get_affine_matrix2d

    side = shift.new_tensor([width, height])
    return get_affine_matrix2d(shift * side, ((side - 1) / 2).expand_as(shift), factor.expand_as(shift), turn)


def perspective(u, height, width, share):
    from kornia.geometry.transform import get_perspective_transform

    corners = u.new_tensor([[0, 0], [1, 0], [1, 1], [0, 1]])
    side = u.new_tensor([width - 1, height - 1])
    moved = corners + (1 - 2 * corners) * share * u.view(-1, 4, 2)
    return get_perspective_transform((corners * side).expand(len(u), 4, 2), moved * side)


def blur(x, u, low, high):
    from kornia.filters import gaussian_blur2d

    side = 2 * int(np.ceil(3 * max(low, high))) + 1
    return gaussian_blur2d(x, side, between(u[:, :1], low, high).expand(-1, 2), "replicate")


def motion_blur(x, u, length):
    from kornia.filters import motion_blur

    return motion_blur(x, int(length), 360 * u[:, 0], between(u[:, 1], -1, 1), "replicate", "bilinear")


def sharpen(x, u, low, high):
    from kornia.enhance import sharpness

    return sharpness(x, between(u[:, 0], low, high))


def clahe(x, u, limit):
    from kornia.enhance import equalize_clahe

    return equalize_clahe(x.contiguous(), float(limit), tuple(min(8, max(1, side // 2)) for side in x.shape[-2:]))


MATRIX = {
    "rotate": lambda u, height, width, degrees: affine(u, height, width, degrees, 0, 1, 1),
    "translate": lambda u, height, width, share: affine(u, height, width, 0, share, 1, 1),
    "scale": lambda u, height, width, low, high: affine(u, height, width, 0, 0, low, high),
    "affine": affine,
    "resize": resize,
    "perspective": perspective,
}
LOOK = {
    "gamma": lambda x, u, low, high: x ** between(u[:, 0], low, high)[:, None, None, None],
    "blur": blur,
    "motion_blur": motion_blur,
    "sharpen": sharpen,
    "clahe": clahe,
}
