"""Faults that names and first bytes of files show: FILE {kind: check of a Header}, LISTING {kind: check of items}."""

import os
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import numpy as np
from PIL import Image

from experiments.store.reading import MAX_IMAGE, MAX_PIXELS, regular

SIGNS = {b"\x89PNG": "PNG", b"\xff\xd8\xff": "JPEG", b"BM": "BMP", b"II*\0": "TIFF", b"MM\0*": "TIFF", b"GIF8": "GIF"}
SUFFIXES = {"PNG": [".png"], "JPEG": [".jpg", ".jpeg"], "BMP": [".bmp"], "TIFF": [".tif", ".tiff"], "GIF": [".gif"]}
ENDINGS = {ending: format for format, endings in SUFFIXES.items() for ending in endings}
HEAD = 256  # bytes, in which the pixels of most files begin
NO_NUMBERS = "of them no numbers"
ORIENTATION = 274  # the EXIF tag


@dataclass(frozen=True)
class Header:
    """What is known of a file without its pixels; `role` is "image" or "mask"."""

    path: Path
    role: str
    trouble: str = ""  # what the operating system says of it
    length: int = 0  # bytes
    format: str = ""  # as its first bytes say, "" for none that is known
    mode: str = ""  # Pillow's
    size: tuple = (0, 0)  # width and height
    frames: int = 1
    orientation: int = 1  # EXIF's
    clear: bool = False  # whether pixels are transparent
    colours: dict | None = None  # {index: (r, g, b)} of a palette
    error: str = ""  # why it cannot be decoded


def harmless(path, role):
    """Whether the first bytes show an 8-bit PNG or BMP of the name's format: most files need no longer look.

    A PNG says before its pixels that it is an animation, or how it is to be turned.
    """
    try:
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        head = os.read(file, HEAD)
    except OSError:
        return False
    finally:
        os.close(file)
    ending = os.fspath(path)[-4:].lower()
    if head[:4] == b"\x89PNG":
        plain = head[24] == 8 and head[25] in ((0, 2, 3) if role == "image" else (0, 2))
        return ending == ".png" and plain and b"IDAT" in head and b"acTL" not in head and b"eXIf" not in head
    return head[:2] == b"BM" and ending == ".bmp" and head[28] in (8, 24)


def look(path, role, whole=False):
    """The Header of a file; with `whole` its pixels are decoded too, to learn why they cannot be."""
    header = Header(path, role)
    try:
        header = replace(header, length=os.stat(path).st_size)
        if header.length or not os.path.isfile(path):
            regular(path, MAX_IMAGE)
        with open(path, "rb", buffering=0) as file:
            head = file.read(8)
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        return replace(header, trouble="missing" if missing else error.strerror or str(error))
    format = next((format for sign, format in SIGNS.items() if head.startswith(sign)), "")
    if not format:
        return header
    header = replace(header, format=format)
    try:
        with Image.open(path, formats=[format]) as image:
            header = replace(header, mode=image.mode, size=image.size, frames=getattr(image, "n_frames", 1))
            if image.width * image.height <= MAX_PIXELS:
                header = replace(header, orientation=image.getexif().get(ORIENTATION, 1))
                if whole or image.mode in ("RGBA", "LA"):
                    image.load()
                if image.mode in ("RGBA", "LA"):
                    header = replace(header, clear=image.getchannel("A").getextrema()[0] < 255)
                if image.mode == "P" and role == "mask":
                    flat = image.getpalette("RGB")
                    palette = [tuple(flat[i : i + 3]) for i in range(0, len(flat), 3)]
                    header = replace(header, colours=dict(enumerate(palette)))
    except Image.DecompressionBombError:
        return replace(header, size=promised(path))
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        return replace(header, error=" ".join(str(error).split()) or type(error).__name__)
    return header


def promised(path):
    """(width, height) that a PNG, BMP or other header states, for one that Pillow refuses to open; (0, 0): unknown."""
    with open(path, "rb") as file:
        head = file.read(32)
    if head[:4] == b"\x89PNG":
        return int.from_bytes(head[16:20]), int.from_bytes(head[20:24])
    if head[:2] == b"BM":
        return int.from_bytes(head[18:22], "little"), abs(int.from_bytes(head[22:26], "little", signed=True))
    return MAX_PIXELS, 2


# each gives what was found, "" where nothing is wrong; the first that finds something names an unreadable file


def missing(header):
    if header.trouble != "missing":
        return ""
    if os.path.islink(header.path):
        return f"the link leads to {os.readlink(header.path)}, where nothing is"
    folder, name = os.path.split(header.path)
    try:
        near = [other for other in os.listdir(folder) if other.lower() == name.lower()]
    except OSError:
        near = []
    return f"it is not there, but {near[0]} is" if near else "it is not there"


def no_file(header):
    return header.trouble if header.trouble != "missing" else ""


def empty(header):
    return "it has no bytes" if not header.trouble and not header.length else ""


def unknown_format(header):
    return "its first bytes are no image's" if not header.format and not header.trouble and header.length else ""


def wrong_extension(header):
    ending = Path(header.path).suffix.lower()
    wrong = header.format and ending not in SUFFIXES[header.format]
    return f"it is a {header.format} file called {ending or 'without an ending'}" if wrong else ""


def huge(header):
    width, height = header.size
    return f"its header claims {width} x {height} pixels" if width * height > MAX_PIXELS else ""


def truncated(header):
    return header.error if "truncated" in header.error.lower() or "unexpected end" in header.error.lower() else ""


def damaged(header):
    return header.error if not truncated(header) else ""


def animated(header):
    return f"{header.frames} frames, of which the first alone is seen" if _many(header, "GIF") else ""


def several_pages(header):
    return (
        f"{header.frames} pages, of which the first alone is seen"
        if header.frames > 1 and header.format != "GIF"
        else ""
    )


def _many(header, format):
    return header.frames > 1 and header.format == format


def turned(header):
    return f"EXIF orientation {header.orientation}: viewers turn it, arrays do not" if header.orientation > 1 else ""


def cmyk(header):
    return "it is a CMYK image" if header.mode == "CMYK" else ""


def deep_image(header):
    deep = header.role == "image" and header.mode.startswith("I")
    return f"{header.mode}: more than 8 bits a pixel are cut off at 255" if deep else ""


def float_image(header):
    return _float(header, "image")


def transparent(header):
    return "some of its pixels are transparent" if header.role == "image" and header.clear else ""


def deep_mask(header):
    return f"{header.mode}, not 8 bits a pixel" if header.role == "mask" and header.mode.startswith("I") else ""


def float_mask(header):
    return _float(header, "mask")


def _float(header, role):
    if header.role != role or header.mode != "F" or header.error:
        return ""
    with Image.open(header.path) as image:
        values = np.array(image)
    bad = int((~np.isfinite(values)).sum())
    return f"floats, {bad} {NO_NUMBERS}" if bad else "floats"


def rgba_mask(header):
    return "colours with transparency" if header.role == "mask" and header.mode == "RGBA" else ""


def rgb_mask(header):
    return "colours" if header.role == "mask" and header.mode in ("RGB", "YCbCr", "CMYK") else ""


def la_mask(header):
    return "grey with transparency" if header.role == "mask" and header.mode == "LA" else ""


def bit_mask(header):
    return "one bit a pixel" if header.role == "mask" and header.mode == "1" else ""


FILE = {
    "missing": missing,
    "no file": no_file,
    "empty file": empty,
    "unknown format": unknown_format,
    "huge header": huge,
    "truncated": truncated,
    "damaged": damaged,
    "animated": animated,
    "several pages": several_pages,
    "CMYK": cmyk,
    "16-bit image": deep_image,
    "float image": float_image,
    "transparent image": transparent,
    "EXIF rotation": turned,
    "16-bit mask": deep_mask,
    "float mask": float_mask,
    "RGBA mask": rgba_mask,
    "RGB mask": rgb_mask,
    "LA mask": la_mask,
    "1-bit mask": bit_mask,
    "wrong extension": wrong_extension,
}
ANYWAY = (  # what is wrong though a dataset's reader takes the file
    "animated",
    "several pages",
    "CMYK",
    "transparent image",
    "EXIF rotation",
    "wrong extension",
)


# each yields (path, what was found), given {split name: items}, the folder that all should lie in and `neighbours` of
# the items; an item's image and mask are tuples of files here


def neighbours(splits):
    """{folder: ({name there: whether it is a link}, names that items use)}."""
    used = defaultdict(set)
    for items in splits.values():
        for item in items:
            for path in (*item.image, *item.mask):
                folder, name = os.path.split(path)
                used[folder].add(name)
    return {folder: (_entries(folder), names) for folder, names in sorted(used.items())}


def _entries(folder):
    if not os.path.isdir(folder):
        return {}
    with os.scandir(folder) as entries:
        return {entry.name: entry.is_symlink() for entry in entries}


def outside(splits, root, around):
    """`..` and links that lead out of the root: what another machine will not have."""
    home = os.path.join(os.path.realpath(root), "")
    for folder, (there, names) in around.items():
        if os.path.join(os.path.realpath(folder), "").startswith(home):
            names = {name for name in names if there.get(name)}
        for name in sorted(names):
            leads = os.path.realpath(os.path.join(folder, name))
            if not leads.startswith(home):
                yield Path(folder, name), f"it leads to {leads}, out of {root}"


def no_unicode(splits, root, around):
    for folder, (_, names) in around.items():
        for name in sorted(names):
            try:
                os.path.join(folder, name).encode()
            except UnicodeEncodeError:
                yield Path(folder, name), "its name is no UTF-8"


def same_stem(splits, root, around):
    for folder, (there, used) in around.items():
        by_stem = defaultdict(list)
        for name in sorted(there):
            stem, _, ending = name.rpartition(".")
            if f".{ending.lower()}" in ENDINGS:
                by_stem[stem].append(name)
        for names in _several(by_stem):
            if len({name.lower() for name in names}) > 1 and used & set(names):
                yield Path(folder, names[1]), f"{names[0]} lies beside it: one image, or two?"


def case_clash(splits, root, around):
    for folder, (there, used) in around.items():
        by_name = defaultdict(list)
        for name in sorted(there):
            by_name[name.lower()].append(name)
        for names in _several(by_name):
            if used & set(names):
                yield Path(folder, names[1]), f"{names[0]} lies beside it: other systems take them for one"


def _several(groups):
    return (names for names in groups.values() if len(names) > 1)


def same_id(splits, root, around):
    counts = Counter(item.id for items in splits.values() for item in items)
    first = {item.id: item.image[0] for items in splits.values() for item in items}
    for id, count in counts.items():
        if count > 1:
            yield first[id], f"{count} images are called {id}"


def shared_mask(splits, root, around):
    yield from _shared(splits, "mask")


def shared_image(splits, root, around):
    yield from _shared(splits, "image")


def _shared(splits, role):
    """A file that serves two items, unless their other file is one as well: then it holds many pages or is in tiles."""
    other = {"mask": "image", "image": "mask"}[role]
    users = defaultdict(set)
    for items in splits.values():
        for item in items:
            users[getattr(item, role)].add(getattr(item, other))
    for files, others in users.items():
        if len(others) > 1:
            yield files[0], f"it is the {role} of {', '.join(sorted(os.path.basename(o[0]) for o in others)[:3])}"


def split_source(splits, root, around):
    """Images of one source on two sides: what is learnt there is measured here."""
    held = {name: {item.source: item for item in reversed(items) if item.source} for name, items in splits.items()}
    for one, other in combinations(held, 2):
        both = sorted(held[one].keys() & held[other].keys())
        count = sum(item.source in both for item in splits[other])
        if both:
            said = f"{len(both)} source{'s' * (len(both) > 1)} ({', '.join(both[:8])}{' ...' if len(both) > 8 else ''})"
            verb = "are" if len(both) > 1 else "is"
            yield held[other][both[0]].image[0], f"{said} {verb} in {one} and in {other}, there with {count} images"


LISTING = {
    "outside the root": outside,
    "name no UTF-8": no_unicode,
    "duplicate stem": same_stem,
    "case clash": case_clash,
    "duplicate id": same_id,
    "shared mask": shared_mask,
    "shared image": shared_image,
    "source in two splits": split_source,
}
