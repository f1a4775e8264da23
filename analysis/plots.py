"""Figures of runs, readable without colour: `python -m analysis.plots results -o results/learning_curves.png`.

They are drawn from the frames that analysis/runs.py and analysis/statistics.py make.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy import stats

from analysis import runs, statistics
from experiments.errors import Refused
from experiments.errors.process import one_line_errors, unusable

# Okabe & Ito's colours, told apart by colour-blind readers; markers tell the methods apart without colour
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]
MARKERS = "osD^vPX"
GREY = "#737373"  # of random choice
# a method's place here gives its colour, marker and line for good: new ones go to the end
KNOWN = """bald entropy coreset badge margin herding
least_confidence variance typiclust probcover expected_entropy vote
class_stratified learning_loss vaal ceal crc contextual_diversity
alpha_mix ams bvsb edge_entropy foreground_random hybrid
kmeans mask_discrepancy progressive random_balanced simple_diversity specular
strided stratified tta two_stage vote_variance first
given""".split()
COSTS = {  # column of a frame: (its unit in a figure, what the axis says)
    "images": (1, "labelled images"),
    "pixels": (1e6, "labelled pixels (millions)"),
    "boundary": (1e3, "outlines drawn (thousands of pixel edges)"),
    "minutes": (1, "annotation by the stated model (minutes)"),
}
METRICS = {"test.dice": "mean test Dice", "ece": "expected calibration error"}
METRICS |= {
    "test.miou": "test mIoU, all images' pixels together",
    "test.class_dice": "test Dice, all images' pixels together",
}
LINES = ("-", "--", "-.", (0, (1, 1)), (0, (8, 2)))
KINDS = {"averaged passes": "-", "single pass": (0, (1, 1))}  # of a prediction; see analysis/calibration.py
FEWEST = 3  # runs that have an interval; that of two is mostly noise about its own width


def style(label):
    """{color, linestyle, marker} of a method, the same whatever else is drawn.

    random is grey and full black. Methods in KNOWN go by their place there, so that 42 of them differ in colour or
    marker; any other label goes by the sum of its bytes, and may look like another one. "bald, single pass" is bald
    with the line of its kind of prediction.
    """
    name, _, kind = label.partition(", ")
    if name in ("random", "full"):
        colour, line, marker = (GREY, "--", "x") if name == "random" else ("#000000", "-", "o")
    else:
        k = KNOWN.index(name) if name in KNOWN else sum(name.encode(errors="replace"))
        colour, line, marker = (some[k % len(some)] for some in (COLOURS, LINES, MARKERS))
    return {"color": colour, "linestyle": KINDS.get(kind, line), "marker": marker}


def mean_curve(frame, cost="images", metric="test.dice"):
    """Mean over the runs of one method: a DataFrame with `cost`, mean, and low to high, their 95 % t interval.

    Where runs paid differently, for pixels say, each is read off between its own points, over the costs that all
    of them measured; a row is a cost at which one of them was. The interval of a single run is NaN.
    """
    pairs = [(one[cost].to_numpy(float), one[metric].to_numpy()) for _, one in frame.groupby("run")]
    costs = np.unique(np.concatenate([x for x, _ in pairs]))
    costs = costs[(costs >= max(x[0] for x, _ in pairs)) & (costs <= min(x[-1] for x, _ in pairs))]
    heights = np.array([np.interp(costs, x, y) for x, y in pairs])
    half = np.full(len(costs), np.nan)
    if len(pairs) > 1:
        half = stats.t.ppf(0.975, len(pairs) - 1) * stats.sem(heights)
    mean = heights.mean(0)
    return pd.DataFrame({cost: costs, "mean": mean, "low": mean - half, "high": mean + half})


def curves(frame, costs=("images",), metric="test.dice", constant=None, size=(7, 4.4)):
    """A Figure, a panel for each of `costs`: every method's mean and its 95 % t interval, below 3 runs each run.

    `frame` is that of analysis.runs.load, of one dataset. Dashed is the mean of the runs on all training labels,
    dotted is `constant`, what calling everything foreground scores. Raises Refused when two runs share label and run
    and would be drawn as one.
    """
    if frame.duplicated(["label", "run", "cycle"]).any():
        raise Refused("Two runs share label and run: draw one folder at a time, or give them labels of their own.")
    rows, columns = -(-len(costs) // 2), min(2, len(costs))
    figure = Figure(figsize=(size[0] * (1.6 if columns == 2 else 1), size[1] * rows), dpi=110, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharey=True)
    frame = frame.sort_values("cycle")
    full, methods = frame[frame["label"] == "full"], frame[frame["label"] != "full"]
    for axis, cost in zip(axes.flat, costs, strict=False):
        unit, name = COSTS[cost]
        if len(full):
            axis.axhline(
                full[metric].mean(), color="black", linestyle=(0, (6, 3)), linewidth=1, label="all training labels"
            )
        if constant is not None:
            axis.axhline(constant, color="black", linestyle=":", linewidth=1, label="calling everything foreground")
        for label, method in methods.dropna(subset=[cost, metric]).groupby("label"):
            _method(axis, method.assign(**{cost: method[cost] / unit}), cost, metric, label)
        low, high = axis.get_ylim()
        axis.set(xlabel=name, ylabel=METRICS.get(metric, metric), ylim=(max(low, 0), min(high, 1)))
        axis.xaxis.get_major_locator().set_params(integer=cost == "images")
        _plain(axis)
    for axis in axes[:, 1:].flat:
        axis.set_ylabel("")
    handles, names = axes[0, 0].get_legend_handles_labels()
    room = figure.get_figwidth() / 2 > 0.6 + 0.085 * max(map(len, names), default=0)  # inches: a mark, a character each
    figure.legend(handles, names, loc="outside lower center", ncols=1 + room, frameon=False)
    return figure


def _method(axis, frame, cost, metric, label):
    count = frame["run"].nunique()
    name, marked = named(label, count), style(label) | {"markersize": 5}
    plain = {key: marked[key] for key in ("color", "linestyle")}
    if count < FEWEST:
        for number, (_, one) in enumerate(frame.groupby("run")):
            axis.plot(one[cost], one[metric], **marked, linewidth=1, label="_" * bool(number) + name)
        return
    mean = mean_curve(frame, cost, metric)
    axis.plot(mean[cost], mean["mean"], **marked, linewidth=2, markevery=-(-len(mean) // 12), label=name)
    axis.fill_between(mean[cost], mean["low"], mean["high"], color=plain["color"], alpha=0.12, linewidth=0)
    axis.plot(mean[cost], mean[["low", "high"]], **plain, linewidth=0.6)


def named(label, count):
    """A method and how many runs it has, as text of a figure: no formula, whatever the label."""
    return f"{label} ({count} run{'s' * (count > 1)})".replace("$", r"\$")


def differences(ends, table, baseline="random"):
    """A Figure: each method's AUBC minus the baseline's, a number for each run, their mean and its 95 % interval.

    `ends` is that of statistics.endpoints and `table` that of statistics.compare, of one dataset. Runs count as they
    do there, if they were measured at the budgets that most of the baseline's were.
    """
    methods = table[table["label"] != baseline].to_dict("records")
    usual = ends[ends["grid"] == statistics.usual_grid(ends, baseline)]
    wide = usual.pivot(index="run", columns="label", values="aubc")
    height = 0.12 * len(wide) + 0.5  # of one method, in inches: a line for each run
    figure = Figure(figsize=(7, 1 + height * len(methods)), dpi=110, layout="constrained")
    axis = figure.add_subplot()
    axis.axvline(0, color="black", linewidth=1)
    for row, method in enumerate(methods):
        paired = (wide[method["label"]] - wide[baseline]).dropna()
        for y, (run, value) in zip(np.linspace(row - 0.4, row + 0.15, len(paired)), paired.items(), strict=True):
            axis.plot(value, y, "o", color="black", markersize=3)
            axis.annotate(f"{run}", (value, y), (5, 0), textcoords="offset points", va="center", fontsize=8)
        if method["runs"] > 1:
            axis.plot([method["low"], method["high"]], [row + 0.3] * 2, color="black", linewidth=1.6)
            axis.plot(method["difference"], row + 0.3, "D", color="black", markersize=6)
    axis.set(xlabel=f"AUBC minus that of {baseline}", ylim=(len(methods) - 0.5, -0.55))
    axis.set_yticks(range(len(methods)), [f"{m['label']}: {m['verdict']}" for m in methods])
    _plain(axis)
    return figure


def matrix(table, most):
    """A Figure of a table of methods against methods as a heat map with numbers, from white at 0 to black at `most`.

    What a method scores against itself is not drawn; below stands each column's mean over the other methods.
    """
    table = table.where(~np.eye(len(table), dtype=bool)).rename_axis(columns=None)
    values = np.vstack([table.to_numpy(float), table.mean().to_numpy()])
    figure = Figure(figsize=(2.6 + 0.9 * values.shape[1], 1.8 + 0.55 * len(values)), dpi=110, layout="constrained")
    axis = figure.add_subplot()
    image = axis.imshow(values, cmap="Greys", vmin=0, vmax=most, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        text = "\N{EN DASH}" if np.isnan(value) else f"{value:.2f}"
        axis.text(column, row, text, ha="center", va="center", color="white" if value > most / 2 else "black")
    axis.axhline(len(table) - 0.5, color="black", linewidth=1)
    axis.set_xticks(range(len(table)), [f"{name}".replace("$", r"\$") for name in table], rotation=30, ha="right")
    axis.set_yticks(range(len(values)), [*(f"{name}".replace("$", r"\$") for name in table.index), "column mean"])
    axis.set(xlabel="is beaten", ylabel="beats")
    figure.colorbar(image, ax=axis, label=f"share of budgets, of {most:g}")
    return figure


def _plain(axis):
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)


def main(source, output, **asked):
    """Draw the learning curves of a results folder. Raises Refused if it holds no test Dice or several datasets."""
    frame = runs.load(source, **asked)
    datasets = frame["dataset"].unique()
    if len(datasets) > 1:
        raise Refused(f"{source} holds runs on {', '.join(datasets)}: draw the folder of one dataset at a time.")
    metric = runs.headline(frame)
    if metric not in frame:
        raise Refused(f"{source} holds no test Dice: its dataset has no test images, or none with foreground.")
    try:
        curves(frame, metric=metric, constant=runs.constant_dice(source, datasets[0])).savefig(output)
    except OSError as error:
        raise unusable(output, error, "written") from error
    print(output)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=Path("learning_curves.png"))
    runs.add_published(parser)
    arguments = parser.parse_args()
    with one_line_errors():
        main(arguments.results, arguments.output, **runs.published(arguments))
