"""CRC-AL: thresholds by hand and against a brute-force search, the guarantee measured, distances, selection, runs."""

import math
import shutil
from fractions import Fraction
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import events, ledger_bytes
from PIL import Image
from test_heuristics import (  # noqa: F401  attach and model are fixtures
    ALL,
    IDS,
    attach,
    generator,
    make_pool,
    model,
    of_passes,
    plain_pool,
    predictor,
)

from experiments.acquisition import conformal, needs, selection
from experiments.acquisition.pool import Annotated, Pool
from experiments.components import load
from experiments.errors import Refused
from experiments.store import IGNORE
from experiments.training import trainer
from heuristics import crc
from heuristics.batches import top

pytestmark = pytest.mark.usefixtures("single_thread")
ROOM = math.log(2)


def image(*own, width=1):
    """(p, masks) of one image that is all class 1, with these probabilities of it."""
    p = torch.tensor(own).view(1, 1, -1, width)
    return torch.cat([1 - p, p], 1), torch.ones_like(p[:, 0], dtype=torch.uint8)


def drawn(seed=0, images=12, classes=3, sizes=((4, 5), (6, 3), (9, 7))):
    """Images of several sizes with ignored pixels; p is rounded so that there are ties, class 2 is often absent."""
    rng = np.random.default_rng(seed)
    batches = []
    for i in range(images):
        size = sizes[i % len(sizes)]
        p = torch.from_numpy(rng.dirichlet(np.ones(classes), size).astype(np.float32)).movedim(-1, 0)
        mask = rng.integers(0, classes - (i % 3 == 0), size).astype(np.uint8)
        mask[rng.random(size) < 0.1] = IGNORE
        batches.append(((p * 40).round()[None] / 40, torch.from_numpy(mask)[None]))
    return batches


# ---- thresholds


@pytest.mark.parametrize(
    ("n", "bad", "pixels", "expected"),
    [
        (18, 0, 20, math.nan),  # 19 are needed
        (19, 0, 20, 0.8),
        (19, 1, 1000, 0.3),  # R must be 0: a single pixel of an image decides
        (20, 1, 20, 0.8),  # R = 1 / 400 = .0025 is the bound, met exactly
        (20, 1, 19, 0.3),
        (20, 2, 20, 0.3),
        (40, 21, 20, 0.8),  # 21 / 20 / 40 = .02625 is the bound, whatever way the sum is rounded
        (40, 22, 20, 0.3),
    ],
)
def test_thresholds_by_hand(n, bad, pixels, expected):
    """n images; in `bad` of them one pixel of class 1 has p = .3, all others have .8; alpha .05."""
    batches = [image(0.3, *[0.8] * (pixels - 1)) for _ in range(bad)] + [image(*[0.8] * pixels)] * (n - bad)
    found = conformal.calibrate(batches, 0.05, 1000)
    assert found[0].isnan() and found[1].item() == pytest.approx(expected, abs=1e-15, nan_ok=True)


@pytest.mark.parametrize(("alpha", "n"), [(0.5, 1), (0.25, 3), (0.2, 4), (0.1, 9), (0.05, 19), (0.01, 99), (0.3, 3)])
def test_least_number_of_images(alpha, n):
    assert conformal.least(alpha) == n
    assert 1 / (n + 1) <= alpha < 1 / n
    without = image(0.7)[0], torch.zeros(1, 1, 1, dtype=torch.uint8)
    assert conformal.calibrate([image(0.7)] * n + [without], alpha, 10)[1] == 0.7
    assert conformal.calibrate([image(0.7)] * (n - 1) + [without], alpha, 10)[1].isnan()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_probability_on_an_edge_reaches_it_and_one_below_does_not(dtype):
    edges = conformal.grid(1000, "cpu").to(dtype)
    below = edges.nextafter(torch.tensor(-1.0, dtype=dtype))
    for p, expected in ((edges, torch.arange(1001)), (below[1:], torch.arange(1000))):
        p = p.view(-1, 1, 1, 1)
        rates, _ = conformal.miss_rates(torch.cat([1 - p, p], 1), torch.ones(len(p), 1, 1).byte(), 1000)
        assert torch.equal((rates[:, 1] == 0).sum(1) - 1, expected)


def brute_force(batches, k, alpha):
    """The largest threshold of all that keeps the exact bound, one of the probabilities of class k."""
    own = [p[0, k][masks[0] == k] for p, masks in batches]
    own = [values for values in own if len(values)]
    for threshold in torch.cat(own).unique().flip(0):
        total = sum(Fraction(int((values < threshold).sum()), len(values)) for values in own)
        if total + 1 <= Fraction(str(alpha)) * (len(own) + 1):
            return threshold.item()


@pytest.mark.parametrize("alpha", [0.2, 0.3, 0.5, 0.75])
@pytest.mark.parametrize("seed", range(4))
def test_thresholds_are_the_largest_of_the_grid_below_a_brute_force_search(seed, alpha):
    batches, resolution = drawn(seed), 1000
    found = conformal.calibrate(batches, alpha, resolution).tolist()
    for k, threshold in enumerate(found):
        best = brute_force(batches, k, alpha)
        assert np.float32(threshold) <= np.float32(best) < np.float32(threshold + 1 / resolution)
    assert len(set(found)) > 1


def test_miss_rates_are_those_of_comparing_every_pixel_with_every_edge():
    for p, masks in drawn(5):
        rates, pixels = conformal.miss_rates(p, masks, 40)
        for k in range(3):
            own = p[0, k][masks[0] == k]
            assert pixels[0, k] == len(own)
            for j in range(41):
                share = (own < torch.tensor(j / 40)).double().mean() if len(own) else 0
                assert rates[0, k, j] == pytest.approx(float(share), abs=1e-15)


def test_an_image_weighs_the_same_at_any_size_in_any_batch_and_order():
    batches = drawn(1)
    expected = conformal.calibrate(batches, 0.3, 1000)
    larger = [(p.repeat(1, 1, 2, 3), masks.repeat(1, 2, 3)) for p, masks in batches[:5]]
    assert torch.equal(conformal.calibrate([*batches[:4:-1], *larger], 0.3, 1000), expected)
    together = [tuple(map(torch.cat, zip(*batches[i::3], strict=True))) for i in range(3)]
    assert torch.equal(conformal.calibrate(together, 0.3, 1000), expected)


def test_ignored_pixels_do_not_count():
    batches = drawn(2)
    expected = conformal.calibrate(batches, 0.3, 1000), conformal.measure(batches, torch.full((3,), 0.3), "abc")
    changed = []
    for p, masks in batches:
        p = p.where(masks[:, None] != IGNORE, torch.tensor([0.0, 1.0, 0.0]).view(1, 3, 1, 1))
        changed.append((p, masks))
    assert torch.equal(conformal.calibrate(changed, 0.3, 1000), expected[0])
    assert conformal.measure(changed, torch.full((3,), 0.3), "abc") == expected[1]
    assert any((p != q).any() for (p, _), (q, _) in zip(batches, changed, strict=True))


def test_measured_by_hand():
    """Four pixels, sets {0}, {0, 1}, {1}, {}: the truth is 0, 0, 0, 1; and an image of three pixels of class 0."""
    p = torch.tensor([[[0.9, 0.5, 0.2, 0.3]], [[0.1, 0.5, 0.8, 0.35]]])[None]
    other = torch.tensor([[[0.9, 0.9, 0.9]], [[0.1, 0.1, 0.1]]])[None]
    batches = [(p, torch.tensor([[[0, 0, 0, 1]]]).byte()), (other, torch.zeros(1, 1, 3).byte())]
    found = conformal.measure(batches, torch.tensor([0.4, 0.5]), ("no", "yes"))
    assert found["no"] == pytest.approx(
        {"threshold": 0.4, "images": 2, "risk": 1 / 6, "coverage": 5 / 6, "set_size": 7 / 6}
    )
    assert found["yes"] == {"threshold": 0.5, "images": 1, "risk": 1.0, "coverage": 0.0, "set_size": 0.0}


@pytest.mark.parametrize(("side", "n", "new"), [(6, 40, 20), (1, 120, 200)])
def test_the_guarantee_on_exchangeable_images(side, n, new, table):
    """n drawn images calibrate, new ones are held out, 500 times: each class's mean miss rate is at most alpha.

    Images of one pixel are the hardest: split conformal prediction, where alpha is nearly reached.
    """
    rng, alpha, classes, kept, images = np.random.default_rng(0), 0.1, ("all", "most", "rare"), [], []

    def draw(n):
        truth = rng.integers(0, np.where(rng.random(n) < 0.6, 3, 2)[:, None, None], (n, side, side))
        signal = rng.gamma(2, 1, (n, 1, 1, 1)) * np.eye(3)[truth]  # some images are harder than others
        logits = signal + rng.standard_normal((n, side, side, 3))
        p = torch.from_numpy(logits).softmax(-1).movedim(-1, 1).float()
        return p, torch.from_numpy(truth).byte()

    for _ in range(500):
        calibrating = draw(n)
        thresholds = conformal.calibrate([calibrating], alpha, 1000)
        found = conformal.measure([draw(new)], thresholds, classes)
        kept.append([found[name]["risk"] for name in classes])
        images.append([row["images"] for row in conformal.measure([calibrating], thresholds, classes).values()])
    mean, error = np.mean(kept, 0), np.std(kept, 0, ddof=1) / math.sqrt(len(kept))
    rates = [f"{name} {m:.4f} (standard error {e:.4f})" for name, m, e in zip(classes, mean, error, strict=True)]
    table([f"CRC, alpha {alpha}, {n} images of {side} x {side}, 500 repeats: held-out miss rates " + ", ".join(rates)])
    assert np.isfinite(kept).all() and (mean <= alpha + 2 * error).all()
    assert (mean >= alpha - 2 / (np.min(images, 0) + 1)).all()  # the paper's lower bound: not all is in every set


# ---- risk and embedding


def test_embedding_and_risk_by_hand():
    """Sets {0}, {0}, {0, 1}, {}; a pixel on its threshold is in."""
    p = torch.tensor([[[0.9, 0.4], [0.5, 0.0]], [[0.1, 0.2], [0.6, 0.3]]], dtype=torch.float64)[None]
    u, v = crc.confusion(p, torch.ones(1, 2, 2, dtype=torch.bool), torch.tensor([0.4, 0.6], dtype=torch.float64))
    assert v[0].tolist() == pytest.approx([9 / 10, 1 / 10, 1 / 2, 1 / 2])
    w0 = -0.9 * math.log(0.9) - 0.1 * math.log(0.1)
    assert u.item() == pytest.approx((3 * w0 + ROOM) / (4 * (w0 + ROOM)))


def test_an_image_of_one_certain_class_has_no_risk():
    p = torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    u, v = crc.confusion(p, torch.ones(1, 4, 4, dtype=torch.bool), torch.full((3,), 0.5))
    assert u.tolist() == [0] and v[0].tolist() == [1, 0, 0, 0, 0, 0, 0, 0, 0]


def test_risk_is_the_mean_of_the_risk_map_of_valid_pixels():
    rng = np.random.default_rng(3)
    p = rng.dirichlet(np.ones(4), (2, 5, 6))
    valid = rng.random((2, 5, 6)) < 0.8
    thresholds = np.array([0.1, 0.3, 0.2, 0.25])
    u, v = crc.confusion(torch.from_numpy(p).movedim(-1, 1), torch.from_numpy(valid), torch.from_numpy(thresholds))
    for b in range(2):
        sets = (p[b] >= thresholds)[valid[b]]  # (pixels, 4)
        squares = np.array([[(sets[:, i] & sets[:, j]).sum() ** 2 for j in range(4)] for i in range(4)])
        rows = squares / squares.sum(1, keepdims=True)
        weights = -(rows * np.log(np.maximum(rows, 1e-300))).sum(1) / math.log(4)
        risk_map = sets @ weights / weights.sum()
        np.testing.assert_allclose(v[b], rows.ravel(), atol=1e-12)
        assert u[b].item() == pytest.approx(risk_map.mean(), abs=1e-12)


# ---- distances and selection


def test_distances_by_hand():
    v = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0]], dtype=torch.float64)
    u = torch.tensor([0.1, 0.3, 0.0], dtype=torch.float64)
    assert crc.distances(u, v, 0, 0.5).tolist() == pytest.approx([0, math.sqrt(5 * 0.75), 0])
    assert crc.distances(u, v, 0, 1.0).tolist() == pytest.approx([0, 5, 1])  # embeddings alone
    assert crc.distances(u, v, 1, 0.0).tolist() == pytest.approx([0.25, 0.5, 0])  # risk alone
    assert crc.distances(torch.zeros(3), v, 0, 0.5).tolist() == pytest.approx([0, math.sqrt(2.5), math.sqrt(0.5)])


def all_pairs(u, v, known, n, tau, rule):
    """As the paper writes it, with every distance."""
    d = [[np.linalg.norm(v[i] - v[j]) ** tau * (u[j] / (u[i] + u[j])) ** (1 - tau) for j in range(len(u))]
         for i in range(len(u))]  # fmt: skip
    chosen = list(range(known)) or [int(np.argmax(u))]
    while len(chosen) < known + n:
        left = [j for j in range(len(u)) if j not in chosen]
        scores = [rule(np.mean([d[i][j] for i in chosen]), min(d[i][j] for i in chosen)) for j in left]
        chosen.append(left[int(np.argmax(scores))])
    return [row - known for row in chosen[known:]]


@pytest.mark.parametrize("rule", crc.RULES)
@pytest.mark.parametrize("known", [0, 1, 7])
@pytest.mark.parametrize("tau", [0.5, 1.0])
def test_both_rules_against_all_pairs(rule, known, tau):
    rng = np.random.default_rng(known)
    u, v = rng.random(25) + 0.01, rng.random((25, 4))
    v[10:13], u[10:13] = v[9], u[9]  # exact duplicates
    ties = torch.arange(25 - known)
    found = crc.diverse(torch.from_numpy(u), torch.from_numpy(v), known, 12, tau, crc.RULES[rule], ties)
    assert found == all_pairs(u, v, known, 12, tau, crc.RULES[rule])
    everything = crc.diverse(torch.from_numpy(u), torch.from_numpy(v), known, 25 - known, tau, crc.RULES[rule], ties)
    assert sorted(everything) == list(range(25 - known)) and everything[:12] == found


def test_the_rules_differ():
    rng = np.random.default_rng(1)
    u, v = torch.from_numpy(rng.random(25)), torch.from_numpy(rng.random((25, 4)))
    ways = {tuple(crc.diverse(u, v, 5, 10, 0.5, rule, torch.arange(20))) for rule in crc.RULES.values()}
    assert len(ways) == 2


def test_a_pool_of_duplicates_without_risk_is_taken_in_the_given_order():
    u, v, drawn = torch.zeros(6), torch.ones(6, 4), torch.tensor([4, 1, 3, 0, 5, 2])
    assert crc.diverse(u, v, 0, 6, 0.5, crc.RULES["top_diverse_k"], drawn) == drawn.tolist()
    assert crc.diverse(u, v, 2, 4, 0.5, crc.RULES["k_centre"], torch.tensor([2, 0, 3, 1])) == [2, 0, 3, 1]


def small_pool(p, masks):
    """A Pool of the images p (N, C, H, W), without labelled ones; the same images with masks validate."""
    images = dict(batches=lambda: [(list(range(len(p))), range(len(p)))],
                  predictor=predictor(lambda images, ids, source, *rest: of_passes(p[None], ids)))  # fmt: skip
    ids = [f"im{i}" for i in range(len(p))]
    validation = Annotated(ids, [""] * len(p), **images, mask=lambda i: masks[i])
    return Pool(ids, [""] * len(p), **images, validation=validation, classes=("background", "gland"))


SETTINGS = dict(alpha=0.5, calibrate="validation", share=0.25, resolution=1000, tau=0.5, select_by="top_diverse_k")


def test_what_the_thresholds_are_and_do_is_kept_and_printed(capsys):
    p = torch.tensor([0.75, 0.5, 0.25]).view(3, 1, 1, 1).expand(3, 1, 2, 4)
    pool = small_pool(torch.cat([1 - p, p], 1), torch.tensor([0, 1] * 4).byte().view(1, 2, 4).expand(3, 2, 4))
    assert crc.select(pool=pool, n=2, rng=generator(), **SETTINGS)[0] == 1  # the one image with two classes in a set
    row = {"threshold": 0.5, "images": 3, "risk": pytest.approx(1 / 3), "coverage": pytest.approx(2 / 3),
           "set_size": pytest.approx(4 / 3)}  # fmt: skip
    assert pool.memory == {"crc": {"background": row, "gland": row}}
    said = capsys.readouterr().out
    assert said.startswith("crc: background if p >= 0.5 (risk 0.333, set size 1.33, 3 images), gland if p >= 0.5 (")
    assert said.count("\n") == 1


def test_a_class_that_too_few_images_have_is_refused_by_name():
    p, masks = torch.full((3, 2, 2, 2), 0.5), torch.zeros(3, 2, 2, dtype=torch.uint8)
    masks[0, 0, 0], masks[1, 0, 0] = 1, IGNORE
    pool = small_pool(p, masks)
    for alpha, message in (
        (0.3, r"crc.alpha=0.3 takes 3 images with each class .* only 1 of 3 have gland: set crc.alpha=0.5 or larger"),
        (0.1, r"crc.alpha=0.1 takes 9 images with each class .* only 3 of 3 have background: set crc.alpha=0.25 or"),
    ):
        for refuse in (partial(crc.select, n=1, rng=generator(), **SETTINGS | {"alpha": alpha}),
                       partial(crc.check_pool, alpha=alpha, calibrate="validation", share=0.25)):  # fmt: skip
            with pytest.raises(Refused, match=message):
                refuse(pool=pool)
    crc.check_pool(pool=pool, alpha=0.5, calibrate="validation", share=0.25)
    masks[0, 0, 0] = 0
    with pytest.raises(Refused, match="only 0 of 3 have gland: calibrate on more or on others"):
        crc.check_pool(pool=pool, alpha=0.9, calibrate="validation", share=0.25)
    with pytest.raises(Refused, match="only 0 of 0 have background"):
        crc.select(pool=pool, n=1, rng=generator(), **SETTINGS | {"calibrate": "labelled"})  # a cold start


def test_a_prediction_that_is_not_a_number_is_refused_naming_the_image():
    p = torch.full((3, 2, 2, 2), 0.5)
    masks = torch.tensor([[0, 1], [0, 1]]).byte().expand(3, 2, 2)
    pool = small_pool(p, masks)
    broken = p.clone()
    broken[2, 1, 0, 0] = torch.nan
    pool._predictor = predictor(lambda images, ids, source, *rest: of_passes(broken[None], ids))
    with pytest.raises(Refused, match="image im2 is not a number"):
        crc.select(pool=pool, n=1, rng=generator(), **SETTINGS)


@pytest.mark.parametrize("select_by", crc.RULES)
@pytest.mark.parametrize("calibrate", crc.CALIBRATORS)
def test_every_way_to_calibrate_and_to_select_whatever_the_order_of_the_files(calibrate, select_by, attach, model):  # noqa: F811
    settings = attach(crc)
    settings |= {"calibrate": calibrate, "select_by": select_by, "alpha": 0.34, "share": 0.75}

    def take(order=ALL):
        pool = make_pool(crc, model, order)
        picked, _ = selection.select(crc, top, pool, 4, generator())
        return [pool.ids[i] for i in picked], pool.memory["crc"]["gland"]["images"]

    ids, images = take()
    assert take([6, 5, 4, 3, 2, 1, 0]) == (ids, images) and len(set(ids)) == 4 and set(ids) <= set(IDS)
    held = crc.hold_out(ids=make_pool(crc, model).labelled.ids)
    assert images == {"validation": 9, "held_out": len(held), "labelled": 4}[calibrate]
    assert (0 < len(held) < 4) if calibrate == "held_out" else held == []


def test_an_image_is_held_out_or_not_whoever_is_labelled_beside_it():
    ids = [f"im{i}" for i in range(2000)]
    hold_out = partial(crc.hold_out, calibrate="held_out", share=0.25)
    held = hold_out(ids)
    assert hold_out(ids[500:]) == [id for id in held if id in set(ids[500:])]
    assert abs(len(held) - 500) < 4 * math.sqrt(2000 * 0.25 * 0.75)
    assert set(held) < set(hold_out(ids, share=0.5))


# ---- what is refused before anything runs


def test_validation_images_are_needed_only_to_calibrate_on_them(attach):  # noqa: F811
    settings = attach(crc)
    parts = {"heuristic": crc, "initial": load("initial", "random"), "model": load("model", "unet")}
    splits = SimpleNamespace(train=SimpleNamespace(groups=[""]), val=None, classes=("background", "gland"))
    config = {"model": "unet", "dataset": "bare"}
    with pytest.raises(
        Refused, match="heuristic=crc needs validation images and dataset=bare has none: dataset=.*glas"
    ):
        needs.check(config, parts, splits)
    settings["calibrate"] = "held_out"
    needs.check(config, parts, splits)


# ---- runs


def test_too_few_validation_images_are_refused_before_anything_is_written(smoke, tmp_path):
    with pytest.raises(Refused, match="crc.alpha=0.1 takes 9 .* 5 of 5 have background: set crc.alpha=0.167 or"):
        smoke(heuristic="crc")
    assert not (tmp_path / "results" / "crc_0" / "ledger.jsonl").exists()


def test_too_few_held_out_images_are_refused_before_training(smoke, tmp_path):
    with pytest.raises(Refused, match="crc.alpha=0.1 takes 9 images"):
        smoke(heuristic="crc", **{"crc.calibrate": "held_out"})
    assert [e["event"] for e in events(tmp_path / "results", "crc")] == ["start"]


def test_a_run_that_calibrates_on_validation_and_goes_on_from_half_as_if_nothing_had_been(smoke, tmp_path):
    settings = {"heuristic": "crc", "crc.alpha": 0.2, "cycles": 2}
    smoke(**settings)
    start, *_ = found = events(tmp_path / "results", "crc")
    memory = [e["memory"]["crc"] for e in found if e["event"] == "queried"]
    assert len(memory) == 2
    for row in (row for rows in memory for row in rows.values()):
        assert row["images"] == 5 and 0 < row["threshold"] < 1
        assert row["risk"] * 5 + 1 <= 0.2 * 6 + 1e-9
    assert all(e["held_out"] == [] for e in found if e["event"] == "evaluated")
    shutil.copytree(tmp_path / "results", tmp_path / "again")
    whole = ledger_bytes(tmp_path / "results", "crc")
    kept = b"".join(whole.splitlines(keepends=True)[:4])  # up to the test before the second query
    (tmp_path / "again" / "crc_0" / "ledger.jsonl").write_bytes(kept)
    smoke(to="again", **settings)
    assert ledger_bytes(tmp_path / "again", "crc") == whole


HELD_OUT = {"heuristic": "crc", "crc.calibrate": "held_out", "crc.alpha": 0.25, "crc.share": 0.4, "start": 10}


def test_held_out_images_are_in_the_ledger_and_never_in_training(smoke, tmp_path, monkeypatch):
    trained, fit = [], trainer.fit

    def seen(model, train, labelled, *rest, **more):  # noqa: F811
        trained.append({train.ids[i] for i in labelled})
        return fit(model, train, labelled, *rest, **more)

    monkeypatch.setattr(trainer, "fit", seen)
    smoke(**HELD_OUT, cycles=2)
    found = events(tmp_path / "results", "crc")
    labelled, held = set(), []
    for asked, evaluated in zip(found[::2], found[1::2], strict=True):
        labelled |= {query["id"] for query in asked["queries"]}
        held.append(set(evaluated["held_out"]))
        assert held[-1] == {id for id in labelled if crc.drawn(id, 0.4)}
        assert trained[len(held) - 1] == labelled - held[-1]
    assert len(held[0]) >= 3 and held[0] <= held[1] <= held[2] and len(trained) == 3
    memory = [e["memory"]["crc"] for e in found if e["event"] == "queried"]
    assert [rows["gland"]["images"] for rows in memory] == [len(ids) for ids in held[:2]]


def test_the_masks_of_held_out_images_leave_no_trace_in_the_weights(smoke, tmp_path, phantom_root):
    def weights(name, turned=""):
        root = tmp_path / name
        shutil.copytree(phantom_root, root)
        if turned:
            path = root / "seed_0" / f"{turned}_anno.bmp"
            mask = np.array(Image.open(path))
            Image.fromarray((mask == 0).astype(np.uint8)).save(path)
        smoke(root=root, to=f"{name}_results", **HELD_OUT, cycles=0)
        return events(tmp_path / f"{name}_results", "crc")

    start, evaluated = weights("as_drawn")
    held = set(evaluated["held_out"])
    other = min({query["id"] for query in start["queries"]} - held)
    assert weights("held_out", min(held))[1]["weights"] == evaluated["weights"]
    assert weights("trained", other)[1]["weights"] != evaluated["weights"]
