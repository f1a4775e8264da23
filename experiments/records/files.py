"""Files that a crash leaves whole: appended line by line, or replaced in one step."""

import os

from experiments.errors import Refused


def append_line(path, line):
    """Append and fsync; a line that does not fit on the disk is taken back whole."""
    data = line.encode() + b"\n"
    with open(path, "ab", buffering=0) as file:
        end = file.tell()
        try:
            while data:
                data = data[file.write(data) :]
            os.fsync(file.fileno())
        except OSError as error:
            file.truncate(end)
            raise _disk(path, error) from error


def write(path, data):
    """Replace `path` by `data` in one step: a crash leaves the old file or the new one, never half of one."""
    part = path.with_name(path.name + ".part")
    try:
        with open(part, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise _disk(path, error) from error


def _disk(path, error):
    return Refused(f"{path} cannot be written ({error.strerror}): free the disk, then the same command continues.")
