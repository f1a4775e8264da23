"""Labels saved: the budget at which a method reaches the baseline's final value, with an interval over paired runs.

Data utilization as Konyushkova et al. 2017 have it, https://arxiv.org/abs/1703.03365; budgets between two evaluations
are read off the straight line. Intervals are percentiles of the bootstrap over pairs: Efron 1979,
https://doi.org/10.1214/aos/1176344552
"""

import numpy as np
import pandas as pd

from analysis import statistics

COLUMNS = ["label", "saved", "saved_low", "saved_high", "saved_pixels", "saved_minutes", "saved_text"]
OTHER = ("pixels", "minutes")  # costs of runs that are told beside images, where all compared runs have them


def budget_reaching(budget, curve, target):
    """(...): the least budget at which the line through `curve` (..., E) over `budget` (E,) or (..., E) is at `target`.

    inf where it never is.
    """
    curve, target = np.asarray(curve, float), np.asarray(target, float)[..., None]
    reached = curve >= target
    first = reached.argmax(-1)
    before = np.maximum(first - 1, 0)
    low, high = (np.take_along_axis(curve, at[..., None], -1)[..., 0] for at in (before, first))
    share = np.where(high > low, (target[..., 0] - low) / np.where(high > low, high - low, 1.0), 0.0)
    budget = np.broadcast_to(np.asarray(budget, float), curve.shape)
    start, end = (np.take_along_axis(budget, at[..., None], -1)[..., 0] for at in (before, first))
    found = np.where(first == 0, budget[..., 0], start + share * (end - start))
    return np.where(reached.any(-1), found, np.inf)


def saved(budget, method, baseline, repeats=2000, alpha=0.05, seed=0):
    """(saved, low, high): by how much less budget the mean of `method` reaches the baseline's final mean.

    `method` and `baseline` (n, E) are paired curves over `budget` (E,), or (2, n, E): what their runs had cost by then,
    of which the mean counts. -inf where it never reaches it.
    """
    method, baseline = np.asarray(method, float), np.asarray(baseline, float)
    n, rng = len(method), np.random.default_rng(seed)
    weights = np.vstack([np.full(n, 1 / n), rng.multinomial(n, np.full(n, 1 / n), size=repeats) / n])
    ours, theirs, budget = weights @ method, weights @ baseline, np.asarray(budget, float)
    our_budget, their_budget = (budget, budget) if budget.ndim == 1 else weights @ budget
    target = theirs[:, -1] - 1e-12
    less = budget_reaching(their_budget, theirs, target) - budget_reaching(our_budget, ours, target)
    with np.errstate(invalid="ignore"):
        low, high = np.quantile(less[1:], [alpha / 2, 1 - alpha / 2], method="lower")
    return float(less[0]), float(low), float(high)


def compare(frame, baseline="random", metric="test.dice", minutes=0.0):
    """One row for each method of one dataset: COLUMNS, in images unless they say otherwise.

    Pixels and minutes are those of the ledgers; at `minutes` an image, where that is stated, minutes follow the images.
    Pairs are runs measured at the images at which most of the baseline's were. NaN for fewer than two pairs, and where
    the final value is never reached.
    """
    ends = statistics.endpoints(frame, metric)
    grid = statistics.usual_grid(ends, baseline)
    usual = ends[ends["grid"] == grid].set_index("label")["run"]
    rows, costs = [], [cost for cost in OTHER if cost in frame]
    for label in sorted(set(ends["label"]) - {baseline}):
        pairs = sorted(set(usual.get([label], [])) & set(usual.get([baseline], [])))
        row = dict.fromkeys(COLUMNS, np.nan) | {"label": label, "saved_text": ""}
        if len(pairs) > 1:
            both = [frame[(frame["label"] == name) & frame["run"].isin(pairs)] for name in (label, baseline)]
            of = {v: [one.pivot(index="run", columns="images", values=v) for one in both] for v in (metric, *costs)}
            numbers = {"images": saved(grid, *of[metric])}
            spent = {cost: np.array(of[cost], float) for cost in costs}
            numbers |= {c: saved(values, *of[metric]) for c, values in spent.items() if np.isfinite(values).all()}
            if minutes:
                numbers["minutes"] = tuple(value * minutes for value in numbers["images"])
            finite = {c: [v if np.isfinite(v) else np.nan for v in values] for c, values in numbers.items()}
            row |= dict(zip(COLUMNS[1:4], finite["images"], strict=True))
            row |= {f"saved_{cost}": finite[cost][0] for cost in OTHER if cost in finite}
            row["saved_text"] = said(numbers, f" at {minutes:g} an image" if minutes else " of annotators")
        rows.append(row)
    return pd.DataFrame(rows, columns=COLUMNS)


def said(numbers, minutes=""):
    """The labels saved in words, of {cost: (saved, low, high)}; `minutes` says whose these are."""
    if numbers["images"][0] == -np.inf:
        return "never reaches the baseline's final value"
    parts = []
    for cost, (value, low, high) in numbers.items():
        digits, saved = (1, " saved") if cost == "images" else (0, "")
        rest = "not at all" if low == -np.inf else f"{low:,.{digits}f}"
        parts.append(f"{value:,.{digits}f} {cost}{saved} ({rest} to {high:,.{digits}f})")
    return ", ".join(parts) + (minutes if "minutes" in numbers else "")
