"""Runs added until a difference is decided, without more false findings: alpha spending by Lan & DeMets 1983.

https://doi.org/10.1093/biomet/70.3.659. At each look the probability of a false finding so far is at most what the
spending function allows for the share of the runs that were made; ours is their second, near Pocock's boundaries, for
early decisions are what saves runs. Decisions are read off repeated confidence intervals (Jennison & Turnbull 1989,
https://doi.org/10.1111/j.2517-6161.1989.tb01433.x), which hold at all looks together: better or worse where 0 lies
outside, equivalent where all of one lies within the margin. Several methods share alpha by Bonferroni.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from analysis import statistics
from experiments.components import settings
from experiments.errors import Refused

DRAWN = 200_000  # simulated studies that the boundaries are computed from: standard error of 5 % is .05 %


@dataclass(frozen=True)
class Design:
    """When a study is looked at: after `first` paired runs, then after `step` more each time, `most` at the end."""

    first: int = 3
    step: int = 1
    most: int = 30

    @property
    def looks(self):
        """The numbers of paired runs at which it is decided, ascending."""
        first = max(2, min(self.first, self.most))
        return sorted({*range(first, self.most, self.step), self.most})


def of_folder(results):
    """The Design of the newest study in a folder of results that was to go on until it is decided, else None."""
    for path in sorted(Path(results, "study").glob("*.yaml"), key=lambda path: path.stat().st_mtime, reverse=True):
        try:
            said = settings.read(path)
            numbers = {"first": len(said.get("run", [0])), "step": said.get("step", 1), "most": said.get("most", 0)}
        except (Refused, TypeError):
            continue
        if said.get("until") == "decided" and all(type(n) is int and 0 < n < 10_000 for n in numbers.values()):
            return Design(**numbers)
    return None


def spent(share, alpha=0.05):
    """How much of alpha may be spent once this share of the runs is made: alpha ln(1 + (e - 1) share)."""
    return alpha * np.log1p((np.e - 1) * np.asarray(share, float))


@cache
def boundaries(design, alpha=0.05):
    """{paired runs: |t| from which a difference is decided at that look}, for t of paired differences.

    The path of t under no difference depends on nothing unknown, so the boundaries are quantiles of simulated paths,
    exact for small n but for DRAWN, where tables for the normal distribution are not. Always the same.
    """
    rng, looks = np.random.default_rng(0), design.looks
    total, squares, made, found = np.zeros(DRAWN), np.zeros(DRAWN), 0, {}
    open_paths = np.ones(DRAWN, bool)
    for n in looks:
        for _ in range(n - made):
            drawn = rng.standard_normal(DRAWN)
            total += drawn
            squares += drawn * drawn
        made = n
        t = np.abs(t_values(total, squares, n))
        allowed = int(DRAWN * spent(n / design.most, alpha)) - int((~open_paths).sum())
        t[~open_paths] = -1.0
        found[n] = float(np.partition(t, DRAWN - allowed)[DRAWN - allowed]) if allowed > 0 else np.inf
        open_paths &= t < found[n]
    return found


def t_values(total, squares, n):
    """t of n differences by their sum and their sum of squares."""
    mean = total / n
    return mean / np.sqrt(np.maximum(squares / n - mean * mean, 1e-300) / (n - 1))


def decide(differences, design, margin=0.0, alpha=0.05, family=1):
    """(verdict, runs, low, high) of paired differences in the order of their runs, as a study that stops has them.

    Looks at them as they came in and stops at the first that decides; `family` methods are compared at once.
    """
    d, bounds = np.asarray(differences, float), boundaries(design, alpha / family)
    answer = ("undecided", len(d), np.nan, np.nan)
    for n in (n for n in design.looks if n <= len(d)):
        now = d[:n]
        half = bounds[n] * now.std(ddof=1) / np.sqrt(n)
        low, high = now.mean() - half, now.mean() + half
        verdict = "better" if low > 0 else "worse" if high < 0 else "undecided"
        if verdict == "undecided" and margin and -margin < low and high < margin:
            verdict = "equivalent"
        answer = (verdict, n, low, high)
        if verdict != "undecided":
            break
    return answer


def compare(frame, baseline, margin, metric, design, alpha=0.05):
    """statistics.compare's table of one dataset with the verdicts, intervals and runs of the sequential design.

    The p values of single tests, which say too much where runs were added by what was seen, are NaN. `more_runs` are
    what the design has left.
    """
    table = statistics.compare(frame, baseline, margin, metric, alpha=alpha)
    ends = statistics.endpoints(frame, metric)
    ends = ends[ends["grid"] == statistics.usual_grid(ends, baseline)]
    wide = ends.pivot(index="run", columns="label", values="aubc").sort_index()
    methods = table["verdict"] != "baseline"
    table.loc[methods, [name for name in table if name.startswith("p_")]] = np.nan
    for index in table.index[methods]:
        label = table.loc[index, "label"]
        d = (wide[label] - wide[baseline]).dropna()
        verdict, n, low, high = decide(d, design, margin, alpha, int(methods.sum()))
        more = 0.0 if verdict != "undecided" else float(max(0, design.most - n))
        values = {"verdict": verdict, "runs": n, "low": low, "high": high, "more_runs": more}
        values["difference"] = d.iloc[:n].mean()
        table.loc[index, list(values)] = list(values.values())
    return table
