"""Surface distances against scipy's distance transforms, and what a run's evaluation says of them."""

import math

import numpy as np
import pytest
import torch
from conftest import events
from PIL import Image
from scipy.ndimage import binary_erosion, distance_transform_edt
from torch import nn

from analysis import runs
from experiments.components import defaults
from experiments.errors import BadData, Refused
from experiments.evaluation import evaluation, metrics
from experiments.network.ready import make_ready
from experiments.store import IGNORE, Item, Split, Store, reading

FOREGROUND = slice(1, 255)


def ellipse(shape, centre, axes):
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    return ((rows - centre[0]) / axes[0]) ** 2 + ((columns - centre[1]) / axes[1]) ** 2 <= 1


def scene(seed, shape=(41, 57)):
    """Classes 1 and 2 as two ellipses, the second in front and at times cut by the border."""
    rng = np.random.default_rng(seed)
    drawn = np.zeros(shape, np.uint8)
    for number in (1, 2):
        drawn[ellipse(shape, rng.uniform(5, shape), rng.uniform(4, 14, 2))] = number
    return drawn


def by_scipy(predicted, true, spacing):
    """HD95, HD and ASSD of two masks from their outlines' distance transforms."""
    edges = [mask & ~binary_erosion(mask) for mask in (predicted, true)]
    there, back = (distance_transform_edt(~b, sampling=spacing)[a] for a, b in (edges, reversed(edges)))
    hd95 = max(np.percentile(there, 95), np.percentile(back, 95))
    return [hd95, max(there.max(), back.max()), np.concatenate([there, back]).mean()]


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.5, 3.0), (2.0, 0.25)])
def test_distances_of_drawn_shapes_are_those_of_scipy(spacing):
    labels, masks = (np.stack([scene(seed) for seed in seeds]) for seeds in (range(6), range(10, 16)))
    found = metrics.surface_distances(*map(torch.from_numpy, (labels, masks)), 3, FOREGROUND, spacing)
    assert found[:, 0].isnan().all()
    for label, mask, values in zip(labels, masks, found, strict=True):
        for number in (1, 2):
            expected = by_scipy(label == number, mask == number, spacing)
            np.testing.assert_allclose(values[number], expected, rtol=1e-6)


def test_a_shifted_square_is_as_far_away_as_it_was_shifted():
    masks = torch.zeros(1, 30, 30, dtype=torch.uint8)
    labels = masks.clone()
    masks[0, 5:15, 5:15], labels[0, 5:15, 9:19] = 1, 1
    hd95, hd, assd = metrics.surface_distances(labels, masks, 2, FOREGROUND, (7.0, 0.5))[0, 1].tolist()
    assert hd95 == hd == pytest.approx(4 * 0.5) and 0 < assd < hd


def test_a_class_in_neither_has_no_distance_and_in_one_alone_the_diagonal():
    labels, masks = torch.zeros(2, 4, 4, 5, dtype=torch.uint8)
    labels[1, 0, 0], masks[2, 0, 0] = 1, 1
    labels[3, 0, 0], masks[3, 0, 0] = 1, IGNORE  # predicted only where nothing counts
    found = metrics.surface_distances(labels, masks, 2, FOREGROUND, (2.0, 3.0))[:, 1]
    assert found[0].isnan().all() and found[3].isnan().all()
    assert (found[1:3] == math.hypot(3 * 2, 4 * 3)).all()


def test_ignored_pixels_are_taken_out_of_both():
    masks = torch.from_numpy(np.stack([scene(3), scene(4)]))
    labels, masks = masks[:1], masks[1:]
    masks[:, 10:20, 20:40] = IGNORE
    other = labels.clone()
    other[:, 10:20, 20:40] = 1 - (other[:, 10:20, 20:40] == 1).to(torch.uint8)
    found, again = (metrics.surface_distances(each, masks, 3, FOREGROUND) for each in (labels, other))
    torch.testing.assert_close(found, again, rtol=0, atol=0, equal_nan=True)
    labels[masks == IGNORE] = 0
    expected = by_scipy(labels[0].numpy() == 2, masks[0].numpy() == 2, (1, 1))
    np.testing.assert_allclose(found[0, 2], expected, rtol=1e-6)


def test_a_run_measures_distances_only_where_it_is_asked_to(smoke, undisturbed, tmp_path):
    smoke(**{"evaluation.distances": True, "evaluation.spacing": [0.5, 2.0]})
    asked, plain = tmp_path / "results", undisturbed
    for measured, before in zip(events(asked)[1:], events(plain)[1:], strict=True):
        if measured["event"] != "evaluated":
            continue
        for name in metrics.DISTANCES:
            values = np.array(measured["per_image"].pop(name), float)
            assert np.isnan(values[:, 0]).all()
            assert measured["metrics"].pop(f"test.{name}") == pytest.approx(np.nanmean(values[:, 1]))
        assert measured["metrics"] == before["metrics"] and measured["per_image"] == before["per_image"]
        for name in ("precision", "recall", "fwiou", "soft_dice"):
            assert 0 <= before["metrics"][f"test.{name}"] <= 1 and f"val.{name}" not in before["metrics"]
    assert runs.load(asked)["test.hd95"].notna().all()
    assert {"hd95", "precision"} <= set(runs.load(asked, per_image=True).columns)


def test_a_spacing_that_is_not_two_or_three_numbers_is_refused():
    evaluation.check.__wrapped__([1.0, 1.0, 2.5])
    with pytest.raises(Refused, match=r"height and width of a pixel.*\[1.0, 1.0, 2.5, 1.0\]"):
        evaluation.check.__wrapped__([1.0, 1.0, 2.5, 1.0])


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (3.0, 0.5, 0.75)])
def test_distances_of_drawn_volumes_are_those_of_scipy(spacing):
    labels, masks = (np.stack([solid(seed) for seed in seeds]) for seeds in ((1, 2), (3, 4)))
    found = metrics.surface_distances(*map(torch.from_numpy, (labels, masks)), 2, FOREGROUND, spacing)
    for label, mask, values in zip(labels, masks, found, strict=True):
        np.testing.assert_allclose(values[1], by_scipy(label == 1, mask == 1, spacing), rtol=1e-6)


def solid(seed, shape=(9, 24, 30)):
    """An ellipsoid of class 1, at times cut by the border."""
    rng = np.random.default_rng(seed)
    places = np.stack(np.mgrid[: shape[0], : shape[1], : shape[2]], -1)
    axes = rng.uniform(2, np.divide(shape, 3))
    return ((((places - rng.uniform(3, np.subtract(shape, 3))) / axes) ** 2).sum(-1) <= 1).astype(np.uint8)


class Seen(nn.Module):
    """Finds class 1 where the image is bright, the surer the brighter."""

    def forward(self, images):
        return torch.cat([torch.zeros_like(images[:, :1]), 8 * (images[:, :1] - 0.5)], dim=1)


def measured(images, masks, originals=None, sources=None, stated=(), **settings):
    """What evaluate says of grey images (H, W) in [0, 1], masks of the same size and of their files' own."""
    items = [Item(str(i), i, i, source=(sources or [""] * 99)[i], spacing=stated) for i in range(len(images))]
    pictures = [(255 * image).round().astype(np.uint8)[..., None].repeat(3, -1) for image in images]
    store = Store(Split(items, pictures.__getitem__, masks.__getitem__, originals and originals.__getitem__), "cpu")
    store.label(range(len(store)))
    settings = defaults(evaluation.ingredient) | {"dropout": False, "batch": 2} | settings
    model, _ = make_ready(Seen(), (0.0,) * 3, (1.0,) * 3, torch.device("cpu"))
    return evaluation.evaluate.__wrapped__(model, store, (0, "drawn", 0), 2, volumes=bool(sources), **settings)


def test_volumes_are_measured_in_space_with_the_spacing_of_their_files():
    """Slices of two volumes, of other sizes, that take turns."""
    volumes = {"a": (solid(1), solid(3)), "b": (solid(2, (7, 20, 26)), solid(4, (7, 20, 26)))}
    order = [(name, k) for k in range(9) for name in volumes if k < len(volumes[name][0])]
    images, masks = ([volumes[name][side][k] for name, k in order] for side in (0, 1))
    spacing = (2.5, 0.5, 0.75)
    expected = np.mean(
        [by_scipy(a == 1, b == 1, np.multiply(spacing, (1.0, 3.0, 3.0))) for a, b in volumes.values()], 0
    )
    named = {"sources": [name for name, _ in order], "stated": spacing, "distances": True}
    for asked in ([3.0, 3.0], [1.0, 3.0, 3.0]):
        found, arrays, _ = measured(images, masks, spacing=asked, **named)
        assert [found[f"volume_{name}"] for name in metrics.DISTANCES] == pytest.approx(expected.tolist(), rel=1e-6)
    k = order.index(("a", 4))
    flat = by_scipy(images[k] == 1, masks[k] == 1, (1.5, 2.25))
    assert [arrays[name][k][1] for name in metrics.DISTANCES] == pytest.approx(flat, rel=1e-6)
    assert "volume_hd95" not in measured(images, masks, **named | {"distances": False})[0]
    with pytest.raises(BadData, match="slices of all differ in size.*evaluation.distances=False"):
        measured(images, masks, sources=["all"] * len(images), distances=True)


def test_at_the_original_size_probabilities_are_scaled_to_the_mask_of_the_file():
    """Against Pillow's bilinear scaling and counts in numpy; images of two sizes, one larger than its file."""
    rng = np.random.default_rng(0)
    sizes = [((10, 12), (25, 31)), ((10, 12), (20, 24)), ((9, 7), (9, 7)), ((20, 30), (10, 15))]
    images = [rng.uniform(0, 1, seen) for seen, _ in sizes]
    originals = [np.where(rng.uniform(0, 1, own) < 0.1, IGNORE, scene(i, own) == 1) for i, (_, own) in enumerate(sizes)]
    originals = [each.astype(np.uint8) for each in originals]
    masks = [np.zeros(seen, np.uint8) for seen, _ in sizes]
    asked = {"original_size": True, "distances": True, "spacing": [1.0, 2.0]}
    found, arrays, bins = measured(images, masks, originals, **asked)
    for i, (image, truth) in enumerate(zip(images, originals, strict=True)):
        sure = 1 / (1 + np.exp(-8 * ((255 * image).round() / 255 - 0.5)))
        larger = Image.fromarray(sure.astype(np.float32)).resize(truth.shape[::-1], Image.Resampling.BILINEAR)
        label, counted = np.asarray(larger) > 0.5, truth != IGNORE
        both = (label & (truth == 1)).sum()
        assert arrays["dice"][i][1] == pytest.approx(2 * both / ((label & counted).sum() + (truth == 1).sum()))
        pixel = np.array([1.0, 2.0]) * image.shape / truth.shape
        distances = by_scipy(label & counted, truth == 1, pixel)
        assert [arrays[name][i][1] for name in metrics.DISTANCES] == pytest.approx(distances, rel=1e-5)
    assert np.array(bins["bins"])[:, 0].sum() == sum((each != IGNORE).sum() for each in originals)


def test_a_dataset_without_masks_of_the_original_size_is_refused():
    split = Split([Item("a", "a", "a")], None, None)
    evaluation.check_test.__wrapped__(split, "mine", False)
    evaluation.check_test.__wrapped__(None, "mine", True)
    with pytest.raises(Refused, match="dataset=mine reads masks at one size only.*read_original"):
        evaluation.check_test.__wrapped__(split, "mine", True)


def test_a_run_of_smaller_images_is_scored_at_the_files_size(experiment, phantom_root, tmp_path):
    """Phantom's files read by `glas` at half their size: what is counted is every pixel of the files."""
    tiny = {"dataset": "glas", "glas.root": str(phantom_root / "seed_0"), "glas.crop": 32, "glas.resize": 0.5}
    tiny |= {"cycles": 0, "start": 2, "results_dir": str(tmp_path / "results"), "runs_dir": "", "threads": 1}
    tiny |= {"trainer.epochs": 1, "unet.width": 2, "evaluation.passes": 1, "evaluation.original_size": True}
    experiment.run(config_updates=tiny)
    [_, found] = events(tmp_path / "results")
    sizes = [reading.size(path) for path in (phantom_root / "seed_0").glob("test*_anno.bmp")]
    assert np.array(found["calibration"]["bins"])[:, 0].sum() == sum(height * width for height, width in sizes)
