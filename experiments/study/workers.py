"""The runs of a study, so many at once: claimed, forked, continued where one was stopped, named where one fails."""

import os
import signal
from collections import deque
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


@dataclass
class Process:
    """A run at work."""

    cell: object
    lock: tuple  # its path, the held file
    log: object  # path
    start: int  # where this start's lines begin in the log
    slot: int


@dataclass
class Progress:
    """How far a study is; what the table shows."""

    cells: list
    done: set = field(default_factory=set)  # folders
    going: dict = field(default_factory=dict)  # {process id: Process}
    elsewhere: set = field(default_factory=set)  # folders that another study is at work on
    failed: dict = field(default_factory=dict)  # {folder: (cell, reason, log)}
    cpu: float = 0.0  # seconds of the processes that have ended


def is_done(cell):
    """Whether nothing is left to do for this cell: every evaluation is in its ledger and the end in its record."""
    try:
        return finished(cell.folder, cell.cycles, cell.stop_at) and completed(cell.folder) is not None
    except Refused:  # a damaged ledger, of which the run itself says what is wrong
        return False


def work(progress, run, place, lifeline, slots, show=lambda progress: None):
    """Do every cell of `progress` that is not done, one for each of `slots` at once; returns the Progress.

    `run(cell)` is a run, called in a process of its own with the environment that is its slot; `place` is the folder
    for locks and logs. A cell that another study holds is waited for. A signal is passed on; what it stopped
    continues by the same command. Raises KeyboardInterrupt or Terminated then, once all processes have ended.
    """
    waiting = deque(cell for cell in progress.cells if cell.folder not in progress.done | progress.failed.keys())
    free, killed, asked = list(range(len(slots))), {}, -RETRY
    try:
        while waiting or progress.going:
            while waiting and free and not (len(waiting) <= len(progress.elsewhere) and monotonic() < asked + RETRY):
                cell = waiting.popleft()
                asked = monotonic()
                if start(progress, cell, run, place, lifeline, free[-1], slots):
                    free.pop()
                elif cell.folder in progress.elsewhere:
                    waiting.append(cell)
            for number in list(progress.going):
                ended, status, used = os.wait4(number, os.WNOHANG)
                if ended:
                    process = progress.going.pop(number)
                    free.append(process.slot)
                    progress.cpu += used.ru_utime + used.ru_stime
                    code = os.waitstatus_to_exitcode(status)
                    killed[process.cell.folder] = killed.get(process.cell.folder, 0) + (code < 0)
                    if code < 0 and killed[process.cell.folder] < ATTEMPTS:
                        waiting.append(process.cell)
                    else:
                        end(progress, process, code)
                    release(*process.lock)
            show(progress)
            stop_if_asked()
            sleep(POLL)
    except BaseException as error:
        stop(progress, signal.SIGINT if type(error) is KeyboardInterrupt else signal.SIGTERM)
        raise
    return progress


def start(progress, cell, run, place, lifeline, slot, slots):
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
            number = fork(lambda: run(cell), lifeline, file, slots[slot])
    except OSError as error:
        raise unusable(error.filename or log, error, "written", ", then the same command continues") from error
    progress.going[number] = Process(cell, (path, held), log, began, slot)
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
    if code < 0:
        name = signal.Signals(-code).name
        said = f"killed by {name} {ATTEMPTS} times" + (", as where memory ran out" if name == "SIGKILL" else "")
    elif code == 0:
        said = "it ended without its record, as on a full disk"
    progress.failed[cell.folder] = (cell, said, process.log)


def stop(progress, number):
    """Pass a signal on, and wait until no process is left."""
    for pid in progress.going:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
    deadline = monotonic() + PATIENCE
    while progress.going:
        for pid, process in list(progress.going.items()):
            if monotonic() > deadline:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if os.wait4(pid, os.WNOHANG)[0]:
                release(*process.lock)
                del progress.going[pid]
        sleep(POLL)


def code_of(error):
    """The exit code of a study that was stopped."""
    return error.code if isinstance(error, Terminated) else 130
