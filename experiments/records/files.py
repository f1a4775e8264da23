"""Files that a crash leaves whole, appended line by line or replaced in one step, and locks that a crash releases."""

import fcntl
import os
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from experiments.errors.process import unusable


def append_line(path, line):
    """Append and fsync; a line that does not fit on the disk is taken back whole. Raises Refused."""
    data = line.encode() + b"\n"
    try:
        with open(path, "ab", buffering=0) as file:
            end = file.tell()
            try:
                while data:
                    data = data[file.write(data) :]
                os.fsync(file.fileno())
            except OSError:
                with suppress(OSError):
                    file.truncate(end)
                raise
    except OSError as error:
        raise unusable(path, error, "written", ", then the same command continues") from error


def write(path, data, shared=False):
    """Replace `path` by `data` in one step: a crash leaves the old file or the new one, never half of one.

    Raises Refused. A killed writer leaves `<path>.part`: who holds the lock of what lies there removes it. `shared`:
    nobody does, and several processes may write at once; the last one's file stays.
    """
    try:
        replace(path, [data], shared)
    except OSError as error:
        raise unusable(path, error, "written", ", then the same command continues") from error


def replace(path, parts, shared=False):
    """As `write`, by bytes that come in parts. Raises OSError."""
    own = f".{uuid4().hex[:12]}" if shared else ""
    part = path.with_name(f"{path.name}{own}.part")
    part.unlink(missing_ok=True)
    try:
        with open(part, "xb") as file:  # never through a link that lies there
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def hold(path):
    """The lock file at `path`, opened and locked until its process ends; None while another process holds it."""
    number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    file = os.fdopen(number, "r+b", buffering=0)
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(number), os.stat(path)):  # not one that was released meanwhile
            return file
    except OSError:
        pass
    file.close()
    return None


def release(path, file):
    """Remove a lock that `hold` gave."""
    Path(path).unlink(missing_ok=True)
    file.close()
