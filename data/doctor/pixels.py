"""Faults that the pixels of one image and its mask show: IMAGE, MASK and PAIR {kind: check}."""

import numpy as np

from experiments.store import IGNORE
from experiments.store.reading import AVERAGED, outlines

NOISE = 3  # what an image of one colour may differ by
UNREAD, CUT = 128, 0.05  # a decoder's grey, and the share of an image's rows from which it is no accident
CUT_OFF = 0.5  # share of 255 from which an image of 16 bits was read by cutting off what 8 cannot hold

# each takes an image (H, W, channels) uint8 and gives what was found, "" where nothing is wrong


def one_colour(image):
    few = image[:: 1 + image.shape[0] // 8, :: 1 + image.shape[1] // 8]
    if (few.max((0, 1)) - few.min((0, 1))).max() > NOISE:
        return ""
    low, high = image.min((0, 1)).tolist(), image.max((0, 1)).tolist()
    if max(b - a for a, b in zip(low, high, strict=True)) > NOISE:
        return ""
    return f"every pixel is {', '.join(f'{a}' if a == b else f'{a} to {b}' for a, b in zip(low, high, strict=True))}"


def cut_off(image):
    """Rows at the bottom of the grey that decoders leave where a JPEG ends too early."""
    if not (image[-1] == UNREAD).all():
        return ""
    rows = int((image == UNREAD).all((1, 2))[::-1].argmin())
    return f"its last {rows} rows are grey, as if it had been fetched in part" if rows > CUT * len(image) else ""


def spoilt(image):
    """Whether pixels of more than 8 bits, or floats from 0 to 1, were read as if they were of 8 bits."""
    return (image == 255).mean() > CUT_OFF or image.max() <= 1


IMAGE = {"one colour": one_colour, "cut off": cut_off}

# each takes a mask (H, W) and the names of the classes, () for any


def undeclared(values, classes):
    """Those of a mask's values that no class has."""
    return [v for v in values if v != IGNORE and not 0 <= v < (len(classes) or IGNORE)]


def is_interpolated(mask, classes, values):
    """Undeclared values between those on both sides of them, along outlines: from a resize by averaging."""
    other = undeclared(values, classes)
    if not other:
        return ""
    strange = ~np.isin(mask, [*range(len(classes)), IGNORE])
    outline, between = outlines(mask)
    count, share = int((strange & between).sum()), (strange & between).sum() / max(1, outline.sum())
    if len(other) > 1 and count > 8 and share > AVERAGED:
        return f"{share:.0%} of its outlines lie between the values on both sides ({_few(other)})"
    return ""


def is_0_255(mask, classes, values):
    if len(classes) == 2 and list(values) == [0, IGNORE]:
        return f"it holds 0 and {IGNORE} alone, and {IGNORE} means ignore: no pixel is {classes[1]}"
    return ""


def has_undeclared(mask, classes, values):
    other = undeclared(values, classes)
    names = ", ".join(f"{number} {name}" for number, name in enumerate(classes))
    return f"it holds {_few(other)}, which are no class ({names})" if other else ""


def is_all_ignored(mask, classes, values):
    return "every pixel is ignored" if list(values) == [IGNORE] else ""


def other_colours(colours, mask, classes):
    """What is wrong with a palette {index: (r, g, b)} that shows another class's number as a grey; "" if nothing."""
    used = {i: colours.get(i, (0, 0, 0)) for i in np.unique(mask).tolist() if i != IGNORE}
    grey = all(len(set(colour)) == 1 for colour in used.values())
    moved = {i: colour[0] for i, colour in used.items() if colour[0] != i}
    if grey and moved and all(shade < (len(classes) or IGNORE) for shade in moved.values()):
        index, shade = next(iter(moved.items()))
        return f"index {index} is shown as grey {shade}: is it class {index} or {shade}?"
    return ""


def _few(values):
    return ", ".join(f"{v:g}" for v in values[:6]) + " ..." * (len(values) > 6)


MASK = {
    "0/255 mask": is_0_255,
    "interpolated mask": is_interpolated,
    "undeclared value": has_undeclared,
    "all ignored": is_all_ignored,
}

# each takes the sizes (H, W) of an image and its mask


def size_rotated(image, mask):
    (h, w), (height, width) = mask, image
    return f"the mask is {w} x {h}, its image {width} x {height}" if mask == image[::-1] != image else ""


def size_differs(image, mask):
    (h, w), (height, width) = mask, image
    return f"the mask is {w} x {h}, its image {width} x {height}" if mask not in (image, image[::-1]) else ""


PAIR = {"rotated size": size_rotated, "other size": size_differs}
