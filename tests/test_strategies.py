"""Strategies against hand-worked examples and independent oracles; test_heuristics.py has what every file promises."""

import math
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import ndimage, stats
from test_heuristics import UNSURE, drawn_passes, of_passes, pixel, predictor

from experiments.acquisition import selection
from experiments.acquisition.pool import Annotated, Pool
from experiments.errors import Refused
from heuristics import (
    alpha_mix,
    ams,
    bald,
    bvsb,
    class_stratified,
    edge_entropy,
    entropy,
    expected_entropy,
    foreground_random,
    given,
    least_confidence,
    margin,
    random_balanced,
    stratified,
    strided,
    vote,
)
from heuristics.batches import power, stochastic

IDS = [f"im{i}" for i in range(60)]


def generator(seed=0):
    return np.random.default_rng(seed)


def plain_pool(ids=IDS, groups=None):
    return Pool(ids, groups or [""] * len(ids), None)


# ---- maps


@pytest.mark.parametrize(
    ("heuristic", "p", "expected"),
    [
        (least_confidence, (0.7, 0.3), 0.3),
        (least_confidence, (0.2, 0.5, 0.3), 0.5),
        (margin, (0.7, 0.3), 0.6),
        (margin, (0.2, 0.5, 0.3), 0.8),
        (margin, (0.5, 0.5), 1),
        (least_confidence, (0.0, 1.0), 0),
        (margin, (0.0, 1.0), 0),
        (bvsb, (0.7, 0.3), 3 / 7),
        (bvsb, (0.2, 0.5, 0.3), 3 / 5),
        (bvsb, (0.5, 0.5), 1),
        (bvsb, (0.0, 1.0), 0),
    ],
)
def test_one_pass_by_hand(heuristic, p, expected):
    assert heuristic.uncertainty(pixel(p)).item() == pytest.approx(expected, abs=1e-12)


def test_vote_entropy_by_hand():
    """Three of four passes vote 0: H(3/4, 1/4), however sure they are."""
    prediction = pixel((0.9, 0.1), (0.6, 0.4), (0.51, 0.49), (0.2, 0.8))
    expected = stats.entropy([3, 1])
    assert vote.uncertainty(prediction).item() == pytest.approx(expected, abs=1e-12)
    assert vote.uncertainty(pixel(*UNSURE)).item() == 0  # they agree, on a tie


def test_alpha_mix_is_between_its_two_entropies_and_no_divergence():
    prediction = of_passes(drawn_passes()[1])
    total, expected = entropy.uncertainty(prediction), expected_entropy.uncertainty(prediction)
    torch.testing.assert_close(alpha_mix.uncertainty(prediction, alpha=1.0), total)
    torch.testing.assert_close(alpha_mix.uncertainty(prediction, alpha=0.0), expected)
    half = alpha_mix.uncertainty(prediction, alpha=0.5)
    torch.testing.assert_close(half, expected + bald.uncertainty(prediction) / 2)


def test_sobel_is_scipys():
    x = torch.rand(2, 9, 11, generator=torch.Generator().manual_seed(0)).double()
    for ours, image in zip(edge_entropy.sobel(x), x.numpy(), strict=True):
        theirs = np.hypot(*(ndimage.sobel(image, axis, mode="nearest") for axis in (0, 1)))
        np.testing.assert_allclose(ours.numpy(), theirs, atol=1e-12)


def test_edge_entropy_counts_the_edge_alone_and_needs_no_company():
    p = torch.full((1, 2, 2, 6, 6), 0.5, dtype=torch.float64)
    p[0, 0, 0, :, 3:], p[0, 0, 1, :, 3:] = 0.1, 0.9
    both = edge_entropy.uncertainty(of_passes(p), threshold=0.5)
    assert (both[0] > 0).nonzero()[:, 1].unique().tolist() == [2, 3]
    assert both[0, 0, 2].item() == pytest.approx(math.log(2))
    assert not both[1].any()  # a flat image has no edge
    alone = edge_entropy.uncertainty(of_passes(p[:, :1]), threshold=0.5)
    torch.testing.assert_close(alone, both[:1])


def square(inside=0.9):
    """Two passes over an image with a 5 x 5 square of foreground; everywhere the passes differ by .1."""
    p = torch.full((2, 1, 1, 11, 11), 0.1, dtype=torch.float64)
    p[:, :, :, 3:8, 3:8] = inside
    p[0] -= 0.05
    p[1] += 0.05
    return of_passes(torch.cat([1 - p, p], 2))


def test_ams_by_distance_is_variance_by_scipys_distance():
    prediction = square()
    background = prediction.mean[0, 0].numpy() >= 0.5
    far = ndimage.distance_transform_edt(background)
    got = ams.uncertainty(prediction, variant="distance")[0]
    np.testing.assert_allclose(got, 0.05**2 * far / far.max(), atol=1e-7)
    assert got[5, 5] == 0 and got[0, 0] == pytest.approx(0.05**2)


def test_ams_ratio_by_hand():
    got = ams.uncertainty(square(), variant="ratio")
    torch.testing.assert_close(got, torch.full_like(got, 0.05 * 121 / 26))


def test_ams_votes_is_the_baselines_and_never_not_a_number():
    split = of_passes(torch.cat([square(0.46).mean[None], square(0.9).mean[None], square(0.9).mean[None]]))
    inside = split.votes[0, 1] > 1.5
    far = ndimage.distance_transform_edt(inside.numpy())
    np.testing.assert_allclose(ams.uncertainty(split, variant="votes")[0], 2 / 9 * far / far.max(), atol=1e-7)
    nothing, everything = pixel((0.9, 0.1), (0.8, 0.2)), pixel((0.1, 0.9), (0.2, 0.8))
    for prediction in (nothing, everything):
        for variant in ams.VARIANTS:
            assert ams.uncertainty(prediction, variant=variant).isfinite().all()
    assert ams.uncertainty(nothing, variant="distance").item() == pytest.approx(0.05**2)  # all of it is far off
    with pytest.raises(Refused, match="ams.variant is one of distance, ratio, votes, not 'edt'"):
        ams.check(variant="edt")


# ---- reductions


def reduced(name, u, p_foreground, valid=None):
    p = torch.tensor([[p_foreground]])
    mean = torch.stack([1 - p, p], 1).view(1, 2, 1, -1)
    u = torch.tensor([[u]])
    valid = torch.ones_like(u, dtype=torch.bool) if valid is None else torch.tensor([[valid]])
    return selection.reducer(name)(u, SimpleNamespace(mean=mean, valid=valid, first=1)).item()


def test_foreground_and_boundary_by_hand():
    u, p = [1.0, 2.0, 4.0, 8.0, 16.0], [0.1, 0.2, 0.9, 0.8, 0.7]
    assert reduced("foreground", u, p) == pytest.approx((4 + 8 + 16) / 3)
    assert reduced("boundary", u, p) == 3  # 2 and 4, left and right of the only edge
    valid = [True, True, True, False, True]
    assert reduced("foreground", u, p, valid) == 10 and reduced("boundary", u, p, valid) == 3
    assert reduced("foreground", u, [0.1] * 5) == reduced("boundary", u, [0.1] * 5) == 0


def test_target_by_hand():
    """The predicted foreground and the pixel beside it; an image without any counts as a whole."""
    u, p = [1.0, 2.0, 4.0, 8.0, 16.0], [0.1, 0.2, 0.9, 0.8, 0.7]
    assert reduced("target", u, p) == (2 + 4 + 8 + 16) / 4
    assert reduced("target", u, p, [True, True, True, False, False]) == 3
    assert reduced("target", u, [0.1] * 5) == pytest.approx(31 / 5)
    assert reduced("target", u, p, [True, False, False, False, False]) == 1  # none that counts
    assert math.isnan(reduced("target", u, p, [False] * 5))


def test_target_decides_for_each_image_of_a_batch():
    p = torch.tensor([[0.1, 0.1, 0.9, 0.1], [0.1] * 4]).view(2, 1, 1, 4)
    seen = SimpleNamespace(mean=torch.cat([1 - p, p], 1), valid=torch.ones(2, 1, 4, dtype=torch.bool), first=1)
    u = torch.tensor([[1.0, 2, 4, 9], [1, 2, 4, 9]]).view(2, 1, 4)
    assert selection.reducer("target")(u, seen).tolist() == [5, 4]


@pytest.mark.parametrize("repeat", [False, True])
@pytest.mark.parametrize("q", [1, 10, 50, 90, 99])
def test_a_percentile_is_numpys(q, repeat, monkeypatch):
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: repeat)
    u = generator().normal(size=(3, 9, 7))
    valid = generator(1).random((3, 9, 7)) < 0.7
    got = selection.reducer(f"q{q}")(torch.tensor(u), SimpleNamespace(valid=torch.tensor(valid)))
    expected = [np.quantile(a[v], q / 100, method="inverted_cdf") for a, v in zip(u, valid, strict=True)]
    np.testing.assert_allclose(got, expected)


@pytest.mark.parametrize("name", ["q0", "q100", "q", "Q50", "median", ""])
def test_an_unknown_reduction_is_refused(name):
    with pytest.raises(Refused, match="There is no reduction"):
        selection.reducer(name)


# ---- batches


def test_stochastic_groups_are_disjoint_and_the_best_one_is_taken():
    scores, pool = generator(3).random(60), plain_pool()
    groups = stochastic.draw_groups(IDS, 7, 8, False, 5)
    assert groups.shape == (8, 7) and len(set(groups.ravel().tolist())) == 56
    picked = stochastic.pick(scores, pool, 7, generator(), size=0, resample=False, groups=0, reduction="mean")
    salt = int(generator().integers(2**63))
    means = [scores[group].mean() for group in stochastic.draw_groups(IDS, 7, 8, False, salt)]
    assert np.mean(scores[picked]) == pytest.approx(max(means))
    assert (np.diff(scores[picked]) <= 0).all()


@pytest.mark.parametrize("reduction", ["mean", "max", "sum"])
def test_resampled_groups_share_images_and_more_of_them_score_higher(reduction):
    scores, pool = generator(3).random(60), plain_pool()
    few, many = (
        stochastic.REDUCTIONS[reduction](
            scores[stochastic.pick(scores, pool, 6, generator(), size=0, resample=True, groups=g, reduction=reduction)]
        )
        for g in (3, 300)
    )
    assert many > few
    drawn = stochastic.draw_groups(IDS, 6, 20, True, 0)
    assert len(set(drawn.ravel().tolist())) < 120 and all(len(set(g.tolist())) == 6 for g in drawn)


def test_small_groups_fill_a_query_best_group_first():
    scores, pool = generator(3).random(10), plain_pool(IDS[:10])
    picked = stochastic.pick(scores, pool, 5, generator(), size=2, resample=False, groups=0, reduction="sum")
    salt = int(generator().integers(2**63))
    sums = sorted((scores[group].sum() for group in stochastic.draw_groups(IDS[:10], 2, 5, False, salt)), reverse=True)
    assert [scores[picked[:2]].sum(), scores[picked[2:4]].sum()] == pytest.approx(sums[:2])
    assert sorted(stochastic.pick(scores, pool, 10, generator(), 3, False, 0, "mean")) == list(range(10))


@pytest.mark.parametrize(
    ("kind", "weights"), [("power", [1, 2, 4]), ("softmax", np.exp([1, 2, 4])), ("softrank", [1 / 3, 1 / 2, 1])]
)
def test_power_draws_in_proportion(kind, weights):
    """The first of a query is image i with probability weight_i / sum: chi squared over 3000 draws, 0.1 %."""
    pool = plain_pool(["a", "b", "c"])
    rng = generator(1)
    drawn = Counter(power.pick([1.0, 2.0, 4.0], pool, 1, rng, kind, 1.0)[0] for _ in range(3000))
    expected = 3000 * np.asarray(weights) / np.sum(weights)
    assert stats.chisquare([drawn[i] for i in range(3)], expected).pvalue > 0.001


def test_power_with_a_large_beta_is_top_and_zero_scores_come_last():
    scores = [0.5, 0.0, 0.7, 0.0, 0.1]
    picked = power.pick(scores, plain_pool(IDS[:5]), 5, generator(), "power", 1e6)
    assert picked[:3] == [2, 0, 4]
    assert set(power.pick(scores, plain_pool(IDS[:5]), 3, generator(), "power", 1.0)) == {0, 2, 4}
    with pytest.raises(Refused, match="use softmax or softrank"):
        power.pick([-1.0, 2.0], plain_pool(IDS[:2]), 1, generator(), "power", 1.0)


# ---- baselines and initial sets


def test_random_balanced_has_equal_parts():
    groups = ["rare" if i % 10 == 0 else "common" for i in range(60)]
    picked = random_balanced.select(plain_pool(groups=groups), 8, generator())
    assert Counter(groups[i] for i in picked) == {"rare": 4, "common": 4}
    assert picked != random_balanced.select(plain_pool(groups=groups), 8, generator(1))


def test_foreground_random_draws_in_proportion_to_the_predicted_foreground():
    shares = [0.2, 0.4, 0.8]
    labels = torch.zeros(1, 3, 1, 10)
    for i, share in enumerate(shares):
        labels[0, i, 0, : round(share * 10)] = 1
    p = torch.stack([1 - labels, labels], 2).double()
    pool = Pool("abc", "   ", lambda: [([0, 1, 2], None)], predictor(lambda *batch: of_passes(p)))
    np.testing.assert_allclose(foreground_random.foreground(pool), shares, atol=1e-6)
    rng = generator(2)
    drawn = Counter(int(np.argmax(foreground_random.score(pool, rng, least=0.01))) for _ in range(3000))
    expected = 3000 * np.asarray(shares) / np.sum(shares)
    assert stats.chisquare([drawn[i] for i in range(3)], expected).pvalue > 0.001


@pytest.mark.parametrize(
    ("sizes", "n", "expected"),
    [
        ({"a": 50, "b": 50}, 4, {"a": 2, "b": 2}),
        ({"a": 60, "b": 30, "c": 10}, 10, {"a": 6, "b": 3, "c": 1}),
        ({"a": 60, "b": 31, "c": 9}, 5, {"a": 3, "b": 2, "c": 0}),  # exact 3, 1.55, .45
        ({"a": 2, "b": 1}, 3, {"a": 2, "b": 1}),
    ],
)
def test_proportions_by_largest_remainders(sizes, n, expected):
    assert stratified.proportional(sizes, n, generator()) == expected


def test_equal_remainders_are_drawn_between():
    """Exact are 3, 1.5 and .5: the last image is of b or of c."""
    found = [stratified.proportional({"a": 60, "b": 30, "c": 10}, 5, generator(seed))["b"] for seed in range(20)]
    assert 4 < found.count(1) < 16 and set(found) == {1, 2}


def test_stratified_draws_each_group_in_proportion():
    groups = ["rare" if i % 4 == 0 else "common" for i in range(60)]
    picked = stratified.select(plain_pool(groups=groups), 8, generator())
    assert Counter(groups[i] for i in picked) == {"rare": 2, "common": 6}
    with pytest.raises(Refused, match="use initial=random"):
        stratified.select(plain_pool(), 8, generator())


def test_strided_is_every_so_manieth_image_in_file_order():
    assert strided.select(plain_pool(), 6, None) == [0, 10, 20, 30, 40, 50]
    assert strided.select(plain_pool(IDS[::-1]), 4, None) == [0, 15, 30, 45]
    assert strided.select(plain_pool(IDS[:7]), 3, None) == [0, 2, 4]
    assert strided.select(plain_pool(IDS[:7]), 7, None) == [*range(7)]


def test_strided_goes_into_the_gaps_of_the_queries_before():
    """Of 64 frames 4 are labelled and 4 asked for in each of 3 cycles: all end up 4 frames apart, or nearly."""
    frames = [f"im{i}" for i in range(64)]
    left, labelled = list(range(64)), []
    for step in range(4):
        known = Annotated([frames[i] for i in labelled], [""] * len(labelled), tuple)
        pool = Pool([frames[i] for i in left], [""] * len(left), None, labelled=known, cycle=max(0, step - 1))
        picked = [left[k] for k in strided.select(pool, 4, None)]
        labelled, left = sorted(labelled + picked), [i for i in left if i not in picked]
    gaps = np.diff(labelled)
    assert gaps.min() >= 3 and gaps.max() <= 5
    assert [strided.halving(k) for k in range(6)] == [0, 1 / 2, 1 / 4, 3 / 4, 1 / 8, 5 / 8]


def test_given_ids_or_file(tmp_path):
    file = tmp_path / "ids.txt"
    file.write_text("im3\nim1\n")
    assert given.select(plain_pool(), 2, None, ids=["im7", "im2"], file="") == [7, 2]
    assert given.select(plain_pool(), 2, None, ids=[""], file=str(file)) == [3, 1]
    for ids, said in (
        (["im7"], "names 1 different images and start is 2"),
        (["im7", "im7"], "names 1"),
        ([""], "names 0"),
        (["im7", "x"], "'x', which is no training image: the nearest are im"),
    ):
        with pytest.raises(Refused, match=said):
            given.select(plain_pool(), 2, None, ids=ids, file="")
    with pytest.raises(Refused, match="given names no image"):
        given.check(ids=[""], file="")
    with pytest.raises(Refused, match="cannot be read"):
        given.select(plain_pool(), 2, None, ids=[""], file=str(tmp_path / "absent"))


# ---- what a run tells a strategy


def test_corrected_bald_is_refused_with_balanced_masks_before_training(smoke, tmp_path):
    settings = {"heuristic": "bald", "bald.corrected": True, "prediction.masks": "balanced"}
    with pytest.raises(Refused, match="bald.corrected is for independent passes"):
        smoke(**settings)
    with pytest.raises(Refused, match="bald.corrected is for independent passes"):
        smoke(**settings | {"heuristic": "hybrid", "hybrid.by": "bald"})
    assert not (tmp_path / "results").exists()


def test_a_strategy_knows_how_many_queries_the_run_has(smoke, monkeypatch):
    told, faded = [], class_stratified.faded

    def noted(first, last, cycle, cycles):
        told.append((cycle, cycles))
        return faded(first, last, cycle, cycles)

    monkeypatch.setattr(class_stratified, "faded", noted)
    smoke(heuristic="class_stratified", cycles=2)
    assert told == [(0, 2), (1, 2)]
