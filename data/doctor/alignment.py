"""Masks that lie wrong on their images: transposed, mirrored, turned or shifted, by how well classes explain colours.

The evidence is the share of an image's colour variance that its mask explains. A mask that explains little, while the
same mask laid otherwise explains as much as the other masks of the set do, lies wrong.
"""

import numpy as np

from data.doctor.sets import SIDE, chunks, opened

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
# set on GlaS, CamVid, the training images of ISIC-2017 and the drawn histology so that none of 2,978 masks is suspected
POOR = 0.45  # share that a mask which lies well mostly explains more of; or half of what the others do
GAIN, FACTOR = 0.3, 1.7  # what the other lay explains more, by difference and by factor
LIKE = 0.6  # of what the set's masks usually explain
EDGES = 1.7  # the outlines lie on edges that are as much stronger


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


def misaligned(records, classes):
    """Yield (Record, what was found, None) for the masks that fit their image better when they are laid otherwise."""
    known, counts = opened(records)
    known = [known[i] for i in np.flatnonzero((counts > 0).sum(1) > 1)]
    known = [r for r in known if r.mask_thumb is not None and r.thumb is not None and not r.flat]
    own = np.concatenate([at_rest(*stacked(part)) for part in chunks(known)]) if known else np.zeros(0)
    usual = np.median(own) if len(own) else 0
    poor = [(record, has) for record, has in zip(known, own, strict=True) if has < max(usual / 2, POOR)]
    for record, has in poor:
        lay, fits, mask = best(record)
        better = fits - has > GAIN and fits > FACTOR * has and fits > LIKE * usual
        if better and contrast(record.thumb, mask) > EDGES * contrast(record.thumb, record.mask_thumb):
            yield record, f"the mask explains {has:.0%} of the colours as it lies, {lay} {fits:.0%}", None


def best(record):
    """(name, explained, mask thumbnail) of the lay that explains most."""
    square = record.size[0] == record.size[1]
    thumbs, masks = stacked([record])
    found = [(name, lay(masks)) for name, lay in LAYS.items() if square or name not in SQUARE]
    found = [(name, float(at_rest(thumbs, mask)[0]), mask[0]) for name, mask in found]
    shifts, steps = explained(thumbs, masks)[0], np.fft.fftfreq(SIDE, 1 / SIDE).round().astype(int)
    distance = np.maximum(abs(steps)[:, None], abs(steps)[None])
    y, x = np.unravel_index(np.where((distance >= NEAR) & (distance <= FAR), shifts, 0).argmax(), shifts.shape)
    down, right = (round(step * side / SIDE) for step, side in zip((steps[y], steps[x]), record.size, strict=True))
    moved = f"moved by {right} pixels to the right and {down} down"
    found.append((moved, float(shifts[y, x]), np.roll(masks[0], (steps[y], steps[x]), (0, 1))))
    return max(found, key=lambda lay: lay[1])


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
