"""Is a difference between methods real? `python -m analysis.statistics results --baseline random` answers in one table.

The unit is the run: methods are compared over runs paired by (dataset, run), never over images or cycles. The
endpoint is the area under the budget curve; its paired t test, corrected for the number of methods, decides.
"""

import warnings
from bisect import bisect_left
from difflib import get_close_matches
from itertools import permutations

import numpy as np
import pandas as pd
from scipy import optimize, stats

from experiments.errors import Refused

CEILING = "full"  # the label of runs on all training labels
FEW_DATASETS = 6  # Wilcoxon's p of 5 pairs cannot go below .0625, so fewer datasets can never tell
FEW_PAIRS = 3  # fewer decide nothing: the spread of two differences is mostly chance
MOST_RUNS = 100_000
REPORTED = ["dataset", "label", "runs", "unpaired", "aubc", "sd_ddof1", "sd_ddof0", "final", "to_95"]
TESTED = ["difference", "low", "high", "p_t", "p_holm", "p_signflip", "p_wilcoxon", "p_equivalent", "more_runs"]
REPORTED += [*TESTED, "verdict", "note"]


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


def fg_efficiency(frame, metric="test.dice"):
    """FG-Eff of each method of one dataset, a Series by label: how fast annotated foreground turns into Dice.

    It is the rate b of `full - a exp(-b (x - x0))`, fitted to all points of a method; x is the share of the data's
    foreground that is annotated, `full` the mean Dice of the runs on all labels. All methods share one start, as
    nnActive has it: x0 is the smallest share of any, `full - a` the mean Dice there. NaN where no fit is found. Empty
    without runs on all labels or without `foreground`. Lueth et al. 2025, https://arxiv.org/abs/2511.19183
    """
    frame = frame.dropna(subset=[metric, "foreground"]) if "foreground" in frame else frame[:0]
    ceiling, methods = frame[frame["label"] == CEILING], frame[frame["label"] != CEILING]
    if ceiling.empty or methods.empty or not ceiling["foreground"].max():
        return pd.Series(dtype=float, name="fg_eff")
    full, share = ceiling[metric].mean(), methods["foreground"] / ceiling["foreground"].max()
    x0 = share.min()
    a = full - methods.loc[share == x0, metric].mean()
    rates = {label: _rate(share[one.index] - x0, one[metric], a, full) for label, one in methods.groupby("label")}
    return pd.Series(rates, name="fg_eff")


def _rate(x, y, a, full):
    """b of `full - a exp(-b x)` by least squares, NaN where none is found."""
    x, y = x.to_numpy(float), y.to_numpy(float)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # steps of the search that overflow, and fits without a spread
            return float(optimize.curve_fit(lambda x, b: full - a * np.exp(-b * x), x, y, p0=1 / np.ptp(x))[0][0])
    except (RuntimeError, ValueError, TypeError, ZeroDivisionError, FloatingPointError):
        return np.nan


def per_budget(frame, metric="test.dice", cost="images"):
    """Runs, mean and SD (ddof=1) of each method at each budget, indexed by (dataset, label, cost)."""
    groups = frame.dropna(subset=metric).groupby(["dataset", "label", cost])[metric]
    return groups.agg(runs="count", mean="mean", sd_ddof1="std")


def endpoints(frame, metric="test.dice", cost="images"):
    """One row a run: dataset, label, run, grid (the images at which it was measured), aubc, final, to_95.

    By another cost than images, runs end where their images took them: `aubc` and `final` are then those of the
    range of costs that all runs of a dataset have, read off between their points. `to_95` is the cost to 95 % of the
    dataset's mean ceiling (label "full"): inf if never reached, NaN without one. Raises Refused if runs share a name,
    if there is none with `metric`, or no common range.
    """
    frame = frame.dropna(subset=[metric, cost]).sort_values("images")
    repeated = frame.duplicated(["dataset", "label", "run", "cycle"])
    if repeated.any():
        dataset, label, run = frame.loc[repeated, ["dataset", "label", "run"]].iloc[0]
        raise Refused(
            f"On {dataset} several runs are called {label} {run}: compare one folder at a time or give them own labels."
        )
    full = frame[frame["label"] == CEILING].groupby(["dataset", "run"])[metric].last()
    ceiling = full.groupby("dataset").mean()
    rows = []
    for dataset, methods in frame[frame["label"] != CEILING].groupby("dataset"):
        target = 0.95 * ceiling.get(dataset, np.nan)
        runs_of = methods.groupby(["label", "run"])
        low, high = runs_of[cost].min().max(), runs_of[cost].max().min()
        if cost != "images" and low >= high:
            raise Refused(f"On {dataset} the runs share no range of {cost}: one begins where another has ended.")
        for (label, run), one in runs_of:
            budget, curve = one[cost].to_numpy(float), one[metric].to_numpy(float)
            row = {"dataset": dataset, "label": label, "run": run, "grid": tuple(one["images"])}
            row["to_95"] = np.nan if np.isnan(target) else budget_to(budget, curve, target)
            if cost != "images":
                inner = np.unique([low, *budget[(budget > low) & (budget < high)], high])
                budget, curve = inner, np.interp(inner, budget, curve)
            rows.append(row | {"aubc": aubc(budget, curve), "final": curve[-1]})
    if not rows:
        raise Refused(f"No run here has {metric}.")
    return pd.DataFrame(rows)


def usual_grid(ends, label):
    """The images at which most runs of a method were measured; of equals the longest."""
    counts = ends.loc[ends["label"] == label, "grid"].value_counts()
    return max(counts[counts == counts.max()].index, key=len)


def compare(frame, baseline="random", margin=0.0, metric="test.dice", cost="images", alpha=0.05):
    """Every method against `baseline`, dataset by dataset: a DataFrame with one row each, the baseline's first.

    `frame` is that of analysis.runs.load, or any with dataset, label, run, cycle, images and `metric`; to compare
    settings that share a label, write them into it. A run counts if it was measured at the images at which most of the
    baseline's runs were, for AUBC depends on them. `runs` were paired, `unpaired` had no counterpart. `aubc`, its SD
    with ddof=1 and, for published tables, ddof=0, `final` and the median `to_95` (inf: half of the runs or more never
    got there) are over the method's own runs; `difference`, its interval `low` to `high` and all p are over pairs, in
    units of `metric`.

    `verdict` is better or worse where `p_holm`, the paired t test after Holm, is below alpha; else equivalent where
    `p_equivalent`, TOST after Holm, is: the difference is then within +-`margin`, the largest one that does not
    matter; else undecided. margin=0 never finds equivalence. The t test decides, and not `p_signflip` or
    `p_wilcoxon`, because with n = 5 these exact tests cannot go below .0625, and 3 to 5 runs are what people can
    pay for; AUBC averages over cycles and its differences over runs are near normal. Where they disagree with it at
    n >= 6, distrust it. `more_runs` would give a power of .8 to see `margin` or, without one, the difference seen
    here, at alpha over the number of methods. It is advice for a new study, not a licence to add runs until p falls.

    The t test leans on near-normal differences: at n < 5 skewed ones make it err more often than alpha says. `note`
    says how many runs were set aside for their budgets, and why a method with fewer than FEW_PAIRS pairs is undecided
    whatever its p. Raises Refused for an unknown baseline, runs that share a name, and fewer than two paired runs
    throughout.
    """
    ends = endpoints(frame, metric, cost)
    rows = [row for _, group in ends.groupby("dataset") for row in _compare_one(group, baseline, margin, alpha)]
    if all(row["runs"] < 2 for row in rows if row["label"] != baseline):
        raise Refused(
            f"Two runs are needed, three for a verdict, that {baseline} and another method share at the same budgets."
        )
    return pd.DataFrame(rows).reindex(columns=REPORTED)


def _compare_one(ends, baseline, margin, alpha):
    """The rows of compare for one dataset."""
    dataset, labels = ends["dataset"].iloc[0], sorted(ends["label"].unique())
    if baseline not in labels:
        raise Refused(unknown(baseline, labels, f" on {dataset}"))
    grid = usual_grid(ends, baseline)
    usual = ends[ends["grid"] == grid]
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
            others_grid = (ends["label"].isin([label, baseline]) & (ends["grid"] != grid)).sum()
            row["note"] = _note(len(differences), others_grid, grid)
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


def unknown(baseline, labels, place=""):
    """What is said of a baseline that is not among the methods."""
    near = get_close_matches(baseline, labels, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]}?" if near else ""
    return f"There is no method {baseline!r}{place}, only {', '.join(labels)}.{hint}"


def _note(pairs, others_grid, grid):
    """What keeps a comparison from being a whole one."""
    said = []
    if pairs < FEW_PAIRS:
        said.append(f"{pairs} {'pair' if pairs == 1 else 'pairs'}, {FEW_PAIRS} are needed")
    if others_grid:
        at = ", ".join(f"{images:g}" for images in grid[:3]) + (" ..." if len(grid) > 3 else "")
        said.append(f"{others_grid} {'run' if others_grid == 1 else 'runs'} not measured at {at} images: set aside")
    return "; ".join(said)


def _verdict(row, alpha):
    if row["runs"] < FEW_PAIRS:
        return "undecided"
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
        return dict.fromkeys(TESTED, np.nan)
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
        "more_runs": max(0.0, FEW_PAIRS - n, runs_needed(margin or mean, sd, alpha / family) - n),
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
    paired t test, uncorrected, has p < alpha. The start counts too, as with Ash et al. and nnActive: runs that are
    equal there by design reach (E - 1) / E at most. A small column mean is good. Ash et al. 2020 (BADGE),
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
    https://jmlr.org/papers/v17/benavoli16a.html. Raises Refused for under FEW_DATASETS datasets, under three methods,
    and runs of one dataset that were measured at different budgets.
    """
    ends = endpoints(frame, metric, cost)
    grids = ends.groupby("dataset")["grid"].nunique()
    if grids.max() > 1:
        raise Refused(f"On {grids.idxmax()} runs were measured at different budgets: their areas cannot be ranked.")
    scores = ends.groupby(["dataset", "label"])["aubc"].mean().unstack()
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


HEADS = {
    "label": "method",
    "runs": "pairs",
    "unpaired": "unpaired",
    "aubc": "AUBC",
    "sd_ddof1": "SD",
    "sd_ddof0": "SD (n)",
    "final": "final",
    "to_95": "to 95 %",
    "difference": "difference",
    "low": "95 % low",
    "high": "high",
    "p_t": "p",
    "p_holm": "p (Holm)",
    "p_signflip": "p (signs)",
    "p_wilcoxon": "p (Wilcoxon)",
    "p_equivalent": "p (equivalent)",
    "more_runs": "more runs",
    "verdict": "verdict",
    "note": "note",
}
LEGEND = {
    "pairs": "runs that are compared; of the baseline, its own runs",
    "unpaired": "runs that have no counterpart, or other budgets",
    "AUBC": "area under the budget curve: a mean height",
    "SD": "of the AUBC over runs, divided by n - 1",
    "SD (n)": "the same, divided by n",
    "final": "the last value",
    "to 95 %": "cost until 95 % of the ceiling `full`, of the median run",
    "difference": "mean AUBC minus the baseline's, over pairs",
    "95 % low": "with high, the 95 % t interval of the difference",
    "p": "paired t test, not corrected",
    "p (Holm)": "corrected for the number of methods; decides better or worse",
    "p (signs)": "exact test over all changes of sign; does not decide, should agree",
    "p (Wilcoxon)": "exact test of signed ranks; does not decide, should agree",
    "p (equivalent)": "that the difference lies within the margin (TOST, Holm)",
    "more runs": "still needed for a power of .8",
    "verdict": "undecided is not equal: these runs cannot tell",
}


def readable(table):
    """(how each method did, how it compares) of compare()'s table: text under plain heads, "-" where there is none."""
    texts = {head: table[name].map(_texts.get(name, _four)) for name, head in HEADS.items()}
    texts = pd.DataFrame({"dataset": table["dataset"], **texts})
    done = texts[["dataset", *list(HEADS.values())[:8]]]
    against = texts.loc[table["verdict"] != "baseline", ["dataset", "method", *list(HEADS.values())[8:]]]
    return tuple(part.loc[:, (part != "-").any()].set_index(["dataset", "method"]) for part in (done, against))


def _four(value):
    return "-" if pd.isna(value) else f"{value:.4g}"


def _whole(value):
    return "-" if pd.isna(value) else "more than 1000" if value > 1000 else f"{value:.0f}"


def _words(value):
    return value if isinstance(value, str) and value else "-"


_texts = dict.fromkeys(("runs", "unpaired", "more_runs"), _whole) | dict.fromkeys(("label", "verdict", "note"), _words)
_texts["to_95"] = lambda value: "not reached" if value == np.inf else _four(value)
