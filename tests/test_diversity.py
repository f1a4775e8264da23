"""Strategies that compare features, against hand-worked examples, brute force, scikit-learn and scipy."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import events, ledger_bytes
from safetensors.torch import load_file, save_file
from scipy.spatial.distance import cdist
from sklearn.cluster import KMeans
from sklearn.metrics import pairwise_distances, pairwise_distances_argmin
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.neighbors import NearestNeighbors
from test_heuristics import attach, of_passes  # noqa: F401  attach is a fixture

from experiments import components
from experiments.acquisition.pool import Annotated, Pool
from experiments.errors import Refused
from heuristics import coreset, hybrid, kmeans, progressive, simple_diversity, two_stage
from heuristics.batches import diverse, diverse_groups, stochastic

pytestmark = pytest.mark.usefixtures("single_thread")
PLAIN = {"layer": "any", "grid": 1, "pooling": "mean"}


def generator(seed=0):
    return np.random.default_rng(seed)


def parts(features, p):
    """(batches, predictor) of images with these features (N, D) and, in their one pixel, these class probabilities."""
    features, p = torch.as_tensor(features), torch.as_tensor(p)
    predictor = SimpleNamespace(
        maps=lambda images, layer, weights="": [features[images][:, :, None, None]],
        predict=lambda images, ids, source, *rest: (of_passes(p[images][None, :, :, None, None], ids), 1),
    )
    halves = [list(range(k, len(features), 2)) for k in (0, 1)]
    return lambda: [(half, torch.tensor(half)) for half in halves if half], predictor


def named(n):
    """Ids whose order is not that of the positions."""
    return [f"im{(7 * i + 3) % 1009:04}" for i in range(n)]


def pool_of(features, labelled=(), p=None, labelled_p=None, ids=None, **more):
    """A Pool of these features, (N, D) and (M, D); without probabilities p (N, C) all are as unsure as can be."""
    features = np.asarray(features, dtype=np.float32)
    labelled = np.asarray(labelled, dtype=np.float32).reshape(-1, features.shape[1])
    p, labelled_p = (np.full((len(x), 2), 0.5) if q is None else q for x, q in ((features, p), (labelled, labelled_p)))
    known = [f"known{i}" for i in range(len(labelled))]
    annotated = Annotated(known, [""] * len(known), *parts(labelled, labelled_p))
    ids = ids or named(len(features))
    return Pool(ids, [""] * len(ids), *parts(features, p), labelled=annotated, **more)


def binary(foreground):
    p = np.asarray(foreground, dtype=np.float64)
    return np.stack([1 - p, p], 1)


# ---- k-centre


def brute_force(candidates, references, n, metric, first):
    """Farthest-first from the whole matrix of distances, each time anew."""
    points = np.concatenate([references, candidates])
    table = pairwise_distances(points, metric=metric)[:, len(references) :]
    chosen, picked = list(range(len(references))), []
    for _ in range(n):
        left = [i for i in range(len(candidates)) if i not in picked]
        best = max(left, key=lambda i: (table[chosen, i].min(), -i)) if chosen else first
        picked.append(best)
        chosen.append(len(references) + best)
    return picked


@pytest.mark.parametrize("known", [0, 1, 5])
@pytest.mark.parametrize("seed", range(4))
def test_k_centre_is_brute_force(known, seed):
    """Whole numbers are full of ties and copies, and their distances are exact."""
    rng = generator(seed)
    for points in (rng.integers(0, 4, (40 + known, 3)).astype(float), rng.standard_normal((40 + known, 3))):
        references, candidates = (torch.from_numpy(x) for x in np.split(points, [known]))
        expected = brute_force(candidates, references, 40, "euclidean", 7)
        assert coreset.k_centre(candidates, references, 40, coreset.squared_euclidean, 7) == expected
        assert sorted(expected) == list(range(40))


def test_k_centre_with_another_distance_is_brute_force():
    references, candidates = (torch.from_numpy(x) for x in np.split(generator().standard_normal((43, 6)), [3]))
    expected = brute_force(candidates, references, 20, "cosine", 0)
    assert coreset.k_centre(candidates, references, 20, coreset.row_by_row(simple_diversity.cosine)) == expected


def test_coreset_starts_from_what_is_labelled():
    pool = pool_of([[0.0], [4], [10], [10], [7]], labelled=[[0.0]])
    picks = {tuple(coreset.select(pool, 4, generator(seed), **PLAIN, tau=1.0)) for seed in range(30)}
    first, copies = {2, 3}, {0, 2, 3}  # of two alike either is first; copies of known images come last, drawn
    assert picks == {(i, 1, 4, j) for i in first for j in copies - {i}}


def test_coreset_without_labelled_images_starts_at_random():
    pool = pool_of(np.arange(50)[:, None])
    firsts = [coreset.select(pool, 2, generator(seed), **PLAIN, tau=1.0) for seed in range(20)]
    assert len({first for first, _ in firsts}) > 10
    assert all(second == (49 if first < 24.5 else 0) for first, second in firsts)


def test_the_barycentre_by_hand():
    """Bodies at 0 and 3 with masses 1 and 2: the lighter one is 2 from the centre of mass, the heavier one 1."""
    rows, other = torch.tensor([[3.0, 2.0], [3.0, 1.0]]), torch.tensor([[0.0, 1.0]])
    assert coreset.barycentric(rows, other, tau=1.0).flatten().tolist() == [3, 3]
    assert coreset.barycentric(rows, other, tau=0.0).flatten().tolist() == pytest.approx([2 / 3, 1 / 2])
    half = coreset.barycentric(rows, other, tau=0.5).flatten().tolist()
    assert half == pytest.approx([np.sqrt(3 * 2 / 3), np.sqrt(3 / 2)])


def test_coreset_with_tau_weighs_by_mean_entropy():
    """Image 1 is nearer to the labelled one than image 0 but far less sure."""
    features, p, labelled_p = [[4.0], [3], [0.1]], binary([0.001, 0.5, 0.3]), binary([0.2])
    h = -(p * np.log(p)).sum(1), -(labelled_p * np.log(labelled_p)).sum()
    expected = (np.asarray(features)[:, 0] * h[0] / (h[0] + h[1])) ** 0.5
    order = np.argsort(-expected)
    pool = pool_of(features, [[0.0]], p, labelled_p)
    assert order[0] == 1
    assert coreset.select(pool, 1, generator(), **PLAIN, tau=0.5) == [1]
    assert coreset.select(pool, 1, generator(), **PLAIN, tau=1.0) == [0]
    assert sorted(coreset.select(pool_of(features, p=p), 3, generator(), **PLAIN, tau=0.5)) == [0, 1, 2]


# ---- k-means


def clusters(sizes=(3, 9, 5), noise=0.1):
    centres = np.array([[0.0, 0], [10, 0], [0, 10]])
    return np.repeat(centres, sizes, axis=0) + noise * generator(1).standard_normal((sum(sizes), 2))


def test_kmeans_takes_the_image_nearest_to_each_centroid_that_of_the_largest_cluster_first():
    rows = clusters()
    means = np.stack([rows[3:12].mean(0), rows[12:].mean(0), rows[:3].mean(0)])
    assert kmeans.nearest_to_centroids(rows, 3, 0, np.arange(17)) == pairwise_distances_argmin(means, rows).tolist()


def test_kmeans_is_scikit_learns():
    rows = generator(2).standard_normal((60, 4))
    theirs = KMeans(8, n_init=3, random_state=5).fit(rows)
    expected = pairwise_distances_argmin(theirs.cluster_centers_, rows)
    assert sorted(kmeans.nearest_to_centroids(rows, 8, 5, np.arange(60))) == sorted(expected)


@pytest.mark.parametrize("n", [1, 3, 7, 17])
@pytest.mark.parametrize("distinct", [1, 3, 17])
def test_kmeans_picks_n_images_however_many_are_copies(n, distinct):
    rows = np.arange(17)[:, None] % distinct * np.ones(2)
    drawn = generator(n).permutation(17)
    picked = kmeans.nearest_to_centroids(rows, n, 0, drawn)
    assert len(set(picked)) == n
    assert len({tuple(rows[i]) for i in picked}) == min(n, distinct)
    if distinct == 1:
        assert picked == drawn[:n].tolist()  # nothing tells them apart


def test_kmeans_looks_at_features_once_something_is_labelled():
    pool = pool_of(clusters(), labelled=[[0.0, 0]])
    picked = kmeans.select(pool, 3, generator(), **PLAIN, weights="")
    assert sorted(np.digitize(picked, [3, 12])) == [0, 1, 2]


def test_kmeans_begins_with_image_statistics():
    """Three dark and six bright images of two sizes, and nothing that could be asked for features."""
    images = [np.full((1, 8 + i % 2, 8, 3), 20 if i < 3 else 220, dtype=np.uint8) for i in range(9)]
    pool = Pool(named(9), [""] * 9, lambda: [([i], torch.from_numpy(images[i])) for i in range(9)])
    picked = kmeans.select(pool, 2, generator(), **PLAIN, weights="")
    assert picked[0] >= 3 > picked[1]


def test_kmeans_refuses_weights_that_are_not_there(tmp_path):
    with pytest.raises(Refused, match="kmeans.weights=.*absent is no file"):
        kmeans.check(weights=str(tmp_path / "absent"))


def test_kmeans_begins_with_given_weights(smoke, undisturbed, tmp_path):
    weights = undisturbed / "bald_0" / "checkpoint" / "cycle_001.safetensors"
    smoke(initial="kmeans", cycles=0, start=6, to="plain")
    smoke(initial="kmeans", cycles=0, start=6, **{"kmeans.weights": str(weights)})
    chosen = [{q["id"] for q in events(tmp_path / to)[0]["queries"]} for to in ("plain", "results")]
    assert len(chosen[0]) == len(chosen[1]) == 6 and chosen[0] != chosen[1]
    with pytest.raises(Refused, match="kmeans.layer=neck is no layer of model=unet.* There are encoder"):
        smoke(initial="kmeans", **{"kmeans.weights": str(weights), "kmeans.layer": "neck"})
    state, wrong = load_file(weights), tmp_path / "wrong.safetensors"
    name = next(name for name, tensor in state.items() if tensor.is_floating_point())
    state[name].view(-1)[0] = torch.nan
    save_file(state, wrong)
    with pytest.raises(Refused, match=f"The weights in {wrong} are not finite .{name}.: name another file"):
        smoke(initial="kmeans", cycles=0, to="wrong", **{"kmeans.weights": str(wrong)})


def test_an_initial_set_cannot_look_at_an_untrained_model(smoke, monkeypatch):
    real, free = components.written, {"NEEDS_MODEL": False}
    monkeypatch.setattr(components, "written", lambda entry, name: real(entry, name) | free)
    with pytest.raises(Refused, match="initial=coreset looks at the model, and before its first training"):
        smoke(initial="coreset")


@pytest.mark.parametrize(("setting", "value"), [("grid", 0), ("pooling", "sum"), ("layer", "neck")])
def test_wrong_features_are_refused_before_training(smoke, setting, value, tmp_path):
    with pytest.raises(Refused, match=f"coreset.{setting}"):
        smoke(heuristic="coreset", **{f"coreset.{setting}": value})
    assert not (tmp_path / "results").exists()


# ---- simple diversity

ORACLES = {"cosine": "cosine", "euclidean": "euclidean", "manhattan": "cityblock"}


@pytest.mark.parametrize("distance", ORACLES)
def test_simple_diversity_is_scipys_nearest_distances(distance):
    rows, labelled = np.split(generator(3).standard_normal((35, 5)).astype(np.float32), [30])
    table = cdist(rows, rows, ORACLES[distance])
    np.fill_diagonal(table, np.inf)
    expected = table.min(1) + cdist(rows, labelled, ORACLES[distance]).min(1)
    got = simple_diversity.score(pool_of(rows, labelled), None, distance, **PLAIN)
    np.testing.assert_allclose(got, expected, atol=1e-5)
    alone = simple_diversity.score(pool_of(rows), None, distance, **PLAIN)
    np.testing.assert_allclose(alone, table.min(1), atol=1e-5)


def test_with_cosine_it_ranks_as_published():
    """Published: smallest sum of the largest similarities, on features that are not negative."""
    rows, labelled = np.split(generator(4).random((35, 5)).astype(np.float32), [30])
    inner = cosine_similarity(rows)
    np.fill_diagonal(inner, -np.inf)
    total = inner.max(1) + cosine_similarity(rows, labelled).max(1)
    got = simple_diversity.score(pool_of(rows, labelled), None, "cosine", **PLAIN)
    assert np.argsort(-got).tolist() == np.argsort(total).tolist()


def test_copies_are_the_least_diverse_and_a_lonely_image_has_a_score():
    for distance in ORACLES:
        rows = [[1.0, 0], [0, 1], [0, 1], [-1, -1]]
        got = simple_diversity.score(pool_of(rows), None, distance, **PLAIN)
        assert got[1] == got[2] == pytest.approx(0, abs=1e-6) and got[[0, 3]].min() > 0.5
        assert simple_diversity.score(pool_of([[1.0, 2]]), None, distance, **PLAIN).tolist() == [0]


def test_nearest_in_chunks_is_scikit_learns():
    """Of 5000 x 5000 distances only two thirds are made at once."""
    rows = generator(5).standard_normal((5000, 2)).astype(np.float32)
    expected = NearestNeighbors(n_neighbors=2).fit(rows).kneighbors(rows)[0][:, 1]
    ours = simple_diversity.nearest(torch.from_numpy(rows), torch.from_numpy(rows), coreset.euclidean, fellows=True)
    np.testing.assert_allclose(ours, expected, atol=1e-6)


# ---- stages


def test_hybrid_sifts_by_diversity_then_takes_the_most_wanted():
    ids, spread, wanted = list("abcdef"), [5, 4, 3, 2, 1, 0], np.array([1, 2, 2, 9, 9, 9])
    assert set(hybrid.sifted(spread, wanted, ids, 3, 2, generator())) == {1, 2}
    assert hybrid.sifted(spread, wanted, ids, 4, 2, generator())[0] == 3
    assert hybrid.sifted(spread, wanted, ids, 1, 3, generator())[2] == 0  # no fewer are kept than asked for


def test_hybrid_of_a_pool(attach):  # noqa: F811
    """The two copies are the most uncertain, and sifted out."""
    rows, p = [[1.0, 0], [0, 1], [0, 1], [-1, -1], [-1, 1]], binary([0.1, 0.5, 0.5, 0.3, 0.4])
    settings = attach(hybrid)
    assert hybrid.select(pool_of(rows, p=p), 2, generator(), **settings | {"diverse": 3}) == [4, 3]
    assert set(hybrid.select(pool_of(rows, p=p), 2, generator(), **settings)) == {1, 2}  # 12 keep them all


def test_two_stages(attach):  # noqa: F811
    rows, p = [[1.0, 0], [0, 1], [0, 1], [-1, -1], [-1, 1]], binary([0.1, 0.5, 0.5, 0.3, 0.4])
    settings = attach(two_stage) | {"then": "coreset", "cycle": 2}
    attach(coreset)
    picked = [set(two_stage.select(pool_of(rows, p=p, cycle=c), 2, generator(), **settings)) for c in (0, 1, 2, 3)]
    assert picked[:2] == [{1, 2}] * 2 and picked[2] == picked[3] != {1, 2}


def test_what_has_no_score_or_has_stages_is_refused():
    for said, check in (
        ("hybrid.by=kmeans", lambda: hybrid.check("simple_diversity", "kmeans", "mean")),
        ("hybrid.diversity=coreset", lambda: hybrid.check("coreset", "entropy", "mean")),
        ("no reduction 'median'", lambda: hybrid.check("simple_diversity", "entropy", "median")),
        ("two_stage.first=hybrid", lambda: two_stage.check("hybrid", "hybrid")),
        ("two_stage.then=progressive has stages", lambda: two_stage.check("entropy", "progressive")),
        ("progressive.first=coreset", lambda: progressive.check("coreset", "hybrid")),
        ("progressive.then=two_stage has stages", lambda: progressive.check("entropy", "two_stage")),
    ):
        with pytest.raises(Refused, match=said):
            check()


def test_the_threshold_by_hand():
    """Every state goes through JSON, as in a resumed run."""
    state, seen = {}, []
    for similarities in ([0.8, 0.9], [0.7, 0.9], [0.85, 0.95], [0.9, 0.94]):
        similarities = torch.tensor(similarities, dtype=torch.float64)
        state = json.loads(json.dumps(progressive.follow(state, similarities, threshold=0.9, alpha=1.0, gamma=0.8)))
        seen.append((state["mean"], state["variance"], state["threshold"], state["switched"]))
    kept = 0.8 * 0.84 + 0.2 * 0.9, 0.8 * 0.004 + 0.2 * 0.0025
    expected = [
        (0.85, 0.0025, 0.9, False),
        (0.84, 0.004, 0.84 + 0.004**0.5, False),  # .8 x .85 + .2 x .8 and .8 x .0025 + .2 x .01
        (*kept, kept[0] + kept[1] ** 0.5, False),  # .9 is below .9032
        (*kept, kept[0] + kept[1] ** 0.5, True),  # .92 is over .9128
    ]
    np.testing.assert_allclose(seen, expected, atol=1e-12)
    assert state["redundancy"] == pytest.approx(0.92)


def test_the_first_query_is_tested_against_the_first_threshold():
    similarities = torch.tensor([0.9, 0.94])
    assert progressive.follow({}, similarities, 0.9, 1.0, 0.8) == {
        "redundancy": pytest.approx(0.92), "switched": True
    }  # fmt: skip
    assert not progressive.follow({}, similarities, 0.93, 1.0, 0.8)["switched"]


def test_progressive_switches_in_the_same_cycle_and_for_good(attach):  # noqa: F811
    """The uncertain images are copies of the labelled one, the others are diverse."""
    rows, p = [[1.0, 0], [1, 0], [0, 1], [-1, -1]], binary([0.5, 0.5, 0.1, 0.2])
    settings = attach(progressive) | {"batch": "top", "then": "simple_diversity", **PLAIN}
    pool = pool_of(rows, [[1.0, 0]], p)
    assert progressive.select(pool, 1, generator(), **settings | {"threshold": 1.1})[0] in (0, 1)
    assert pool.memory["progressive"]["switched"] is False
    pool = pool_of(rows, [[1.0, 0]], p)
    assert progressive.select(pool, 2, generator(), **settings) == [3, 2]
    later = pool_of(rows, [[0.0, -1]], p, memory=json.loads(json.dumps(pool.memory)))
    assert later.memory["progressive"] == {"redundancy": pytest.approx(1), "switched": True}
    assert set(progressive.select(later, 2, generator(), **settings)) == {2, 3}
    nothing = pool_of(rows, p=p)
    assert set(progressive.select(nothing, 2, generator(), **settings)) == {0, 1} and nothing.memory == {}


def test_progressive_goes_on_with_its_threshold_when_resumed(smoke, tmp_path):
    """Without its memory the second query would be tested against 1 and never be redundant."""
    strategy = {"heuristic": "progressive", "progressive.threshold": 1.0, "progressive.alpha": -9.0}
    smoke(**strategy, cycles=2, to="undisturbed")
    smoke(**strategy, cycles=1)
    smoke(**strategy, cycles=2)
    resumed, undisturbed = (ledger_bytes(tmp_path / to, "progressive") for to in ("results", "undisturbed"))
    assert resumed == undisturbed
    queries = [e for e in events(tmp_path / "results", "progressive") if e["event"] == "queried"]
    states = [query["memory"]["progressive"] for query in queries]
    assert [state["switched"] for state in states] == [False, True]
    assert states[0]["threshold"] == states[1]["threshold"] < states[1]["redundancy"]


# ---- batches

ROWS = [[1.0, 0], [1, 0.01], [0, 1], [-1, 0], [0, -1]]
SCORES = [5.0, 4, 3, 2, 1]
CONSTRAINT = {"candidates": 4, "start_cycle": 0, "greedy": False, **PLAIN}


def test_the_diversity_constraint_by_hand():
    """Of the best four 0 and 1 are nearly copies; 4 is as lonely as can be but does not score."""
    assert diverse.pick(SCORES, pool_of(ROWS), 2, generator(), **CONSTRAINT) == [3, 2]
    both = diverse.pick(SCORES, pool_of(ROWS, [[-1.0, 0]]), 2, generator(), **CONSTRAINT)
    assert set(both) == {0, 1}  # one shot: 0 + 2, each alone, is more than 1 + 1
    assert diverse.pick(SCORES, pool_of(ROWS), 2, generator(), **CONSTRAINT | {"start_cycle": 1}) == [0, 1]
    assert diverse.pick(SCORES, pool_of(ROWS), 2, generator(), **CONSTRAINT | {"candidates": 1}) == [0, 1]
    three = diverse.pick(SCORES, pool_of(ROWS), 2, generator(), **CONSTRAINT | {"candidates": 0})
    assert set(three) < {0, 1, 2} and three[0] == 2


def test_the_greedy_constraint_begins_with_the_best_and_takes_one_of_two_copies():
    greedy = CONSTRAINT | {"greedy": True}
    assert diverse.pick(SCORES, pool_of(ROWS), 3, generator(), **greedy) == [0, 3, 2]
    assert diverse.pick(SCORES, pool_of(ROWS, [[1.0, 0]]), 2, generator(), **greedy) == [3, 2]


def test_diverse_groups_takes_the_least_similar_of_the_best_groups():
    rng = generator(6)
    ids, scores, rows = named(30), rng.random(30), rng.standard_normal((30, 3)).astype(np.float32)
    labelled = rng.standard_normal((4, 3)).astype(np.float32)
    drawn = stochastic.draw_groups(ids, 5, 6, False, int(generator().integers(2**63)))

    def similarity(group):
        inner = cosine_similarity(rows[group])
        np.fill_diagonal(inner, -np.inf)
        return (inner.max(1) + cosine_similarity(rows[group], labelled).max(1)).mean()

    best = sorted(drawn, key=lambda group: -scores[group].mean())[:3]
    expected = min(best, key=similarity)
    settings = {"groups": 3, "start_cycle": 0, **PLAIN}
    picked = diverse_groups.pick(scores, pool_of(rows, labelled, ids=ids), 5, generator(), **settings)
    assert picked == sorted(expected, key=lambda i: -scores[i]) != sorted(best[0], key=lambda i: -scores[i])
    before = diverse_groups.pick(scores, pool_of(rows, ids=ids), 5, generator(), **settings | {"start_cycle": 1})
    assert set(before) == set(best[0])
