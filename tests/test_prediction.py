"""Passes are reduced without loss, whatever the batch, and a heuristic has no way to a mask."""

import copy
import warnings
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments.acquisition import selection
from experiments.acquisition.pool import Pool, open_pool
from experiments.acquisition.prediction import Prediction, ingredient, pass_keys, predict, two_sided
from experiments.components import defaults, load
from experiments.errors import Refused
from experiments.evaluation import metrics
from experiments.network import dropout
from experiments.network.ready import make_ready
from experiments.store import Item, Split, Store
from heuristics import bald, entropy, expected_entropy, variance, vote_variance
from models.unet import LAYERS, UNet

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what baal says while it is imported is its own
    from baal.active import heuristics as baal


pytestmark = pytest.mark.usefixtures("single_thread")
PLACE = (0, "drawn", 1)
PASSES = 5
MAPS = [bald, entropy, expected_entropy, variance, vote_variance]


def keep_mask(keys, layer, like, p):
    return dropout.keep(dropout.lanes(keys, layer, like), p, None, like.dtype)


def closed(path):
    raise AssertionError(f"{path} was opened")


def make_store(sizes, seed=0):
    rng = np.random.default_rng(seed)
    images = {f"im{i}": rng.integers(0, 256, (*size, 3), dtype=np.uint8) for i, size in enumerate(sizes)}
    items = [Item(id, Path(id), Path("nowhere", id), "ab"[i % 2]) for i, id in enumerate(images)]
    return Store(Split(items, lambda path: images[path.name], closed), "cpu")


def make_model(classes=2, p=0.2):
    """(model with keyed dropout, the same with nn.Dropout), neither of them certain of anything."""
    torch.manual_seed(1)
    model = UNet(3, classes, 2, p).eval()
    with torch.no_grad():
        logits = model(torch.rand(4, 3, 40, 36))
        model.head.weight.div_(logits.std())
        model.head.bias.sub_(logits.mean((0, 2, 3))).div_(logits.std())
    plain = copy.deepcopy(model)
    return make_ready(model, (0.0,) * 3, (1.0,) * 3, torch.device("cpu"))[0], plain


@pytest.fixture(scope="module")
def model():
    return make_model()[0]


@pytest.fixture(scope="module")
def images():
    return torch.randint(256, (3, 40, 36, 3), generator=torch.Generator().manual_seed(2)).to(torch.uint8)


def stacked_logits(model, images, keys):
    """(passes, B, C, H, W), one forward for each pass."""
    model.eval()
    logits = []
    with torch.inference_mode():
        for now in keys:
            model.dropout_keys.now = now
            logits.append(model(images.permute(0, 3, 1, 2).float() / 255))
    model.dropout_keys.now = None
    return torch.stack(logits)


def make_pool(store, model, indices=None, batch=4, dropout=True, mc_iters=PASSES, **more):
    indices = list(range(len(store))) if indices is None else indices
    settings = defaults(ingredient) | dict(batch=batch, dropout=dropout, mc_iters=mc_iters) | more
    looks = dict(model=lambda: model, layers=LAYERS)
    return open_pool(store, indices, PLACE, **looks, **settings)


def mean_scores(pool, heuristic):
    scores = torch.full((len(pool),), torch.nan)
    for positions, prediction in pool.predictions():
        scores[positions] = heuristic.uncertainty(prediction).mean((1, 2))
    return scores


# ---- moments


def test_streamed_moments_are_those_of_the_stacked_passes(model, images):
    keys = pass_keys(PLACE, "score", "abc", PASSES)
    got = predict(model, images, "abc", keys)
    p = stacked_logits(model, images, keys).double().softmax(2)
    assert p.std(0).max() > 0.01  # the passes differ
    votes = torch.nn.functional.one_hot(p.argmax(2), 2).movedim(-1, 2).sum(0)
    for name, expected in {
        "mean": p.mean(0),
        "second_moment": p.square().mean(0),
        "expected_entropy": torch.special.entr(p).sum(2).mean(0),
    }.items():
        torch.testing.assert_close(getattr(got, name).double(), expected, atol=1e-6, rtol=0)
    assert (got.votes.long() == votes).all() and (votes[:, 0] % PASSES != 0).any()
    assert (got.count == PASSES).all() and got.valid.all() and got.ids == "abc"
    assert got.mean_logits is None and got.last is None
    assert model.dropout_keys.now is None  # the next forward has no dropout left on


def test_needs_adds_the_mean_logits_and_the_last_pass_and_changes_nothing_else(model, images):
    keys = pass_keys(PLACE, "score", "abc", PASSES)
    logits = stacked_logits(model, images, keys)
    without = predict(model, images, "abc", keys)
    both = predict(model, images, "abc", keys, needs=("mean_logits", "last"))
    torch.testing.assert_close(both.mean_logits, logits.mean(0), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(both.last, logits[-1].softmax(1), atol=1e-6, rtol=0)
    assert not torch.allclose(both.last, both.mean, atol=1e-3)
    for name in Prediction._fields[1:7]:
        assert torch.equal(getattr(both, name), getattr(without, name)), name
    only = predict(model, images, "abc", keys, needs=("last",))
    assert only.mean_logits is None and only.last is not None


def test_bald_of_the_reduced_passes_is_baals_of_the_stack(model, images):
    keys = pass_keys(PLACE, "score", "abc", PASSES)
    stack = stacked_logits(model, images, keys).double().movedim(0, -1).numpy()
    expected = baal.BALD(reduction="none").compute_score(stack)
    ours = bald.uncertainty(predict(model, images, "abc", keys))
    assert expected.max() > 1e-3
    np.testing.assert_allclose(ours.numpy(), expected, atol=1e-6, rtol=0)


def test_a_single_logit_is_foreground_against_background(images):
    model, _ = make_model(classes=1)
    keys = pass_keys(PLACE, "score", "abc", 2)
    got = predict(model, images, "abc", keys)
    foreground = stacked_logits(model, images, keys).sigmoid().mean(0)
    assert got.mean.shape == got.votes.shape == (3, 2, 40, 36)
    torch.testing.assert_close(got.mean, torch.cat([1 - foreground, foreground], 1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("classes", [2, 3])
def test_more_logits_are_left_as_they_are(classes):
    logits = torch.randn(2, classes, 3, 3)
    assert two_sided(logits) is logits


def test_the_deterministic_pass_is_the_network_with_its_dropout_off(images):
    model, plain = make_model()
    got = predict(model, images, "abc")
    with torch.inference_mode():
        expected = plain.eval()(images.permute(0, 3, 1, 2).float() / 255).softmax(1)
    torch.testing.assert_close(got.mean, expected, atol=1e-6, rtol=0)
    assert (got.count == 1).all() and (variance.uncertainty(got) < 1e-6).all()
    assert torch.equal(bald.uncertainty(got), torch.zeros(3, 40, 36))
    assert (got.votes.amax(1) == 1).all() and (got.votes.sum(1) == 1).all()


# ---- dropout


def test_a_mask_is_the_same_alone_in_a_batch_and_in_any_order():
    keys = pass_keys(PLACE, "score", [f"im{i}" for i in range(6)], 1)[0]
    like = torch.empty(6, 5, 7, 9)  # 315 elements, not a multiple of the four lanes
    batch = keep_mask(keys, 3, like, 0.25)
    assert torch.equal(batch.flip(0), keep_mask(keys.flip(0), 3, like, 0.25))
    for i in range(6):
        assert torch.equal(batch[i : i + 1], keep_mask(keys[i : i + 1], 3, like[:1], 0.25))
    assert batch.shape == like.shape and len({tuple(mask.flatten().tolist()) for mask in batch}) == 6


def test_a_mask_is_the_same_in_every_precision():
    keys = pass_keys(PLACE, "score", range(50), 1)[0]
    like = torch.empty(50, 8, 16, 16)
    kept = keep_mask(keys, 0, like, 0.1) > 0
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        assert torch.equal(keep_mask(keys, 0, like.to(dtype), 0.1) > 0, kept), dtype


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_the_rate_is_p_and_the_expectation_is_kept(p):
    p = round(p * 65536) / 65536
    mask = keep_mask(pass_keys(PLACE, "score", range(200), 1)[0], 0, torch.empty(200, 8, 16, 16), p)
    assert mask.unique().tolist() == pytest.approx([0, 1 / (1 - p)])
    n = mask.numel()
    assert abs((mask == 0).double().mean().item() - p) < 4 * (p * (1 - p) / n) ** 0.5
    per_channel = (mask == 0).double().mean((0, 2, 3))
    assert (per_channel - p).abs().max() < 4.5 * (p * (1 - p) / (n / 8)) ** 0.5
    assert abs(mask.double().mean().item() - 1) < 4 * (p / (1 - p) / n) ** 0.5


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_masks_of_passes_layers_images_cycles_and_neighbours_are_independent(p):
    ids = [f"im{i}" for i in range(40)]
    keys = pass_keys(PLACE, "score", ids, 3)
    like = torch.empty(40, 4, 32, 32)

    def mask(keys, layer=0):
        return (keep_mask(keys, layer, like, p) > 0).double()

    first = mask(keys[0])
    others = {
        "pass 1": mask(keys[1]),
        "pass 2": mask(keys[2]),
        "layer 1": mask(keys[0], 1),
        "layer 10": mask(keys[0], 10),
        "next image": mask(keys[0].roll(1)),
        "next cycle": mask(pass_keys((0, "drawn", 2), "score", ids, 1)[0]),
        "other purpose": mask(pass_keys(PLACE, "test", ids, 1)[0]),
    }
    others |= {f"{lag} channels on": first.roll(lag, 1) for lag in (1, 2)}  # neighbours within the 64 bits
    others |= {"next pixel": first.roll(1, 3), "next row": first.roll(1, 2)}
    for (one, a), (other, b) in combinations({"first": first, **others}.items(), 2):
        if " on" in one + other and "next " in one + other:
            continue  # each a shift of the same mask
        r = torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1].item()
        assert abs(r) * a.numel() ** 0.5 < 4.5, (one, other)


def test_pass_keys_differ_by_all_they_are_made_of():
    places = [(0, "drawn", 1), (1, "drawn", 1), (0, "other", 1), (0, "drawn", 2)]
    keys = [pass_keys(place, purpose, "ab", 3) for place in places for purpose in ("score", "test")]
    assert keys[0].shape == (3, 2) and keys[0].dtype == torch.int64
    assert len(torch.stack(keys).unique()) == len(keys) * 6
    assert torch.equal(keys[0], pass_keys(places[0], "score", "ba", 3).flip(1))
    assert torch.equal(keys[0][:2], pass_keys(places[0], "score", "ab", 2))  # more passes only add passes


def test_dropout_is_off_without_keys_and_at_p_0():
    x = torch.randn(2, 3, 4, 5)
    keys = dropout.Keys()
    assert dropout.KeyedDropout(0.5, keys, 0)(x) is x
    keys.now = torch.tensor([1, 2])
    assert dropout.KeyedDropout(0.0, keys, 0)(x) is x
    assert not torch.equal(dropout.KeyedDropout(0.5, keys, 0)(x), x)


# ---- pools


@pytest.mark.parametrize("heuristic", MAPS, ids=lambda module: module.__name__)
def test_scores_do_not_depend_on_the_prediction_batch(model, heuristic):
    store = make_store([(40, 36)] * 7 + [(33, 40)] * 2)
    one, three, sixteen = (mean_scores(make_pool(store, model, batch=n), heuristic) for n in (1, 3, 16))
    assert one.max() - one.min() > 1e-5
    torch.testing.assert_close(three, one, atol=1e-6, rtol=0)
    torch.testing.assert_close(sixteen, one, atol=1e-6, rtol=0)


def test_an_images_prediction_does_not_depend_on_the_rest_of_the_pool(model):
    store = make_store([(40, 36)] * 5)
    alone = mean_scores(make_pool(store, model, [3]), bald)
    torch.testing.assert_close(mean_scores(make_pool(store, model, [4, 3, 0]), bald)[1:2], alone, atol=1e-6, rtol=0)


def test_images_of_different_sizes_are_predicted_at_their_own_size(model):
    sizes = [(48, 33), (33, 40), (48, 33), (20, 64)]
    store = make_store(sizes)
    indices = [3, 0, 2, 1]
    seen = {}
    for positions, prediction in make_pool(store, model, indices).predictions():
        assert prediction.ids == [store.ids[indices[i]] for i in positions]
        for row, position in enumerate(positions):
            assert position not in seen
            seen[position] = prediction.mean[row]
    for position, index in enumerate(indices):
        keys = pass_keys(PLACE, "score", [store.ids[index]], PASSES)
        expected = predict(model, store.image(index)[None], [store.ids[index]], keys).mean[0]
        assert seen[position].shape == (2, *sizes[index])
        torch.testing.assert_close(seen[position], expected, atol=1e-6, rtol=0)


def test_images_come_once_each_with_their_positions():
    store = make_store([(10, 12), (8, 8), (10, 12), (8, 8)])
    indices = [2, 3, 0]
    seen = {}
    for positions, batch in make_pool(store, None, indices, batch=1).images():
        seen |= dict(zip(positions, batch, strict=True))
    assert sorted(seen) == [0, 1, 2]
    assert all(torch.equal(seen[i], store.image(index)) for i, index in enumerate(indices))


@pytest.mark.parametrize(
    ("setting", "source", "passes"),
    [(True, "", PASSES), (False, "", 1), (False, "dropout", PASSES), (True, "deterministic", 1)],
)
def test_source_chooses_the_passes_and_the_pool_counts_them(model, setting, source, passes):
    store = make_store([(33, 40)] * 2)
    pixels = []
    pool = make_pool(store, model, dropout=setting, advance=pixels.append)
    assert pool.passes.tolist() == [0, 0]
    for _, prediction in pool.predictions(source):
        assert (prediction.count == passes).all()
        assert bool((variance.uncertainty(prediction) > 1e-4).any()) == (passes > 1)
    assert pool.passes.tolist() == [passes] * 2
    assert sum(pixels) == 2 * 33 * 40 * passes


def reachable(thing, depth=4):
    """What a heuristic gets at by public attributes, items and iteration."""
    yield thing
    if depth == 0 or isinstance(thing, (str, int, float, np.ndarray, torch.Tensor, type(None))):
        return
    if isinstance(thing, dict):
        parts = [*thing, *thing.values()]
    elif isinstance(thing, (list, tuple)):
        parts = list(thing)
    else:
        names = [name for name in dir(thing) if not name.startswith("_")]
        parts = [part for part in (getattr(thing, name) for name in names) if not callable(part)]
    for part in parts:
        yield from reachable(part, depth - 1)


def test_a_pool_gives_neither_masks_nor_the_store(model):
    """Public attributes of the pool, and all that its methods yield, hold no Store, Split, Item or mask."""
    store = make_store([(33, 40)] * 3)
    pool = make_pool(store, model, memory={"a": 1})
    names = [name for name in dir(pool) if not name.startswith("_")]
    assert names == ["annotated", "classes", "cycle", "cycles", "featured", "features", "gather", "groups", "ids",
                         "images",
                     "labelled", "learner", "mc_iters", "memory", "noted", "passes", "predictions", "race",
                     "statistics", "validation", "views"]  # fmt: skip
    given = [*reachable(pool), *reachable(list(pool.images())), *reachable(list(pool.predictions()))]
    assert sum(isinstance(thing, torch.Tensor) for thing in given) >= 7
    for thing in given:
        assert not isinstance(thing, (Store, Split, Item, Path))
        if isinstance(thing, torch.Tensor):
            assert thing.untyped_storage().data_ptr() != store.masks.untyped_storage().data_ptr()
    assert (pool.cycle, pool.memory, pool.groups) == (1, {"a": 1}, ["a", "b", "a"])


def test_a_heuristic_that_paints_on_its_images_does_not_change_the_store():
    store = make_store([(8, 8)] * 2)
    before = store.pixels.clone()
    for _, batch in make_pool(store, None, batch=1).images():
        batch.zero_()
    assert torch.equal(store.pixels, before) and before.any()


def test_lists_given_to_a_pool_are_copied():
    ids, groups = ["a", "b"], ["", ""]
    pool = Pool(ids, groups, None)
    pool.ids.append("c")
    pool.groups.append("x")
    assert (ids, groups) == (["a", "b"], ["", ""])


def test_calibration_of_a_prediction_counts_every_pixel(model, images):
    """What evaluation does with a prediction: its mean is one distribution per pixel."""
    got = predict(model, images, "abc", pass_keys(PLACE, "test", "abc", 2))
    torch.testing.assert_close(got.mean.sum(1), torch.ones(3, 40, 36))
    assert metrics.calibration_bins(got.mean, got.mean.argmax(1).to(torch.uint8))[:, 0].sum() == 3 * 40 * 36


def test_noted_scores_are_those_of_the_same_passes(model):
    """Scores kept beside the heuristic's equal what the heuristic of that name gives the same images."""
    store = make_store([(33, 40), (20, 24)])
    names = ["variance", "entropy", "bald"]
    pool = make_pool(store, model, batch=1, scorers=selection.scorers(names))
    assert pool.noted() == {}
    for _ in pool.predictions():
        pass
    assert list(pool.noted()) == names
    for name in names:
        heuristic = load("heuristic", name)
        alone = selection.score(heuristic, make_pool(store, model), None)
        np.testing.assert_allclose(pool.noted()[name], alone, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("name", ["random", "blad"])
def test_what_has_no_map_cannot_be_noted(name):
    with pytest.raises(Refused, match=name):
        selection.scorers([name])
