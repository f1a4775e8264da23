"""What a benchmark found, for people, for machines and as a figure."""

import math
import os
import platform
from pathlib import Path
from typing import NamedTuple

import torch

COLOURS = {"met": "#009E73", "missed": "#D55E00", "": "#0072B2"}  # Okabe & Ito's


class Row(NamedTuple):
    """One measured number: the median over the rounds, with the least and the largest."""

    what: str
    value: float
    unit: str
    low: float = math.nan
    high: float = math.nan
    cpu: float = math.nan  # the median by CPU time of the process instead of wall time
    target: str = ""  # as "<= 13.5" or ">= 2.2"

    @property
    def verdict(self):
        """ "met" or "missed" by the median, "" without a target."""
        if not self.target:
            return ""
        sense, limit = self.target.split()
        return "met" if (self.value <= float(limit) if sense == "<=" else self.value >= float(limit)) else "missed"


def table(rows):
    """Columns of text."""
    head = ("", "median", "", "least", "largest", "by CPU time", "target", "")
    cells = [head, *((r.what, number(r.value), r.unit, *map(number, r[3:6]), r.target, r.verdict) for r in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(head))]
    left = {0, 2, 6, 7}
    return "\n".join(
        "  ".join(c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True)))
        for line in cells
    ).replace(" \n", "\n")


def number(value):
    """Three digits, or all of a large whole number."""
    return "" if math.isnan(value) else f"{value:.0f}" if abs(value) >= 1000 else f"{value:#.3g}".rstrip(".")


def plain(options, machine, rows, notes):
    """Everything as JSON values."""
    measured = [{k: None if v != v else v for k, v in row._asdict().items()} | {"verdict": row.verdict} for row in rows]
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}
    return {"machine": machine, "settings": settings, "rows": measured, "notes": list(notes)}


def plot(rows, machine, path):
    """Draw the ratios, with least and largest as whiskers and the targets as marks, into a PNG."""
    from matplotlib.figure import Figure

    rows = [row for row in rows if row.unit == "x"]
    figure = Figure(figsize=(8, 1.2 + 0.4 * len(rows)), dpi=110, layout="constrained")
    axes = figure.subplots()
    for place, row in enumerate(rows):
        axes.barh(place, row.value, color=COLOURS[row.verdict], height=0.6)
        if not math.isnan(row.low):
            axes.hlines(place, row.low, row.high, color="black")
        if row.target:
            axes.plot(float(row.target.split()[1]), place, "k|", markersize=16)
    axes.set_yticks(range(len(rows)), [row.what for row in rows])
    axes.invert_yaxis()
    axes.axvline(1, color="grey", linewidth=0.8)
    figure.supxlabel("times (line: least to largest of the rounds; mark: target, green where met)", fontsize=9)
    figure.suptitle(machine, fontsize=8)
    figure.savefig(path)


def machine(device):
    """One line that says on what the numbers were measured, and what else it was doing."""
    info = Path("/proc/cpuinfo")
    name = platform.machine()
    if info.is_file():
        name = info.read_text().partition("model name")[2].partition("\n")[0].strip(" \t:") or name
    if device.type == "cuda":
        name = f"{torch.cuda.get_device_name(device)} and {name}"
    threads, cores, load = torch.get_num_threads(), os.cpu_count(), os.getloadavg()[0]
    return f"{name}, {threads} threads of {cores} cores, torch {torch.__version__}; load before: {load:.1f}"
