"""Processes forked from one that has imported the libraries, so that no run waits for that again.

Nothing computes in the process that forks: OpenMP's threads and a GPU's context do not survive a fork, so that a child
of a process which had used them would hang or fail.
"""

import json
import os
import signal
import sys
from importlib import import_module
from select import select
from threading import Thread

from experiments.errors import Refused
from experiments.errors.process import SIGNALS, one_line_errors, stop_if_asked

POLL = 0.1  # seconds between two looks at signals
LIBRARIES = ("torch.optim", "torch.nn", "torch._dynamo", "baal.active", "monai.losses", "safetensors.torch")
LIBRARIES += ("contourpy", "analysis.plots", "analysis.runs", "experiments.acquisition.pictures")
LIBRARIES += ("experiments.network.inference", "experiments.network.dropout", "experiments.records.mongo")


class Lifeline:
    """A pipe whose writing end only this process keeps open: when it ends, however, its children read that."""

    def __init__(self):
        self.reader, self.writer = os.pipe()

    def watch(self):
        """In a child: stop it as SIGTERM does once its parent is gone."""
        os.close(self.writer)
        Thread(target=self._wait, daemon=True).start()

    def _wait(self):
        os.read(self.reader, 1)
        os.kill(os.getpid(), signal.SIGTERM)


def import_libraries(components):
    """Import what every run needs, and the modules {(entry, name)} of its components, without computing anything."""
    import gc

    from experiments.components import load

    for name in LIBRARIES:
        import_module(name)
    for entry, name in sorted(components):
        load(entry, name)
    gc.collect()
    gc.freeze()  # else the first collection in each child copies every page


def fork(task, lifeline, log=None, environment=None):
    """The id of a new process that does task() and ends with its exit code; `log` is a file for all that it prints.

    It is in a group of its own, so that only its parent hears of Ctrl-C and passes it on.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # a signal between fork and the child's handlers would be lost
    try:
        number = os.fork()
        if number == 0:
            _child(task, lifeline, log, environment or {})
        return number
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def _child(task, lifeline, log, environment):
    code = 1
    try:
        os.setpgid(0, 0)
        signal.set_wakeup_fd(-1)
        for each in SIGNALS:
            if signal.getsignal(each) != signal.SIG_IGN:
                signal.signal(each, signal.default_int_handler if each == signal.SIGINT else signal.SIG_DFL)
        os.environ.update(environment)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        if log:
            print_to(log)
        lifeline.watch()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        code = code_of(task)
    except KeyboardInterrupt:
        code = 130
    finally:
        os._exit(code)


def print_to(log):
    """From now on all that this process prints goes to the file `log`."""
    for standard in (1, 2):
        os.dup2(log.fileno(), standard)


def code_of(task):
    """The exit code of a process that does task(), which says what ends it as a command does."""
    try:
        return task() or 0
    except SystemExit as error:
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr, flush=True)
        return error.code if isinstance(error.code, int) else 1
    except KeyboardInterrupt:
        return 130
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return 1
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError):
                pass


def answer(task, lifeline):
    """What task() returns, as JSON has it, computed in a forked process, so that this one stays fit to fork.

    Raises Refused where the task does, with its line.
    """
    reader, writer = os.pipe()

    def work():
        os.close(reader)
        try:
            said = {"answer": task()}
        except Refused as error:
            said = {"refused": str(error)}
        with open(writer, "w") as pipe:
            json.dump(said, pipe)

    def guarded():
        with one_line_errors():
            work()

    number, text = fork(guarded, lifeline), b""
    os.close(writer)
    try:
        with open(reader, "rb", buffering=0) as pipe:
            part = b" "
            while part:
                stop_if_asked()
                if select([pipe], [], [], POLL)[0]:
                    part = pipe.read(2**16)
                    text += part
    except KeyboardInterrupt:
        os.kill(number, signal.SIGKILL)
        raise
    finally:
        _, status = os.waitpid(number, 0)
    if not text:
        raise SystemExit(os.waitstatus_to_exitcode(status) or 1)
    said = json.loads(text)
    if "refused" in said:
        raise Refused(said["refused"])
    return said["answer"]
