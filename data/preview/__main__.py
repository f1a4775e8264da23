"""Draw a contact sheet of a dataset, masks over images: `python -m data.preview NAME [name.root=...] -o preview.png`.

One row for each split and group, with its number of images, their sizes and the classes' shares of its pixels. It is
for people before a study and no part of a run: it opens masks of the pool.
"""

import argparse
import io
import sys
from collections import Counter
from pathlib import Path

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from data.doctor.dataset import asked
from experiments.acquisition.pictures import class_colour, printable
from experiments.components import written
from experiments.errors import Refused
from experiments.errors.process import one_line_errors
from experiments.records.files import write
from experiments.store import IGNORE

IGNORED = "#000000"
FILL = 0.3  # how much of a class's colour lies over its pixels
SIDE = 320  # a larger image is thinned out
COUNTED = 100  # masks of a row, evenly apart, that sizes and shares are counted in
ROWS = 24  # at most; what is left out is said
WIDTH, TEXT = 1.9, 2.6  # inches of an image and of the words beside a row


def preview(about, splits, classes, colours=(), columns=5):
    """PNG bytes of the contact sheet of `splits`; a mask value v is drawn in colours[v], named classes[v]."""
    palette = [*colours, *map(class_colour, range(len(colours), len(classes)))]
    hidden = {n for n, c in enumerate(classes) if c == "background"}
    rows = list(groups(splits))
    shown, left = rows[:ROWS], rows[ROWS:]
    pictures = [row_of(split, positions, columns) for _, _, split, positions in shown]
    ratios = [np.clip(np.median([i.shape[0] / i.shape[1] for i, _ in pairs]), 0.4, 1.2) for pairs, *_ in pictures]
    heights = [max(WIDTH * ratio, 1.25) for ratio in ratios]
    size = TEXT + WIDTH * columns, 1.05 + 1.12 * sum(heights)
    figure = Figure(figsize=size, dpi=100, facecolor="white")
    grid = figure.add_gridspec(
        len(shown), columns + 1, width_ratios=[TEXT, *[WIDTH] * columns], height_ratios=heights, wspace=0.04,
        hspace=0.12, left=0.015, right=0.99, top=1 - 0.5 / size[1], bottom=0.5 / size[1],
    )  # fmt: skip
    for y, ((part, group, _, positions), (pairs, counts, sizes)) in enumerate(zip(shown, pictures, strict=True)):
        words(figure.add_subplot(grid[y, 0]), part, group, len(positions), sizes, counts, classes, palette, heights[y])
        for x, (image, mask) in enumerate(pairs):
            axis = figure.add_subplot(grid[y, x + 1])
            axis.imshow(overlaid(image, mask, palette, hidden), interpolation="antialiased")
            axis.set_axis_off()
            axis.set_anchor("N")
    more = f"; {len(left)} more rows are not shown" if left else ""
    figure.text(0.015, 1 - 0.3 / size[1], printable(about + more), fontsize=11, weight="bold", parse_math=False)
    patches = [Patch(facecolor=rgb(c) / 255, edgecolor="#444", label=n) for n, c in zip(classes, palette, strict=False)]
    for number in hidden:
        patches[number].set(facecolor="white", label=f"{classes[number]} (not tinted)")
    if any(counts[IGNORE] for _, counts, _ in pictures):
        patches.append(Patch(facecolor=IGNORED, label="ignored"))
    place = {"loc": "lower left", "bbox_to_anchor": (0.01, 0), "borderaxespad": 0.3}
    figure.legend(handles=patches, ncols=min(len(patches), 8), fontsize=9, frameon=False, **place)
    png = io.BytesIO()
    figure.savefig(png, format="png")
    return png.getvalue()


def groups(splits):
    """Yield (split's name, group, Split, positions in it), the pool first."""
    for part, split in zip(("train", "val", "test"), splits[:3], strict=True):
        if split:
            for group in sorted(set(split.groups)):
                yield part, group, split, [i for i, other in enumerate(split.groups) if other == group]


def row_of(split, positions, columns):
    """([(image, mask)] of a few images evenly apart, thinned out; pixels of each mask value; Counter of (H, W))."""
    counts, sizes = np.zeros(256, int), Counter()
    for position in apart(positions, COUNTED):
        mask = split.read_mask(split.items[position].mask)
        counts += np.bincount(mask.ravel(), minlength=256)
        sizes[mask.shape] += 1
    pairs = []
    for position in apart(positions, columns):
        image, mask = split[position], split.read_mask(split.items[position].mask)
        if image.shape[:2] != mask.shape:
            there = f"{split.items[position].mask} is of another size than its image"
            raise Refused(f"{there}: `python -m data.doctor` tells more.")
        step = -(-max(mask.shape) // SIDE)
        image = image[::step, ::step]
        pairs.append((image[..., :3] if image.shape[-1] > 2 else image[..., [0, 0, 0]], mask[::step, ::step]))
    return pairs, counts, sizes


def apart(positions, most):
    """At most so many of them, evenly apart."""
    return [positions[i * len(positions) // most] for i in range(most)] if len(positions) > most else positions


def overlaid(image, mask, palette, hidden):
    """An image (H, W, 3) uint8 with its mask's classes tinted and outlined, but for the hidden ones."""
    made = image.astype(float)
    for value in np.unique(mask).tolist():
        if value not in hidden:
            colour = rgb(IGNORED if value == IGNORE else palette[value])
            member = mask == value
            around = np.pad(member, 1, mode="edge")  # no outline where the image ends
            inner = around[2:, 1:-1] & around[:-2, 1:-1] & around[1:-1, 2:] & around[1:-1, :-2]
            made[member] += FILL * (colour - made[member])
            made[member & ~inner] = colour
    return made.round().astype(np.uint8)


def rgb(colour):
    """(3,) floats of 0 to 255 for a name of matplotlib's or such three numbers."""
    if not isinstance(colour, str):
        return np.array(colour, float)
    return 255 * np.array(to_rgb(colour))


def words(axis, part, group, count, sizes, counts, classes, palette, height):
    """What a row holds: its name, images and sizes, and the shares of the classes as a bar and in numbers."""
    axis.set_axis_off()
    axis.set(xlim=(0, 1), ylim=(height, 0))
    title = printable(f"{part}{' · ' * bool(group)}{group}")
    axis.text(0, 0.12, title, fontsize=11, weight="bold", va="center", parse_math=False)
    counted = "" if sum(sizes.values()) == count else f" (counted in {sum(sizes.values())})"
    axis.text(0, 0.36, f"{count} image{'s' * (count != 1)}{counted}", fontsize=9, va="center")
    (h, w), most = sizes.most_common(1)[0]
    other = f" and {len(sizes) - 1} other size{'s' * (len(sizes) > 2)}" if len(sizes) > 1 else ""
    axis.text(0, 0.55, f"{w} x {h}{other}", fontsize=9, va="center")
    shares, left = counts / max(counts.sum(), 1), 0.0
    present = [v for v in [*range(len(classes)), IGNORE] if shares[v]]
    for value in present:
        colour = rgb(IGNORED if value == IGNORE else palette[value]) / 255
        if value != IGNORE and classes[value] == "background":
            colour = (1, 1, 1)
        axis.add_patch(Rectangle((left, 0.68), 0.9 * shares[value], 0.13, facecolor=colour, edgecolor="#444", lw=0.5))
        left += 0.9 * shares[value]
    room = max(1, int((height - 0.85) / 0.16))
    largest = sorted(present, key=lambda v: -shares[v])
    for n, value in enumerate(largest[:room]):
        name = "ignored" if value == IGNORE else classes[value]
        if n == room - 1 and len(largest) > room:
            name, share = f"{len(largest) - n} others", shares[largest[n:]].sum()
        else:
            share = shares[value]
        axis.text(0, 0.92 + 0.16 * n, f"{share:.1%} {name}", fontsize=8, va="center", parse_math=False)


def main(line):
    """Run the command; returns the exit code. Raises Refused."""
    options = parse(line)
    dataset = asked(options.dataset, options.settings)
    splits = dataset.load()
    [about, *_] = written("dataset", dataset.name)["__doc__"].split("\n")
    module = dataset.module
    sheet = preview(about, splits, splits.classes or module.CLASSES, getattr(module, "COLOURS", ()), options.columns)
    write(Path(options.output), sheet)
    print(options.output)
    return 0


def parse(line):
    about, _, more = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(prog="python -m data.preview", description=f"{about}\n\n{more}")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("dataset", metavar="NAME", help="a dataset, as glas, or a folder")
    parser.add_argument("settings", nargs="*", metavar="name.setting=value", help="as glas.root=elsewhere")
    parser.add_argument("-o", "--output", default="preview.png", metavar="FILE", help="the PNG (preview.png)")
    parser.add_argument("--columns", type=int, default=5, choices=range(1, 13), metavar="N", help="images a row (5)")
    return parser.parse_intermixed_args(line)


if __name__ == "__main__":
    with one_line_errors():
        sys.exit(main(sys.argv[1:]))
