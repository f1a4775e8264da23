"""The statistics against closed forms, SciPy and published tables, a real study, and studies where nothing differs."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import optimize, stats

from analysis import rank_diagram, statistics
from analysis.runs import load
from analysis.statistics import (
    aubc,
    bootstrap,
    budget_to,
    compare,
    fg_efficiency,
    holm,
    paired,
    penalty_matrix,
    ranks,
    runs_needed,
    sign_flip,
)
from analysis.statistics.__main__ import main
from experiments.errors import Refused

GLAS = Path(__file__).resolve().parents[2] / "shared/data/published/glas_wacv21_curves.csv"
published = pytest.mark.skipif(not GLAS.exists(), reason=f"{GLAS} is not here")


def study(curves, dataset="d", images=(4, 8, 16)):
    """A frame of {label: (runs, evaluations) values}."""
    tables = [
        pd.DataFrame({"run": r, "cycle": range(len(images)), "images": images, "test.dice": curve}).assign(label=label)
        for label, runs in curves.items()
        for r, curve in enumerate(runs)
    ]
    return pd.concat(tables, ignore_index=True).assign(dataset=dataset)


def flat(heights):
    """Curves (runs, 3) whose AUBC is their height."""
    return np.tile(np.asarray(heights, float)[:, None], 3)


def row(table, label):
    [found] = table[table["label"] == label].to_dict("records")
    return found


def test_aubc():
    assert aubc([4, 8, 20], [0.4, 0.5, 0.8]) == pytest.approx(0.6)  # a straight line: the mean of its ends
    assert aubc([0, 1, 4], [0, 1, 1]) == pytest.approx((0.5 + 3) / 4)  # unequal steps count by their cost
    assert aubc([7], [0.3]) == 0.3


def test_budget_to():
    assert budget_to([4, 8, 16], [0.5, 0.8, 0.7], 0.75) == 8
    assert budget_to([4, 8, 16], [0.5, 0.8, 0.7], 0.9) == np.inf


def test_fg_efficiency_finds_the_rates_that_were_put_in():
    share = {"a": np.array([2.0, 5, 9]), "b": np.array([2.0, 20, 40])}
    curves = {name: [0.9 - 0.5 * np.exp(-rate * (share[name] / 100 - 0.02))] * 2 for name, rate in (("a", 7), ("b", 3))}
    frame = study(curves | {"full": [[0.9] * 3]})
    frame["foreground"] = [*np.tile(share["a"], 2), *np.tile(share["b"], 2), 100, 100, 100]
    assert fg_efficiency(frame).to_dict() == pytest.approx({"a": 7, "b": 3})
    assert (
        fg_efficiency(frame[frame["label"] != "full"]).empty and fg_efficiency(frame.drop(columns="foreground")).empty
    )


def test_fg_efficiency_has_one_start_for_all_methods_as_nnactive():
    """By a restatement of nnActive's DatasetBeta.from_df: also a method with another first Dice has that start."""
    frame = study({"a": [[0.4, 0.6, 0.7]], "b": [[0.3, 0.5, 0.8]], "full": [[0.9, 0.9, 0.9]]})
    frame["foreground"] = [1, 5, 9, 2, 6, 30, 100, 100, 100]

    def rate(b, x, y):
        return 0.9 - (0.9 - 0.4) * np.exp(-b * (x - 0.01)) - y

    points = {label: one for label, one in frame.groupby("label") if label != "full"}
    expected = {
        label: optimize.least_squares(rate, 5, args=(one["foreground"] / 100, one["test.dice"])).x[0]
        for label, one in points.items()
    }
    assert fg_efficiency(frame).to_dict() == pytest.approx(expected, rel=1e-4)


def test_paired_is_scipys():
    d = np.array([0.3, -0.1, 0.8, 0.5, 0.2, 0.9, -0.35])
    result = paired(d, margin=0.6)
    expected = stats.ttest_rel(d + 5, np.full(7, 5.0))
    assert result["p_t"] == pytest.approx(expected.pvalue)
    assert (result["low"], result["high"]) == pytest.approx(tuple(expected.confidence_interval()))
    assert result["p_wilcoxon"] == stats.wilcoxon(d, method="exact").pvalue
    # TOST at alpha holds where the 1 - 2 alpha interval lies within the margin
    low, high = stats.ttest_1samp(d, 0).confidence_interval(1 - 2 * result["p_equivalent"])
    assert max(-low, high) == pytest.approx(0.6)
    assert np.isnan(paired(d)["p_equivalent"])


def test_paired_without_spread():
    same = paired(np.zeros(4), margin=0.1)
    assert (same["p_t"], same["p_wilcoxon"], same["p_signflip"], same["p_equivalent"]) == (1, 1, 1, 0)
    assert (same["low"], same["high"], same["more_runs"]) == (0, 0, 0)
    assert paired(np.full(3, 0.5))["p_t"] < 1e-9


def test_sign_flip():
    assert sign_flip(np.ones(3)) == 2 / 8
    assert sign_flip([1, 2, 3, 4, 5]) == 2 / 32
    assert sign_flip([3, -1, 2]) == 4 / 8  # sums of at least 4: 3+2-1 and 3+2+1, and their negatives
    many = np.random.default_rng(1).normal(0.3, 1, 40)
    assert sign_flip(many) == sign_flip(many) == pytest.approx(stats.ttest_1samp(many, 0).pvalue, rel=0.1)


def test_holm():
    assert holm([0.01, 0.04, 0.03, 0.005]).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, np.nan, 0.5]).tolist() == pytest.approx([1, np.nan, 1], nan_ok=True)


@pytest.mark.parametrize("effect, runs", [(0.2, 199), (0.5, 34), (0.8, 15), (1.0, 10)])
def test_runs_needed_as_tabulated(effect, runs):
    """G*Power's sizes for a two-sided paired t test at alpha .05 and power .8."""
    assert runs_needed(effect, 1) == runs_needed(-2 * effect, 2) == runs


def test_runs_needed_keeps_its_promise():
    draws = np.random.default_rng(0).normal(0.9, 1, (20000, 12))  # how often the test itself sees .9 with 12 pairs
    assert (stats.ttest_1samp(draws, 0, axis=1).pvalue < 0.05).mean() == pytest.approx(0.81, abs=0.01)
    assert runs_needed(0.9, 1) == 12
    assert [runs_needed(0, 1), runs_needed(1, 0), runs_needed(1e-6, 1)] == [np.inf, 2, np.inf]
    # what the published study of GlaS asks for: SD .84 to 1.03 Dice points
    assert [runs_needed(1, sd) for sd in (0.84, 1.03)] == [8, 11]
    assert [runs_needed(0.5, sd) for sd in (0.84, 1.03)] == [25, 36]


def test_compare_gives_each_verdict():
    base = np.array([0.6, 0.62, 0.59, 0.63, 0.61, 0.6])
    wobble = np.array([1, -1, 1, -1, 1, -1])
    curves = {
        "random": flat(base),
        "good": flat(base + 0.05 + 0.005 * wobble),
        "bad": flat(base - 0.05 + 0.005 * wobble),
        "same": flat(base + 0.002 * wobble),
        "wild": flat(base + 0.2 * wobble),
        "full": flat([0.7, 0.72]),
    }
    table = compare(study(curves), margin=0.02)
    assert dict(zip(table["label"], table["verdict"], strict=True)) == {
        "random": "baseline",
        "bad": "worse",
        "good": "better",
        "same": "equivalent",
        "wild": "undecided",
    }
    assert row(compare(study(curves)), "same")["verdict"] == "undecided"
    good, wild = row(table, "good"), row(table, "wild")
    assert good["difference"] == pytest.approx(0.05) and good["aubc"] == pytest.approx(np.mean(base) + 0.05)
    assert good["sd_ddof1"] == pytest.approx(np.std(base + 0.005 * wobble, ddof=1))
    assert (good["to_95"], wild["to_95"], good["more_runs"]) == (np.inf, np.inf, 0)
    assert wild["more_runs"] == runs_needed(0.02, np.std(0.2 * wobble, ddof=1), 0.05 / 4) - 6


def test_more_runs_than_pairs_are_counted_and_unfinished_ones_set_aside():
    rising = np.linspace(0.5, 0.7, 3) + np.array([[0.0], [0.01], [0.02], [0.04]])
    frame = study({"random": rising, "bald": rising[:3] + 0.01, "full": [[0, 0, 0.73]]})
    halfway = (frame["label"] == "bald") & (frame["run"] == 2) & (frame["images"] == 16)
    table = compare(frame[~halfway])
    assert {k: row(table, "bald")[k] for k in ("runs", "unpaired", "to_95")} == {"runs": 2, "unpaired": 2, "to_95": 16}
    assert row(table, "bald")["difference"] == pytest.approx(0.01)
    assert row(table, "random")["runs"] == 4
    assert row(table, "bald")["note"] == ("2 pairs, 3 are needed; 1 run not measured at 4, 8, 16 images: set aside")


def test_two_pairs_decide_nothing():
    curves = {"random": flat([0.5, 0.6, 0.7]), "bald": flat([0.6, 0.7, 0.8001])}
    assert row(compare(study(curves)), "bald")["verdict"] == "better"
    two = study({label: runs[:2] + [[0], [1e-5]] for label, runs in curves.items()})
    two.loc[two["label"] == "bald", "test.dice"] += 1e-6 * two["run"]
    bald = row(compare(two, margin=0.5), "bald")
    assert bald["p_holm"] < 0.01 and bald["p_equivalent"] < 0.01
    assert (bald["verdict"], bald["note"], bald["more_runs"]) == ("undecided", "2 pairs, 3 are needed", 1)


def test_the_whole_grid_of_budgets_counts():
    """Same first and last budget, but fewer between: another area under the same curve."""
    concave = np.log(np.arange(4, 17))
    fine = study({"random": [concave] * 4, "bald": [concave] * 3}, images=range(4, 17))
    coarse = fine[(fine["label"] == "bald") & (fine["run"] == 0) & fine["images"].isin([4, 16])].assign(run=3)
    bald = row(compare(pd.concat([fine, coarse])), "bald")
    assert (bald["runs"], bald["unpaired"], bald["difference"]) == (3, 1, 0)
    assert bald["note"] == "1 run not measured at 4, 5, 6 ... images: set aside"
    with pytest.raises(Refused, match="Two runs"):
        compare(pd.concat([fine[fine["label"] == "random"], coarse]))
    with pytest.raises(Refused, match="measured at different budgets"):
        ranks(pd.concat([fine, coarse]))


def test_costs_are_compared_where_all_runs_have_them():
    """Two methods on one law of Dice over pixels, one of which spends four times as much with each query."""
    images = np.arange(4, 21, 4)
    spent = {"random": 4 * images, "bald": images}

    def law(pixels):
        return 0.9 * pixels / 80

    curves = {label: [law(pixels) + shift for shift in (0, 0.01, 0.02)] for label, pixels in spent.items()}
    frame = study(curves, images=images)
    frame["pixels"] = np.concatenate([np.tile(spent[label], 3) for label in curves])
    bald = row(compare(frame, cost="pixels"), "bald")
    assert bald["difference"] == pytest.approx(0, abs=1e-12) and bald["verdict"] == "undecided"
    ends = statistics.endpoints(frame, cost="pixels")
    assert ends["aubc"].tolist() == pytest.approx([law(18) + shift for shift in (0, 0.01, 0.02)] * 2)  # from 16 to 20
    assert row(compare(frame), "bald")["verdict"] == "worse"
    frame["pixels"] = frame["pixels"] / np.where(frame["label"] == "bald", 100, 1)
    with pytest.raises(Refused, match="share no range of pixels"):
        compare(frame, cost="pixels")


def test_datasets_are_compared_apart():
    rng = np.random.default_rng(0)
    one = study({"random": flat([0.5, 0.6, 0.7]), "bald": flat([0.6, 0.71, 0.8])}, "one")
    two = study({"random": flat(rng.random(3)), "bald": flat(rng.random(3))}, "two")
    both = compare(pd.concat([one, two]))
    alone = pd.concat([compare(one), compare(two)], ignore_index=True)
    pd.testing.assert_frame_equal(both, alone)


def test_refusals_of_compare():
    frame = study({"random": flat([0.5, 0.6]), "bald": flat([0.5, 0.7])})
    with pytest.raises(Refused, match=r"'radnom' on d, only bald, random. Did you mean random\?"):
        compare(frame, "radnom")
    with pytest.raises(Refused, match="Two runs"):
        compare(frame[frame["run"] == 0])
    with pytest.raises(Refused, match="several runs are called bald 0"):
        compare(pd.concat([frame, frame[frame["label"] == "bald"]]))


def test_false_positives_of_random_against_random():
    """200 studies of 5 runs in which nothing differs, each a dataset: run effects are shared, the rest is noise."""
    rng = np.random.default_rng(0)
    cycles, images = np.arange(12), 8 + 4 * np.arange(12)
    tables = []
    for dataset in range(200):
        truth = 0.85 - 0.25 * np.exp(-images / 20)
        run_effect = rng.normal(0, 0.01, (5, 1)) * np.exp(-cycles / 6)
        both = truth + run_effect + rng.normal(0, 0.02, (2, 5, 12)) @ (0.6 ** np.abs(cycles - cycles[:, None]))
        both[1, :, 0] = both[0, :, 0]  # the same images and weights
        tables.append(study(dict(zip(("random", "again"), both, strict=True)), f"{dataset:03d}", images))
    table = compare(pd.concat(tables))
    verdicts = table.loc[table["label"] == "again", "verdict"].value_counts()
    different = (verdicts.get("better", 0) + verdicts.get("worse", 0)) / 200
    print(f"{different:.1%} called different")
    assert verdicts.sum() == 200 and 0.02 <= different <= 0.08


def test_penalty_matrix():
    up = np.array([0.001, -0.001, 0.002])[:, None]
    base = np.tile([0.5, 0.6, 0.7], (3, 1)) + [[0.1], [0.0], [0.05]]
    better_late = base + [0, 0.1, 0.1] + up * [0, 1, 1]
    frame = study({"random": base, "late": better_late, "full": flat([0.9, 0.9])})
    other = study({"random": base, "late": base[::-1]}, "other")
    matrix = penalty_matrix(pd.concat([frame, other]))
    assert matrix.loc["late", "random"] == pytest.approx(2 / 3) and matrix.to_numpy().sum() == pytest.approx(2 / 3)


def test_ranks_are_demsars():
    rng = np.random.default_rng(3)
    heights = rng.random((14, 4))
    frame = pd.concat(
        study({label: flat([h]) for label, h in zip("abcd", row, strict=True)}, f"d{k:02d}")
        for k, row in enumerate(heights)
    )
    table, friedman, distance = ranks(frame, "a")
    assert friedman == pytest.approx(stats.friedmanchisquare(*heights.T).pvalue)
    assert distance == pytest.approx(1.25, abs=0.005)  # Demsar 2006, page 14: 4 methods on 14 datasets
    expected = stats.rankdata(-heights, axis=1).mean(0)
    assert table.loc[list("abcd"), "rank"].tolist() == pytest.approx(expected.tolist())
    p = {label: stats.wilcoxon(heights[:, k] - heights[:, 0]).pvalue for k, label in enumerate("abcd") if k}
    assert table["p_wilcoxon"].drop("a").to_dict() == pytest.approx(p)
    with pytest.raises(Refused, match="6 datasets and 3 methods"):
        ranks(frame[frame["dataset"] < "d05"], "a")
    assert len(ranks(frame[frame["dataset"] < "d06"], "a")[0]) == 4
    with pytest.raises(Refused, match="each run on every dataset"):
        ranks(frame[(frame["dataset"] != "d03") | (frame["label"] != "b")], "a")


# Demsar 2006, table 6: AUC of C4.5, with m, with cf, with both, on 14 datasets; there two equal .975 are ranked 2 and 3
DEMSAR = """.763 .768 .771 .798  .599 .591 .590 .569  .954 .971 .968 .967  .628 .661 .654 .657  .882 .888 .886 .898
.936 .931 .916 .931  .661 .668 .609 .685  .583 .583 .563 .625  .775 .838 .866 .875  1 1 1 1  .940 .962 .965 .962
.619 .666 .614 .669  .972 .981 .9751 .975  .957 .978 .946 .970"""


def test_the_example_of_demsars_paper():
    """Mean ranks 3.143, 2.000, 2.893, 1.964, critical difference 1.25: Nemenyi's test tells nothing apart (page 12)."""
    names = ["C4.5", "m", "cf", "both"]
    heights = np.array(DEMSAR.split(), float).reshape(14, 4)
    frame = pd.concat(
        study({label: flat([h]) for label, h in zip(names, row, strict=True)}, f"d{k:02d}")
        for k, row in enumerate(heights)
    )
    table, friedman, distance = ranks(frame, "C4.5")
    assert table.loc[names, "rank"].round(3).tolist() == [3.143, 2.0, 2.893, 1.964]
    chi = 12 * 14 / (4 * 5) * ((table["rank"] ** 2).sum() - 4 * 5**2 / 4)
    assert chi == pytest.approx(9.28, abs=0.005) and friedman < stats.chi2.sf(chi, 3)  # ties make the p smaller
    assert distance == pytest.approx(2.569 * np.sqrt(4 * 5 / (6 * 14)), abs=0.001)  # table 5: q of .05 and 4
    assert rank_diagram.groups(sorted(table["rank"]), distance) == [(0, 3)]
    assert rank_diagram.groups(sorted(table["rank"]), 1.15) == [(0, 2), (1, 3)]
    assert rank_diagram.groups([1, 2, 3], 1.0) == []
    drawn = {text.get_text() for axis in rank_diagram.draw(table["rank"], distance).axes for text in axis.texts}
    assert drawn == {"C4.5  3.14", "m  2.00", "cf  2.89", "both  1.96", "critical difference 1.25"}


@pytest.mark.parametrize("methods, q", [(2, 1.960), (3, 2.343), (5, 2.728), (10, 3.164)])
def test_critical_values_are_those_of_demsars_table(methods, q):
    """Table 5 of the paper, two-tailed Nemenyi at .05."""
    assert stats.studentized_range.isf(0.05, methods, np.inf) / np.sqrt(2) == pytest.approx(q, abs=0.0015)


def test_bootstrap_spreads_by_runs_and_images():
    rng = np.random.default_rng(0)
    runs, images = rng.normal(0, 0.05, 6), rng.normal(0, 0.2, 40)
    mean, low, high = bootstrap(0.8 + runs[:, None] + images, repeats=20000, alpha=0.3173)
    # of a sum of two independent means: the variances add up, and 68 % lie within one deviation
    deviation = np.sqrt(runs.var() / 6 + images.var() / 40)
    assert mean == pytest.approx(0.8 + runs.mean() + images.mean())
    assert (high - low) / 2 == pytest.approx(deviation, rel=0.03)
    single = stats.bootstrap((images,), np.mean, method="percentile", rng=0).confidence_interval
    assert bootstrap(images[None])[1:] == pytest.approx((single.low, single.high), abs=0.006)


@published
def test_published_study_of_glas():
    table = compare(load(GLAS), "Random", metric="test_dice_percent").set_index("label")
    order = ["Random", "Entropy", "MC_Dropout", "Label_prop"]
    assert table.loc[order, "aubc"].tolist() == pytest.approx([78.57, 79.13, 77.92, 81.48], abs=0.01)
    assert table.loc[order, "sd_ddof0"].tolist() == pytest.approx([0.93, 0.26, 0.49, 1.03], abs=0.005)
    methods = order[1:]
    assert table.loc[methods, "p_t"].round(3).tolist() == [0.238, 0.235, 0.002]
    assert table.loc[methods, "p_wilcoxon"].tolist() == [0.3125, 0.1875, 0.0625]
    assert table.loc[methods, "verdict"].tolist() == ["undecided", "undecided", "better"]
    assert table["runs"].eq(5).all() and table["unpaired"].eq(0).all()


@published
def test_published_budgets_to_95_percent():
    """Rounds of 2 images to .95 of 86.53, the published ceiling."""
    frame = load(GLAS)
    full = pd.DataFrame({"label": "full", "run": 0, "cycle": 0, "images": 67, "test_dice_percent": [86.53]})
    ends = statistics.endpoints(pd.concat([frame, full.assign(dataset=frame["dataset"][0])]), "test_dice_percent")
    rounds = (ends.groupby("label")["to_95"].agg(["min", "max"]) - 8) / 2
    assert rounds.T.to_dict("list") == {
        "Random": [11, 13],
        "Entropy": [10, 19],
        "MC_Dropout": [11, 15],
        "Label_prop": [9, 11],
    }


LINES = "seed,n_labelled,method,round,accuracy\n" + "".join(
    f"{seed},{8 + 4 * step},{method},{step},{value + seed / 10 + step / 7}\n"
    for method, value in (("Random", 1), ("Mine", 1.5))
    for seed in (0, 1, 2)
    for step in (0, 1)
)


def test_command_line_prints_the_table(tmp_path, capsys):
    path = tmp_path / "study.csv"
    path.write_text(LINES)
    main([str(path), "--baseline", "Random"])
    out = capsys.readouterr().out
    assert "accuracy" in out and "study" in out and "Mine" in out and "better" in out
    heads = [line for line in out.splitlines() if "AUBC" in line or "p (Holm)" in line][:2]
    legend = out.splitlines()[-14:]
    for head in ("pairs", "AUBC", "difference", "p (Holm)", "more runs", "verdict"):
        assert any(head in line for line in heads) and any(line.startswith(f"{head}: ") for line in legend)


def test_a_study_that_grew_is_judged_by_its_design(tmp_path, capsys):
    """By hand as by the study: its stored file says how the runs were added."""
    from test_report import make

    for run, more in enumerate([0.03, 0.01, 0.05, 0.02]):  # p = .049
        make(tmp_path, "random", run, [0.5, 0.6])
        make(tmp_path, "bald", run, [0.5, 0.6 + more])
    main([str(tmp_path)])
    assert "better" in (fixed := capsys.readouterr().out) and "p (Holm)" in fixed
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "0.yaml").write_text("until: decided\nmost: 30\nrun: [0, 1, 2]\n")
    main([str(tmp_path)])
    grown = capsys.readouterr().out
    assert "Runs were added until each method was decided, 30 at most" in grown
    assert "undecided" in grown and "p (Holm)" not in grown and "p (signs)" not in grown


def test_readable_has_words_where_there_is_no_number():
    rising = np.linspace(0.5, 0.6, 3) + np.array([[0.0], [0.01], [0.02]])
    frame = study({"random": rising, "same": rising + [[1e-3], [-1e-3], [1e-9]], "full": [[0, 0, 0.9]]})
    done, against = statistics.readable(compare(frame))
    assert done["to 95 %"].tolist() == ["not reached"] * 2
    assert against["more runs"].tolist() == ["more than 1000"] and "note" not in against
    assert not {"inf", "nan", "NaN"} & set(" ".join([done.to_string(), against.to_string()]).split())


@pytest.mark.parametrize(
    "text, words, said",
    [
        (None, [], "cannot be read"),
        ("", [], "cannot be read"),
        ("method,seed\nRandom,0\n", [], "lacks the column round"),
        (LINES.replace("1.5", "much"), [], "words among the numbers of accuracy"),
        (LINES, ["--baseline", "random"], "Did you mean Random?"),
        (LINES.replace("accuracy", "a,b").replace("\n0", ",\n0"), ["--metric", "c"], "only a, b"),
        ("".join(line for line in LINES.splitlines(True) if line[0] in "s0"), ["--baseline", "Random"], "Two runs"),
    ],
)
def test_command_line_refuses_in_one_line(tmp_path, text, words, said):
    path = tmp_path / "study.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SystemExit) as exit:
        main([str(path), *words])
    assert said in exit.value.code and "\n" not in exit.value.code
    with pytest.raises(SystemExit, match="is not a folder"):
        main([str(tmp_path / "nothing"), *words])
