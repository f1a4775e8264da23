"""Pictures of queries: images with predicted and true outlines, above their uncertainty maps with one colour bar."""

import io
import warnings

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from PIL import Image

from experiments.store import IGNORE

COLUMNS = 4  # images beside one another at most
WIDTH = 3.2  # inches of a column, of 100 pixels each
TOP, LINE, GAP, BAR, BOTTOM = 0.3, 0.165, 0.04, 1.15, 0.32  # inches: heading, title line, around, colour bar, legend
SIDE = 640  # a larger image is thinned out: the screen shows no more of it
LINES = {
    "predicted": {"colors": "#E69F00", "linestyles": "solid", "linewidths": 1.6},
    "true": {"colors": "#0072B2", "linestyles": "dashed", "linewidths": 1.8},
}
# of classes, told apart without red and green; those beyond are only different
CLASSES = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#7B4FA3", "#8C564B", "#17BECF"]
HALO = [withStroke(linewidth=3.2, foreground="white")]  # on any stain one of line and halo is seen
HUGE = 1e37  # what a map goes beyond is drawn as this: matplotlib subtracts


def queries(images, maps, titles, predicted=None, true=None, heading="", measure="uncertainty"):
    """PNG bytes, a column a query: images (H, W, channels) uint8 of any sizes, maps (H, W) of any numbers or None.

    `predicted` and `true` are masks (H, W) of class numbers, IGNORE where unknown, or None; `measure` names what the
    maps show and its unit. All maps share one scale, from the 0.5th to the 99.5th percentile of their values.
    """
    outlines = {"predicted": predicted or [None] * len(images), "true": true or [None] * len(images)}
    mapped = any(m is not None for m in maps)
    bands = -(-len(images) // COLUMNS)
    rows, columns = 1 + mapped, -(-len(images) // bands)
    ratio = np.clip(np.median([image.shape[0] / image.shape[1] for image in images]), 0.4, 2)
    above = 0.1 + LINE * (1 + max(title.count("\n") for title in titles))
    wide, tall = WIDTH * columns + BAR * mapped, bands * (rows * WIDTH * ratio + above) + TOP + BOTTOM
    figure = Figure(figsize=(wide, tall), dpi=100)

    def box(left, top, width, height):
        """Axes so many inches from the left and the top: laid out by matplotlib they would take twice as long."""
        return figure.add_axes((left / wide, 1 - (top + height) / tall, width / wide, height / tall))

    def field(band, column, row):
        top = TOP + band * (rows * WIDTH * ratio + above) + above + row * WIDTH * ratio
        axis = box(WIDTH * column + GAP, top, WIDTH - 2 * GAP, (WIDTH - 2 * GAP) * ratio)
        axis.set_axis_off()
        return axis

    scale = limits([m for m in maps if m is not None])
    for place, (image, map, title) in enumerate(zip(images, maps, titles, strict=True)):
        band, column = divmod(place, columns)
        shown, step = [field(band, column, 0)], -(-max(image.shape[:2]) // SIDE)
        thin = (slice(None, None, step),) * 2
        image = image[thin]
        shown[0].imshow(image.squeeze(-1) if image.shape[-1] == 1 else image, cmap="gray")
        shown[0].set_title(printable(title), fontsize=10, y=1, parse_math=False)  # else it is looked for in each draw
        if map is not None:
            shown.append(field(band, column, 1))
            drawn = shown[1].imshow(finite(map[thin]), cmap="viridis", vmin=scale[0], vmax=scale[1])
            frame(shown[1], *image.shape[:2], ratio)
        frame(shown[0], *image.shape[:2], ratio)
        known = {name: masks[place][thin] for name, masks in outlines.items() if masks[place] is not None}
        for name, mask in known.items():
            outline(shown[0], mask, HALO, **LINES[name])
        if map is not None and known:
            outline(shown[1], list(known.values())[-1], [], colors="white", linewidths=0.9)
    if mapped:
        top, height = TOP + above, tall - TOP - above - BOTTOM
        bar = figure.colorbar(drawn, cax=box(WIDTH * columns + 0.1, top, 0.12, height - GAP), extend="both")
        bar.formatter.set_powerlimits((-3, 4))  # of longer numbers what they are multiples of stands above
        bar.ax.set_ylabel(printable(measure), fontsize=11, parse_math=False)
        bar.ax.tick_params(labelsize=10)
    figure.suptitle(printable(heading), fontsize=12, y=1 - 0.05 / tall, parse_math=False)
    named = [name for name, masks in outlines.items() if any(mask is not None for mask in masks)]
    lines = [Line2D([], [], color=LINES[n]["colors"], linestyle=LINES[n]["linestyles"], linewidth=2) for n in named]
    if named:
        words = [f"{name} outline" for name in named]
        words[-1] += ", white on the map" * mapped
        place = {"loc": "lower center", "borderaxespad": 0.2, "columnspacing": 1, "frameon": False}
        figure.legend(lines, words, ncols=2, fontsize=10, **place)
    return png_of(figure)


def png_of(figure):
    """PNG bytes of a figure, little compressed: that would take as long as to draw it, for a tenth of the bytes."""
    canvas, png = FigureCanvasAgg(figure), io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # a box stands for it
        canvas.draw()
    Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3]).save(png, format="PNG", compress_level=1)
    return png.getvalue()


def class_colour(number):
    """(red, green, blue) of 0 to 255 for a number of 0 to 255, no two alike, and none of them black or white."""
    if number < len(CLASSES):
        return tuple(bytes.fromhex(CLASSES[number][1:]))
    return number, 97 * number % 256, 197 * number % 256


def mask_colour(number):
    """The colour in which a mask's PNG shows a value: class 0 black, IGNORE white, no two alike."""
    return {0: (0, 0, 0), IGNORE: (255, 255, 255)}.get(number) or class_colour(number - 1)


def mask_png(mask):
    """PNG bytes of a mask (H, W) uint8: the stored numbers are its values, the palette shows them in their colours."""
    image = Image.frombytes("P", mask.shape[::-1], np.ascontiguousarray(mask).tobytes())
    image.putpalette([part for number in range(256) for part in mask_colour(number)])
    png = io.BytesIO()
    image.save(png, format="PNG")
    return png.getvalue()


def frame(axis, height, width, ratio):
    """Show an image whole, in the middle of a box of this ratio of height to width: all boxes of a row line up."""
    tall, wide = max(height, width * ratio), max(width, height / ratio)
    axis.set_xlim((width - wide) / 2 - 0.5, (width + wide) / 2 - 0.5)
    axis.set_ylim((height + tall) / 2 - 0.5, (height - tall) / 2 - 0.5)


def outline(axis, mask, effects, **line):
    """Draw the borders between the classes of a mask (H, W), none where it is IGNORE."""
    known = np.ma.masked_equal(mask, IGNORE)
    levels = np.arange(known.min(), known.max()) + 0.5 if known.count() else []
    if len(levels):
        axis.contour(known, levels, **line).set_path_effects(effects)


def finite(map):
    """A map as float64, without what is no number and within what can be drawn."""
    return np.ma.masked_invalid(np.asarray(map, dtype=np.float64)).clip(-HUGE, HUGE)


def limits(maps):
    """(least, most) that the colours of these maps span: never equal, whatever the maps hold."""
    values = np.concatenate([np.zeros(0), *(finite(m).compressed() for m in maps)])
    if not len(values):
        return 0.0, 1.0
    low, high = np.percentile(values, [0.5, 99.5])
    if low == high:  # all but a few pixels are equal
        low, high = values.min(), values.max()
    largest = max(abs(low), abs(high))
    apart = 0 if high - low > 1e-9 * largest else largest / 2 or 0.5
    return low - apart, high + apart


def printable(text):
    """Without what no font draws, such as the bytes of a name that is no Unicode."""
    return "".join(letter if letter.isprintable() or letter == "\n" else "?" for letter in text)
