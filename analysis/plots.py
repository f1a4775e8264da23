"""Learning curves of a results folder: `python -m analysis.plots results -o results/learning_curves.png`."""

import argparse
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

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


def learning_curves(curves, constant=None):
    """A Figure: thin lines are runs, thick lines their means where the budgets agree, dashed is full supervision."""
    figure = Figure(figsize=(7, 4.2), dpi=150, layout="constrained")
    axis = figure.add_subplot()
    full = [dice[-1] for _, dice in curves.get("full", [])]
    if full:
        axis.axhline(np.mean(full), color="0.3", linestyle="--", linewidth=1.2, label="all training labels")
    for k, (label, runs) in enumerate((label, runs) for label, runs in curves.items() if label != "full"):
        style = {"color": COLOURS[k % len(COLOURS)], "marker": MARKERS[k % len(MARKERS)]}
        paired = len({tuple(images) for images, _ in runs}) == 1
        plain = label.replace("$", r"\$")  # a label is no formula
        name = f"{plain} ({len(runs)} run{'s' * (len(runs) > 1)})"
        if paired:
            axis.plot(runs[0][0], np.mean([dice for _, dice in runs], axis=0), **style, linewidth=2.2, label=name)
        for images, dice in runs if len(runs) > 1 or not paired else []:
            axis.plot(images, dice, color=style["color"], linewidth=0.8, alpha=0.5, label=None if paired else name)
    if constant is not None:
        axis.axhline(constant, color="0.6", linestyle=":", linewidth=1.2, label="calling everything foreground")
    axis.set(xlabel="labelled images", ylabel="mean test Dice")
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    return figure


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=Path("learning_curves.png"))
    arguments = parser.parse_args()
    found = read_curves(arguments.results)
    if not found:
        sys.exit(f"{arguments.results} holds no <label>_<run>.npy with its folder: run active.py first.")
    learning_curves(found).savefig(arguments.output)
    print(arguments.output)
