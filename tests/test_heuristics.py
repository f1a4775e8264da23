"""Every heuristic against its definition and baal's, and what a selection promises for all of heuristics/."""

import json
import math
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats

from experiments.acquisition import prediction, selection
from experiments.acquisition.pool import Pool, open_pool
from experiments.acquisition.prediction import Prediction
from experiments.components import defaults, load, names
from experiments.errors import Refused
from experiments.network.ready import make_ready
from experiments.store import Item, Split, Store
from experiments.training import learned
from heuristics import (
    ams,
    bald,
    class_stratified,
    entropy,
    expected_entropy,
    first,
    foreground_random,
    random,
    strided,
    variance,
    vote_variance,
)
from heuristics.batches import balanced, power, top
from models.unet import LAYERS, UNet

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what baal says while it is imported is its own
    from baal.active import heuristics as baal

pytestmark = pytest.mark.usefixtures("single_thread")
IDS = ["m3", "a1", "z9", "c4", "b2", "k7", "d5"]  # not in the order of the alphabet
ALL = range(len(IDS))
LOG2 = math.log(2)
EVERY = [name for name in names("heuristic") if name != "given"]  # it has no default, its ids are the user's
FITTING = [(h, b) for h in EVERY for b in names("batch") if b == "top" or not hasattr(load("heuristic", h), "select")]


@pytest.fixture
def attach(monkeypatch):
    """attach(component): its captured functions, and those of the ones it names, get default settings."""

    def attach(component):
        settings = defaults(component.ingredient)
        for function in component.ingredient.captured_functions:
            monkeypatch.setattr(function, "config", settings)
        for key, entry in getattr(component, "NAMES", {}).items():
            attach(load(entry, settings[key]))
        return settings

    return attach


def generator(*seed):
    return np.random.default_rng(seed or 0)


def of_passes(p, ids=None):
    """The Prediction that passes with these probabilities (T, B, C, H, W) amount to."""
    p = torch.as_tensor(p, dtype=torch.float64)
    entropies = -torch.where(p > 0, p * p.clamp_min(1e-300).log(), 0).sum(2)
    votes = torch.nn.functional.one_hot(p.argmax(2), p.shape[2]).movedim(-1, 2).sum(0).double()
    return Prediction(
        ids=ids or [f"im{i}" for i in range(p.shape[1])],
        mean=p.mean(0),
        second_moment=(p**2).mean(0),
        votes=votes,
        expected_entropy=entropies.mean(0),
        count=torch.full(entropies.shape[1:], float(len(p)), dtype=torch.float64),
        valid=torch.ones(entropies.shape[1:], dtype=torch.bool),
    )


def pixel(*passes):
    """One pixel of one image: for each pass the probabilities of its classes."""
    return of_passes(torch.tensor(passes, dtype=torch.float64)[:, None, :, None, None])


def drawn_passes(seed=0, passes=6, classes=3):
    logits = 2 * torch.randn(passes, 4, classes, 5, 7, generator=torch.Generator().manual_seed(seed)).double()
    return logits, logits.softmax(2)


# ---- definitions

AGREED, UNSURE, SPLIT = [(0.0, 1.0)] * 4, [(0.5, 0.5)] * 4, [(0.0, 1.0), (1.0, 0.0)] * 2
ONE_OF_FOUR = [(0.9, 0.1)] * 3 + [(0.1, 0.9)]
H9 = -0.9 * math.log(0.9) - 0.1 * math.log(0.1)
H7 = -0.7 * math.log(0.7) - 0.3 * math.log(0.3)
THREE = [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)]


@pytest.mark.parametrize(
    ("heuristic", "passes", "expected"),
    [
        (entropy, AGREED, 0),
        (entropy, UNSURE, LOG2),
        (entropy, SPLIT, LOG2),
        (entropy, ONE_OF_FOUR, H7),
        (entropy, THREE, math.log(3)),
        (expected_entropy, AGREED, 0),
        (expected_entropy, UNSURE, LOG2),
        (expected_entropy, SPLIT, 0),
        (expected_entropy, ONE_OF_FOUR, H9),
        (expected_entropy, [(0.5, 0.5), (0.0, 1.0)], LOG2 / 2),
        (bald, AGREED, 0),
        (bald, UNSURE, 0),
        (bald, SPLIT, LOG2),
        (bald, ONE_OF_FOUR, H7 - H9),
        (bald, THREE, math.log(3)),
        (variance, AGREED, 0),
        (variance, UNSURE, 0),
        (variance, SPLIT, 1 / 4),
        (variance, ONE_OF_FOUR, 0.8**2 * 3 / 16),
        (variance, THREE, 2 / 9),
        (vote_variance, AGREED, 0),
        (vote_variance, SPLIT, 1 / 4),
        (vote_variance, ONE_OF_FOUR, 3 / 16),  # f (1 - f)
        (vote_variance, THREE, 2 / 3),  # of the numbers 0, 1, 2
        (vote_variance, [THREE[0], THREE[2]], 1),  # the most for three classes
    ],
)
def test_closed_form(heuristic, passes, expected):
    got = heuristic.uncertainty(pixel(*passes))
    assert got.shape == (1, 1, 1)
    assert got.item() == pytest.approx(expected, abs=1e-12)


def test_rounding_never_makes_an_uncertainty_negative():
    prediction = pixel(*UNSURE)
    above = prediction._replace(
        expected_entropy=prediction.expected_entropy + 1e-7, second_moment=prediction.second_moment - 1e-7
    )
    assert bald.uncertainty(above).item() == 0
    assert variance.uncertainty(above).item() == 0
    assert vote_variance.uncertainty(above._replace(votes=above.votes * 1.01)).item() == 0


def test_bald_is_baals():
    _, p = drawn_passes()
    expected = baal.BALD(reduction="none").compute_score(p.movedim(0, -1).numpy())
    np.testing.assert_allclose(bald.uncertainty(of_passes(p)).numpy(), expected, atol=1e-6)
    assert expected.min() > 1e-3


SIZE = 48


@pytest.mark.parametrize("gap", [8, 10, 12])
@pytest.mark.parametrize("name", ["variance", "ams"])
def test_variances_of_a_confident_network_are_no_rounding_noise(gap, name, attach):
    """Logits this far apart, in float32 as a network gives them, against the definition in float64."""
    noise = torch.randn(10, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(gap)).double() / 2
    foreground = torch.full((SIZE, SIZE), -float(gap)).double()
    foreground[8:16, 8:16] = gap
    p = (foreground + noise).sigmoid()
    exact = p.var(0, correction=0)
    logits = (foreground + noise)[:, :, None].float()
    seen = prediction.moments(((part, None) for part in logits), ["a"])
    if name == "variance":
        expected, heuristic = exact, variance
    else:
        attach(ams)["variant"] = "ratio"
        expected, heuristic = exact.sqrt() * SIZE**2 / (1 + 64), ams
    torch.testing.assert_close(heuristic.uncertainty(seen).double(), expected, rtol=2e-3, atol=0)
    flipped = prediction.moments(((-part, None) for part in logits), ["a"])
    torch.testing.assert_close(variance.uncertainty(flipped).double(), exact, rtol=2e-3, atol=0)


def test_variance_is_baals():
    """baal leaves the classes to the reduction: its mean over them and the pixels is that of our map."""
    _, p = drawn_passes()
    expected = baal.Variance(reduction="mean").get_uncertainties(p.movedim(0, -1).numpy())
    ours = variance.uncertainty(of_passes(p))
    np.testing.assert_allclose(ours.mean((1, 2)).numpy(), expected, atol=1e-6)
    whole = baal.Variance().compute_score(p.movedim(0, -1).numpy()).mean(1)
    np.testing.assert_allclose(ours.numpy(), whole, atol=1e-6)
    assert whole.min() > 1e-3


def test_entropy_is_baals_where_both_mean_the_same():
    """baal's Entropy averages what it is fed over the iterations BEFORE the softmax, and its ModelWrapper
    gives logits: it is ours for one pass, ours of the averaged logits for several, and ours of several only
    where it is fed with probabilities."""
    logits, p = drawn_passes()
    theirs = baal.Entropy(reduction="none")
    one = theirs.compute_score(logits[:1].movedim(0, -1).numpy())
    np.testing.assert_allclose(entropy.uncertainty(of_passes(p[:1])).numpy(), one, atol=1e-6)
    averaged = theirs.compute_score(logits.movedim(0, -1).numpy())
    of_mean_logits = of_passes(logits.mean(0, keepdim=True).softmax(2))
    np.testing.assert_allclose(entropy.uncertainty(of_mean_logits).numpy(), averaged, atol=1e-6)
    ours = entropy.uncertainty(of_passes(p)).numpy()
    assert np.abs(ours - averaged).max() > 0.01
    np.testing.assert_allclose(ours, theirs.compute_score(p.movedim(0, -1).numpy()), atol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_bald_is_entropy_less_expected_entropy_and_within_its_bounds(seed):
    prediction = of_passes(drawn_passes(seed, classes=4)[1])
    total, expected = entropy.uncertainty(prediction), expected_entropy.uncertainty(prediction)
    torch.testing.assert_close(bald.uncertainty(prediction), total - expected)
    assert 0 < expected.min() and total.max() <= math.log(4) + 1e-12
    assert variance.uncertainty(prediction).max() <= 1 / 4


# ---- selection, for every heuristic and batch

SIZES = [(33, 40), (40, 33)]
LABELLED = ["p2", "e8", "l0", "n6"]
VALIDATION = [f"v{i}" for i in range(9)]  # with as many crc's default alpha is met


def closed(path):
    raise AssertionError(f"{path} was opened: masks are not the heuristic's")


def make_store(ids, annotated=(*LABELLED, *VALIDATION), classes=()):
    """A Store of these images; the masks of the annotated ones are half class 1, no other can be opened."""
    known = [*IDS, *LABELLED, *VALIDATION]
    images = {id: generator(i).integers(0, 256, (*SIZES[i % 2], 3), dtype=np.uint8) for i, id in enumerate(known)}
    groups = {id: ("benign", "malignant")[i % 3 == 0] for i, id in enumerate(known)}
    items = [Item(id, Path(id), Path("nowhere", id), groups[id]) for id in ids]
    store = Store(Split(items, lambda path: images[path.name], closed), "cpu", classes=classes)
    for index in (i for i, id in enumerate(ids) if id in annotated):
        store.mask(index).zero_()[:16] = 1
    return store


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(3)
    return make_ready(UNet(3, 2, 2, 0.2), (0.0,) * 3, (1.0,) * 3, torch.device("cpu"))[0]


def make_pool(heuristic, model, order=ALL, taken=(), **more):
    """The pool of the images of `order` but the `taken` ids, which are labelled."""
    settings = defaults(prediction.ingredient) | dict(place=(0, "drawn", 1), mc_iters=3, batch=3) | more
    needs = getattr(heuristic, "NEEDS", ())
    ids = [*(IDS[i] for i in order), *LABELLED]
    store, val = make_store(ids, (*LABELLED, *taken)), make_store(VALIDATION)
    labelled = [i for i, id in enumerate(ids) if id in (*LABELLED, *taken)]
    pool = [i for i in range(len(ids)) if i not in labelled]
    if hasattr(heuristic, "prepare"):
        paths = LAYERS[defaults(heuristic.ingredient)["layer"]] if hasattr(heuristic, "loss") else []
        learner = learned.prepare(heuristic, model, paths, 3, (0, "drawn", 1), torch.device("cpu"))
        settings["learner"] = learner.eval()
    return open_pool(store, pool, model=lambda: model, layers=LAYERS, needs=needs, labelled=labelled,
                     val=val, classes=("background", "gland"), **settings)  # fmt: skip


@pytest.fixture(params=FITTING, ids="-".join)
def chosen(request, attach, model):
    """(heuristic, take): take(n, seed, order) gives the ids that heuristic and batch select in each of two cycles.

    What the first cycle puts into pool.memory reaches the second as it would after a resume: through JSON.
    """
    heuristic, batch = (load(entry, name) for entry, name in zip(("heuristic", "batch"), request.param, strict=True))
    reduction = attach(heuristic).get("reduction", "mean")
    attach(batch)

    def take(n, seed=0, order=ALL):
        queries, memory = [], {}
        for cycle in (0, 1):
            taken = [id for query in queries for id in query]
            if len(taken) == len(IDS):
                break
            pool = make_pool(heuristic, model, order, taken, place=(seed, "drawn", cycle), memory=memory)
            try:
                picked, scores = selection.select(heuristic, batch, pool, n, generator(seed, cycle), reduction)
            except Refused as error:
                if batch is power and "scores of at least 0" in str(error):
                    pytest.skip("a map of one's own may be negative, and power refuses to draw in proportion to it")
                raise
            assert scores is None or (scores.shape == (len(pool),) and np.isfinite(scores).all())
            assert all(type(position) is int and 0 <= position < len(pool) for position in picked)
            queries.append([pool.ids[position] for position in picked])
            memory = json.loads(json.dumps(pool.memory, allow_nan=False))
        return queries

    return heuristic, take


def test_a_selection_is_n_distinct_images_the_same_for_a_seed_and_for_any_order_of_the_files(chosen):
    """No mask is opened either: the pool's masks do not exist."""
    heuristic, take = chosen
    queries = take(3)
    assert [len(query) for query in queries] == [3, 3] and len({id for query in queries for id in query}) == 6
    assert take(3) == queries
    if heuristic in (first, strided):  # the order of the files is their meaning
        reverse = take(3, order=[6, 5, 4, 3, 2, 1, 0])
        assert reverse != queries and [len(query) for query in reverse] == [3, 3]
        assert heuristic is strided or reverse[0] == IDS[:3:-1]
    else:
        assert take(3, order=[6, 5, 4, 3, 2, 1, 0]) == queries
        assert take(3, order=[2, 0, 6, 1, 5, 3, 4]) == queries


def test_n_larger_than_the_pool_takes_the_pool(chosen):
    (query,) = chosen[1](100)
    assert sorted(query) == sorted(IDS)


def test_n_that_is_what_the_pool_still_has_takes_it(chosen):
    """Five of seven, then the two that are left."""
    queries = chosen[1](5)
    assert sorted(id for query in queries for id in query) == sorted(IDS)


@pytest.mark.parametrize("name", EVERY)
def test_every_heuristic_fits_the_contract(name):
    """One way to choose, its ingredient named as its file, and a map has a known reduction."""
    heuristic = load("heuristic", name)
    assert sum(hasattr(heuristic, way) for way in ("uncertainty", "score", "select")) == 1
    assert heuristic.ingredient.path == name
    assert heuristic.__doc__
    if hasattr(heuristic, "uncertainty"):
        selection.reducer(defaults(heuristic.ingredient)["reduction"])


@pytest.mark.parametrize("name", [n for n in EVERY if hasattr(load("heuristic", n), "uncertainty")])
def test_maps_are_finite_and_not_constant(name, attach, model):
    heuristic = load("heuristic", name)
    attach(heuristic)
    scores = selection.score(heuristic, make_pool(heuristic, model), generator())
    assert scores.dtype == np.float64 and len(set(scores.tolist())) > 1


def test_without_a_background_all_that_is_predicted_is_foreground(model):
    """CamVid's class 0 is sky: the pool says so to whatever looks at a region of the prediction."""
    scores = {}
    for classes in (("sky", "building"), ("background", "gland")):
        store, settings = make_store(IDS, classes=classes), defaults(prediction.ingredient)
        pool = open_pool(
            store, ALL, place=(0, "drawn", 1), mc_iters=2, model=lambda: model, classes=classes, **settings
        )
        shares = foreground_random.foreground(pool)
        scores[classes] = [selection.score(entropy, pool, generator(), way) for way in ("foreground", "target", "mean")]
        assert (shares == 1).all() if classes[0] == "sky" else (shares < 1).any()
        [(_, seen), *_] = pool.predictions()
        assert class_stratified.class_entropies(seen, "probability").shape[1] == (3 if classes[0] == "sky" else 2)
    region, beside, mean = scores["sky", "building"]
    assert region.tolist() == mean.tolist() == beside.tolist()
    assert scores["background", "gland"][0].tolist() != scores["background", "gland"][2].tolist()


def test_given_reads_a_list_and_a_csv_and_names_what_is_nearest(tmp_path):
    pool, file = plain_pool(["scan_01", "scan_02", "other"]), tmp_path / "ranked.csv"
    file.write_text("\ufeffrank,id,score\n0,scan_02,.5\n1,other,.25\n")
    select = load("heuristic", "given").select
    assert select(pool, 2, generator(), [""], str(file)) == [1, 2]
    assert select(pool, 1, generator(), ["other"], "") == [2]
    with pytest.raises(Refused, match="given names 'scan_03', which is no training image: the nearest are scan_0"):
        select(pool, 3, generator(), ["scan_03", "x", "other"], "")
    file.write_text("image,score\na,1\n")
    with pytest.raises(Refused, match="has no column id: its first line names image, score"):
        select(pool, 1, generator(), [""], str(file))


# ---- selection, with given scores


def given(scores):
    return SimpleNamespace(__name__="heuristics.given", score=lambda pool, rng: scores)


def predictor(predict):
    """What a Pool looks through, of a function that gives Predictions."""
    return SimpleNamespace(predict=lambda *batch: (predict(*batch), 1))


def plain_pool(ids, groups=None):
    return Pool(ids, groups or [""] * len(ids), None)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_is_refused_naming_the_image(value):
    with pytest.raises(Refused, match="heuristics.given scores image bad as (nan|inf|-inf)"):
        selection.select(given([1.0, value]), top, plain_pool(["good", "bad"]), 1, generator())


def test_a_map_that_is_not_a_number_is_refused_naming_the_image():
    broken = SimpleNamespace(__name__="heuristics.broken", uncertainty=lambda prediction: prediction.mean[:, 0])
    p = torch.full((1, 2, 2, 3, 3), 0.5)
    p[0, 1, 0, 1, 1] = torch.nan
    pool = Pool(["good", "bad"], ["", ""], lambda: [([1, 0], None)], predictor(lambda *a: of_passes(p.flip(1))))
    with pytest.raises(Refused, match="image bad"):
        selection.select(broken, top, pool, 1, generator())


def test_scores_of_a_batch_go_to_the_positions_that_it_names():
    p = torch.tensor([0.5, 0.9, 0.7]).view(1, 3, 1, 1, 1)
    p = torch.cat([p, 1 - p], 2)
    batches = [([2, 0], 0), ([1], 1)]
    parts = [of_passes(p[:, :2]), of_passes(p[:, 2:])]
    pool = Pool("abc", "   ", lambda: batches, predictor(lambda images, *rest: parts[images]))
    scores = selection.score(entropy, pool, generator())
    assert np.argsort(scores).tolist() == [0, 1, 2] and scores[2] == pytest.approx(LOG2)


def picked_from(scores, batch, ids, seed, n=2):
    pool = plain_pool(ids, ["g"] * len(ids))
    return [ids[i] for i in selection.select(given(scores), batch, pool, n, generator(seed))[0]]


@pytest.mark.parametrize("batch", [top, balanced])
def test_ties_are_broken_by_a_draw_that_knows_no_order(batch):
    """Each of five equals comes second as often as another, whatever the order of the files and the alphabet."""
    ids, scores = ["c", "a", "d", "b", "f", "e"], [1.0, 1, 2, 1, 1, 1]
    seconds = []
    for seed in range(600):
        first, second = picked_from(scores, batch, ids, seed)
        assert first == "d" and second == picked_from(scores[::-1], batch, ids[::-1], seed)[1]
        seconds.append(second)
    assert stats.chisquare([seconds.count(id) for id in "abcef"]).pvalue > 0.001


def test_ties_change_nothing_that_is_drawn_after_them():
    scores, rng = np.arange(9.0), generator()
    assert top.ranking(scores, range(9), rng) == [*range(8, -1, -1)]
    assert top.ranking(scores // 3, range(9), rng) != [*range(8, -1, -1)]
    assert rng.integers(2**63) == generator().integers(2**63)


@pytest.mark.parametrize(("name", "batch"), [pair for pair in FITTING if pair[0] in ("bald", "hybrid")])
def test_a_query_of_equal_scores_is_drawn_and_a_line_says_so(name, batch, attach, model, capsys, monkeypatch):
    """With dropout off BALD is 0 everywhere; alphabet and files must not decide, in any batch."""
    heuristic, way = load("heuristic", name), load("batch", batch)
    attach(heuristic)
    attach(way)
    attach(bald)
    if name == "hybrid":
        monkeypatch.setitem(attach(heuristic), "by", "bald")
    queries = []
    for seed in range(8):
        pool = make_pool(heuristic, model, dropout=False)
        picked, scores = selection.select(heuristic, way, pool, 2, generator(seed))
        assert scores is None or (scores == 0).all()
        queries.append(frozenset(pool.ids[i] for i in picked))
    assert len(set(queries)) > 1
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 8 and all(line.startswith(f"bald scores every one of {len(IDS)} images 0: ") for line in said)
    assert "mc_iters=1" in said[0] and "prediction.dropout=False" in said[0]


def test_no_line_where_scores_differ_or_all_images_are_taken(capsys):
    selection.select(given([1.0, 1, 1, 1 + 1e-12]), top, plain_pool("abcd"), 2, generator())
    selection.select(given([1.0, 1, 1]), top, plain_pool("abc"), 3, generator())
    assert not capsys.readouterr().out


def test_a_race_of_equals_is_drawn(attach, model, capsys):
    attach(bald)
    queries = set()
    for seed in range(8):
        pool = make_pool(bald, model, dropout=False, race=True)
        picked, scores = selection.select(bald, top, pool, 2, generator(seed))
        queries.add(frozenset(picked))
    assert (scores == 0).all() and len(queries) > 1
    assert capsys.readouterr().out.count("this query is a random one") == 8


def test_top_takes_the_highest_scores_best_first():
    scores = [0.2, -1.0, 5.0, 0.3]
    assert selection.select(given(scores), top, plain_pool("abcd"), 3, generator())[0] == [2, 3, 0]


@pytest.mark.parametrize(
    ("groups", "n", "expected"),
    [
        ("AAABBB", 2, [0, 3]),
        ("AAABBB", 4, [0, 1, 3, 4]),
        ("AAABBB", 3, [0, 1, 3]),  # the odd one is of the group with the best image
        ("ABBAAA", 3, [0, 1, 3]),  # even where another group's second image scores higher
        ("BAAAAA", 4, [0, 1, 2, 3]),  # B runs out: topped up by score
        ("AAAAAB", 4, [0, 1, 2, 5]),
        ("AAAABC", 3, [0, 4, 5]),
        ("AABBCC", 4, [0, 1, 2, 4]),
        ("AAAABC", 5, [0, 1, 2, 4, 5]),
        ("AAAAAA", 3, [0, 1, 2]),
        ("ABABAB", 6, [0, 1, 2, 3, 4, 5]),
    ],
)
def test_balanced_fills_its_quotas_best_first_and_tops_up(groups, n, expected):
    pool = plain_pool("abcdef", list(groups))
    assert balanced.pick([6, 5, 4, 3, 2, 1], pool, n, generator()) == expected


def test_balanced_needs_groups():
    with pytest.raises(Refused, match="batch=top"):
        selection.select(given([1.0, 2.0]), balanced, plain_pool("ab"), 1, generator())


def test_a_batch_that_picks_wrongly_is_refused():
    for picked in ([0, 0], [0], [0, 2], [-1, 0]):
        batch = SimpleNamespace(pick=lambda scores, pool, n, rng, picked=picked: picked)
        with pytest.raises(Refused, match="2 different positions below 2"):
            selection.select(given([1.0, 2.0]), batch, plain_pool("ab"), 2, generator())


def test_random_draws_for_an_image_do_not_depend_on_the_others():
    ids = [f"im{i}" for i in range(200)]
    scores = random.score(plain_pool(ids), generator(5))
    assert scores[7] == random.score(plain_pool(["im7"]), generator(5))[0]
    assert np.array_equal(random.score(plain_pool(ids[::-1]), generator(5))[::-1], scores)
    assert not np.isclose(random.score(plain_pool(ids), generator(6)), scores).any()


def test_random_is_uniform():
    scores = random.score(plain_pool([f"im{i}" for i in range(4000)]), generator(5))
    assert 0 <= scores.min() and scores.max() < 1
    counted = np.histogram(scores, 10, (0, 1))[0]
    assert ((counted - 400) ** 2 / 400).sum() < 27.9  # chi squared of 9 degrees of freedom, 0.1 %


def test_first_takes_the_indices_that_it_is_given_or_refuses_them():
    pool = plain_pool("abcdef")
    assert first.select(pool=pool, n=2, rng=None, indices=[4, 1]) == [4, 1]
    assert first.select(pool=pool, n=2, rng=None, indices=[]) == [0, 1]
    for wrong in ([1], [1, 1], [1, 6], [-1, 0], [0, 1, 2]):
        with pytest.raises(Refused, match="first.indices must name 2 different images between 0 and 5"):
            first.select(pool=pool, n=2, rng=None, indices=wrong)


# ---- what is refused before training, and reductions


def test_check_refuses_a_batch_that_a_selecting_heuristic_would_ignore():
    with pytest.raises(Refused, match="heuristic=first .* ignore batch=balanced: use batch=top"):
        selection.check(first, balanced, "mean")
    selection.check(first, top, "mean")
    selection.check(bald, balanced, "max")


def test_check_refuses_an_unknown_reduction():
    with pytest.raises(Refused, match="bald.reduction: There is no reduction 'median'. .*mean, sum, max, q1 to q99"):
        selection.check(bald, top, "median")


@pytest.mark.parametrize(("reduction", "expected"), [("mean", [2.0, 4.5]), ("sum", [6.0, 9.0]), ("max", [3.0, 5.0])])
def test_reductions_count_valid_pixels_alone(reduction, expected):
    u = torch.tensor([[[1.0, 2, 3, 100]], [[4, 5, 100, 1e30]]])
    valid = torch.tensor([[[True, True, True, False]], [[True, True, False, False]]])
    assert selection.reducer(reduction)(u, SimpleNamespace(valid=valid)).tolist() == expected


@pytest.mark.parametrize("reduction", ["mean", "sum", "max"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_reductions_do_not_look_at_what_is_not_valid(reduction, value):
    u = torch.tensor([[[1.0, 1.0, value]]])
    valid = torch.tensor([[[True, True, False]]])
    assert selection.reducer(reduction)(u, SimpleNamespace(valid=valid)).isfinite().all()


@pytest.mark.parametrize("reduction", ["mean", "max"])
def test_an_image_without_valid_pixels_is_refused(reduction):
    prediction = of_passes(drawn_passes()[1], list("abcd"))
    prediction.valid[2] = False
    pool = Pool("abcd", "    ", lambda: [([0, 1, 2, 3], None)], predictor(lambda *a: prediction))
    with pytest.raises(Refused, match="image c"):
        selection.score(entropy, pool, generator(), reduction)
