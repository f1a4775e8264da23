"""Files from outside, read without trust: regular files of bounded size, images and masks without surprises.

A named pipe waits for its writer for ever and a device never ends: nothing is opened before it is known to be a file.
"""

import errno
import os
import stat
from pathlib import Path

import numpy as np
from PIL import Image

from experiments.errors import BadData

MAX_PIXELS = 100_000_000  # refuse a header that promises more: a decompression bomb, not a micrograph
MAX_IMAGE = 8 * MAX_PIXELS  # bytes of an image file
MAX_TEXT = 2**26  # bytes of a table or a list of ids
MAX_WEIGHTS = 2**36  # bytes of a file of weights
SCARCE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)  # what the machine has too little of: no fault of the file
KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFDIR: "a folder",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}
AVERAGED = 0.05  # share of an outline; 0 in every mask of GlaS, .1 to .5 once one of three ids or more was averaged


def regular(path, most):
    """`path`, if it is, links followed, a regular file of 1 to `most` bytes; otherwise OSError says what it is."""
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise OSError(f"it is {KINDS.get(stat.S_IFMT(found.st_mode), 'something else')}, no file")
    if not 0 < found.st_size <= most:
        raise OSError(f"it has {found.st_size} bytes, not 1 to {most}")
    return path


def read_text(path, encoding="utf-8"):
    """The text of a table or a list. Raises OSError or UnicodeDecodeError."""
    return Path(regular(path, MAX_TEXT)).read_text(encoding)


def decode(path, format, mode, resize=1.0):
    """Decode `path` as (H, W, 3) uint8 for mode "RGB", or (H, W) uint8 for mode "L".

    `resize` scales both sides, antialiased for RGB, nearest for L. A palette mask gives its indices, never its
    colours. Raises BadData naming the file when it is missing, no file, of another format, damaged or far too large,
    OSError where the machine has too few open files or too little memory.
    """
    try:
        with Image.open(regular(path, MAX_IMAGE), formats=[format]) as image:
            if image.width * image.height > MAX_PIXELS:
                raise BadData(f"{path} claims {image.width} x {image.height} pixels, over {MAX_PIXELS}: replace it.")
            if mode == "RGB":
                image = image.convert("RGB")
            elif image.mode not in ("L", "P"):
                raise BadData(f"{path} is a {image.mode} image, a mask needs 8 bits a pixel: replace it.")
            if resize != 1:
                size = [max(1, round(side * resize)) for side in image.size]
                filters = Image.Resampling
                image = image.resize(size, filters.BILINEAR if mode == "RGB" else filters.NEAREST)
            return np.array(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if getattr(error, "errno", None) in SCARCE:
            raise
        raise BadData(f"{path} cannot be read as a {format} image ({error}): replace the file.") from error


def refuse_averaged(numbers, path):
    """Raise BadData if a mask of numbered objects (H, W) was resized by averaging, which invents numbers at outlines.

    The evidence: pixels whose number lies strictly between those on both sides of them, as 7 between 0 and 15. Objects
    as they are drawn, or resized by nearest neighbour, have next to none, wherever they touch and however small they
    are. With the numbers 0, 1 and 2 alone averaging leaves little trace, and does little harm.
    """
    numbers = numbers.astype(np.int16)
    outline, between = np.zeros(numbers.shape, bool), np.zeros(numbers.shape, bool)
    for lines, edge, middle in ((numbers, outline, between), (numbers.T, outline.T, between.T)):
        steps = np.sign(np.diff(lines, axis=0))
        edge[1:] |= steps != 0
        edge[:-1] |= steps != 0
        middle[1:-1] |= steps[1:] * steps[:-1] > 0
    if between.sum() > max(8, AVERAGED * outline.sum()):
        found = ", ".join(map(str, np.unique(numbers[between])[:6]))
        raise BadData(
            f"{path} was resized by averaging: {between.sum() / outline.sum():.0%} of its outlines lie between the "
            f"numbers on both sides ({found} ...), where no object is: resize it anew, by nearest neighbour."
        )
