"""Runs added until a difference is decided, and the labels that a method saves: closed forms and simulated studies."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis import labels_saved, sequential, statistics
from analysis.sequential import Design, boundaries, decide, spent

STUDIES = 500


def test_all_of_alpha_is_spent_at_the_end_and_less_before():
    shares = spent(np.linspace(0, 1, 11))
    assert shares[0] == 0 and shares[-1] == pytest.approx(0.05) and (np.diff(shares) > 0).all()
    assert spent(0.5) == pytest.approx(0.05 * np.log(1 + (np.e - 1) / 2))  # Lan & DeMets 1983, their alpha_2


def test_looks():
    assert Design(5, 1, 8).looks == [5, 6, 7, 8] and Design(3, 4, 12).looks == [3, 7, 11, 12]
    assert Design(1, 1, 3).looks == [2, 3] and Design(40, 1, 30).looks == [30]


def test_a_single_look_is_the_t_test():
    assert boundaries(Design(8, 1, 8))[8] == pytest.approx(stats.t.isf(0.025, 7), rel=0.01)
    assert boundaries(Design(8, 1, 8), 0.05 / 11)[8] == pytest.approx(stats.t.isf(0.025 / 11, 7), rel=0.05)


def test_the_levels_of_the_looks_are_the_published_ones():
    """Five equal looks, |z| by the program of Reboussin, DeMets, Kim & Lan 2000, as levels of the t test."""
    bounds = boundaries(Design(40, 40, 200))
    levels = [2 * stats.t.sf(bound, n - 1) for n, bound in bounds.items()]
    assert levels == pytest.approx(2 * stats.norm.sf([2.438, 2.427, 2.410, 2.397, 2.386]), rel=0.06)


def test_random_against_random_is_called_different_no_more_often_than_alpha_says():
    """500 studies that are looked at after every run from 3 to 30: at most 5 % and two standard errors."""
    rng = np.random.default_rng(16)
    called = [decide(rng.normal(0, 1.4, 30), Design())[0] != "undecided" for _ in range(STUDIES)]
    assert np.mean(called) <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / STUDIES)
    skewed = [decide(rng.exponential(1, 30) - rng.exponential(1, 30), Design())[0] for _ in range(STUDIES)]
    assert np.mean(np.array(skewed) != "undecided") <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / STUDIES)
    peeking = [min(statistics._t_test(d[:n]) for n in range(3, 31)) < 0.05 for d in rng.normal(0, 1.4, (100, 30))]
    assert (
        np.mean(peeking) > 0.15
    )  # so the simulation can tell: p of one test, looked at each time, errs three times more


@pytest.mark.parametrize("most", [12, 30])
def test_a_true_difference_is_found_in_fewer_runs_than_a_fixed_number_of_the_same_power(most, table):
    """+2 points with an SD of 1.4 of the differences."""
    rng = np.random.default_rng(17)
    found = [decide(rng.normal(2, 1.4, most), Design(most=most)) for _ in range(STUDIES)]
    power, runs = np.mean([verdict == "better" for verdict, *_ in found]), np.mean([n for _, n, *_ in found])
    fixed = statistics.runs_needed(2, 1.4, power=min(power, 1 - 1 / STUDIES))
    table([f"at most {most} runs: power {power:.3f}, {runs:.1f} runs on average, {fixed} fixed"])
    assert runs < fixed


def test_equivalence_is_decided_inside_the_margin_only():
    rng = np.random.default_rng(3)
    near = rng.normal(0, 0.01, 30)
    verdict, n, low, high = decide(near, Design(), margin=0.05)
    assert verdict == "equivalent" and n < 30 and -0.05 < low < high < 0.05
    assert decide(near, Design())[0] == "undecided"


def frame(curves):
    """A frame of {label: (runs, evaluations)} at 4, 8, 12 ... images."""
    rows = [
        {"dataset": "d", "label": label, "run": run, "cycle": k, "images": 4 * (k + 1), "test.dice": value}
        for label, runs in curves.items()
        for run, curve in enumerate(runs)
        for k, value in enumerate(curve)
    ]
    return pd.DataFrame(rows)


def test_the_table_has_the_verdicts_of_the_design_and_no_p_of_single_tests():
    rng = np.random.default_rng(5)
    base = rng.normal(0.7, 0.05, (10, 1)).repeat(3, 1)
    better, same = base + rng.normal(0.05, 0.01, (10, 1)), base + rng.normal(0, 0.03, (10, 1))
    made = sequential.compare(
        frame({"random": base, "bald": better, "other": same}), "random", 0, "test.dice", Design()
    )
    made = made.set_index("label")
    assert made.loc["bald", "verdict"] == "better" and made.loc["bald", "runs"] < 10
    assert made.loc["other", "verdict"] == "undecided" and made.loc["other", "more_runs"] == 20
    assert made.loc[["bald", "other"], ["p_t", "p_holm"]].isna().all(axis=None)


def test_a_budget_is_read_off_between_evaluations():
    curves = [[0.2, 0.6, 0.8], [0.5, 0.5, 0.5]]
    assert labels_saved.budget_reaching([4, 8, 12], curves, [0.4, 0.7]).tolist() == [6, np.inf]
    assert labels_saved.budget_reaching([4, 8, 12], [0.2, 0.6, 0.8], 0.1) == 4


def test_labels_saved():
    random = np.tile([0.2, 0.4, 0.6], (5, 1)) + np.linspace(-0.02, 0.02, 5)[:, None]
    saved, low, high = labels_saved.saved([4, 8, 12], random + [0, 0.2, 0.2], random)
    assert saved == pytest.approx(4, abs=1e-6) and low == pytest.approx(4, abs=1e-6) == high
    assert labels_saved.saved([4, 8, 12], random - 0.1, random)[0] == -np.inf
    assert labels_saved.saved([4, 8, 12], random, random)[0] == 0
    made = labels_saved.compare(frame({"random": random, "bald": random + [0, 0.2, 0.2]}), minutes=15.0)
    assert made.loc[0, "saved_text"] == "4.0 images saved (4.0 to 4.0), 60 minutes (60 to 60) at 15 an image"
    assert made.loc[0, "saved_minutes"] == pytest.approx(60) and np.isnan(made.loc[0, "saved_pixels"])


def test_labels_saved_in_pixels_and_minutes_are_of_what_the_runs_had_cost():
    """A method that asks for images twice as large saves half of its images, and in pixels nothing."""
    random = np.tile([0.2, 0.4, 0.6], (5, 1)) + np.linspace(-0.02, 0.02, 5)[:, None]
    study = frame({"random": random, "bald": random + [0, 0.2, 0.2]})
    images = np.sort(study["images"].unique())
    large = study["label"] == "bald"
    study["pixels"] = 100.0 * study["images"] * np.where(large, 2, 1)
    study["minutes"] = 3.0 * study["images"]
    row = labels_saved.compare(study).loc[0]
    step = images[1] - images[0]
    assert row["saved"] == pytest.approx(step) and row["saved_minutes"] == pytest.approx(3 * step)
    assert row["saved_pixels"] == pytest.approx(100 * (images[2] - 2 * images[1]))
    assert " pixels (" in row["saved_text"] and row["saved_text"].endswith(" minutes (12 to 12) of annotators")
    study.loc[study.index[0], "minutes"] = np.nan  # a mask without: nothing is guessed
    assert "minutes" not in labels_saved.compare(study).loc[0, "saved_text"]


def test_the_interval_of_the_labels_saved_holds_what_is_true():
    """In about 95 of 100 simulated studies of 10 runs: the baseline needs 12 images for what the method has with 8."""
    rng, inside = np.random.default_rng(7), 0
    for _ in range(100):
        random = np.array([0.2, 0.4, 0.6]) + rng.normal(0, 0.03, (10, 3))
        _, low, high = labels_saved.saved(
            [4, 8, 12], random + [0, 0.2, 0.2] + rng.normal(0, 0.02, (10, 3)), random, 300
        )
        inside += low <= 4 <= high
    assert inside >= 85
