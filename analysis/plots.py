"""Learning curves of a results folder: `python -m analysis.plots results -o results/learning_curves.png`."""

import argparse
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from experiments.ledger import read

# Okabe & Ito's colours, told apart by colour-blind readers; markers tell the methods apart without colour
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
MARKERS = "osD^vPX"


def read_curves(folder):
    """{label: [(labelled images (E,), mean test Dice (E,)), ...]}, a pair for each run; `full` has one point."""
    curves = defaultdict(list)
    for path in sorted(Path(folder).glob("*_*.npy")):
        budget = path.with_suffix("") / "budget.npy"
        if budget.exists():
            images = np.load(budget, allow_pickle=False)[:, 0]
            curves[path.stem.rpartition("_")[0]].append((images, np.load(path, allow_pickle=False)))
    return dict(curves)


def constant_dice(ledgers):
    """What calling every test pixel foreground scores by these ledgers (lists of events); None if they do not agree."""
    said = {events[0].get("constant_dice") for events in ledgers if events}
    return said.pop() if len(said) == 1 else None


def learning_curves(curves, constant=None, size=(7, 4.2)):
    """A Figure of `size` in inches: thick lines are means over runs where the budgets agree.

    Three or more runs have a band, the 95 % t interval of their mean; fewer are thin lines. Dashed is full supervision.
    """
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    axis = figure.add_subplot()
    full = [dice[-1] for _, dice in curves.get("full", [])]
    if full:
        axis.axhline(np.mean(full), color="black", linestyle="--", linewidth=1.2, label="all training labels")
    for k, (label, runs) in enumerate((label, runs) for label, runs in curves.items() if label != "full"):
        draw(axis, label, runs, COLOURS[k % len(COLOURS)], MARKERS[k % len(MARKERS)])
    if constant is not None:
        axis.axhline(constant, color="black", linestyle=":", linewidth=1.2, label="calling everything foreground")
    axis.set(xlabel="labelled images", ylabel="mean test Dice")
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure


def draw(axis, label, runs, colour, marker):
    """One method: `runs` are (labelled images (E,), mean test Dice (E,)) each."""
    name = f"{label} ({len(runs)} run{'s' * (len(runs) > 1)})".replace("$", r"\$")
    paired = len({tuple(images) for images, _ in runs}) == 1
    if paired:
        images, dice = runs[0][0], np.array([dice for _, dice in runs])
        mean = dice.mean(axis=0)
        axis.plot(images, mean, color=colour, marker=marker, linewidth=2.2, label=name)
        if len(runs) >= 3:
            half = stats.t.isf(0.025, len(runs) - 1) * stats.sem(dice, axis=0)
            low, high = np.clip([mean - half, mean + half], 0, 1)  # Dice has no other values
            axis.fill_between(images, low, high, color=colour, alpha=0.15, linewidth=0)
    if not paired or len(runs) == 2:
        thin = {"color": colour, "linewidth": 0.8, "alpha": 0.5, "marker": None if paired else marker}
        for k, (images, dice) in enumerate(runs):
            axis.plot(images, dice, **thin, label=None if paired or k else name)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=Path("learning_curves.png"))
    arguments = parser.parse_args()
    found = read_curves(arguments.results)
    if not found:
        sys.exit(f"{arguments.results} holds no <label>_<run>.npy with its folder: run active.py first.")
    constant = constant_dice(read(path.parent) for path in arguments.results.glob("*/ledger.jsonl"))
    learning_curves(found, constant).savefig(arguments.output)
    print(arguments.output)
