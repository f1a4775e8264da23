"""Labels saved: the budget at which a method reaches the baseline's final value, with an interval over paired runs.

Data utilization as Konyushkova et al. 2017 have it, https://arxiv.org/abs/1703.03365; budgets between two evaluations
are read off the straight line. Intervals are percentiles of the bootstrap over pairs: Efron 1979,
https://doi.org/10.1214/aos/1176344552
"""

import numpy as np
import pandas as pd

from analysis import statistics

COLUMNS = ["label", "saved", "saved_low", "saved_high", "saved_text"]


def budget_reaching(budget, curve, target):
    """(...): the least budget at which the line through `curve` (..., E) over `budget` (E,) is at `target` (...).

    inf where it never is.
    """
    curve, target = np.asarray(curve, float), np.asarray(target, float)[..., None]
    reached = curve >= target
    first = reached.argmax(-1)
    before = np.maximum(first - 1, 0)
    low, high = (np.take_along_axis(curve, at[..., None], -1)[..., 0] for at in (before, first))
    share = np.where(high > low, (target[..., 0] - low) / np.where(high > low, high - low, 1.0), 0.0)
    budget = np.asarray(budget, float)
    found = np.where(first == 0, budget[0], budget[before] + share * (budget[first] - budget[before]))
    return np.where(reached.any(-1), found, np.inf)


def saved(budget, method, baseline, repeats=2000, alpha=0.05, seed=0):
    """(saved, low, high): by how much less budget the mean of `method` reaches the baseline's final mean.

    `method` and `baseline` (n, E) are paired curves over `budget` (E,). -inf where it never reaches it.
    """
    method, baseline = np.asarray(method, float), np.asarray(baseline, float)
    n, rng = len(method), np.random.default_rng(seed)
    weights = np.vstack([np.full(n, 1 / n), rng.multinomial(n, np.full(n, 1 / n), size=repeats) / n])
    ours, theirs = weights @ method, weights @ baseline
    target = theirs[:, -1]
    less = budget_reaching(budget, theirs, target - 1e-12) - budget_reaching(budget, ours, target - 1e-12)
    with np.errstate(invalid="ignore"):
        low, high = np.quantile(less[1:], [alpha / 2, 1 - alpha / 2], method="lower")
    return float(less[0]), float(low), float(high)


def compare(frame, baseline="random", metric="test.dice", minutes=0.0):
    """One row for each method of one dataset: COLUMNS, in images, and in the text in minutes at `minutes` an image.

    Pairs are runs measured at the images at which most of the baseline's were. NaN for fewer than two pairs, and where
    the final value is never reached.
    """
    ends = statistics.endpoints(frame, metric)
    grid = statistics.usual_grid(ends, baseline)
    usual = ends[ends["grid"] == grid].set_index("label")["run"]
    rows = []
    for label in sorted(set(ends["label"]) - {baseline}):
        pairs = sorted(set(usual.get([label], [])) & set(usual.get([baseline], [])))
        row = dict.fromkeys(COLUMNS, np.nan) | {"label": label, "saved_text": ""}
        if len(pairs) > 1:
            curves = [
                frame[(frame["label"] == name) & frame["run"].isin(pairs)].pivot(
                    index="run", columns="images", values=metric
                )
                for name in (label, baseline)
            ]
            numbers = saved(grid, *curves)
            finite = np.where(np.isfinite(numbers), numbers, np.nan)
            row |= dict(zip(COLUMNS[1:4], finite, strict=True), saved_text=said(*numbers, minutes))
        rows.append(row)
    return pd.DataFrame(rows, columns=COLUMNS)


def said(value, low, high, minutes=0.0):
    """The labels saved in words."""
    if value == -np.inf:
        return "never reaches the baseline's final value"
    rest = "not at all" if low == -np.inf else f"{low:.1f}"
    text = f"{value:.1f} images saved ({rest} to {high:.1f})"
    return text + (f", {value * minutes:.0f} minutes at {minutes:g} an image" if minutes else "")
