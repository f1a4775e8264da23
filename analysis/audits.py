"""Audit curves: Dice on images drawn at random from the pool, beside the test's where there is one, never in its place.

What an audit is: experiments/steps/audit.py. Repeats, how far two drawings of an image agree, bound what it can reach.
"""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy import stats

from analysis import plots

AGREEMENT = ("repeat.dice", "repeat.within", "repeat.between")
COLUMNS = ("label", "images", "runs", "mean", "low", "high", "test")


def table(frame):
    """A row for each method and budget with an audit: runs, mean, low to high, and the same runs' test Dice.

    `frame` is that of analysis.runs.load, of one dataset. The interval is the audit's own of one run, the 95 % t
    interval over the runs of several; NaN where neither is known.
    """
    if "audit.dice" not in frame:
        return pd.DataFrame(columns=COLUMNS)
    rows = []
    for (label, images), group in frame.dropna(subset="audit.dice").groupby(["label", "images"]):
        values, one = group["audit.dice"].to_numpy(), len(group) == 1
        half = np.nan if one else stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
        low, high = max(values.mean() - half, 0), min(values.mean() + half, 1)
        if one:
            low, high = (
                group[f"audit.{end}"].iloc[0] if f"audit.{end}" in group else np.nan for end in ("low", "high")
            )
        test = group["test.dice"].mean() if "test.dice" in group else np.nan
        rows.append((label, images, len(group), values.mean(), low, high, test))
    return pd.DataFrame(rows, columns=COLUMNS)


def curves(rows, size=(5.4, 3.9)):
    """A Figure of `table`: each method's audits with their intervals, a thin line without marks for its test Dice."""
    figure = Figure(figsize=size, dpi=110, layout="constrained")
    axis = figure.add_subplot()
    for label, one in rows.groupby("label"):
        style = plots.style(label)
        name = plots.named(label, int(one["runs"].max()))
        ends = np.abs(one[["low", "high"]].to_numpy(float).T - one["mean"].to_numpy())
        axis.errorbar(one["images"], one["mean"], ends, **style, markersize=5, capsize=3, linewidth=1.5, label=name)
        if one["test"].notna().any():
            axis.plot(one["images"], one["test"], color=style["color"], linewidth=0.8, label=f"{name}: test")
    low, high = axis.get_ylim()
    axis.set(xlabel="labelled images", ylabel="mean audit Dice", ylim=(max(low, 0), min(high, 1)))
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    return figure


def agreement(frame):
    """A row for each method with repeats: how many queries had some, and the means of AGREEMENT over them."""
    present = [name for name in AGREEMENT if name in frame]
    if "repeat.dice" not in frame or frame["repeat.dice"].isna().all():
        return pd.DataFrame(columns=("label", "queries", *AGREEMENT))
    groups = frame.dropna(subset="repeat.dice").groupby("label")
    found = groups[present].mean().reindex(columns=AGREEMENT)
    found.insert(0, "queries", groups.size())
    return found.reset_index()
