"""Is a probability of .9 right nine times in ten? Reliability diagrams and ECE from the ledgers' calibration bins.

Guo et al. 2017, https://arxiv.org/abs/1706.04599. The confidence is that of the winning class of a pixel.
"""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.ledgers import finished
from analysis.plots import COLOURS, KINDS, named
from experiments.errors import Refused

SUMS = ["pixels", "confidence", "right"]
AVERAGED, SINGLE = KINDS
STYLES = {
    SINGLE: {"color": COLOURS[1], "linestyle": "--", "marker": "s"},
    AVERAGED: {"color": COLOURS[0], "linestyle": "-", "marker": "o"},
}


def load(folder):
    """One row for each run, cycle, kind of prediction and bin of every finished run: sums over test pixels.

    Columns: dataset, label, run, cycle, images, kind (averaged passes, or the single pass without dropout), bin
    (0 to 14, equally wide in confidence), pixels, confidence, right. Raises Refused if no run was tested.
    """
    frames = []
    for start, *events in finished(Path(folder)).values():
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
    """A Figure, a square panel for each label: accuracy against confidence in each bin, marks as large as its share.

    The pixels of all runs of a label are taken together, those of its last cycle. Bins with less than one pixel in
    ten thousand are left out: their accuracy is chance.
    """
    last = frame[frame["cycle"] == frame.groupby(["label", "run"])["cycle"].transform("max")]
    groups = {label: (group["run"].nunique(), _points(group)) for label, group in last.groupby("label")}
    heights = [kind[["x", "y"]].min().min() for _, points in groups.values() for kind in points.values()]
    least = np.floor(min(heights, default=0) * 10) / 10
    rows, columns = -(-len(groups) // 3), min(3, len(groups))
    figure = Figure(figsize=(0.6 + 3.6 * columns, 0.6 + 3.6 * rows), dpi=110, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for axis, (label, (count, points)) in zip(axes.flat, groups.items(), strict=False):
        axis.plot([0, 1], [0, 1], color="0.5", linewidth=1, linestyle=":")
        for kind, bins in points.items():
            error = (bins["share"] * (bins["x"] - bins["y"]).abs()).sum() / bins["share"].sum()
            line, ring = STYLES[kind], {"facecolors": "none", "edgecolors": STYLES[kind]["color"]}
            name = f"{kind}\nECE {error:.3f}"
            axis.plot(bins["x"], bins["y"], **line, linewidth=1, markersize=3, clip_on=False, label=name)
            sizes = 400 * bins["share"]
            axis.scatter(bins["x"], bins["y"], sizes, marker=line["marker"], clip_on=False, **ring)
        axis.set(title=named(label, count), xlim=(least, 1), ylim=(least, 1), aspect="equal")
        axis.set(xlabel="confidence", ylabel="accuracy")
        axis.label_outer()
        axis.legend(frameon=False, fontsize=8, loc="lower right")
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes.flat[len(groups) :]:
        axis.set_axis_off()
    return figure


def _points(group):
    """{kind of prediction: a row for each bin: x its confidence, y its accuracy, its share of the pixels}."""
    points = {}
    for kind in STYLES:
        bins = group[group["kind"] == kind].groupby("bin")[SUMS].sum()
        bins = bins[bins["pixels"] > 1e-4 * bins["pixels"].sum()]
        if len(bins):
            x, y = bins["confidence"] / bins["pixels"], bins["right"] / bins["pixels"]
            points[kind] = pd.DataFrame({"x": x, "y": y, "share": bins["pixels"] / bins["pixels"].sum()})
    return points


def _kind(name, settings):
    return AVERAGED if name == "bins" and settings.get("evaluation", {}).get("dropout") else SINGLE
