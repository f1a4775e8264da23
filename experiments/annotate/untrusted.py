"""What annotation tools send back, read without trust: zips that cannot write elsewhere or swell, strict JSON."""

import json
import stat
import tempfile
import zipfile
import zlib
from contextlib import contextmanager
from pathlib import Path

from experiments.errors import BadData, Refused, shown
from experiments.errors.process import stop_if_asked
from experiments.store.reading import regular

MOST_FILES = 20_000  # in a zip or a folder
MOST_BYTES = 2**31  # of a zip, unpacked
MOST_JSON = 2**28  # bytes; Python's own objects take several times as much
BLOCK = 2**20


@contextmanager
def opened(source):
    """The Path of a file or folder, or of a temporary folder with all of a zip, checked first. Raises Refused."""
    source = Path(source)
    if not source.exists():
        raise Refused(f"{source} does not exist: name the file or folder that the tool wrote.")
    if source.suffix.lower() != ".zip":
        yield source
        return
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / source.name  # so that messages name the zip
        place.mkdir()
        try:
            regular(source, 2 * MOST_BYTES)
        except OSError as error:
            raise Refused(f"{source} cannot be unpacked ({error}): export it again, or in parts.") from error
        try:
            with zipfile.ZipFile(source) as file:
                unpack(source, file, place)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
            raise Refused(f"{source} cannot be unpacked ({shown(str(error))}): export it again.") from error
        yield place


def unpack(source, file, place):
    """Write all files of a ZipFile under `place`. Raises Refused, before the first one, if any has a fault."""
    members = file.infolist()
    size = sum(member.file_size for member in members)
    if len(members) > MOST_FILES or size > MOST_BYTES:
        most = f"at most {MOST_FILES} files of {MOST_BYTES} bytes together"
        raise Refused(f"{source} holds {len(members)} files of {size} bytes, {most} are taken: send it in parts.")
    seen = set()
    for member in members:
        wrong = fault(member, seen)
        if wrong:
            raise Refused(f"{source} holds {shown(member.orig_filename)}, {wrong}: nothing of it is taken.")
        seen.add(member.filename)
    for member in members:
        stop_if_asked()
        path = place / member.filename
        if member.is_dir():
            path.mkdir(parents=True, exist_ok=True)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        with file.open(member) as packed, open(path, "xb") as out:
            while block := packed.read(BLOCK):  # never more than file_size
                out.write(block)


def fault(member, seen):
    """What is wrong with a member of a zip, "" if nothing is."""
    name, kind = member.orig_filename, stat.S_IFMT(member.external_attr >> 16)
    parts = name.rstrip("/").split("/")
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "a link" if kind == stat.S_IFLNK else "a device"
    if "\\" in name or ":" in parts[0] or name.startswith("/") or not name.isprintable() or "\0" in name:
        return "no plain relative name"
    if any(part in ("", ".", "..") for part in parts) or max(len(part.encode()) for part in parts) > 255:
        return "a name that leads elsewhere"
    if member.flag_bits & 1:
        return "which is encrypted"
    return "a name that is there twice" if member.filename in seen else ""


def files(place, *endings):
    """The regular files with these endings in a folder, sorted, or the one file that `place` is. Raises Refused."""
    if place.is_file():
        return [place] if place.suffix.lower() in endings else []
    root, found = place.resolve(), []
    for path in sorted(place.rglob("*")):
        hidden = any(part.startswith(".") or part == "__MACOSX" for part in path.relative_to(place).parts)
        if hidden or path.suffix.lower() not in endings:
            continue
        if not path.resolve().is_relative_to(root):
            raise Refused(f"{path} leads out of {place}: copy the file itself.")
        if path.is_file():
            found.append(path)
        if len(found) > MOST_FILES:
            raise Refused(f"{place} holds more than {MOST_FILES} files: name the folder that the tool wrote.")
    return found


def read_json(path):
    """What a JSON file says, without NaN and infinity. Raises BadData."""
    try:
        return json.loads(Path(regular(path, MOST_JSON)).read_bytes(), parse_constant=no_number)
    except (OSError, ValueError, RecursionError) as error:
        raise BadData(f"{path} cannot be read as JSON ({shown(str(error))}): export it again.") from error


def no_number(word):
    raise ValueError(f"it holds {word}")
