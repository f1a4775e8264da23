"""What the values of masks mean: numbers, ranges of them or colours as classes, declared or proposed, never guessed."""

import re
from collections import Counter
from functools import lru_cache
from threading import Lock

import numpy as np
from PIL import Image

from data._pairs import as_part, told
from experiments.errors import BadData, Refused
from experiments.store import IGNORE
from experiments.store.reading import format_of, pages, pixels, resized

LAST = Lock()  # of last_meanings
COLOUR = 2**24  # + 0xrrggbb: how a colour is told from a number
LISTED = 32  # different values of masks that can still be classes
NUMBERED = 4  # from more values on they may be numbers of objects
APART, TRUE = 40, 0.002  # how far, in a channel, JPEG blurs a value, and what share of all pixels a true one has


def read_meaning(classes, values, ignore):
    """(class names, [(first value, last value, class or IGNORE)]), colours above 2**24; None where nothing is said."""
    names, ranges = [name.strip() for name in classes.split(",") if name.strip()], []
    if not names and not values.strip():
        return None
    given = [entry.rpartition(":") for entry in values.split(",") if entry.strip()]
    for value, _, name in given:
        first, last = bounds(value.strip(), values)
        name = name.strip()
        if not name or classes and name not in (*names, "ignore"):
            raise Refused(f"folder.values names the class {name!r}, which folder.classes={classes} does not.")
        if name not in (*names, "ignore"):
            names.append(name)
        ranges.append((first, last, IGNORE if name == "ignore" else names.index(name)))
    ranges = ranges or [(number, number, number) for number in range(len(names))]
    if ignore >= 0:
        ranges.append((ignore, ignore, IGNORE))
    if len(names) < 2 or len(names) > IGNORE or len(set(names)) < len(names):
        raise Refused(f"folder needs two classes or more, each named once, not {', '.join(names) or 'none'}.")
    ordered = sorted(ranges)
    for (_, last, _), (first, _, _) in zip(ordered, ordered[1:], strict=False):
        if first <= last:
            raise Refused(f"The mask value {shown(first)} is given two meanings: mend folder.values or folder.ignore.")
    if len({first >= COLOUR for first, _, _ in ranges}) > 1:
        raise Refused("Mask values are either numbers or colours: write all of folder.values as #rrggbb or none.")
    return tuple(names), ordered


def bounds(text, values):
    """(first, last) of a value as it is typed: 3, 1-255 or #00ff00."""
    colour, numbers = re.fullmatch("#([0-9a-fA-F]{6})", text), re.fullmatch("([0-9]+)(?:-([0-9]+))?", text)
    if colour:
        return (COLOUR + int(colour[1], 16),) * 2
    if numbers and int(numbers[1]) <= int(numbers[2] or numbers[1]) < 2**16:
        return int(numbers[1]), int(numbers[2] or numbers[1])
    raise Refused(f"folder.values={values} is not read at {text!r}: write 0:background,255:lesion or #00ff00:road,...")


def shown(code):
    return f"#{code - COLOUR:06x}" if code >= COLOUR else f"{code}"


def spelled(names, ranges):
    """What was declared, as it may be typed: 0:background,1-255:gland."""
    values = (shown(first) if first == last else f"{shown(first)}-{shown(last)}" for first, last, _ in ranges)
    return ",".join(f"{v}:{'ignore' if n == IGNORE else names[n]}" for v, (_, _, n) in zip(values, ranges, strict=True))


def propose(masks, confirm):
    """The meaning that the validation and test masks suggest, if it is confirmed; otherwise Refused with what to type.

    No mask of the training images is opened.
    """
    how = "folder.classes=background,lesion (values 0, 1), or folder.values=0:background,255:lesion"
    if not masks:
        raise Refused(f"What do the masks' values mean? Type {how}: without validation or test masks none is proposed.")
    found = Counter()
    masks = list(dict.fromkeys(as_part(mask)._replace(whole=(), rows=(), columns=()) for mask in masks))
    soft = next((mask for mask in masks if format_of(mask.paths[0]) == "JPEG"), None)
    for mask in masks:
        codes, counts = np.unique(merged(mask, colours=None), return_counts=True)
        found.update(dict(zip(codes.tolist(), counts.tolist(), strict=True)))
        if len(found) > LISTED and not soft:
            few = ", ".join(shown(code) for code in sorted(found)[:8])
            raise Refused(
                f"{mask} brings the values of masks to {len(found)} ({few} ...): numbered objects are "
                "folder.values=0:background,1-65535:object; JPEG and soft edges need true values and folder.snap=True."
            )
    if max(found) >= COLOUR:  # a mask without colour in it is a coloured one too
        for grey in [code for code in found if code < COLOUR]:
            found[COLOUR + grey % 256 * 0x010101] += found.pop(grey)
    if soft and len(found) > 2:
        true = true_values(found)
        typed = meant(true) if len(true) > 1 else "0:background,255:lesion or #000000:background,#00ff00:polyp"
        raise Refused(
            f'{soft} is JPEG, which blurs values: type the true ones, "folder.values={typed}" folder.snap=True.'
        )
    values = sorted(found)
    if len(values) < 2:
        raise Refused(f"The {len(masks)} validation and test masks hold only the value {shown(values[0])}: type {how}.")
    typed = meant(values)
    total = sum(found.values())
    held = ", ".join(f"{shown(value)} ({found[value] / total:.1%})" for value in values)
    seen = f"{len(masks)} validation and test masks hold the values {held}"
    if not confirm and values[-1] < COLOUR and len(values) > NUMBERED:
        seen += ' ("folder.values=0:background,1-65535:object" if they number objects)'
    if not confirm:
        raise Refused(f'{seen}: type "folder.values={typed}", names as you like, or folder.confirm=True for just this.')
    told(f"{seen}: taken as folder.values={typed}.")
    return read_meaning("", typed, -1)


def meant(values):
    """A meaning that these sorted values may have, as it is typed; 255 is ignored where 1 is a class beside others."""
    void = IGNORE in values and len(values) > 2 and 1 in values
    names = {value: f"class{place}" for place, value in enumerate(values)} | {values[0]: "background"}
    if len(values) == 2:
        names[values[1]] = "foreground"
    return ",".join(f"{shown(v)}:{'ignore' if void and v == IGNORE else names[v]}" for v in values)


def true_values(found):
    """Sorted values that stand out among blurred ones {value: count}: frequent, and apart from what is more so."""
    apart, least = [], TRUE * sum(found.values())
    far = lambda one, other: max(abs((one >> s & 255) - (other >> s & 255)) for s in (0, 8, 16))  # noqa: E731
    for value, count in found.most_common():
        if count >= least and all(far(value, other) > APART for other in apart):
            apart.append(value)
    return sorted(apart)


def codes_of(path, page, colours):
    """(H, W) of a mask file: its numbers as they are stored, or int64 COLOUR + 0xrrggbb where `colours`, or if it has
    some where None."""
    raw = pixels(path, page, indices=not colours)
    if raw.ndim == 3 and (raw.shape[-1] != 3 or raw.dtype != np.uint8):
        raise BadData(f"{path} has {raw.shape[-1]} channels of {raw.dtype}: a mask is grey, or RGB with 8 bits.")
    if raw.ndim == 3 and not colours and (raw == raw[..., :1]).all():
        raw = raw[..., 0]
    if raw.ndim == 2 and not colours:
        return raw
    if colours is False:
        few = [shown(code) for code in np.unique(pack(raw))[:4].tolist()]
        raise BadData(
            f'{path} has colours ({", ".join(few)} ...): name them, as "folder.values={few[0]}:background,...".'
        )
    return pack(raw if raw.ndim == 3 else np.stack([raw] * 3, axis=-1))


def pack(rgb):
    red, green, blue = np.moveaxis(rgb.astype(np.int64), -1, 0)
    return COLOUR + red * 65536 + green * 256 + blue


def merged(mask, colours):
    """The codes (H, W) of an Item's mask; of several files, one object each, the largest of each pixel."""
    for path in mask.paths:
        if pages(path) != mask.pages:
            one = "where its image's are channels, save these as one page" if pages(path) == 1 else "replace it"
            raise BadData(f"{path} has {pages(path)} pages, its image {mask.pages}: {one}.")
    first, *others = (codes_of(path, mask.page, colours) for path in mask.paths)
    for path, other in zip(mask.paths[1:], others, strict=True):
        if other.shape != first.shape:
            raise BadData(f"{path} is {other.shape[1]} x {other.shape[0]}, not as {mask.paths[0]}: replace it.")
        first = np.maximum(first, other)
    return first


def read_mask(mask, ranges, snap, resize):
    """(H, W) uint8 of class numbers and IGNORE; BadData for values that were not declared, unless they are to snap."""
    mask = as_part(mask)
    if not mask.whole:
        return meanings(mask, tuple(ranges), snap, resize)
    with LAST:  # tiles of one image follow each other, and its mask is decoded once
        result = last_meanings(mask._replace(whole=(), rows=(), columns=()), tuple(ranges), snap, resize)
    if mask.whole != result.shape:
        (h, w), (height, width) = result.shape, mask.whole
        raise BadData(f"{mask} is {w} x {h}, its image {width} x {height}: replace the mask.")
    return mask.cut(result).copy()


def meanings(mask, ranges, snap, resize):
    """The same of a whole mask."""
    codes = merged(mask, ranges[0][0] >= COLOUR)
    result, known = np.full(codes.shape, IGNORE, np.uint8), np.zeros(codes.shape, bool)
    for first, last, number in ranges:
        inside = (codes >= first) & (codes <= last)
        result[inside] = number
        known |= inside
    if not known.all():
        others, where = np.unique(codes[~known].astype(np.int64), return_inverse=True)
        if not snap:
            few = ", ".join(map(shown, others[:8].tolist())) + (" ..." if len(others) > 8 else "")
            declared = ", ".join(shown(first) if first == last else f"{first}-{last}" for first, last, _ in ranges)
            raise BadData(
                f"{mask} holds {few} ({1 - known.mean():.1%} of its pixels) beside {declared}: declare them in "
                "folder.values or folder.ignore, or set folder.snap=True to take the nearest, as JPEG needs."
            )
        result[~known] = nearest(others, ranges)[where]
    return result if resize == 1 else np.array(resized(Image.fromarray(result), resize, smooth=False))


last_meanings = lru_cache(maxsize=2)(meanings)


def read_original(mask, ranges, snap):
    """As read_mask, of the file's own pixels."""
    mask = as_part(mask)
    whole = read_mask(mask._replace(whole=(), rows=(), columns=()), ranges, snap, 1)
    return mask.scaled(whole.shape).cut(whole)


def nearest(codes, ranges):
    """(N,) uint8: the class whose declared value is nearest, of two equally near ones the lower's."""
    if codes[0] >= COLOUR:
        split = lambda code: np.stack([(code >> shift) & 255 for shift in (16, 8, 0)], axis=-1)  # noqa: E731
        declared = split(np.array([first for first, _, _ in ranges]))
        far = ((split(codes)[:, None] - declared) ** 2).sum(-1)
    else:
        far = np.stack([np.abs(codes - codes.clip(first, last)) for first, last, _ in ranges], axis=-1)
    return np.array([number for _, _, number in ranges], np.uint8)[far.argmin(1)]
