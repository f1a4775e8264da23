"""Is a difference between methods real? `python -m analysis.statistics results --baseline random` answers in one table.

The unit is the run: methods are compared over runs paired by (dataset, run), never over images or cycles. The
endpoint is the area under the budget curve; its paired t test, corrected for the number of methods, decides.
"""

import argparse
import sys
import warnings
from bisect import bisect_left
from difflib import get_close_matches
from itertools import permutations

import numpy as np
import pandas as pd
from scipy import optimize, stats

from analysis import runs
from experiments.errors import Refused

CEILING = "full"  # the label of runs on all training labels
FEW_DATASETS = 5  # Demsar 2006 wants more than this for asymptotic ranks; below it they are refused
MOST_RUNS = 100_000
REPORTED = [
    "dataset",
    "label",
    "runs",
    "unpaired",
    "aubc",
    "sd_ddof1",
    "sd_ddof0",
    "final",
    "to_95",
    "difference",
    "low",
]
REPORTED += ["high", "p_t", "p_holm", "p_signflip", "p_wilcoxon", "p_equivalent", "more_runs", "verdict"]


def aubc(budget, curve):
    """Area under the budget curve by trapezoids over the actual costs, divided by their range: a mean height.

    `budget` (E,) ascending, `curve` (E,); a single evaluation is its own mean. Zhan et al. 2021,
    https://www.ijcai.org/proceedings/2021/0634.pdf
    """
    return float(np.trapezoid(curve, budget) / np.ptp(budget)) if len(curve) > 1 else float(curve[0])


def budget_to(budget, curve, target):
    """The first measured budget whose value is at least `target`; inf, right-censored, if none is."""
    reached = np.asarray(curve) >= target
    return float(np.asarray(budget)[reached.argmax()]) if reached.any() else np.inf


def fg_efficiency(foreground, curve, full):
    """FG-Eff: the rate b of `full - a exp(-b (x - x0))` fitted to points of one method, per unit of `foreground`.

    `foreground` (E,) is the share of the data's foreground that is annotated, `curve` (E,) the Dice there, of one
    run or several end to end; x0 is the smallest share, `full - a` the mean Dice there, `full` the Dice with all
    labels. Lueth et al. 2025 (nnActive), https://arxiv.org/abs/2511.19183
    """
    x, y = np.asarray(foreground, float), np.asarray(curve, float)
    x = x - x.min()
    a = full - y[x == 0].mean()
    return float(optimize.curve_fit(lambda x, b: full - a * np.exp(-b * x), x, y, p0=1 / np.ptp(x))[0][0])


def per_budget(frame, metric="test.dice", cost="images"):
    """Runs, mean and SD (ddof=1) of each method at each budget, indexed by (dataset, label, cost)."""
    groups = frame.dropna(subset=metric).groupby(["dataset", "label", cost])[metric]
    return groups.agg(runs="count", mean="mean", sd_ddof1="std")


def endpoints(frame, metric="test.dice", cost="images"):
    """One row a run: dataset, label, run, first and last images, aubc, final, to_95.

    `to_95` is the budget to 95 % of the dataset's mean ceiling (label "full"): inf if never reached, NaN without one.
    """
    frame = frame.dropna(subset=metric).sort_values("images")
    repeated = frame.duplicated(["dataset", "label", "run", "cycle"])
    if repeated.any():
        dataset, label, run = frame.loc[repeated, ["dataset", "label", "run"]].iloc[0]
        raise Refused(
            f"On {dataset} several runs are called {label} {run}: compare one folder at a time or give them own labels."
        )
    full = frame[frame["label"] == CEILING].groupby(["dataset", "run"])[metric].last()
    ceiling = full.groupby("dataset").mean()
    rows = []
    for (dataset, label, run), group in frame[frame["label"] != CEILING].groupby(["dataset", "label", "run"]):
        budget, curve, target = group[cost].to_numpy(), group[metric].to_numpy(), 0.95 * ceiling.get(dataset, np.nan)
        rows.append(
            {
                "dataset": dataset,
                "label": label,
                "run": run,
                "first": group["images"].iloc[0],
                "last": group["images"].iloc[-1],
                "aubc": aubc(budget, curve),
                "final": curve[-1],
                "to_95": np.nan if np.isnan(target) else budget_to(budget, curve, target),
            }
        )
    if not rows:
        raise Refused(f"No run here has {metric}.")
    return pd.DataFrame(rows)


def compare(frame, baseline="random", margin=0.0, metric="test.dice", cost="images", alpha=0.05):
    """Every method against `baseline`, dataset by dataset: a DataFrame with one row each, the baseline's first.

    `frame` is that of analysis.runs.load, or any with dataset, label, run, cycle, images and `metric`; to compare
    settings that share a label, write them into it. A run counts if its first and last images are those of most of the
    baseline's runs. `runs` were paired, `unpaired` had no counterpart. `aubc`, its SD with ddof=1 and, for published
    tables, ddof=0, `final` and the median `to_95` (inf: half of the runs or more never got there) are over the
    method's own runs; `difference`, its interval `low` to `high` and all p are over pairs, in units of `metric`.

    `verdict` is better or worse where `p_holm`, the paired t test after Holm, is below alpha; else equivalent where
    `p_equivalent`, TOST after Holm, is: the difference is then within +-`margin`, the largest one that does not
    matter; else undecided. margin=0 never finds equivalence. The t test decides, and not `p_signflip` or
    `p_wilcoxon`, because with n = 5 these exact tests cannot go below .0625, and 3 to 5 runs are what people can
    pay for; AUBC averages over cycles and its differences over runs are near normal. Where they disagree with it at
    n >= 6, distrust it. `more_runs` would give a power of .8 to see `margin` or, without one, the difference seen
    here, at alpha over the number of methods. It is advice for a new study, not a licence to add runs until p falls.

    Raises Refused for an unknown baseline, runs that share a name, and fewer than two paired runs throughout.
    """
    ends = endpoints(frame, metric, cost)
    rows = [row for _, group in ends.groupby("dataset") for row in _compare_one(group, baseline, margin, alpha)]
    if all(row["runs"] < 2 for row in rows if row["label"] != baseline):
        raise Refused(
            f"Two runs are needed that {baseline} and another method share, from the same to the same budget."
        )
    return pd.DataFrame(rows).reindex(columns=REPORTED)


def _compare_one(ends, baseline, margin, alpha):
    """The rows of compare for one dataset."""
    dataset, labels = ends["dataset"].iloc[0], sorted(ends["label"].unique())
    if baseline not in labels:
        near = get_close_matches(baseline, labels, n=1, cutoff=0.5)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise Refused(f"There is no method {baseline!r} on {dataset}, only {', '.join(labels)}.{hint}")
    first, last = ends.loc[ends["label"] == baseline, ["first", "last"]].value_counts().idxmax()
    usual = ends[(ends["first"] == first) & (ends["last"] == last)]
    wide = usual.pivot(index="run", columns="label", values="aubc").reindex(columns=labels)
    others = [label for label in labels if label != baseline]
    rows = []
    for label in [baseline, *others]:
        own = usual[usual["label"] == label]
        row = {"dataset": dataset, "label": label, "runs": len(own), "unpaired": 0, "aubc": own["aubc"].mean()}
        row |= {"sd_ddof1": own["aubc"].std(), "sd_ddof0": own["aubc"].std(ddof=0)}
        row |= {"final": own["final"].mean(), "to_95": own["to_95"].median()}
        if label == baseline:
            row["verdict"] = "baseline"
        else:
            differences = (wide[label] - wide[baseline]).dropna()
            either = ends.loc[ends["label"].isin([label, baseline]), "run"].nunique()
            row |= {"runs": len(differences), "unpaired": either - len(differences)}
            row |= paired(differences, margin, alpha, len(others))
        rows.append(row)
    _, *tested = rows
    for raw, adjusted in (("p_t", "p_holm"), ("p_equivalent", "p_equivalent")):
        for row, p in zip(tested, holm([row[raw] for row in tested]), strict=True):
            row[adjusted] = p
    for row in tested:
        row["verdict"] = _verdict(row, alpha)
        if row["verdict"] != "undecided":
            row["more_runs"] = 0.0
    return rows


def _verdict(row, alpha):
    if row["p_holm"] < alpha:
        return "better" if row["difference"] > 0 else "worse"
    return "equivalent" if row["p_equivalent"] < alpha else "undecided"


def paired(differences, margin=0.0, alpha=0.05, family=1):
    """What n paired differences say about their mean, as a dict; of fewer than two nothing: NaN.

    `low` to `high` is the 1 - alpha interval of `p_t`: Student 1908, https://doi.org/10.1093/biomet/6.1.1. `p_wilcoxon`
    is exact for small n: Wilcoxon 1945, https://doi.org/10.2307/3001968. `p_equivalent` is the larger p of two
    one-sided t tests (TOST): Schuirmann 1987, https://doi.org/10.1007/BF01068419. `more_runs` is for alpha / family.
    """
    d, n = np.asarray(differences, float), len(differences)
    if n < 2:
        return dict.fromkeys(REPORTED[REPORTED.index("difference") : -1], np.nan)
    mean, sd = d.mean(), d.std(ddof=1)
    half = stats.t.isf(alpha / 2, n - 1) * sd / np.sqrt(n)
    return {
        "difference": mean,
        "low": mean - half,
        "high": mean + half,
        "p_t": _t_test(d),
        "p_signflip": sign_flip(d),
        "p_wilcoxon": _wilcoxon(d),
        "p_equivalent": max(_t_test(d + margin, "greater"), _t_test(d - margin, "less")) if margin else np.nan,
        "more_runs": max(0.0, runs_needed(margin or mean, sd, alpha / family) - n),
    }


def _t_test(d, alternative="two-sided"):
    """p of mean 0 along the first axis; where all differences are 0, which paired runs are at the start, it is 1."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # scipy's, of differences that are all alike
        return np.nan_to_num(stats.ttest_1samp(d, 0.0, alternative=alternative).pvalue, nan=1.0)


def _wilcoxon(d):
    return float(stats.wilcoxon(d).pvalue) if d.any() else 1.0


def sign_flip(differences, exact_up_to=16):
    """Two-sided p of the mean under all 2^n changes of sign; above `exact_up_to`, of 2^16 random ones, always the same.

    Fisher 1935; Ernst 2004, https://doi.org/10.1214/088342304000000396. The least possible p is 2 / 2^n.
    """
    sample = (np.asarray(differences, float),)
    return stats.permutation_test(
        sample, np.mean, permutation_type="samples", vectorized=True, n_resamples=2**exact_up_to, rng=0
    ).pvalue


def holm(p):
    """Holm's step-down adjusted p values (M,), in the order given; NaN stays NaN and is not counted.

    Holm 1979, https://www.jstor.org/stable/4615733
    """
    p = np.asarray(p, float)
    order = np.argsort(p)  # NaN last
    factors = np.count_nonzero(~np.isnan(p)) - np.arange(len(p))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * factors), 1)
    return adjusted


def runs_needed(effect, sd, alpha=0.05, power=0.8):
    """Pairs that let a two-sided paired t test see `effect` with `power`, `sd` being that of the differences.

    From the noncentral t, Cohen 1988, Statistical Power Analysis, section 2; inf for more than MOST_RUNS.
    """
    if sd == 0 or effect == 0:
        return np.inf if effect == 0 else 2

    def reached(n):
        limit, shift = stats.t.isf(alpha / 2, n - 1), abs(effect) / sd * np.sqrt(n)
        return stats.nct.sf(limit, n - 1, shift) + stats.nct.cdf(-limit, n - 1, shift)

    n = bisect_left(range(MOST_RUNS + 1), power, lo=2, key=reached)
    return n if n <= MOST_RUNS else np.inf


def penalty_matrix(frame, metric="test.dice", alpha=0.05):
    """How often the row's method beats the column's: a DataFrame (methods, methods), at most the number of datasets.

    On each dataset a pair shares 1 among the budgets at which both have all paired runs; a budget counts where the
    paired t test, uncorrected, has p < alpha. A small column mean is good. Ash et al. 2020 (BADGE),
    https://arxiv.org/abs/1906.03671, who take budgets at doubling steps; here all are taken.
    """
    frame = frame[frame["label"] != CEILING].dropna(subset=metric)
    methods = sorted(frame["label"].unique())
    matrix = pd.DataFrame(0.0, index=methods, columns=methods)
    for _, group in frame.groupby("dataset"):
        curves = {label: g.pivot(index="run", columns="images", values=metric) for label, g in group.groupby("label")}
        for one, other in permutations(curves, 2):
            difference = (curves[one] - curves[other]).dropna(how="all").dropna(axis=1)
            if len(difference) > 1 and difference.size:
                beaten = (_t_test(difference.to_numpy()) < alpha) & (difference.mean() > 0)
                matrix.loc[one, other] += beaten.mean()
    return matrix


def ranks(frame, baseline="random", metric="test.dice", cost="images", alpha=0.05):
    """Methods over datasets: (DataFrame by method: rank, p_wilcoxon, p_holm; Friedman's p; critical difference).

    `rank` is the mean rank of the mean AUBC, 1 the best. Ranks further apart than the critical difference differ by
    Nemenyi's test. The p compare with the baseline, datasets being the pairs. Demsar 2006,
    https://jmlr.org/papers/v7/demsar06a.html; why Wilcoxon beside ranks: Benavoli et al. 2016,
    https://jmlr.org/papers/v17/benavoli16a.html. Raises Refused for under five datasets or three methods.
    """
    scores = endpoints(frame, metric, cost).groupby(["dataset", "label"])["aubc"].mean().unstack()
    if len(scores) < FEW_DATASETS or scores.shape[1] < 3 or scores.isna().any(axis=None) or baseline not in scores:
        raise Refused(
            f"Ranks need {FEW_DATASETS} datasets and 3 methods, {baseline} among them, each run on every dataset: "
            f"here are {', '.join(scores)} on {len(scores)}."
        )
    (datasets, methods), others = scores.shape, scores.columns.drop(baseline)
    table = pd.DataFrame({"rank": scores.rank(axis=1, ascending=False).mean()})
    differences = {label: scores[label] - scores[baseline] for label in others}
    table["p_wilcoxon"] = pd.Series({label: _wilcoxon(d) for label, d in differences.items()})
    table["p_holm"] = holm(table["p_wilcoxon"])
    friedman = stats.friedmanchisquare(*scores.to_numpy().T).pvalue
    quantile = stats.studentized_range.isf(alpha, methods, np.inf) / np.sqrt(2)
    return table.sort_values("rank"), float(friedman), float(quantile * np.sqrt(methods * (methods + 1) / 6 / datasets))


def bootstrap(values, repeats=5000, alpha=0.05, seed=0):
    """(mean, low, high) of `values` (runs, images): percentiles over runs and images drawn anew, each on their own.

    Every run sees the same images, so both are drawn once per repeat; images alone would understate. Give paired
    differences for the interval of a difference. Owen 2007, https://doi.org/10.1214/07-AOAS122
    """
    values, rng = np.asarray(values, float), np.random.default_rng(seed)
    drawn = [rng.multinomial(n, np.full(n, 1 / n), size=repeats) / n for n in values.shape]
    means = ((drawn[0] @ values) * drawn[1]).sum(1)
    return float(values.mean()), *np.quantile(means, [alpha / 2, 1 - alpha / 2]).tolist()


def _metric(frame, named):
    """The metric that is meant: the only one need not be named."""
    metrics = [name for name in frame if name not in (*runs.SETTINGS, "cycle", *runs.COSTS)]
    if named not in metrics and len(metrics) != 1:
        raise Refused(f"There is no metric {named} here, only {', '.join(metrics)}: name one by --metric.")
    return named if named in metrics else metrics[0]


def main(words=None):
    about = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m analysis.statistics", description=about)
    parser.add_argument(
        "source", help="a results folder, a mongodb:// URL or a CSV: method, seed, round, n_labelled, metric"
    )
    parser.add_argument("--baseline", default="random", help="the method that the others are compared with")
    parser.add_argument(
        "--margin", type=float, default=0.0, help="the largest difference that does not matter, in the metric's units"
    )
    parser.add_argument("--metric", default="test.dice", help="a CSV's only one need not be named")
    given = parser.parse_args(words)
    try:
        frame = runs.load(given.source)
        metric = _metric(frame, given.metric)
        table = compare(frame, given.baseline, given.margin, metric)
    except Refused as error:
        sys.exit(str(error))
    print(f"{metric}: mean area under the budget curve, compared over paired runs with {given.baseline}")
    for columns in (REPORTED[:9], [*REPORTED[:2], *REPORTED[9:]]):
        shown = table[columns].dropna(axis=1, how="all")
        print("\n" + shown.to_string(index=False, na_rep="", float_format="{:.4g}".format))


if __name__ == "__main__":
    main()
