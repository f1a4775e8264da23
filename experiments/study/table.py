"""What a person sees of a study: a live table on a terminal; in a log, a line for each run that has ended."""

import sys
from contextlib import contextmanager
from time import monotonic

import numpy as np

from experiments.records.progress import duration, say

EVERY = 1.0  # seconds between two looks at the curves
QUIET = 300  # seconds without a line in a log, after which one says how far the study is


@contextmanager
def shown(cells, done):
    """Gives a function of a study's Progress that shows it; `done` are the folders of what was done before."""
    clock = Clock(cells, done)
    if sys.stdout.isatty():
        from rich.live import Live  # a log needs none

        # no thread of rich's refreshes it: one that held a lock at a fork would hold it in the child for ever
        with Live(auto_refresh=False, transient=True) as live:
            yield lambda progress: clock.due() and live.update(table(progress, clock), refresh=True)
        return
    ended, said = set(done), [monotonic()]

    def lines(progress):
        if monotonic() > said[0] + QUIET:
            said[0] = monotonic()
            clock.look(progress)
            say(summary(progress) + clock.left())
        for folder in [*progress.done - ended, *progress.failed.keys() - ended]:
            ended.add(folder)
            said[0] = monotonic()
            cell = next(cell for cell in cells if cell.folder == folder)
            what = f"failed: {progress.failed[folder][1]}" if folder in progress.failed else last(cell)
            clock.look(progress)
            say(f"{cell.name}: {what} ({summary(progress)}{clock.left()})")

    yield lines


class Clock:
    """How long a study will yet take, by the evaluations that were made since it began."""

    def __init__(self, cells, done):
        self.total = sum(cell.cycles + 1 for cell in cells)
        self.before, self.began, self.looked = 0, monotonic(), -EVERY
        self.curves = {cell.folder: curve(cell) for cell in cells}
        self.before = self.made = self.count()

    def count(self):
        return sum(map(len, self.curves.values()))

    def due(self):
        return monotonic() > self.looked + EVERY

    def look(self, progress):
        """Read the curves of the runs that are going on or have ended."""
        self.looked = monotonic()
        for cell in progress.cells:
            if len(self.curves[cell.folder]) <= cell.cycles:
                self.curves[cell.folder] = curve(cell)
        self.made = self.count()

    def left(self):
        if self.made <= self.before or self.made >= self.total:
            return ""
        seconds = (monotonic() - self.began) * (self.total - self.made) / (self.made - self.before)
        return f", about {duration(seconds)} left"


def curve(cell):
    """The headline after each evaluation so far, (E,) float64."""
    try:
        return np.atleast_1d(np.load(cell.folder.with_name(cell.folder.name + ".npy"), allow_pickle=False))
    except (OSError, ValueError, EOFError):
        return np.empty(0)


def last(cell):
    made = curve(cell)
    return f"{made[-1]:.3f}" if len(made) else "done"


def summary(progress):
    failed = f", {len(progress.failed)} failed" if progress.failed else ""
    return f"{len(progress.done)} of {len(progress.cells)} runs done{failed}"


def table(progress, clock):
    """A row for each method of each comparison."""
    from rich.table import Table

    clock.look(progress)
    grid = Table(caption=summary(progress) + clock.left())
    columns = ["method", "done", "failed", "last value", "now"]
    groups = list(dict.fromkeys((cell.results, cell.label) for cell in progress.cells))
    several = len({results for results, _ in groups}) > 1
    for name in ["folder"] * several + columns:
        grid.add_column(name, justify="left" if name in ("folder", "method", "now") else "right")
    going = {process.cell.folder for process in progress.going.values()}
    for results, label in groups:
        own = [cell for cell in progress.cells if (cell.results, cell.label) == (results, label)]
        values = [clock.curves[cell.folder][-1] for cell in own if cell.folder in progress.done
                  and len(clock.curves[cell.folder])]  # fmt: skip
        now = [f"run {c.run} {len(clock.curves[c.folder])}/{c.cycles + 1}" for c in own if c.folder in going]
        now += [f"run {c.run} elsewhere" for c in own if c.folder in progress.elsewhere]
        row = [label, f"{sum(c.folder in progress.done for c in own)}/{len(own)}"]
        row += [str(sum(c.folder in progress.failed for c in own) or ""), f"{np.mean(values):.3f}" if values else ""]
        grid.add_row(*[results.name] * several, *row, ", ".join(now))
    return grid
