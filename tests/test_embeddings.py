"""BADGE, contextual diversity, ClaSP PE, TypiClust and ProbCover against brute force and hand-worked examples."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.spatial.distance import cdist
from test_heuristics import attach, drawn_passes, generator, of_passes, predictor  # noqa: F401 attach is a fixture

from experiments.acquisition import selection
from experiments.acquisition.pool import Annotated, Pool
from experiments.acquisition.prediction import Prediction
from experiments.errors import Refused
from heuristics import badge, class_stratified, contextual_diversity, entropy, herding, probcover, random, typiclust
from heuristics.batches import top

pytestmark = pytest.mark.usefixtures("single_thread")


def rows_of(n=12, d=3, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)).double()


def unit(n=40, d=3, seed=0):
    return torch.nn.functional.normalize(rows_of(n, d, seed))


# ---- BADGE


def test_badge_embeds_the_gradient_that_autograd_finds():
    logits = drawn_passes()[0][0].requires_grad_()
    torch.nn.functional.cross_entropy(logits, logits.argmax(1), reduction="sum").backward()
    prediction = of_passes(logits.detach().softmax(1)[None])
    every_pixel = torch.nn.functional.adaptive_avg_pool2d(logits.grad, 35).flatten(1)
    torch.testing.assert_close(badge.gradients(prediction, 3 * 35 * 35), every_pixel)
    whole = logits.grad.mean((2, 3))
    torch.testing.assert_close(badge.gradients(prediction, 3), whole)
    assert badge.gradients(prediction, 400).shape == (4, 3 * 12 * 12)  # sqrt(400 / 3) = 11.5
    assert whole.abs().min() > 1e-4


def test_badge_does_not_look_at_pixels_that_are_not_valid():
    prediction = of_passes(drawn_passes()[1][:1])
    prediction.valid[:, 2:] = False
    inside = (prediction.mean - torch.nn.functional.one_hot(prediction.mean.argmax(1), 3).movedim(-1, 1))[:, :, :2]
    torch.testing.assert_close(badge.gradients(prediction, 3), inside.sum((2, 3)) / 35)


class Recorded:
    """A generator that remembers the probabilities that it was asked to draw with."""

    def __init__(self, seed):
        self.rng, self.asked = generator(seed), []

    def choice(self, n, p):
        self.asked.append(p)
        return self.rng.choice(n, p=p)


def test_badge_draws_in_proportion_to_brute_force_squared_distances():
    rows = rows_of()
    rng = Recorded(3)
    picked = badge.seeds(rows, len(rows), rng, np.arange(len(rows)))
    assert sorted(picked) == list(range(len(rows)))
    assert picked[0] == rows.norm(dim=1).argmax()
    for k, p in enumerate(rng.asked, start=1):
        d2 = cdist(rows, rows[picked[:k]]).min(1) ** 2
        np.testing.assert_allclose(p, d2 / d2.sum(), atol=1e-12)


def test_badge_seconds_are_as_frequent_as_their_squared_distances():
    rows = torch.tensor([[3.0, 0], [0, 0], [1, 0], [2, 1], [3, -1]])
    seconds = np.bincount([badge.seeds(rows, 2, generator(seed), np.arange(5))[1] for seed in range(3000)], minlength=5)
    expected = 3000 * np.array([1, 10, 5, 5, 0]) / 21  # (3, -1) is the longest, the first
    assert seconds[4] == 0
    assert stats.chisquare(seconds[:4], expected[:4]).pvalue > 0.001


def test_badge_takes_duplicates_last_and_in_the_given_order():
    rows, drawn = rows_of(2, 400).float()[[1, 0, 0, 1, 0, 1]], np.array([5, 2, 0, 4, 1, 3])
    lengths = rows.norm(dim=1)
    picked = badge.seeds(rows, 5, generator(), drawn)
    assert picked[0] == next(i for i in drawn if lengths[i] == lengths.max())
    assert not torch.equal(rows[picked[1]], rows[picked[0]])
    assert picked[2:] == [i for i in drawn if i not in picked[:2]][:3]


def test_what_is_not_finite_is_refused_naming_the_image(attach):  # noqa: F811
    p = torch.full((1, 2, 2, 3, 3), 0.5)
    p[0, 1, 0, 1, 1] = torch.nan
    pool = Pool(["good", "bad"], ["", ""], lambda: [([1, 0], None)], predictor(lambda *a: of_passes(p.flip(1))))
    for heuristic in (badge, contextual_diversity, class_stratified):
        attach(heuristic)
        with pytest.raises(Refused, match="image bad are not finite"):
            heuristic.select(pool, 1, generator())


# ---- contextual diversity


def test_confusion_is_the_weighted_mean_of_each_predicted_class():
    prediction = of_passes(drawn_passes(classes=4)[1][:1])
    got = contextual_diversity.confusion(prediction).view(4, 4, 4).numpy()
    for image, p in zip(got, prediction.mean.flatten(2).numpy(), strict=True):
        h, labels = stats.entropy(p), p.argmax(0)
        for c in range(4):
            mine = labels == c
            expected = np.average(p[:, mine], axis=1, weights=h[mine]) if mine.any() else np.zeros(4)
            np.testing.assert_allclose(image[c], expected, atol=1e-9)


def test_confusion_of_sure_pixels_and_of_absent_classes():
    sure = torch.tensor([1.0, 0, 0]).view(1, 1, 3, 1, 1).expand(1, 1, 3, 2, 2)
    assert contextual_diversity.confusion(of_passes(sure)).tolist() == [[1, 0, 0] + [0] * 6]


def confusions(n=14, classes=3, seed=0):
    """Rows of distributions in which a class other than the first is absent every third time."""
    rng = generator(seed)
    rows = rng.dirichlet(np.ones(classes), (n, classes))
    rows[:, 1:][rng.random((n, classes - 1)) < 1 / 3] = 0
    return torch.from_numpy(rows).flatten(1)


def by_scipy(a, b, absent):
    total, eps = 0, np.finfo(float).eps
    for p, q in zip(a.view(3, 3).numpy(), b.view(3, 3).numpy(), strict=True):
        if absent == "epsilon":
            p, q = np.maximum(p, eps), np.maximum(q, eps)
            total += (np.sum(p * np.log(p / q)) + np.sum(q * np.log(q / p))) / 2
        elif p.any() and q.any():
            total += (stats.entropy(p, q) + stats.entropy(q, p)) / 2
    return total


@pytest.mark.parametrize("absent", ["skip", "epsilon"])
def test_contextual_distance_and_k_centre_are_those_of_brute_force(absent):
    rows = confusions()
    between = np.array([[by_scipy(a, b, absent) for b in rows] for a in rows])
    for i, row in enumerate(rows):
        np.testing.assert_allclose(contextual_diversity.distances(rows, row, absent), between[i], rtol=1e-9, atol=1e-12)
    for labelled in ([11, 12, 13], []):
        picked = contextual_diversity.k_centre(rows[:11], rows[labelled], 11, generator(2), absent, np.arange(11))
        expected = [] if labelled else picked[:1]
        while len(expected) < 11:
            nearest = between[:11][:, labelled + expected].min(1)
            nearest[expected] = -1
            expected.append(int(nearest.argmax()))
        assert picked == expected


def test_images_that_share_no_class_are_near_in_the_paper_and_far_with_epsilon():
    a, b = torch.tensor([1.0, 0, 0, 0]), torch.tensor([0, 0, 0, 1.0])
    assert contextual_diversity.distances(a[None], b, "skip").item() == 0
    eps = torch.finfo().eps
    assert contextual_diversity.distances(a[None], b, "epsilon").item() == pytest.approx(-math.log(eps), rel=1e-5)


def test_k_centre_leaves_duplicates_of_the_labelled_for_last():
    rows = confusions(seed=4)[:3].float()[[0, 1, 0, 2, 0]]
    picked = contextual_diversity.k_centre(rows, rows[:1], 5, generator(), "skip", np.array([4, 3, 0, 2, 1]))
    assert set(picked[:2]) == {1, 3} and picked[2:] == [4, 0, 2]


# ---- ClaSP PE


@pytest.mark.parametrize(("membership", "members"), [("probability", (0.3, 0.5)), ("prediction", (0, 1))])
def test_class_entropies_by_hand(membership, members):
    """One pixel of two is sure, the other has H(.2, .3, .5)."""
    prediction = of_passes(torch.tensor([[1.0, 0, 0], [0.2, 0.3, 0.5]]).T.view(1, 1, 3, 1, 2))
    expected = stats.entropy([0.2, 0.3, 0.5]) * np.array([[*members, 1]])
    np.testing.assert_allclose(class_stratified.class_entropies(prediction, membership), expected / 2, atol=1e-7)
    prediction.valid[..., 0] = False
    np.testing.assert_allclose(class_stratified.class_entropies(prediction, membership), expected, atol=1e-7)


@pytest.mark.parametrize(
    ("n", "share", "classes", "expected"),
    [
        (10, 0.6, 3, [2, 2, 2, 4]),
        (10, 0.0, 2, [0, 0, 10]),
        (10, 1.0, 2, [5, 5, 0]),
        (3, 0.66, 1, [1, 2]),  # 1.98 and the next two are rounded down, as published
        (4, 0.66, 1, [2, 2]),
        (10, 0.66, 2, [3, 3, 4]),
    ],
)
def test_the_query_is_shared_out(n, share, classes, expected):
    assert class_stratified.shared_out(n, share, classes, generator()) == expected


def test_what_classes_do_not_divide_goes_to_drawn_ones():
    drawn = np.array([class_stratified.shared_out(5, 0.8, 3, generator(seed)) for seed in range(300)])
    assert (drawn[:, 3] == 1).all() and (drawn[:, :3].sum(1) == 4).all()
    assert stats.chisquare((drawn[:, :3] == 2).sum(0)).pvalue > 0.001


def test_rankings_give_in_turns_what_is_not_taken():
    rankings = [[4, 0, 1, 2, 3], [4, 3, 2, 1, 0], [0, 4, 3, 1, 2]]
    assert class_stratified.in_turns(rankings, [2, 1, 1]) == [4, 3, 0, 1]
    assert class_stratified.in_turns(rankings, [0, 0, 5]) == [0, 4, 3, 1, 2]


def test_noise_draws_in_proportion_to_a_power_of_the_score_and_fades():
    scores, ids = np.array([0.1, 0.2, 0.3, 0.0]), list("abcd")
    firsts = [int(class_stratified.noised(scores, ids, 2.0, salt).argmax()) for salt in range(3000)]
    expected = 3000 * scores[:3] ** 2 / (scores**2).sum()
    assert stats.chisquare(np.bincount(firsts, minlength=3), expected).pvalue > 0.001
    fewer = [int(class_stratified.noised(scores, ids, 64.0, salt).argmax()) for salt in range(200)]
    assert set(fewer) == {2}


def test_beta_grows_from_1_to_100_over_the_queries_of_the_run():
    """nnActive's schedule of "ClaSP PE": 100 ** (t / (T - 1))."""
    for queries in (2, 5, 10):
        betas = [class_stratified.faded(1.0, 100.0, t, queries) for t in range(queries)]
        np.testing.assert_allclose(betas, np.geomspace(1, 100, queries), rtol=1e-12)
    assert class_stratified.faded(1.0, 100.0, 0, 1) == 1
    assert class_stratified.faded(3.0, 3.0, 4, 9) == 3


def test_the_last_query_of_a_run_has_the_least_noise(attach):  # noqa: F811
    """The pool says how many queries the run has: its last one nearly takes the best, its first one does not."""
    attach(class_stratified).update(share=0.0)
    p = torch.linspace(0.6, 0.95, 64, dtype=torch.float64).view(1, 64, 1, 1, 1)
    whole = of_passes(torch.cat([p, 1 - p], 2))
    found = {}
    for cycle, cycles in ((0, 2), (1, 2), (1, 15)):
        pools = [shown(Pool, whole, np.arange(64), cycle=cycle, cycles=cycles) for _ in range(30)]
        chosen = [class_stratified.select(pool, 4, generator(seed)) for seed, pool in enumerate(pools)]
        found[cycle, cycles] = np.mean([np.isin(picked, range(4)).mean() for picked in chosen])
    assert found[1, 2] > 0.4 > 0.2 > found[0, 2] and found[1, 2] > 2 * found[1, 15]


# ---- TypiClust


def typical_by_brute_force(x, members, neighbours):
    """The member with the least mean squared distance to its nearest other members, half of them at most."""
    k = min(neighbours, len(members) // 2)
    means = [sum(sorted(math.dist(x[i], x[j]) ** 2 for j in members if j != i)[:k]) for i in members]
    return members[int(np.argmin(means))]


@pytest.mark.parametrize("seed", range(3))
def test_typical_is_brute_force(seed):
    x, groups = rows_of(60, 4, seed).numpy(), generator(seed).integers(0, 6, 60)
    picked = typiclust.typical(x, groups, 12, 5, 4, np.arange(50))
    left, count = set(range(50)), {g: int((groups[50:] == g).sum()) for g in range(6)}
    for i in picked:
        size = {g: int((groups == g).sum()) for g in range(6)}
        members = {g: sorted(j for j in left if groups[j] == g) for g in range(6)}
        best = min((g for g in range(6) if members[g]), key=lambda g: (count[g], -size[g], members[g][0]))
        assert i == typical_by_brute_force(x, members[best], 4)
        left.remove(i)
        count[best] += 1


def test_small_clusters_come_last_and_everything_can_be_taken():
    x, groups = rows_of(9).numpy(), np.array([0, 0, 0, 0, 0, 1, 1, 2, 2])
    picked = typiclust.typical(x, groups, 8, 5, 20, np.arange(8))  # one of cluster 2 is labelled
    assert sorted(picked[:5]) == [0, 1, 2, 3, 4] and sorted(picked[5:7]) == [5, 6] and picked[7] == 7


def test_a_cluster_of_five_is_small_as_published(attach):  # noqa: F811
    """The published code keeps clusters of more than 5, here the largest one that shows a labelled image."""
    settings = attach(typiclust)
    x, groups = rows_of(12).numpy(), np.array([0] * 5 + [1] * 7)
    kept = typiclust.typical(x, groups, 3, settings["least"], 20, np.arange(11))
    assert all(groups[i] == 1 for i in kept)


def test_the_mean_of_squares_decides_not_the_mean():
    """Image 0 is .1 and 1.1 from its neighbours, image 3 is .8 from both: nearer squared, farther on average."""
    x = np.array([[0, 0], [0.1, 0], [0, 1.1], [9, 0], [9.8, 0], [8.2, 0.0]])
    assert typiclust.mean_squared_distances(x, 2)[[0, 3]] == pytest.approx([0.61, 0.64])
    x[2, 1] = 1.3
    assert typiclust.mean_squared_distances(x, 2)[[0, 3]] == pytest.approx([0.85, 0.64])  # means .7 and .8


def test_two_images_that_are_each_others_neighbour_are_drawn_from():
    x = rows_of(2, 40).numpy()
    firsts = [typiclust.typical(x, np.zeros(2, int), 1, 1, 20, np.array(drawn))[0] for drawn in ((0, 1), (1, 0))]
    assert firsts == [0, 1]


def test_clustering_survives_duplicates():
    x = rows_of(2).numpy()[[0, 1, 0, 1, 0, 0]]
    groups = typiclust.clustered(x, 5, generator())
    assert len(set(groups[[0, 2, 4, 5]])) == 1 and len(set(groups)) == 2
    assert len(set(typiclust.clustered(np.zeros((80, 2)), 60, generator()))) == 1


class Features:
    """Images with these features, and others through weights or without a model."""

    def __init__(self, ids, rows, labelled=None):
        self.ids, self.rows, self.labelled = ids, rows, labelled or []
        self.featured = bool(self.labelled)

    def __len__(self):
        return len(self.ids)

    def features(self, layer, weights=""):
        return 2 * self.rows if weights else self.rows + 1

    def statistics(self):
        return self.rows


def test_features_are_statistics_then_those_of_weights_then_of_the_current_model():
    rows = rows_of(4)
    by_id = [1, 3, 0, 2]
    ids = list("cadb")
    normal = torch.nn.functional.normalize
    order, features, labelled = typiclust.unit_features(Features(ids, rows), "bottleneck", "")
    assert order.tolist() == by_id and not len(labelled)
    torch.testing.assert_close(features, normal(rows[by_id]))
    features = typiclust.unit_features(Features(ids, rows - 5), "bottleneck", "self.safetensors")[1]
    torch.testing.assert_close(features, normal(rows[by_id] - 5))
    others = Features(list("yx"), rows[:2])
    order, features, labelled = typiclust.unit_features(Features(ids, rows, others), "bottleneck", "")
    torch.testing.assert_close(features, normal(rows[by_id] + 1))


@pytest.mark.parametrize("heuristic", [typiclust, probcover, herding])
def test_duplicates_do_not_keep_a_selection_from_being_n_images(heuristic, attach):  # noqa: F811
    attach(heuristic).update({"weight": "none"} if heuristic is herding else {})
    rows = rows_of(3)[[0, 1, 2, 0, 0, 1, 0, 0, 2, 0]]
    for labelled in (None, Features(list("yx"), rows[:2])):
        pool = Features(list("cadbjighfe"), rows, labelled)
        picked = heuristic.select(pool, 10, generator())
        assert sorted(picked) == list(range(10))
        assert list(heuristic.select(pool, 4, generator())) == list(heuristic.select(pool, 4, generator()))
    alike = Features(list("cadb"), rows[[0, 0, 0, 0]])
    assert len(set(map(int, heuristic.select(alike, 3, generator())))) == 3


def test_typiclust_takes_one_of_each_blob_that_has_none_labelled(attach):  # noqa: F811
    attach(typiclust)
    blobs = [np.array(centre) + 0.1 * rows_of(8, 3, k).numpy() for k, centre in enumerate(10 * np.eye(3))]
    labelled = Features(["l"], torch.from_numpy(blobs[2][:1]) - 1)
    pool = Features([f"im{i:02}" for i in range(23)], torch.from_numpy(np.concatenate(blobs)[:23]) - 1, labelled)
    picked = typiclust.select(pool, 2, generator())
    assert sorted(i // 8 for i in picked) == [0, 1]


# ---- ProbCover


def covered_by_brute_force(d, labelled, unlabelled, n, delta):
    covered = (d[labelled] < delta).any(0)
    picked = []
    for _ in range(n):
        gains = [-1 if i in picked else int(((d[i] < delta) & ~covered).sum()) for i in range(unlabelled)]
        picked.append(int(np.argmax(gains)))
        covered |= d[picked[-1]] < delta
    return picked


@pytest.mark.parametrize("delta", [0.2, 0.5, 1.0])
@pytest.mark.parametrize("labelled", [0, 5])
def test_cover_is_the_greedy_maximum_of_brute_force(delta, labelled):
    x = unit(45)
    expected = covered_by_brute_force(cdist(x, x), range(45 - labelled, 45), 45 - labelled, 25, delta)
    assert probcover.cover(x, 45 - labelled, 25, delta, np.arange(45 - labelled)) == expected


def test_counts_in_chunks_are_those_at_once(monkeypatch):
    x = unit(45)
    kinds = torch.arange(45) % 3

    def counts():
        covering = probcover.cover(x, 40, 9, 0.5, np.arange(40))
        return probcover.within(x, x[:30], 0.5), probcover.purest(x, kinds, 0.9), covering

    whole = counts()
    monkeypatch.setattr(probcover, "at_once", lambda features: 7)
    chunked = counts()
    assert torch.equal(chunked[0], whole[0]) and chunked[2] == whole[2]
    assert chunked[1] == pytest.approx(whole[1], rel=1e-12)


@pytest.mark.parametrize("purity", [0.5, 0.8, 0.95, 1.0])
def test_the_radius_is_the_largest_that_is_pure_enough(purity):
    x = unit(40)
    kinds = (x[:, 0] > 0).long()
    d, k = cdist(x, x), kinds.numpy()

    def pure(delta):
        return np.mean([len(set(k[row < delta])) == 1 for row in d])

    delta = probcover.purest(x, kinds, purity)
    largest = max(value for value in np.unique(d)[1:] if pure(value - 1e-9) >= purity)
    assert delta == pytest.approx(largest, abs=1e-7)
    assert pure(delta - 1e-6) >= purity > pure(delta + 1e-6)


def test_images_that_cover_as_much_are_drawn_and_not_taken_in_file_order():
    """Far apart in the open, every ball holds its centre alone."""
    x, drawn = torch.eye(12).double(), generator(3).permutation(12)
    assert probcover.cover(x, 12, 12, 0.5, drawn) == drawn.tolist()


@pytest.mark.parametrize(("delta", "said"), [(0.001, True), (0.9, False)])
def test_a_radius_that_covers_nothing_else_is_said(delta, said, capsys):
    x = unit(40)
    probcover.cover(x, 40, 3, delta, np.arange(40))
    out = capsys.readouterr().out
    assert out.startswith("probcover: 100% of the balls of radius 0.001 hold only their centre") == said
    assert out.count("\n") == said


def test_the_number_of_clusters_grows_with_the_pool():
    assert [probcover.default(n) for n in (1, 16, 64, 100, 320, 50_000)] == [2, 2, 2, 3, 10, 10]


# ---- Uncertainty Herding


def herded_by_brute_force(x, labelled, counts, n, s):
    """The definition, with every kernel, each time anew."""

    def k(a, b):
        return math.exp(-(math.dist(a, b) ** 2) / s**2)

    chosen, picked = list(labelled), []
    for _ in range(n):
        gains = {}
        for i in set(range(len(x))) - set(picked):
            before = [max((k(x[v], c) for c in chosen), default=0.0) for v in range(len(x))]
            gains[i] = sum(counts[v] * max(0.0, k(x[i], x[v]) - before[v]) for v in range(len(x))) / len(x)
        picked.append(max(gains, key=gains.get))
        chosen.append(x[picked[-1]])
    return picked


@pytest.mark.parametrize("chunk", [5, 1000])
@pytest.mark.parametrize("known", [0, 1, 4])
@pytest.mark.parametrize("s", [0.1, 0.4, 1.5])
def test_herding_is_the_greedy_search_of_brute_force(known, s, chunk, monkeypatch):
    monkeypatch.setattr(herding, "at_once", lambda features: chunk)
    for seed in range(3):
        x, counts = unit(18 + known, seed=seed), torch.rand(18, generator=torch.Generator().manual_seed(seed)).double()
        expected = herded_by_brute_force(x[known:].tolist(), x[:known].tolist(), counts.tolist(), 10, s)
        assert herding.herd(x[known:], x[:known], counts, 10, s, torch.arange(18)) == expected


def test_herding_without_weights_is_maxherding():
    """Bae et al. 2024: the next image is the one with the largest mean over the pool of max(k(., v), c(v))."""
    x = unit(20, seed=7)
    between = np.exp(-(cdist(x, x) ** 2) / 0.4**2)
    chosen = []
    for _ in range(8):
        coverage = [between[:, [*chosen, i]].max(1).mean() for i in range(20)]
        coverage = [-1 if i in chosen else value for i, value in enumerate(coverage)]
        chosen.append(int(np.argmax(coverage)))
    assert herding.herd(x, x[:0], torch.ones(20).double(), 8, 0.4, torch.arange(20)) == chosen


def test_herding_takes_copies_last_and_in_the_given_order():
    x, drawn = unit(3)[[0, 1, 2, 0, 1, 2, 0]], torch.tensor([6, 3, 5, 4, 2, 1, 0])
    picked = herding.herd(x, x[:0], torch.ones(7).double(), 7, 0.3, drawn)
    assert sorted(picked[:3]) == [4, 5, 6]  # of each kind of image the one that was drawn first
    assert picked[3:] == [i for i in drawn.tolist() if i not in picked[:3]]


def test_the_width_is_the_smallest_distance_of_two_labelled_images():
    x = unit(30)
    d = cdist(x, x) + np.where(np.eye(30), np.inf, 0)
    assert herding.width(x, x[:6]) == pytest.approx(d[:6, :6].min())
    assert herding.width(x, x[[0, 1, 0, 1]]) == pytest.approx(d[0, 1])  # not that of copies
    for alone in (x[:0], x[:1], x[[2, 2]]):
        assert herding.width(x, alone) == pytest.approx(np.sort(d.min(1))[14])  # the median of 30, the lower one
    assert herding.width(x[[3, 3]], x[:0]) == 1


def test_the_expected_lack_of_dice_by_hand():
    """Two classes: 1 - 2 sum y p / (sum y + sum p) of the foreground."""
    p = torch.tensor([[0.9, 0.6, 0.2, 0.1], [0.4, 0.3, 0.2, 0.1], [1.0, 1, 0, 0], [0.0, 0, 0, 0]]).double()
    got = herding.lack_of_dice(of_passes(torch.stack([1 - p, p], 1)[None, :, :, None]))
    assert got.tolist() == pytest.approx([1 - 2 * 1.5 / (2 + 1.8), 1, 0, 1])


def test_the_expected_lack_of_dice_of_several_classes_by_hand():
    p = torch.tensor([[0.7, 0.2, 0.1], [0.2, 0.5, 0.3]]).double()
    prediction = of_passes(p.T[None, None, :, None, :])
    dice = [(2 * 0.7 + 1) / (1 + 0.9 + 1), (2 * 0.5 + 1) / (1 + 0.7 + 1), 1 / (0.4 + 1)]
    assert herding.lack_of_dice(prediction).item() == pytest.approx(1 - np.mean(dice))
    prediction.valid[..., 1] = False
    dice = [(2 * 0.7 + 1) / (1 + 0.7 + 1), 1 / (0.2 + 1), 1 / (0.1 + 1)]
    assert herding.lack_of_dice(prediction).item() == pytest.approx(1 - np.mean(dice))


class Predicted(Features):
    """Images with these features, and in their one pixel this probability of the foreground."""

    def __init__(self, ids, rows, p, labelled=None):
        super().__init__(ids, rows, labelled)
        self.p = torch.as_tensor(p).double()

    def gather(self, work, among=()):
        return work(self)

    def predictions(self, source):
        assert source == "deterministic"
        yield range(len(self)), of_passes(torch.stack([1 - self.p, self.p], 1)[None, ..., None, None], self.ids)


@pytest.mark.parametrize("weight", ["dice", "target", "none"])
def test_herding_counts_the_uncertainty_of_a_neighbourhood(weight, attach):  # noqa: F811
    """Two far clusters of three; the smaller weight is on the first one, whose images are surer."""
    attach(herding)["weight"] = weight
    rows = torch.tensor([[9.0, 0], [9, 0.1], [9, -0.1], [0, 9], [0.1, 9], [-0.1, 9]]) - 1
    p = [0.9, 0.95, 0.9, 0.6, 0.55, 0.6]
    labelled = Features(list("yz"), torch.tensor([[-9.0, 1], [1, -9]]) - 1)
    firsts = {herding.select(Predicted(list("fbdace"), rows, p, labelled), 1, generator(s))[0] // 3 for s in range(9)}
    assert firsts == ({0, 1} if weight == "none" else {1})
    cold = herding.select(Predicted(list("fbdace"), rows, p), 2, generator())  # nothing labelled: all count alike
    assert sorted(i // 3 for i in cold) == [0, 1]


# ---- a rare class, found by strategies that know of classes

RARE = 4  # of 200 images


def rare_class_pool(seed, elsewhere):
    """(Prediction of 200 images of 8 x 8, the numbers of those that show class 2, in 4 of 64 pixels, half recognised).

    Class 1 is a square in a corner; 70 images have a wide region of doubt between it and the background, so that their
    entropy is the highest. `elsewhere` is the mean logit of class 2 where it is not, the background's being 3.
    """
    rng = generator(seed)
    logits = rng.normal(0, 0.5, (200, 3, 8, 8)) + np.array([3, 0, elsewhere])[None, :, None, None]
    logits[:, :2, :3, :3] += np.array([-4, 3])[None, :, None, None]
    shuffled = rng.permutation(200)
    unsure, rare = shuffled[:70], shuffled[70 : 70 + RARE]
    logits[unsure, 0, 3:6] -= 3
    logits[rare, 0, 6:, 6:] -= 3
    logits[rare, 2, 6:, 6:] += 1 - elsewhere
    return of_passes(torch.from_numpy(logits).softmax(1)[None]), set(rare.tolist())


def shown(kind, whole, numbers, **more):
    """Images or a Pool of these images of a Prediction."""
    ids = [f"im{i:03}" for i in numbers]
    prediction = Prediction(ids, *(whole[k][numbers] for k in range(1, 7)))
    return kind(ids, ids, lambda: [(range(len(ids)), None)], predictor(lambda *a: prediction), **more)


def images_until_rare(heuristic, seed, elsewhere, query=6):
    """How many images are labelled, in queries of 6, when the first rare one comes; the model learns nothing."""
    whole, rare = rare_class_pool(seed, elsewhere)
    left, labelled = np.arange(len(whole.mean)), []
    while not rare & set(labelled):
        pool = shown(
            Pool,
            whole,
            left,
            labelled=shown(Annotated, whole, labelled),
            cycle=len(labelled) // query,
            cycles=200 // query,
        )
        chosen, _ = selection.select(heuristic, top, pool, query, generator(1000 * seed + pool.cycle))
        labelled += left[chosen].tolist()
        left = np.delete(left, chosen)
    return min(labelled.index(i) for i in rare & set(labelled)) + 1


def test_class_aware_strategies_find_a_rare_class_sooner_than_random(monkeypatch, attach, table):  # noqa: F811
    """Where it is recognised; its probability alone misleads where the model calls all that is unsure a bit rare."""
    rivals = {
        "random": (random, {}),
        "entropy": (entropy, {}),
        "badge": (badge, {}),
        "contextual_diversity": (contextual_diversity, {}),
        "class_stratified": (class_stratified, {}),
        "  .membership=prediction": (class_stratified, {"membership": "prediction"}),
    }
    found = {}
    for name, (heuristic, changed) in rivals.items():
        attach(heuristic).update(changed)
        found[name] = [[images_until_rare(heuristic, seed, elsewhere) for seed in range(20)] for elsewhere in (-3, -1)]
    lines = [
        f"Images labelled until the first of {RARE} rare ones among 200, 20 seeds: mean (median, worst)",
        f"{'':28}{'taken for rare elsewhere:':>30}",
        f"{'':28}{'hardly ever':>20}{'a bit':>20}",
    ]
    for name, columns in found.items():
        cells = [f"{np.mean(c):.1f} ({np.median(c):.1f}, {max(c)})" for c in columns]
        lines.append(f"  {name:26}" + "".join(f"{cell:>20}" for cell in cells))
    table(lines)
    hardly, a_bit = ({name.strip(): np.mean(columns[k]) for name, columns in found.items()} for k in (0, 1))
    for name in ("contextual_diversity", "class_stratified", ".membership=prediction"):
        assert hardly[name] < hardly["random"] / 2
    for name in ("contextual_diversity", ".membership=prediction"):
        assert a_bit[name] < a_bit["random"] / 2
    assert hardly["entropy"] > hardly["random"]  # the pool is a hard one
