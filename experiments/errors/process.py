"""Where a command meets its machine: signals that ask it to stop, closed pipes, and what the operating system refuses.

A signal is only noted when it arrives; all long work calls `stop_if_asked` between two steps. An exception raised in
the signal's handler would be lost where Python happens to run a library's callback.
"""

import errno
import io
import os
import signal
import sys
import tempfile
from contextlib import contextmanager
from threading import Event, Thread, current_thread, main_thread

from experiments.errors import Refused, Terminated

GRACE = 3  # seconds that a step may still take once a signal has arrived
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
ADVICE = {
    "free the disk": (errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
    "choose a place that you may read and write": (errno.EACCES, errno.EPERM, errno.EROFS),
    "move away what is there, or choose another place": (errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ELOOP),
    "shorten the name": (errno.ENAMETOOLONG,),
    "check the spelling, or choose a place where folders can be made": (errno.ENOENT,),
    "raise the limit of open files, `ulimit -n 4096`": (errno.EMFILE, errno.ENFILE),
    "free memory": (errno.ENOMEM,),
    "look after the disk or its network": (errno.EIO, errno.ESTALE, errno.ETIMEDOUT),
}
_state = {"signal": None, "stopped": Event()}


def stop_asked():
    """Whether a signal asks this command to stop."""
    return _state["signal"] is not None


def stop_if_asked():
    """Raise KeyboardInterrupt for SIGINT, Terminated for SIGTERM and SIGHUP, if one has arrived."""
    if stop_asked():
        _state["stopped"].set()
        if _state["signal"] == signal.SIGINT:
            raise KeyboardInterrupt
        raise Terminated("Terminated: the same command continues.")


@contextmanager
def signals_noted(give_up):
    """In here signals are noted for `stop_if_asked`, further ones change nothing, and ignored ones stay ignored.

    `give_up(number)` is called from another thread when no step has ended GRACE seconds after signal `number`.
    """
    if current_thread() is not main_thread():  # where Python takes no signals
        yield
        return
    _state.update(signal=None, stopped=Event())
    reader, writer = os.pipe()  # Python writes the signal's number there at once, in a long computation too
    os.set_blocking(writer, False)
    Thread(target=_watch, args=(reader, _state["stopped"], give_up), daemon=True).start()
    before = {number: signal.getsignal(number) for number in SIGNALS}
    before = {number: handler for number, handler in before.items() if handler not in (None, signal.SIG_IGN)}  # nohup
    kept = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in before:
        signal.signal(number, lambda number, frame: None)
    try:
        yield
    finally:
        for number, handler in before.items():  # a process that was asked is about to end, and stays undisturbed
            signal.signal(number, signal.SIG_IGN if stop_asked() else handler)
        signal.set_wakeup_fd(kept)
        _state.update(signal=None)
        os.close(writer)


def _watch(reader, stopped, give_up):
    with open(reader, "rb", buffering=0) as arriving:
        while byte := arriving.read(1):
            if byte[0] in SIGNALS:
                _state["signal"] = byte[0]
                if not stopped.wait(GRACE) and stop_asked():
                    give_up(byte[0])
                return


class _Droppable(io.FileIO):
    """A stream that drops what cannot be written: to a closed pipe as of `| head`, a lost terminal, a full disk."""

    def write(self, data):
        try:
            return super().write(data)
        except OSError:
            return len(data)


def drop_unwritable_output():
    """From now on no line that cannot be printed ends this process."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and stream is getattr(sys, f"__{name}__"):
            file = io.BufferedWriter(_Droppable(stream.fileno(), "w", closefd=False))
            more = {"line_buffering": stream.line_buffering, "write_through": stream.write_through}
            setattr(sys, name, io.TextIOWrapper(file, stream.encoding, stream.errors, **more))


def reason_and_advice(error):
    """What the operating system says of an OSError, and what helps, without a full stop."""
    advice = next((text for text, numbers in ADVICE.items() if error.errno in numbers), "choose another place")
    return error.strerror or type(error).__name__, advice


def unusable(path, error, tried="used", more=""):
    """Refused, for what the operating system says of a path, with what helps."""
    reason, advice = reason_and_advice(error)
    return Refused(f"{path} cannot be {tried} ({reason}): {advice}{more}.")


def refusal(error):
    """The Refused that tells a user of this error in one line; None for one that is a fault of the program."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)):
        return Refused("Memory ran out: end other programs, or lower batch, crop or width.")
    if not isinstance(error, OSError) or error.errno is None:
        return None
    return unusable(error.filename or f"A file in the results folder or in {tempfile.gettempdir()}", error)


@contextmanager
def one_line_errors():
    """Around a command's main function: what the user or the operating system is to blame for is one line, exit 1."""
    drop_unwritable_output()
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        refused = refusal(error)
        if refused is None:
            raise
        sys.exit(str(refused))
