"""The runs of a study, so many at once: claimed, forked, continued where one was stopped, named where one fails."""

import os
import signal
from collections import Counter, deque
from contextlib import suppress
from dataclasses import dataclass, field
from time import monotonic, sleep

from experiments.errors import Refused, Terminated
from experiments.errors.process import stop_if_asked, unusable
from experiments.records.files import hold, release
from experiments.records.ledger import finished
from experiments.records.stored_records import completed
from experiments.study.forked import fork

POLL = 0.1  # seconds between two looks at the processes
RETRY = 1.0  # seconds until a run that another study holds is looked at again
PATIENCE = 20  # seconds that a run which was asked to stop may take: a step, its records, a database
ATTEMPTS = 2  # of a run whose process was killed, as by the kernel where memory ran out
LOST = -1000  # the code of a run whose machine was lost: it goes on elsewhere
LOSSES = 3  # machines that a run may lose: it may be what ends them


@dataclass
class Process:
    """A run at work."""

    cell: object
    lock: tuple  # its path, the held file
    log: object  # path
    start: int  # where this start's lines begin in the log


@dataclass
class Progress:
    """How far a study is; what the table shows."""

    cells: list
    done: set = field(default_factory=set)  # folders
    going: dict = field(default_factory=dict)  # {process id, or a task of Ray: Process}
    elsewhere: set = field(default_factory=set)  # folders that another study is at work on
    failed: dict = field(default_factory=dict)  # {folder: (cell, reason, log)}
    cpu: float = 0.0  # seconds of the processes that have ended


def is_done(cell):
    """Whether nothing is left to do for this cell: every evaluation is in its ledger and the end in its record."""
    try:
        return finished(cell.folder, cell.cycles, cell.stop_at) and completed(cell.folder) is not None
    except Refused:  # a damaged ledger, of which the run itself says what is wrong
        return False


class Forks:
    """Where the runs of a study take place: in processes forked from this one, one for each of `slots` at once.

    `run(cell)` is a run, called in a process of its own with the environment that is its slot.
    """

    def __init__(self, run, lifeline, slots):
        self.run, self.lifeline, self.slots = run, lifeline, slots
        self.free, self.used = list(range(len(slots))), {}

    def room(self):
        return bool(self.free)

    def begin(self, cell, log):
        """The key of a run that has begun, which prints to the file `log`."""
        number = fork(lambda: self.run(cell), self.lifeline, log, self.slots[self.free[-1]])
        self.used[number] = self.free.pop()
        return number

    def ended(self):
        """[(key, exit code, CPU seconds)] of the runs that have ended; minus a signal's number where it killed them."""
        found = []
        for number in list(self.used):
            ended, status, used = os.wait4(number, os.WNOHANG)
            if ended:
                self.free.append(self.used.pop(number))
                found.append((number, os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime))
        return found

    def stop(self, number):
        """Pass a signal on to all."""
        for pid in self.used:
            with suppress(ProcessLookupError):
                os.kill(pid, number)


def work(progress, at, place, show=lambda progress: None):
    """Do every cell of `progress` that is not done, at a place such as Forks; returns the Progress.

    `place` is the folder for locks and logs. A cell that another study holds is waited for. A signal is passed on;
    what it stopped continues by the same command. Raises KeyboardInterrupt or Terminated then, once all runs have
    ended.
    """
    waiting = deque(cell for cell in progress.cells if cell.folder not in progress.done | progress.failed.keys())
    died, asked = Counter(), -RETRY
    try:
        while waiting or progress.going:
            while (
                waiting and at.room() and not (len(waiting) <= len(progress.elsewhere) and monotonic() < asked + RETRY)
            ):
                cell = waiting.popleft()
                asked = monotonic()
                if not start(progress, cell, at, place) and cell.folder in progress.elsewhere:
                    waiting.append(cell)
            for key, code, seconds in at.ended():
                process = progress.going.pop(key)
                progress.cpu += seconds
                lost = code == LOST
                died[process.cell.folder, lost] += 1
                if code < 0 and died[process.cell.folder, lost] < (LOSSES if lost else ATTEMPTS):
                    waiting.appendleft(process.cell)
                else:
                    end(progress, process, code)
                release(*process.lock)
            show(progress)
            stop_if_asked()
            sleep(POLL)
    except BaseException as error:
        stop(progress, at, signal.SIGINT if type(error) is KeyboardInterrupt else signal.SIGTERM)
        raise
    return progress


def start(progress, cell, at, place):
    """Claim a cell and begin its run: whether one has begun. No other study runs a cell that is claimed."""
    base = place.joinpath(cell.folder.relative_to(place.parent))
    path, log = base.with_name(base.name + ".lock"), base.with_name(base.name + ".log")
    try:
        base.parent.mkdir(parents=True, exist_ok=True)
        held = hold(path)
        if held is None or being_written(cell.folder):
            progress.elsewhere.add(cell.folder)
            if held:
                release(path, held)
            return False
        progress.elsewhere.discard(cell.folder)
        if is_done(cell):
            progress.done.add(cell.folder)
            release(path, held)
            return False
        with open(log, "ab") as file:
            began = file.tell()
            key = at.begin(cell, file)
    except OSError as error:
        raise unusable(error.filename or log, error, "written", ", then the same command continues") from error
    progress.going[key] = Process(cell, (path, held), log, began)
    return True


def being_written(folder):
    """Whether a run that is no study's is at work there."""
    path = folder / "lock"
    held = hold(path) if path.exists() else None
    if held:
        held.close()
    return path.exists() and held is None


def end(progress, process, code):
    """Take note of a run's end."""
    cell = process.cell
    if code == 0 and is_done(cell):
        progress.done.add(cell.folder)
        return
    with open(process.log, "rb") as file:
        file.seek(process.start)
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    said = lines[-1] if lines else "it said nothing"
    if code == LOST:
        said = f"{LOSSES} machines were lost while it ran"
    elif code < 0:
        name = signal.Signals(-code).name
        said = f"killed by {name} {ATTEMPTS} times" + (", as where memory ran out" if name == "SIGKILL" else "")
    elif code == 0:
        said = "it ended without its record, as on a full disk"
    progress.failed[cell.folder] = (cell, said, process.log)


def stop(progress, at, number):
    """Pass a signal on, and wait until no run is left."""
    at.stop(number)
    deadline = monotonic() + PATIENCE
    while progress.going:
        if monotonic() > deadline:
            at.stop(signal.SIGKILL)
        for key, _, _ in at.ended():
            release(*progress.going.pop(key).lock)
        sleep(POLL)


def code_of(error):
    """The exit code of a study that was stopped."""
    return error.code if isinstance(error, Terminated) else 130
