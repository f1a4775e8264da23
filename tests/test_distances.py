"""Surface distances against scipy's distance transforms, and what a run's evaluation says of them."""

import math

import numpy as np
import pytest
import torch
from conftest import events
from scipy.ndimage import binary_erosion, distance_transform_edt

from analysis import runs
from experiments.errors import Refused
from experiments.evaluation import evaluation, metrics
from experiments.store import IGNORE

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


def test_a_spacing_that_is_not_two_numbers_is_refused():
    with pytest.raises(Refused, match=r"height and width of a pixel.*\[1.0, 1.0, 2.5\]"):
        evaluation.check.__wrapped__([1.0, 1.0, 2.5])
