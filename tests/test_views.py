"""Augmented views and what looks at them; initial sets by reflections and none; sub-pools."""

import csv
import math
from collections import Counter

import numpy as np
import pytest
import torch
from conftest import events, settings
from scipy import ndimage
from skimage.morphology import closing
from test_command_line import one_line, typed  # noqa: F401  a fixture
from test_heuristics import IDS, attach, generator, make_pool, model, of_passes, plain_pool  # noqa: F401  fixtures

from experiments.acquisition import pictures, querying, selection, views
from experiments.acquisition.pool import Annotated, Pool
from experiments.acquisition.prediction import moments
from experiments.components import defaults, load, names
from experiments.components.randomness import generator as keyed
from experiments.errors import Refused
from heuristics import alpha_mix, bald, entropy, mask_discrepancy, none, specular, tta

pytestmark = pytest.mark.usefixtures("single_thread")
PLACE = (0, "drawn", 1)
EVEN = dict(rotation=0.0, noise=0.0, flip=False)


def images(n=3, size=(20, 34), seed=0):
    return torch.rand(n, 3, *size, generator=torch.Generator().manual_seed(seed))


def passes(x, k=4, network=lambda x: x, ids="abc", place=PLACE, **how):
    """(logits (k, B, C, H, W), seen (k, B, H, W)) of the views."""
    logits, seen = zip(*views.augmented(network, x, ids[: len(x)], place, k, **EVEN | how), strict=True)
    return torch.stack(logits), torch.stack(seen)


def angle(id, view, rotation, place=PLACE):
    """Degrees by which this view is turned."""
    return rotation * (2 * keyed(*place, "view", id, view).random() - 1)


# ---- views


def test_views_that_change_nothing_equal_the_first():
    x = images()
    logits, seen = passes(x)
    assert torch.equal(logits[0], x) and seen.all()
    torch.testing.assert_close(logits, x.expand(4, -1, -1, -1, -1), atol=1e-5, rtol=0)


def test_a_mirrored_view_is_mirrored_back():
    x, shown = images(1), []

    def see(copy):
        shown.append(copy)
        return copy

    logits, seen = passes(x, 30, see, flip=True)
    assert seen.all()
    torch.testing.assert_close(logits, x.expand(30, -1, -1, -1, -1), atol=1e-5, rtol=0)
    ways = [(), (2,), (3,), (2, 3)]
    found = Counter(way for copy in shown for way in ways if torch.allclose(copy, x.flip(way), atol=1e-5))
    assert sum(found.values()) == 30 and all(found[way] >= 2 for way in ways)


@pytest.mark.parametrize("size", [(20, 34), (31, 18)])
def test_a_turned_view_of_a_wide_or_a_high_image_is_scipys(size):
    """There: scipy.ndimage.rotate. Back: the same by minus the angle, where the view saw the pixel."""
    x, shown = images(2, size), []

    def see(copy):
        shown.append(copy)
        return copy

    logits, seen = passes(x, 3, see, rotation=40.0)
    assert 0.5 < seen[1:].float().mean() < 0.95
    for view in (1, 2):
        for row, id in enumerate("ab"):
            turn = dict(axes=(2, 1), reshape=False, order=1)
            theirs = ndimage.rotate(x[row].numpy(), angle(id, view, 40.0), mode="reflect", **turn)
            np.testing.assert_allclose(shown[view][row].numpy(), theirs, atol=1e-4)
            back = ndimage.rotate(theirs, -angle(id, view, 40.0), mode="nearest", **turn)
            inside = seen[view, row].numpy()
            np.testing.assert_allclose(logits[view, row].numpy()[:, inside], back[:, inside], atol=1e-4)


def test_a_pixel_is_seen_if_it_lies_in_the_frame_of_the_view():
    height, width = size = (20, 34)
    _, seen = passes(images(1, size), 2, rotation=60.0)
    turn = math.radians(angle("a", 1, 60.0))
    expected = np.zeros(size, dtype=bool)
    for row, column in np.ndindex(size):
        y, x = row + 0.5 - height / 2, column + 0.5 - width / 2
        u, v = x * math.cos(turn) + y * math.sin(turn), -x * math.sin(turn) + y * math.cos(turn)
        expected[row, column] = abs(u) <= width / 2 and abs(v) <= height / 2
    assert (seen[1, 0].numpy() == expected).all()
    assert abs(turn) > 0.1 and not expected[0, 0] and not expected.all()


def test_a_model_that_turns_with_its_input_gives_every_view_alike():
    """Bilinear interpolation keeps a ramp as it is, but for the pixels next to a border."""
    rows, columns = torch.meshgrid(torch.arange(40.0), torch.arange(60.0), indexing="ij")
    ramp = torch.stack([rows, columns, rows - columns])[None] / 60
    logits, seen = passes(ramp, 6, rotation=30.0, flip=True)
    inner = ndimage.binary_erosion(seen.numpy(), np.ones((1, 1, 5, 5), dtype=bool))
    assert 0.4 < inner[1:].mean() < 0.9
    for view in range(6):
        inside = torch.from_numpy(inner[view, 0])
        torch.testing.assert_close(logits[view, 0][:, inside], ramp[0][:, inside], atol=1e-4, rtol=0)


def test_noise_has_its_deviation_and_is_another_in_every_view_and_image():
    x = torch.full((2, 3, 60, 60), 0.5)
    logits, _ = passes(x, 3, noise=0.1)
    assert torch.equal(logits[0], x)
    grains = (logits[1:] - 0.5).flatten(2).flatten(0, 1)
    assert ((grains.std(1) - 0.1).abs() < 0.002).all() and (grains.mean(1).abs() < 0.004).all()
    others = torch.corrcoef(grains) - torch.eye(4)
    assert others.abs().max() < 0.04


def test_views_depend_on_place_id_and_number_alone():
    x, how = images(), dict(rotation=20.0, noise=0.1, flip=True)
    logits, seen = passes(x, **how)
    backwards, seen_backwards = passes(x.flip(0), ids="cba", **how)
    torch.testing.assert_close(backwards.flip(1), logits, atol=1e-6, rtol=0)
    assert torch.equal(seen_backwards.flip(1), seen)
    alone, seen_alone = passes(x[1:2], 3, ids="b", **how)
    torch.testing.assert_close(alone, logits[:3, 1:2], atol=1e-6, rtol=0)
    assert torch.equal(seen_alone, seen[:3, 1:2])
    same = x[:1].expand(3, -1, -1, -1)
    drawn = [passes(same, **how)[0], passes(same, place=(0, "drawn", 2), **how)[0]]
    different = torch.cat([d[1:].flatten(0, 1) for d in drawn]).flatten(1)
    assert torch.cdist(different, different).add(torch.eye(18)).min() > 0.5


def test_what_no_augmented_view_saw_has_the_clean_view_alone():
    x = images(1, (12, 60))
    logits, seen = passes(x, 3, rotation=45.0)
    got = moments(zip(logits, seen, strict=True), "a")
    assert torch.equal(got.count, seen.sum(0).float()) and got.valid.all()
    assert got.count.min() == 1 and got.count.max() == 3 and got.count[0, 0, 0] < 3
    lost = got.count[0] == 1
    clean = x[0].softmax(0)
    torch.testing.assert_close(got.mean[0][:, lost], clean[:, lost])
    torch.testing.assert_close(got.expected_entropy[0][lost], torch.special.entr(clean).sum(0)[lost])
    torch.testing.assert_close(got.votes.sum(1), got.count)
    assert (bald.uncertainty(got)[0][lost] < 1e-6).all() and (bald.uncertainty(got)[0][~lost] > 1e-5).any()


def test_moments_are_means_over_the_views_that_saw_a_pixel():
    logits, seen = passes(images(2), 5, rotation=30.0, noise=0.2, network=lambda x: 5 * x)
    got = moments(zip(logits, seen, strict=True), "ab", needs=("mean_logits",))
    p = logits.double().softmax(2).numpy()
    lost = np.broadcast_to(~seen[:, :, None].numpy(), p.shape)
    for name, values in {"mean": p, "second_moment": p**2, "mean_logits": logits.double().numpy()}.items():
        expected = np.ma.array(values, mask=lost).mean(0)
        np.testing.assert_allclose(getattr(got, name).numpy(), expected, atol=1e-5)
    entropies = np.ma.array(-(p * np.log(p)).sum(2), mask=lost[:, :, 0]).mean(0)
    np.testing.assert_allclose(got.expected_entropy.numpy(), entropies, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_model_that_always_says_the_same_is_certain_of_it(channels):
    answer = torch.tensor([0.3, -1.0, 2.0])[:channels].view(1, -1, 1, 1)
    how = dict(rotation=90.0, noise=0.1, flip=True)
    says = passes(images(2), 6, lambda x: answer.expand(len(x), -1, *x.shape[2:]), **how)
    got = moments(zip(*says, strict=True), "ab")
    p = answer.softmax(1) if channels == 3 else torch.tensor([0.0, 0.3]).softmax(0).view(1, 2, 1, 1)
    torch.testing.assert_close(got.mean, p.expand_as(got.mean))
    torch.testing.assert_close(got.mean.sum(1), torch.ones(2, 20, 34))
    assert (bald.uncertainty(got) < 1e-6).all()


# ---- views of a pool


def test_a_pools_predictions_are_the_means_of_its_views(model):  # noqa: F811
    pixels = []
    pool = make_pool(tta, model, rotation=30.0, flip=True, noise=0.05, mc_iters=4, advance=pixels.append)
    raw = {position: (p[:, row], seen[:, row]) for positions, p, seen in pool.views("tta", 4)
           for row, position in enumerate(positions)}  # fmt: skip
    assert pool.passes.tolist() == [4] * len(IDS)
    for positions, got in pool.predictions("tta"):
        torch.testing.assert_close(got.mean.sum(1), torch.ones_like(got.count))
        assert 1 <= got.count.min() < got.count.max() == 4 and (got.count[:, 0, 0] < 4).any()
        for row, position in enumerate(positions):
            p, seen = raw[position]
            torch.testing.assert_close(got.mean[row], (p * seen[:, None]).sum(0) / seen.sum(0), atol=1e-6, rtol=0)
    assert sum(pixels) == 2 * len(IDS) * 33 * 40 * 4


@pytest.mark.parametrize("heuristic", [tta, mask_discrepancy])
def test_scores_of_views_do_not_depend_on_the_prediction_batch(heuristic, attach, model):  # noqa: F811
    attach(heuristic)
    one, all = (selection.score(heuristic, make_pool(heuristic, model, batch=n), generator()) for n in (1, 16))
    assert np.ptp(one) > 1e-5
    np.testing.assert_allclose(all, one, atol=1e-6)


def test_dropout_views_are_the_passes_of_the_predictions(model):  # noqa: F811
    pool = make_pool(tta, model)
    for (positions, p, seen), (same, got) in zip(pool.views("dropout", 3), pool.predictions("dropout"), strict=True):
        assert positions == same and seen.shape == (3, len(same), *got.mean.shape[2:]) and seen.all()
        torch.testing.assert_close(p.mean(0), got.mean, atol=1e-6, rtol=0)
        assert p.std(0).max() > 1e-3


# ---- tta


def test_tta_mixes_the_entropies_as_alpha_mix_does():
    prediction = of_passes(torch.tensor([[[[[0.9]], [[0.1]]]], [[[[0.3]], [[0.7]]]]]))  # mean .6, .4
    h = {p: -p * math.log(p) - (1 - p) * math.log(1 - p) for p in (0.9, 0.3, 0.6)}
    expected = 0.25 * h[0.6] + 0.75 * (h[0.9] + h[0.3]) / 2
    assert tta.uncertainty(prediction, alpha=0.25).item() == pytest.approx(expected)
    torch.testing.assert_close(tta.uncertainty(prediction, 1.0), entropy.uncertainty(prediction))
    torch.testing.assert_close(tta.uncertainty(prediction, 0.5), alpha_mix.uncertainty(prediction, 0.5))


def test_tta_looks_at_views_and_others_look_at_what_the_run_says(attach, model):  # noqa: F811
    attach(tta)
    pool = make_pool(tta, model, dropout=False, mc_iters=4)
    scores = selection.score(tta, pool, generator())
    assert pool.passes.tolist() == [4] * len(IDS)
    for positions, p, seen in make_pool(tta, model).views("tta", 4):
        mean = (p * seen[:, :, None]).sum(0) / seen.sum(0)[:, None]
        each = (torch.special.entr(p).sum(2) * seen).sum(0) / seen.sum(0)
        expected = (torch.special.entr(mean).sum(1) + each).mean((1, 2)) / 2
        np.testing.assert_allclose(scores[positions], expected, atol=1e-5)
    selection.score(bald, pool, generator())
    assert pool.passes.tolist() == [1] * len(IDS)


def test_scores_of_other_heuristics_are_not_noted_from_views(attach, model):  # noqa: F811
    """What is called bald in a table is what heuristic=bald would have given."""
    attach(tta)
    pool = make_pool(tta, model, scorers=selection.scorers(["bald"]))
    selection.score(tta, pool, generator())
    assert pool.noted() == {}
    selection.score(bald, pool, generator())
    kept = pool.noted()["bald"]
    selection.score(tta, pool, generator())
    assert np.array_equal(pool.noted()["bald"], kept) and np.isfinite(kept).all()
    with pytest.raises(Refused, match="noted=tta is no map of the standard moments"):
        selection.scorers(["tta"])


def test_a_run_of_tta_draws_the_maps_that_made_its_scores(smoke, tmp_path, monkeypatch):
    drawn, real = [], pictures.queries

    def spy(images, maps, *more):
        drawn.append(maps)
        return real(images, maps, *more)

    monkeypatch.setattr(pictures, "queries", spy)
    smoke(heuristic="tta", mc_iters=3)
    queried = events(tmp_path / "results", "tta")[2]
    assert [q["passes"] for q in queried["queries"]] == [3, 3]
    assert len(drawn) == 2 and drawn[0] is drawn[1]  # as it was asked, and with the masks
    assert [m.mean() for m in drawn[0]] == pytest.approx([q["score"] for q in queried["queries"]], abs=1e-6)
    with open(tmp_path / "results/tta_0/queries/cycle_000.csv") as file:
        assert next(csv.reader(file)) == ["id", "group", "picked", "score"]


# ---- mask discrepancy


PUBLISHED = {key: defaults(mask_discrepancy.ingredient)[key] for key in ("masks", "probabilities")}


@pytest.mark.parametrize(
    ("views", "expected"),
    [
        ([[0.9, 0.9, 0.1, 0.1]] * 3, 0),
        ([[0.1, 0.1, 0.1, 0.1]] * 3, 0),  # three empty masks agree
        # Dice 2/3, 0, 0 ; mean differences 1/4, 1, 3/4
        ([[1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]], 0.25 / 3 + 0.45 + 0.1 * (0.25 + 1 + 0.75)),
        # .6 is not above .6: the second mask is empty, and Dice with an empty one is 0
        ([[0.7, 0.0, 0.0, 0.0], [0.6, 0.0, 0.0, 0.0], [0.7, 0.0, 0.0, 0.0]], 0.25 + 0.25 + 0.1 * 2 * 0.1 / 4),
    ],
)
def test_mask_discrepancy_by_hand(views, expected):
    foreground = torch.tensor(views, dtype=torch.float64)[:, None, None]
    counted = torch.ones(1, 1, 4, dtype=torch.bool)
    assert mask_discrepancy.discrepancy(foreground, counted, 0.6, **PUBLISHED).item() == pytest.approx(
        expected, abs=1e-7
    )


def test_mask_discrepancy_is_at_most_1_and_counts_what_all_three_views_saw():
    apart = torch.zeros(3, 2, 1, 6)
    for view in range(3):
        apart[view, 0, 0, view] = 1
    p = apart.clone()
    p[2, :, 0, 4:] = 1  # in pixels that do not count
    counted = torch.tensor([[[True] * 4 + [False] * 2]] * 2)
    got = mask_discrepancy.discrepancy(p, counted, 0.6, **PUBLISHED)
    assert got.tolist() == pytest.approx([0.7 + 0.1 * 3 * 2 / 4, 0])
    everywhere = torch.tensor([0.0, 1.0, 0.0]).view(3, 1, 1, 1)
    opposite = mask_discrepancy.discrepancy(everywhere, torch.ones(1, 1, 1, dtype=torch.bool), 0.6, **PUBLISHED)
    assert opposite.item() == pytest.approx(0.25 + 0.25 + 0.1 * 2)
    assert sum(PUBLISHED["masks"] + PUBLISHED["probabilities"]) == pytest.approx(1)
    other = mask_discrepancy.discrepancy(p, counted, 0.6, [0, 0, 1], [0, 0, 0])
    assert other.tolist() == [1, 0]
    with pytest.raises(Refused, match="mask_discrepancy.masks takes 3 weights.*not 2"):
        mask_discrepancy.check(masks=[0.5, 0.5], probabilities=[0.1] * 3)


@pytest.mark.parametrize("source", ["tta", "dropout"])
def test_mask_discrepancy_of_a_pool_is_that_of_its_three_views(source, model):  # noqa: F811
    pool = make_pool(mask_discrepancy, model, rotation=40.0)
    threshold = np.float32(np.mean([p[:, :, 1].mean() for _, p, _ in pool.views(source, 3)]))
    scores = mask_discrepancy.score(pool=pool, rng=generator(), source=source, threshold=float(threshold), **PUBLISHED)
    assert pool.passes.tolist() == [3] * len(IDS)
    for positions, p, seen in pool.views(source, 3):
        for row, position in enumerate(positions):
            inside = seen[:, row].numpy().all(0)
            values = 1 - p[:, row, 0].numpy()[:, inside]
            total = 0
            for (a, b), weight in {(0, 1): 0.25, (0, 2): 0.2, (1, 2): 0.25}.items():
                one, other = (set(np.flatnonzero(values[view] > threshold)) for view in (a, b))
                total += weight * (1 - 2 * len(one & other) / (len(one) + len(other)))
                total += 0.1 * np.abs(values[a] - values[b]).mean()
            assert scores[position] == pytest.approx(total, abs=1e-5) and total > 0.01
            assert inside.all() == (source == "dropout")


# ---- specular


def drawing(*spots, size=(24, 30)):
    """A dark image with bright spots, each (rows, columns) as slices."""
    image = np.full(size, 100, dtype=np.uint8)
    for spot in spots:
        image[spot] = 200
    return image


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (drawing(), 0),
        (drawing(np.s_[10:14, 10:16]), 24),
        (drawing(np.s_[0:4, 0:6]), 24),  # nothing is lost at the border
        (drawing(np.s_[5, 5]), 1),  # closing takes no speck away
        (drawing(np.s_[4:11, 5], np.s_[4:11, 10]), 14 + 4 * 5),  # bars with 4 dark columns between: but for their ends
        (drawing(np.s_[4:11, 5], np.s_[4:11, 11]), 14),  # 5 are too far
        (drawing(np.s_[4:11, 4], np.s_[4:11, 10], np.s_[4, 4:11], np.s_[10, 4:11]), 24 + 8),  # a ring about 5 x 5
        (drawing(np.s_[4:8, 4], np.s_[4:8, 7], np.s_[4, 4:8], np.s_[7, 4:8]), 16),  # about 2 x 2: all of it
        (drawing(np.s_[:, :]), 24 * 30),
    ],
)
def test_areas_of_drawn_reflections(image, expected):
    assert specular.area(image, 0.6) == expected


def test_closing_is_scikit_images():
    for seed in range(10):
        image = generator(seed).integers(0, 256, (25, 33), dtype=np.uint8)
        expected = closing(image / 255 > 0.8, specular.ELLIPSE, mode="ignore").sum()
        assert specular.area(image, 0.8) == expected > (image / 255 > 0.8).sum()


def test_the_threshold_itself_is_no_reflection():
    flat = {level: np.full((5, 5), level, dtype=np.uint8) for level in (153, 154, 204, 205)}
    assert [specular.area(flat[level], 0.6) for level in (153, 154)] == [0, 25]  # 153 = .6 * 255
    assert [specular.area(flat[level], 0.8) for level in (204, 205)] == [0, 25]


def test_gray_keeps_gray_and_weighs_colours():
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    assert np.array_equal(specular.gray(levels.repeat(3, 3))[0], levels[0, ..., 0])
    assert np.array_equal(specular.gray(levels)[0], levels[0, ..., 0])
    assert specular.gray(255 * np.eye(3, dtype=np.uint8)[None, None]).tolist() == [[[76, 150, 29]]]
    assert specular.gray(np.array([[[[0, 100]]]], dtype=np.uint8)).item() == 50


def lit(areas, groups=None):
    """A pool of images with one bright row of that many pixels each; ids run against the order of the files."""
    stack = torch.from_numpy(np.stack([drawing(np.s_[9, :n]) for n in areas]))[..., None].expand(-1, -1, -1, 3)
    ids = [f"im{len(areas) - i:02}" for i in range(len(areas))]
    return Pool(ids, groups or [""] * len(areas), lambda: [(list(range(len(areas))), stack)])


def test_specular_takes_the_largest_areas():
    pool = lit([3, 9, 0, 9, 5])
    picks = {tuple(specular.select(pool, 3, generator(seed), threshold=0.6, order="largest")) for seed in range(9)}
    assert picks == {(3, 1, 4), (1, 3, 4)}  # of the two 9s either is first


def test_images_without_any_reflection_are_drawn_and_a_line_says_so(capsys):
    pool = lit([3, 9, 0, 9, 5])
    firsts = {specular.select(pool, 1, generator(seed), threshold=0.9, order="largest")[0] for seed in range(30)}
    assert firsts == {0, 1, 2, 3, 4}
    assert capsys.readouterr().out.count("specular scores every one of 5 images 0: this query is a random one") == 30


@pytest.mark.parametrize(
    ("groups", "n", "expected"),
    [
        ("llluuulluu", 4, [7, 9, 0, 3]),  # as published for MGD-1K: lower and upper largest, lower and upper smallest
        ("llluuulluu", 8, [7, 6, 9, 8, 0, 1, 3, 4]),
        ("llluuulluu", 5, [7, 6, 9, 0, 3]),  # what is left over is one more of the first group's largest
        ("lllllllllu", 4, [8, 9, 0, 7]),  # u has no second image: the largest that is left
        ("aaaaabbbcc", 6, [4, 7, 9, 0, 5, 8]),
        ("aaaaaaaaaa", 4, [9, 8, 0, 1]),
        ("llluuulluu", 10, [7, 6, 2, 9, 8, 5, 0, 1, 3, 4]),
    ],
)
def test_quotas_by_group_and_size(groups, n, expected):
    pool = lit(range(1, 11), list(groups))
    assert specular.select(pool=pool, n=n, rng=generator(), threshold=0.6, order="quota") == expected


def test_specular_refuses_what_it_cannot_do():
    with pytest.raises(Refused, match="needs image-level groups and this dataset has none: use largest"):
        specular.select(pool=lit([1, 2]), n=1, rng=None, threshold=0.6, order="quota")


def test_specular_begins_a_run(smoke, tmp_path):
    smoke(initial="specular", heuristic="random", start=4, cycles=0, **{"specular.order": "quota"})
    start = events(tmp_path / "results", "random")[0]
    assert len({q["id"] for q in start["queries"]}) == 4 and start["settings"]["specular"]["order"] == "quota"


# ---- no initial set


def test_none_is_an_initial_set_and_no_heuristic():
    assert "none" in names("initial") and "none" not in names("heuristic")
    assert load("initial", "none") is none and none.__doc__
    assert none.select(pool=plain_pool("ab"), n=0, rng=generator()) == []


def test_a_cold_start_begins_with_nothing(smoke, tmp_path):
    run = smoke(initial="none", heuristic="random", cycles=2)
    book = events(tmp_path / "results", "random")
    assert book[0]["queries"] == [] and book[0]["settings"]["start"] == 0
    evaluated = [e for e in book if e["event"] == "evaluated"]
    assert [(e["images"], e["pool"]) for e in evaluated] == [(0, 16), (2, 14), (4, 12)]
    assert [evaluated[0][cost] for cost in ("pixels", "foreground", "boundary")] == [0, 0, 0]
    assert evaluated[1]["pixels"] > 0 and evaluated[0]["weights"] != evaluated[1]["weights"]
    assert run.status == "COMPLETED" and np.load(tmp_path / "results/random_0.npy").shape == (3,)
    assert np.load(tmp_path / "results/random_0/budget.npy")[0].tolist() == [0, 0]
    assert (tmp_path / "results/random_0/learning_curve.png").stat().st_size > 1000


def test_a_cold_start_goes_on_where_it_was_left(smoke, tmp_path):
    smoke(initial="none", heuristic="random", cycles=2, to="whole")
    smoke(initial="none", heuristic="random", cycles=0)
    smoke(initial="none", heuristic="random", cycles=2, start=0)  # as the report's command line says it
    ledgers = [(tmp_path / to / "random_0/ledger.jsonl").read_bytes() for to in ("whole", "results")]
    assert ledgers[0] == ledgers[1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["initial=none"],
            ["heuristic=bald needs predictions before any training", "model=unet has none", "initial=random"],
        ),
        (["initial=none", "heuristic=tta"], ["heuristic=tta needs predictions before any training"]),
        (["heuristic=none"], ["There is no heuristic 'none'"]),
        (["start=0"], ["start must be at least 1"]),
        (["query=3", "pool_size=2"], ["pool_size=2 images cannot fill a query of 3"]),
        (["query=3", "pool_size=0.1"], ["pool_size=2 images cannot fill a query of 3"]),  # .1 x 16, rounded up
        (["pool_size=0.0"], ["pool_size", "fraction", "0.0"]),
        (["pool_size=-1"], ["pool_size", "at least 0"]),
    ],
)
def test_refused_in_one_line_that_leaves_nothing(words, said, typed, phantom_root, tmp_path):  # noqa: F811
    tiny = [f"{name}={value}" for name, value in settings(phantom_root, tmp_path / "results").items()]
    code, _, err = typed("smoke", *tiny, *words)
    assert code == 1 and all(word in one_line(err) for word in said), err
    assert list(tmp_path.iterdir()) == []


def test_full_has_nothing_to_do_with_a_cold_start(experiment, phantom_root, tmp_path):
    with pytest.raises(Refused, match="full trains on every label: leave out initial=none"):
        updates = settings(phantom_root, tmp_path, initial="none")
        experiment.run("full", config_updates=updates, named_configs=["smoke"])
    assert list(tmp_path.iterdir()) == []


# ---- sub-pools


class Looked:
    """As much of a run's state as a sub-pool is drawn from."""

    def __init__(self, ids, size, labelled=()):
        self.train, self.active = Annotated(ids, ids, tuple), self
        self.labelled = np.isin(ids, labelled)
        self.config = {"pool_size": size}

    def at(self, cycle):
        return (0, "drawn", cycle)


def looked_at(ids, *args, cycle=0):
    return [ids[i] for i in querying.candidates(Looked(ids, *args), cycle)]


def test_a_sub_pool_is_drawn_anew_in_each_cycle_whatever_the_order_of_the_files():
    ids = [f"im{i:02}" for i in range(40)]
    some = looked_at(ids, 12, ["im03", "im07"])
    assert len(set(some)) == 12 and not {"im03", "im07"} & set(some)
    assert some == sorted(some)  # in the order of the files
    assert set(looked_at(ids[::-1], 12, ["im03", "im07"])) == set(some)
    assert set(looked_at(ids, 12, ["im03", "im07"], cycle=1)) != set(some)
    left = [id for id in ids if id != some[0]]
    assert len(set(looked_at(left, 12, ["im03", "im07"])) - set(some)) == 1  # one image less moves only one
    for size in (0, 38, 100):
        assert looked_at(ids, size, ["im03", "im07"]) == [id for id in ids if id not in ("im03", "im07")]


def test_a_sub_pool_favours_nobody():
    ids = [f"im{i}" for i in range(20)]
    drawn = Counter(id for cycle in range(400) for id in looked_at(ids, 5, cycle=cycle))
    assert sum((drawn[id] - 100) ** 2 / 75 for id in ids) < 45  # chi squared of 19 degrees of freedom, 0.1 %: 43.8


def test_only_the_sub_pool_is_scored(smoke, tmp_path):
    smoke(pool_size=0.3, cycles=2)  # of 16: 4.8, rounded up
    book = events(tmp_path / "results")
    assert book[0]["settings"]["pool_size"] == 5
    pools, labelled = [], {q["id"] for q in book[0]["queries"]}
    for cycle, queried in enumerate(e for e in book if e["event"] == "queried"):
        with open(tmp_path / f"results/bald_0/queries/cycle_{cycle:03}.csv") as file:
            pools.append({row["id"] for row in csv.DictReader(file)})
        asked = {q["id"] for q in queried["queries"]}
        assert len(pools[-1]) == 5 and asked <= pools[-1] and not pools[-1] & labelled
        labelled |= asked
    assert pools[0] != pools[1]
