"""napari and ImageJ: a label TIFF an image, whose values are class numbers, and the same back with 8, 16 or 32 bits.

https://napari.org/stable/howtos/layers/labels.html. ImageJ shows the classes in their colours, and under Image >
Show Info why an image was asked for.
"""

import io
from functools import partial

import numpy as np
import tifffile

from experiments.acquisition.pictures import mask_colour
from experiments.annotate.handoff import Drawn, sized
from experiments.annotate.untrusted import files
from experiments.errors import BadData, shown
from experiments.records.files import write as write_file
from experiments.store import IGNORE
from experiments.store.reading import MAX_IMAGE, refuse_large, regular


def write(request, out):
    request.copy_images(out / "images")
    (out / "labels").mkdir()
    colours = np.array([mask_colour(value) for value in range(256)], np.uint8).T
    legend = "\n".join(f"{value}: {name}" for value, name in request.asked["classes"].items())
    for image in request.images:
        mask = request.first(image)
        if mask is None:
            mask = np.zeros((image["height"], image["width"]), np.uint8)
        about = {"axes": "YX", "Info": f"{request.why(image)}\n{legend}", "LUTs": [colours]}
        packed = io.BytesIO()
        tifffile.imwrite(packed, mask, imagej=True, metadata=about)
        write_file(out / "labels" / f"{image['name']}.tif", packed.getvalue())
    return "open an image of images/ and its labels/*.tif as a labels layer, draw, save it as TIFF under its name."


def read(request, place):
    for path in files(place, ".tif", ".tiff"):
        yield Drawn(path, partial(mask, request, path))


def mask(request, path, image):
    """The numbers in a label TIFF. Raises BadData for more than one page or others than the classes."""
    found = numbers(path)
    sized(path, image, *found.shape)
    values = np.unique(found).tolist()
    wrong = [value for value in values if value != IGNORE and not 0 <= value < len(request.classes)]
    if wrong:
        known = f"the classes are 0 to {len(request.classes) - 1}, {IGNORE} is what nobody looked at"
        raise BadData(f"{path} holds {', '.join(map(str, wrong[:6]))}: {known}.")
    if values == [0] and request.first(image) is None:
        return None
    return found.astype(np.uint8)


def numbers(path):
    """(H, W) of whole numbers of 8 to 64 bits. Raises BadData."""
    try:
        with tifffile.TiffFile(regular(path, MAX_IMAGE)) as file:
            if len(file.pages) != 1:
                raise BadData(f"{path} has {len(file.pages)} pages: save one image a file.")
            page = file.pages[0]
            refuse_large(path, page.imagewidth, page.imagelength)
            if page.axes != "YX" or page.dtype is None or page.dtype.kind not in "ui":
                raise BadData(f"{path} is {page.dtype} {page.axes}: save one layer of whole numbers.")
            return page.asarray()
    except BadData:
        raise
    except Exception as error:  # on a damaged file tifffile raises whatever it meets
        if isinstance(error, MemoryError):
            raise
        raise BadData(f"{path} cannot be read as TIFF ({shown(str(error))}): save it again.") from error
