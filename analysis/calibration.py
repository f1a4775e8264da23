"""Is a probability of .9 right nine times in ten? Reliability diagrams and ECE from the ledgers' calibration bins.

Guo et al. 2017, https://arxiv.org/abs/1706.04599. The confidence is that of the winning class of a pixel.
"""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.plots import COLOURS, named
from experiments.errors import Refused
from experiments.records.ledger import read

SUMS = ["pixels", "confidence", "right"]
AVERAGED, SINGLE = "averaged passes", "single pass"
STYLES = {
    SINGLE: {"color": COLOURS[1], "linestyle": "--", "marker": "s"},
    AVERAGED: {"color": COLOURS[0], "linestyle": "-", "marker": "o"},
}


def load(folder):
    """One row for each run, cycle, kind of prediction and bin of every run below `folder`: sums over test pixels.

    Columns: dataset, label, run, cycle, images, kind (averaged passes, or the single pass without dropout), bin
    (0 to 14, equally wide in confidence), pixels, confidence, right. Raises Refused if no run was tested.
    """
    frames = []
    for path in sorted(Path(folder).rglob("ledger.jsonl")):
        start, *events = read(path.parent) or [None]
        for event in events:
            for name, sums in event.get("calibration", {}).items():
                frame = pd.DataFrame(sums, columns=SUMS).rename_axis("bin").reset_index()
                place = {key: start["settings"][key] for key in ("dataset", "label", "run")}
                place |= {"cycle": event["cycle"], "images": event["images"], "kind": _kind(name, start["settings"])}
                frames.append(frame.assign(**place))
    if not frames:
        raise Refused(f"{folder} holds no tested run: `python active.py with heuristic=bald run=0` makes one.")
    return pd.concat(frames, ignore_index=True)


def ece(frame, by=("dataset", "label", "run", "cycle", "images", "kind")):
    """Expected calibration error of each group of bins: the mean gap between confidence and accuracy, by pixels."""
    gaps = (frame["confidence"] - frame["right"]).abs()
    sums = frame.assign(gap=gaps).groupby(list(by))[["gap", "pixels"]].sum()
    return (sums["gap"] / sums["pixels"]).rename("ece").reset_index()


def reliability(frame):
    """A Figure, a panel for each label: accuracy against confidence in each bin, marks as large as the bin's share.

    The pixels of all runs of a label are taken together, those of its last cycle. Bins with less than one pixel in
    ten thousand are left out: their accuracy is chance.
    """
    last = frame[frame["cycle"] == frame.groupby(["label", "run"])["cycle"].transform("max")]
    groups = list(last.groupby("label"))
    rows, columns = -(-len(groups) // 3), min(3, len(groups))
    figure = Figure(figsize=(0.6 + 3.6 * columns, 0.4 + 3.6 * rows), dpi=110, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for axis, (label, group) in zip(axes.flat, groups, strict=False):
        axis.plot([0, 1], [0, 1], color="0.5", linewidth=1, linestyle=":")
        for kind, style in STYLES.items():
            bins = group[group["kind"] == kind].groupby("bin")[SUMS].sum()
            share = bins["pixels"] / bins["pixels"].sum()
            bins, share = bins[share > 1e-4], share[share > 1e-4]
            if len(bins):
                x, y = bins["confidence"] / bins["pixels"], bins["right"] / bins["pixels"]
                error = ece(bins.assign(kind=kind), by=["kind"])["ece"].item()
                line = {"color": style["color"], "linestyle": style["linestyle"], "linewidth": 1}
                axis.plot(x, y, **line, marker=style["marker"], markersize=3, label=f"{kind}\nECE {error:.3f}")
                axis.scatter(x, y, 400 * share, marker=style["marker"], facecolors="none", edgecolors=style["color"])
        axis.set(title=named(label, group["run"].nunique()), xlim=(lowest(frame), 1), ylim=(0, 1))
        axis.set(xlabel="confidence", ylabel="accuracy")
        axis.label_outer()
        axis.legend(frameon=False, fontsize=8, loc="lower right")
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes.flat[len(groups) :]:
        axis.set_axis_off()
    return figure


def lowest(frame):
    """Where the first bin that holds a pixel begins: with two classes no confidence is below a half."""
    return np.floor(frame.loc[frame["pixels"] > 0, "bin"].min() / 15 * 10) / 10


def _kind(name, settings):
    return AVERAGED if name == "bins" and settings["evaluation"]["dropout"] else SINGLE
