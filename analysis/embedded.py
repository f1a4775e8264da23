"""Pictures that a page carries in itself: figures as SVG, files as WebP in a data URL, of no file from elsewhere."""

import base64
import io
import warnings

from matplotlib import rc_context
from PIL import Image

WIDTH = 1200  # pixels of a picture in a page, at most


def as_svg(drawn):
    """The text of the figure that `drawn()` gives, its text and lines in the page's colour."""
    svg = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "askmask"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # missing here, but the browser has fonts of its own
        drawn().savefig(svg, format="svg", transparent=True, metadata={"Date": None})
    text = svg.getvalue()
    return text[text.index("<svg") :].replace("#000000", "currentColor")


def inside(folder, pattern):
    """Files of a run's folder that match, sorted, without those that a link leads to from elsewhere."""
    root, found = folder.resolve(), folder.glob(pattern)
    return sorted(p for p in found if p.is_file() and p.resolve() == root / p.relative_to(folder))


def picture(path, width=WIDTH):
    """(data URL, (width, height)) of a PNG; (None, None) if the file is none, or larger than Pillow trusts."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=["PNG"]) as png:
                image = png.convert("RGB")
        image.thumbnail((width, width))
        webp = io.BytesIO()
        image.save(webp, "WEBP", quality=75)
        return f"data:image/webp;base64,{base64.b64encode(webp.getvalue()).decode()}", image.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombWarning, Image.DecompressionBombError):
        return None, None  # the page says so
