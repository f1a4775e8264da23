"""Masks that lie wrong on their images: transposed, mirrored, turned or shifted, by how well classes explain colours.

The evidence is the share of an image's colour variance that its mask explains. A mask that explains little, while the
same mask laid otherwise explains as much as the other masks of the set do, lies wrong.
"""

from functools import partial

import numpy as np

from data.doctor.sets import SIDE, alike, chunks, opened
from experiments.store import IGNORE

LAYS = {
    "transposed": lambda m: m.swapaxes(1, 2),
    "mirrored left to right": lambda m: m[:, :, ::-1],
    "mirrored top to bottom": lambda m: m[:, ::-1],
    "turned by 180 degrees": lambda m: m[:, ::-1, ::-1],
    "turned by 90 degrees": lambda m: m.swapaxes(1, 2)[:, ::-1],
    "turned by 270 degrees": lambda m: m.swapaxes(1, 2)[:, :, ::-1],
}
SQUARE = ("transposed", "turned by 90 degrees", "turned by 270 degrees")
NEAR, FAR = 2, 8  # thumbnail pixels that a mask may seem shifted by
STEPS = np.fft.fftfreq(SIDE, 1 / SIDE).round().astype(int)  # of the shifts that `explained` tries
DISTANCE = np.maximum(abs(STEPS)[:, None], abs(STEPS)[None])
# set on GlaS, CamVid, ISIC-2017 and AxonMyelinSEM, of whose 3,272 masks none is suspected. Of 80 masks each that were
# mirrored or turned by 180 degrees, or moved by an eighth to a fifth of the side, it names 31 to 46 % in GlaS, 93 to 95
# in AxonMyelinSEM, mirrored 25 to 29 and moved 68 to 91 in CamVid, 10 to 19 and 46 to 54 in ISIC-2017
POOR = 0.45  # share that a mask which lies well mostly explains more of; or half of what the others do
GAIN, FACTOR = 0.3, 1.7  # what the other lay explains more, by difference and by factor
LIKE = 0.6  # of what the set's masks usually explain
EDGES = 1.7  # the outlines lie on edges that are as much stronger
# where masks explain little at best, as on stained tissue, a lay has to stand out from all others instead
PEAK = 1.25  # times what the same mask explains a few pixels away and farther
CLEAR, SHARPER = 5, 1.2  # times what it explains, and how strong its edges are, as it lies
TRACE = 0.001  # share that any mask explains by chance


def explained(thumbs, masks):
    """(N, SIDE, SIDE): the share of variance of thumbs (N, SIDE, SIDE, C) that masks explain, rolled by (y, x)."""
    colours = thumbs.astype(np.float32)
    colours -= colours.mean((1, 2), keepdims=True)
    total = np.maximum((colours**2).sum((1, 2, 3)), 1e-6)
    spectra = np.fft.rfft2(colours, axes=(1, 2))
    found = np.zeros((len(thumbs), SIDE, SIDE), np.float32)
    for value in np.unique(masks):
        member = (masks == value).astype(np.float32)
        size = np.maximum(member.sum((1, 2)), 1)[:, None, None, None]
        sums = np.fft.irfft2(spectra * np.fft.rfft2(member, axes=(1, 2)).conj()[..., None], (SIDE, SIDE), axes=(1, 2))
        found += (sums**2 / size).sum(-1)
    return found / total[:, None, None]


def contrast(thumb, mask):
    """How much colours differ across the outlines of a mask, beside how much all neighbours do: 1 is no edge at all."""
    colours, numbers, across, anywhere = thumb.astype(np.float32), mask.astype(np.int16), [], []
    for axis in (0, 1):
        steps = np.diff(colours, axis=axis)
        size = np.sqrt((steps**2).sum(-1))
        across.append(size[np.diff(numbers, axis=axis) != 0])
        anywhere.append(size.ravel())
    across = np.concatenate(across)
    return float(across.mean() / max(np.concatenate(anywhere).mean(), 1e-6)) if len(across) else 1.0


def copied_masks(records, classes):
    """Masks with outlines that equal another image's, pixel by pixel, and not by chance: one fits its image ill."""
    known, counts = opened(records)
    first, usual = {}, None
    for record in (known[i] for i in np.flatnonzero((counts[:, :IGNORE] > 0).sum(1) > 1)):
        like = first.setdefault(record.mask_digest, record)
        other = like is not record and like.digest != record.digest and like.item.mask != record.item.mask
        if other and not alike(like, record):
            usual = np.median(own_shares(comparable(records))) if usual is None else usual
            if len(comparable([like, record])) < 2 or own_shares([like, record]).min() < LIKE * usual:
                yield record, f"its mask is {like.item.mask}, pixel by pixel, its image another", like


def comparable(records):
    """The records of which there are thumbnails of an image and of a mask with outlines."""
    known, counts = opened(records)
    known = [known[i] for i in np.flatnonzero((counts > 0).sum(1) > 1)]
    return [r for r in known if r.mask_thumb is not None and r.thumb is not None and not r.flat]


def own_shares(known):
    """(N,): the share of each image's colours that its mask explains as it lies."""
    return np.concatenate([at_rest(*stacked(part)) for part in chunks(known)]) if known else np.zeros(0)


def misaligned(records, classes):
    """Yield (Record, what was found, None) for the masks that fit their image better when they are laid otherwise."""
    known = comparable(records)
    own = own_shares(known)
    usual = np.median(own) if len(own) else 0
    poor = [(record, has) for record, has in zip(known, own, strict=True) if has < max(usual / 2, POOR)]
    for record, has in poor:
        better = [lay for lay in lays(record) if lay[1] > LIKE * usual and fits_better(record, has, *lay[1:])]
        if better:
            lay, fits, *_ = max(better, key=lambda lay: lay[1])
            yield record, f"the mask explains {has:.1%} of the colours as it lies, {lay} {fits:.1%}", None


def fits_better(record, has, fits, mask, elsewhere):
    """Whether a lay explains more by far, or stands out from the same mask laid elsewhere, and lies on edges."""
    more, clear = fits - has > GAIN and fits > FACTOR * has, fits > CLEAR * max(has, TRACE)
    if not (more or clear):
        return False
    edges = contrast(record.thumb, mask) / contrast(record.thumb, record.mask_thumb)
    return (more and edges > EDGES) or (clear and edges > SHARPER and fits > PEAK * elsewhere())


def lays(record):
    """Yield (name, explained, mask thumbnail, function of what it explains at most when it lies elsewhere)."""
    square = record.size[0] == record.size[1]
    thumbs, masks = stacked([record])
    for name, lay in LAYS.items():
        if square or name not in SQUARE:
            mask = np.ascontiguousarray(lay(masks))
            yield name, float(at_rest(thumbs, mask)[0]), mask[0], partial(beyond, thumbs, mask, NEAR)
    shifts = explained(thumbs, masks)[0]
    y, x = np.unravel_index(np.where((DISTANCE >= NEAR) & (DISTANCE <= FAR), shifts, 0).argmax(), shifts.shape)
    down, right = (round(step * side / SIDE) for step, side in zip((STEPS[y], STEPS[x]), record.size, strict=True))
    mask = np.roll(masks, (STEPS[y], STEPS[x]), (1, 2))
    moved = f"moved by {right} pixels to the right and {down} down"
    yield moved, float(shifts[y, x]), mask[0], partial(beyond, thumbs, masks, FAR + 1)


def beyond(thumbs, masks, distance):
    """What a mask explains at most when it is moved by so many thumbnail pixels or more."""
    return explained(thumbs, masks)[0][DISTANCE >= distance].max()


def stacked(records):
    """Thumbnails (N, SIDE, SIDE, 3) and masks (N, SIDE, SIDE)."""
    return np.stack([r.thumb for r in records]), np.stack([r.mask_thumb for r in records])


def at_rest(thumbs, masks):
    """(N,): what `explained` gives without a shift."""
    colours = thumbs.reshape(len(thumbs), -1, thumbs.shape[-1]).astype(np.float32)
    colours -= np.full((1, colours.shape[1]), 1 / colours.shape[1], np.float32) @ colours  # .mean(1) is 15 times slower
    flat, found = masks.reshape(len(masks), 1, -1), np.zeros(len(masks), np.float32)
    rest, left = np.zeros((len(masks), colours.shape[-1]), np.float32), np.full(len(masks), flat.shape[-1])
    *values, _ = np.flatnonzero(np.bincount(masks.ravel(), minlength=256))
    for value in values:
        member = (flat == value).astype(np.float32)
        sums, size = (member @ colours)[:, 0], member.sum((1, 2))
        found += (sums**2).sum(1) / np.maximum(size, 1)
        rest, left = rest - sums, left - size
    found += (rest**2).sum(1) / np.maximum(left, 1)  # of the last value: the colours of an image sum to 0
    return found / np.maximum(np.einsum("npc,npc->n", colours, colours), 1e-6)
