"""Files from outside, read without trust: regular files of bounded size, images and masks without surprises.

A named pipe waits for its writer for ever and a device never ends: nothing is opened before it is known to be a file.
"""

import errno
import os
import stat
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from experiments.errors import BadData

MAX_PIXELS = 100_000_000  # refuse a header that promises more: a decompression bomb, not a micrograph
MAX_IMAGE = 8 * MAX_PIXELS  # bytes of an image file
MAX_TEXT = 2**26  # bytes of a table or a list of ids
MAX_WEIGHTS = 2**36  # bytes of a file of weights
FORMATS = {
    ".png": "PNG",
    ".bmp": "BMP",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".gif": "GIF",
    ".tif": "TIFF",
    ".tiff": "TIFF",
}
BANDS = 64  # most channels of an image
SCARCE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)  # what the machine has too little of: no fault of the file
KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFDIR: "a folder",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}
ORIENTATION = 274  # the EXIF tag
INVERTED = 262, 0  # the TIFF tag and value that say that the number 0 is shown as white
WHOLE = "save it with 8 or 16 bits a pixel, every image scaled in the same way"
NUMBERS = "save it as whole numbers of 8 or 16 bits"  # a mask
AVERAGED = 0.05  # share of an outline; 0 in every mask of GlaS, .1 to .5 once one of three ids or more was averaged


def regular(path, most):
    """`path`, if it is, links followed, a regular file of 1 to `most` bytes; otherwise OSError says what it is."""
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise OSError(f"it is {KINDS.get(stat.S_IFMT(found.st_mode), 'something else')}, no file")
    if not 0 < found.st_size <= most:
        raise OSError(f"it has {found.st_size} bytes, not 1 to {most}")
    return path


def files_of(place):
    """The files that an Item's image or mask lies in, a tuple: `place` itself, or its several `paths`.

    A path may say behind a file's name which part of it is meant, a tile or a slice: then it is that file.
    """
    return tuple(
        path if os.path.isfile(path) else next((p for p in Path(path).parents if p.is_file()), path)
        for path in getattr(place, "paths", (place,))
    )


def read_text(path, encoding="utf-8"):
    """The text of a table or a list. Raises OSError or UnicodeDecodeError."""
    return Path(regular(path, MAX_TEXT)).read_text(encoding)


def format_of(path):
    """Pillow's name of the format that a file's ending says, None for another."""
    return FORMATS.get(os.path.splitext(path)[1].lower())


def pages(path):
    """How many images a TIFF file holds, read from its header; 1 for other formats. Raises BadData."""
    if format_of(path) != "TIFF":
        return 1
    with told(path, "TIFF"):
        try:
            with Image.open(regular(path, MAX_IMAGE), formats=["TIFF"]) as image:
                return image.n_frames
        except UnidentifiedImageError:
            return tifffile_page(path, None)


def size(path, page=0):
    """(height, width) of an image as its header states it. Raises BadData."""
    kind = format_of(path)
    with told(path, kind):
        try:
            with Image.open(regular(path, MAX_IMAGE), formats=[kind]) as image:
                image.seek(page)
                return image.height, image.width
        except UnidentifiedImageError:
            if kind != "TIFF":
                raise
        return tifffile_page(path, page).shape[:2]


def pixels(path, page=0, indices=False):
    """The stored values of an image, whose format is that of its suffix: (H, W) or (H, W, channels), uint8 or uint16.

    Transparency is left out, black and white are 0 and 255. With `indices`, of a mask, a palette gives its indices, but
    for GIF, whose encoders number the colours as they like, and a TIFF that shows 0 as white gives the numbers as they
    are stored, as ImageJ and tifffile write them. `page` counts in a TIFF from 0. Raises BadData naming the file and
    what to convert, OSError where the machine has too little left.
    """
    kind = format_of(path)
    with told(path, kind):
        try:
            with Image.open(regular(path, MAX_IMAGE), formats=[kind]) as image:
                refuse_large(path, *image.size)
                if kind == "GIF" and image.n_frames > 1:
                    raise BadData(f"{path} is an animation: save its frames as PNG, or as pages of a TIFF.")
                if kind == "JPEG" and image.getexif().get(ORIENTATION, 1) not in (0, 1):
                    raise BadData(
                        f"{path} says that it is to be shown turned: turn its pixels, and drop the EXIF data."
                    )
                if page:
                    image.seek(page)
                    refuse_large(path, *image.size)
                coded = ";16" in str([tile[3] for tile in image.tile])  # Pillow would drop 8 of 16 bits
                deep = coded and not image.mode.startswith("I")
                if not (deep and kind == "TIFF"):
                    return values(path, image, deep, indices and kind != "GIF")
        except UnidentifiedImageError:
            if kind != "TIFF":
                raise
        return tifffile_page(path, page)


def values(path, image, deep, indices):
    """The array of an opened Pillow image as `pixels` gives it."""
    if deep:
        raise BadData(f"{path} has colours of 16 bits: save it as TIFF, or with 8 bits.")
    if image.mode == "F":
        raise BadData(f"{path} has 32-bit float values: {NUMBERS if indices else WHOLE}.")
    if indices and image.mode in ("LA", "RGBA") and only_transparency(image):
        raise BadData(
            f"{path} has one colour, its mask lies in the transparency: save the alpha channel as a grey PNG."
        )
    if image.mode == "P":
        return np.array(image if indices else image.convert("RGB"))
    plain = {"1": "L", "L": "L", "LA": "L", "PA": "RGB", "RGB": "RGB", "RGBA": "RGB", "RGBX": "RGB"}
    if image.mode in plain:
        found = np.array(image if image.mode == plain[image.mode] else image.convert(plain[image.mode]))
        stored = indices and getattr(image, "tag_v2", {}).get(INVERTED[0]) == INVERTED[1]
        return 255 - found if stored else found
    if not image.mode.startswith("I"):
        raise BadData(f"{path} is a {image.mode} image: save it as grey or RGB.")
    found = np.array(image)
    if not 0 <= found.min() <= found.max() < 2**16:
        raise BadData(f"{path} holds {found.min()} to {found.max()}: {WHOLE}.")
    return found.astype(np.uint16)


def only_transparency(image):
    """Whether an image's pixels differ in nothing but how transparent they are."""
    *colours, alpha = (low != high for low, high in image.getextrema())
    return alpha and not any(colours)


def tifffile_page(path, page):
    """What Pillow does not read: many channels and colours of 16 bits; the number of pages where `page` is None."""
    import tifffile  # of scikit-image

    try:
        with tifffile.TiffFile(path) as file:
            if page is None:
                return len(file.pages)
            found = file.pages[page]
            refuse_large(path, found.imagewidth, found.imagelength)
            axes, shape = found.axes, found.shape
            if found.dtype not in (np.uint8, np.uint16):
                raise BadData(f"{path} has {found.dtype} values: {WHOLE}.")
            if axes not in ("YX", "YXS", "SYX") or found.size > BANDS * found.imagewidth * found.imagelength:
                raise BadData(f"{path} is an array {axes} of shape {shape}: save slices as pages, or one file each.")
            array = found.asarray()
    except BadData:
        raise
    except Exception as error:  # on a damaged file it raises whatever it meets
        if isinstance(error, MemoryError) or getattr(error, "errno", None) in SCARCE:
            raise
        codec = "imagecodecs" in str(error)
        fix = "save it without compression, or with deflate" if codec else "replace the file"
        raise BadData(
            f"{path} cannot be read as a TIFF image ({' '.join(str(error).split())[:120]}): {fix}."
        ) from error
    return np.moveaxis(array, 0, -1) if axes == "SYX" else array


def refuse_large(path, width, height):
    if width * height > MAX_PIXELS:
        raise BadData(f"{path} claims {width} x {height} pixels, over {MAX_PIXELS}: replace it.")


@contextmanager
def told(path, format):
    """Turn what Pillow raises for a file that it cannot read into BadData."""
    try:
        yield
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        if getattr(error, "errno", None) in SCARCE:
            raise
        raise BadData(f"{path} cannot be read as a {format} image ({error}): replace the file.") from error


def decode(path, format, mode, resize=1.0):
    """Decode `path` as (H, W, 3) uint8 for mode "RGB", or (H, W) uint8 for mode "L".

    `resize` scales both sides, antialiased for RGB, nearest for L. A palette mask gives its indices, never its
    colours. Raises BadData naming the file when it is missing, no file, of another format, damaged or far too large,
    OSError where the machine has too few open files or too little memory.
    """
    with told(path, format), Image.open(regular(path, MAX_IMAGE), formats=[format]) as image:
        refuse_large(path, *image.size)
        if mode == "RGB":
            image = image if image.mode == "RGB" else image.convert("RGB")  # it would copy
        elif image.mode not in ("L", "P"):
            raise BadData(f"{path} is a {image.mode} image, a mask needs 8 bits a pixel: replace it.")
        return np.array(resized(image, resize, mode == "RGB"))


def resized(image, factor, smooth):
    """A Pillow image with both sides times `factor`: antialiased where `smooth`, else by nearest neighbour."""
    if factor == 1:
        return image
    size = [max(1, round(side * factor)) for side in image.size]
    return image.resize(size, Image.Resampling.BILINEAR if smooth else Image.Resampling.NEAREST)


def outlines(numbers):
    """(outline, between), both (H, W) bool: pixels that differ from a neighbour, and those of a value between two."""
    numbers = numbers.astype(np.int32)
    outline, between = np.zeros(numbers.shape, bool), np.zeros(numbers.shape, bool)
    for lines, edge, middle in ((numbers, outline, between), (numbers.T, outline.T, between.T)):
        steps = np.sign(np.diff(lines, axis=0))
        edge[1:] |= steps != 0
        edge[:-1] |= steps != 0
        middle[1:-1] |= steps[1:] * steps[:-1] > 0
    return outline, between


def refuse_averaged(numbers, path):
    """Raise BadData if a mask of numbered objects (H, W) was resized by averaging, which invents numbers at outlines.

    The evidence: pixels whose number lies strictly between those on both sides of them, as 7 between 0 and 15. Objects
    as they are drawn, or resized by nearest neighbour, have next to none, wherever they touch and however small they
    are. With the numbers 0, 1 and 2 alone averaging leaves little trace, and does little harm.
    """
    outline, between = outlines(numbers)
    if between.sum() > max(8, AVERAGED * outline.sum()):
        found = ", ".join(map(str, np.unique(numbers[between])[:6]))
        raise BadData(
            f"{path} was resized by averaging: {between.sum() / outline.sum():.0%} of its outlines lie between the "
            f"numbers on both sides ({found} ...), where no object is: resize it anew, by nearest neighbour."
        )
