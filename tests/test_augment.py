"""Crops against numpy's slicing, rot90 and flip; colours against closed forms and kornia."""

from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from experiments.store import IGNORE
from experiments.training import augment

OFF = dict(flip=False, rotate=False, brightness=0, contrast=0, saturation=0, hue=0)
ON = dict(flip=True, rotate=True, brightness=0.5, contrast=0.4, saturation=0.3, hue=0.05)
SIZES = [(9, 12), (7, 7), (12, 8), (5, 20)]
KINDS = list(product(range(4), [False, True]))
NOTHING = [1.0, 1.0, 1.0, 0.0]


def make_store(sizes):
    """Every pixel tells its image (from 1), row and column; its mask is 10 * row + column, modulo 251."""
    images = []
    for number, (h, w) in enumerate(sizes, 1):
        rows, columns = np.mgrid[:h, :w]
        images.append(np.stack([np.full((h, w), number), rows, columns], -1).astype(np.uint8))
    masks = [((10 * image[..., 1].astype(int) + image[..., 2]) % 251).astype(np.uint8) for image in images]
    heights, widths = torch.tensor(sizes).T
    areas = [h * w for h, w in sizes]
    store = SimpleNamespace(
        pixels=torch.from_numpy(np.concatenate([image.reshape(-1, 3) for image in images])),
        masks=torch.from_numpy(np.concatenate([mask.ravel() for mask in masks])),
        offsets=torch.tensor(np.cumsum([0, *areas[:-1]])),
        heights=heights.contiguous(),
        widths=widths.contiguous(),
        sizes=list(sizes),
        least=tuple(map(min, zip(*sizes, strict=True))),
        device="cpu",
    )
    return store, images, masks


def make_parameters(corners, turns, flips):
    n = len(turns)
    corners = torch.tensor(corners, dtype=torch.float32).expand(n, 2)
    return {"corners": corners, "turns": torch.tensor(turns), "flips": torch.tensor(flips)}


def numpy_crop(array, fill, corner, turns, flip, height, width):
    """Pad, slice, rot90, mirror."""
    h, w = array.shape[:2]
    top, left = (
        int(f * max(size - crop + 1, 1)) for f, size, crop in zip(corner, (h, w), (height, width), strict=True)
    )
    spare = [(0, max(height - h, 0)), (0, max(width - w, 0))] + [(0, 0)] * (array.ndim - 2)
    window = np.pad(array, spare, constant_values=fill)[top : top + height, left : left + width]
    window = np.rot90(window, turns if height == width else turns - turns % 2)
    return window[:, ::-1] if flip else window


def random_images(channels=3, low=0, high=256, n=4):
    shape = (n, 13, 9, channels)
    return torch.from_numpy(np.random.default_rng(3).integers(low, high, shape, dtype=np.uint8))


def jitter(images, *factors, valid=None):
    return augment.colour(images, valid, torch.tensor([factors or NOTHING]).expand(len(images), 4))


def as_float(images):
    return images.permute(0, 3, 1, 2).float() / 255


def test_crops_of_images_that_do_not_fit_on_the_device_are_cut_in_ram_and_come_to_it():
    store, *_ = make_store([(9, 12), (7, 7)])
    drawn, rows = make_parameters((0.5, 0.5), [0, 1], [True, False]), torch.tensor([0, 1])
    store.device = "meta"
    found = [*augment.crops(store, rows, drawn, 8, 8), augment.inside(store, rows, drawn, 8, 8)]
    assert [(part.device.type, part.shape[:3]) for part in found] == [("meta", (2, 8, 8))] * 3


@pytest.mark.parametrize("height, width", [(5, 5), (7, 7), (4, 5), (1, 1), (9, 9), (6, 11), (13, 13), (10, 25)])
def test_crops_are_numpy_slices_turned_and_mirrored(height, width):
    store, images, masks = make_store(SIZES)
    for corner in [(0.0, 0.0), (0.3, 0.8), (0.999, 0.5)]:
        for i in range(len(SIZES)):
            parameters = make_parameters(corner, *zip(*KINDS, strict=True))
            crops, labels = augment.crops(store, [i] * len(KINDS), parameters, height, width)
            assert crops.dtype == labels.dtype == torch.uint8
            for (turns, flip), crop, label in zip(KINDS, crops, labels, strict=True):
                how = corner, turns, flip, height, width
                np.testing.assert_array_equal(crop, numpy_crop(images[i], 0, *how))
                np.testing.assert_array_equal(label, numpy_crop(masks[i], IGNORE, *how))


@pytest.mark.parametrize("side", [5, 13])
def test_one_batch_mixes_sizes_turns_and_repeats(side):
    store, images, masks = make_store(SIZES)
    indices = torch.tensor([3, 0, 2, 1, 0, 3, 2, 1])
    parameters = make_parameters((0.6, 0.4), *zip(*KINDS, strict=True))
    crops, labels = augment.crops(store, indices, parameters, side, side)
    for n, (i, (turns, flip)) in enumerate(zip(indices.tolist(), KINDS, strict=True)):
        np.testing.assert_array_equal(crops[n], numpy_crop(images[i], 0, (0.6, 0.4), turns, flip, side, side))
        np.testing.assert_array_equal(labels[n], numpy_crop(masks[i], IGNORE, (0.6, 0.4), turns, flip, side, side))


def test_every_corner_is_drawn_equally_often():
    store, _, _ = make_store([(7, 9)])
    drawn = augment.draw(24_000, np.random.default_rng(0), **OFF)
    crops, _ = augment.crops(store, [0] * 24_000, drawn, 4, 4)
    counts = np.zeros((4, 6))
    np.add.at(counts, (crops[:, 0, 0, 1].numpy(), crops[:, 0, 0, 2].numpy()), 1)
    chi_square = ((counts - 1000) ** 2 / 1000).sum()
    assert chi_square < 49.7  # 23 degrees of freedom: p = 0.001


def test_largest_fraction_stays_inside():
    store, _, _ = make_store([(200, 250)])
    parameters = make_parameters((1 - 2**-24, 1 - 2**-24), [0], [False])
    crops, _ = augment.crops(store, [0], parameters, 3, 3)
    assert crops[0, -1, -1].tolist() == [1, 199, 249]


def test_image_and_mask_move_together_and_nothing_is_invented():
    store, _, _ = make_store(SIZES)
    drawn = augment.draw(64, np.random.default_rng(1), **ON)
    indices = torch.arange(64) % len(SIZES)
    crops, labels = augment.crops(store, indices, drawn, 10, 10)
    padding = crops[..., 0] == 0
    number, rows, columns = crops.long().unbind(-1)
    assert padding.any() and torch.equal(padding, labels == IGNORE)
    assert torch.equal(padding, ~augment.inside(store, indices, drawn, 10, 10))
    assert (crops[padding] == 0).all()
    assert (number == indices[:, None, None] + 1)[~padding].all()
    assert torch.equal(((10 * rows + columns) % 251)[~padding], labels[~padding].long())
    for i, shown, pad in zip(indices.tolist(), rows * 100 + columns, padding, strict=True):
        h, w = SIZES[i]
        assert len(shown[~pad].unique()) == (~pad).sum() == min(h, 10) * min(w, 10)


def test_nothing_is_padded_where_every_image_is_large_enough():
    store, _, _ = make_store(SIZES)
    drawn = augment.draw(4, np.random.default_rng(1), **ON)
    assert augment.inside(store, [0, 1, 2, 3], drawn, 5, 7) is None
    crops, labels = augment.crops(store, [0, 1, 2, 3], drawn, 5, 7)
    assert (crops[..., 0] > 0).all() and (labels != IGNORE).all()


@pytest.mark.parametrize("name", ON)
def test_turning_one_setting_off_leaves_the_other_draws(name):
    rngs = np.random.default_rng(5), np.random.default_rng(5)
    full = augment.draw(50, rngs[0], **ON)
    less = augment.draw(50, rngs[1], **{**ON, name: OFF[name]})
    assert rngs[0].random() == rngs[1].random()
    columns = ["brightness", "contrast", "saturation", "hue"]
    for drawn in full, less:
        drawn.update(zip(columns, drawn.pop("factors").T, strict=True))
    switched = {"flip": "flips", "rotate": "turns"}.get(name, name)
    assert [key for key in full if not torch.equal(full[key], less[key])] == [switched]
    neutral = {**dict.fromkeys(columns, 1), "hue": 0}.get(name, 0)
    assert (less[switched] == neutral).all()


def test_draw_covers_its_ranges():
    drawn = augment.draw(4000, np.random.default_rng(2), **{**ON, "brightness": 1.5})
    assert drawn["corners"].shape == (4000, 2) and drawn["factors"].shape == (4000, 4)
    assert drawn["corners"].dtype == drawn["factors"].dtype == torch.float32
    assert 0 <= drawn["corners"].min() < 0.01 and 0.99 < drawn["corners"].max() < 1
    assert (drawn["turns"].bincount() > 900).all() and drawn["turns"].max() == 3
    assert 1900 < drawn["flips"].sum() < 2100
    low, high = torch.tensor([[0, 0.6, 0.7, -0.05], [2.5, 1.4, 1.3, 0.05]])
    torch.testing.assert_close(drawn["factors"].min(0).values, low, atol=0.005, rtol=0)
    torch.testing.assert_close(drawn["factors"].max(0).values, high, atol=0.005, rtol=0)
    assert (drawn["factors"] >= low).all() and (drawn["factors"] <= high).all()


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_neutral_factors_only_rescale(channels):
    images = random_images(channels)
    result = jitter(images)
    assert result.is_contiguous(memory_format=torch.channels_last) and result.dtype == torch.float32
    torch.testing.assert_close(result, as_float(images), atol=1e-6, rtol=0)


def test_all_four_in_order_with_one_clamp():
    """Against one step after the other in double precision, on colours that leave [0, 1] on both sides."""
    images = random_images()
    factors = torch.tensor([[1.4, 0.6, 1.3, 0.05], [0.6, 1.5, 0.5, -0.05], [1.5, 1.5, 1.5, 0.2], [0.5, 0.5, 0, 0.5]])
    x = images.double() / 255
    b, c, s, hue = factors.double().T[..., None, None, None]
    grey, yiq = torch.from_numpy(augment.GREY), torch.from_numpy(augment.YIQ)
    x = x * b
    x = c * x + (1 - c) * (x @ grey).mean((1, 2))[:, None, None, None]
    x = s * x + (1 - s) * (x @ grey)[..., None]
    y, i, q = (x @ yiq.T).unbind(-1)
    cos, sin = (2 * np.pi * hue[..., 0]).cos(), (2 * np.pi * hue[..., 0]).sin()
    x = torch.stack([y, cos * i + sin * q, cos * q - sin * i], -1) @ torch.linalg.inv(yiq).T
    assert (x < 0).any() and (x > 1).any()
    expected = x.clamp(0, 1).permute(0, 3, 1, 2).float()
    torch.testing.assert_close(augment.colour(images, None, factors), expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_other_channel_counts_know_no_saturation_or_hue(channels):
    images = random_images(channels, 60, 150)
    x = as_float(images) * 1.2
    expected = 0.7 * x + 0.3 * x.mean((1, 2, 3), keepdim=True)
    torch.testing.assert_close(jitter(images, 1.2, 0.7, 0.1, 0.3), expected, atol=2e-6, rtol=0)


def test_padding_stays_black_and_out_of_the_mean():
    images = random_images(low=60, high=150)
    valid = torch.zeros(images.shape[:3], dtype=torch.bool)
    valid[0, :5, :6] = valid[1, 2:, 3:] = valid[2] = True  # and nothing of the last
    result = jitter(images, 1.3, 0.5, 1.2, 0.04, valid=valid)
    assert (result.permute(0, 2, 3, 1)[~valid] == 0).all() and result.isfinite().all()
    assert result.is_contiguous(memory_format=torch.channels_last)
    for n, part in [(0, np.s_[:, :5, :6]), (1, np.s_[:, 2:, 3:]), (2, np.s_[:])]:
        alone = jitter(images[n : n + 1][part], 1.3, 0.5, 1.2, 0.04)
        torch.testing.assert_close(result[n : n + 1].permute(0, 2, 3, 1)[part], alone.permute(0, 2, 3, 1))


def test_hue_keeps_luma_and_turns_chroma():
    images = random_images(low=100, high=150)  # of so little chroma that nothing clamps
    yiq = torch.from_numpy(augment.YIQ).float()
    before = torch.einsum("yc,bchw->ybhw", yiq, as_float(images))
    for hue in [-0.4, -0.05, 0.05, 0.25, 0.5]:
        after = torch.einsum("yc,bchw->ybhw", yiq, jitter(images, 1, 1, 1, hue))
        torch.testing.assert_close(after[0], before[0], atol=1e-6, rtol=0)
        turned = torch.complex(*before[1:]) * np.exp(-2j * np.pi * hue)
        torch.testing.assert_close(torch.complex(*after[1:]), turned.to(torch.complex64), atol=2e-6, rtol=0)


@pytest.mark.parametrize("factor", [0.0, 0.5, 0.9, 1.5])
def test_kornia_agrees_on_brightness_contrast_and_saturation(factor):
    """The same definitions as kornia's PIL-like ones, down to the grey's weights. They differ where we do not
    look: kornia clamps after each step, we once at the end; and kornia's mean grey would count padding. The
    images are mid-range, so that none of these factors reaches a clamp.
    """
    enhance = pytest.importorskip("kornia").enhance
    images = random_images(low=60, high=150)
    x = as_float(images)
    for place, oracle in enumerate(
        [
            enhance.adjust_brightness_accumulative,
            enhance.adjust_contrast_with_mean_subtraction,
            enhance.adjust_saturation_with_gray_subtraction,
        ]
    ):
        factors = [factor if k == place else one for k, one in enumerate(NOTHING)]
        torch.testing.assert_close(jitter(images, *factors), oracle(x, factor), atol=2e-6, rtol=0)


@pytest.mark.parametrize("hue", [-0.05, -0.02, 0.0, 0.02, 0.05])
def test_kornia_is_near_on_hue(hue):
    """kornia turns the hue of HSV, a hexagon: it keeps the largest channel where we keep the luma, and equal
    steps of its hue are unequal angles of ours. Measured on these colours, whose channels lie within 0.12:
    they differ by 0.041 at most, 0.007 in the mean; kornia turns chroma by 0.92 of our angle on average.
    """
    enhance = pytest.importorskip("kornia").enhance
    images = random_images(low=112, high=143, n=40)
    x = as_float(images)
    ours, theirs = jitter(images, 1, 1, 1, hue), enhance.adjust_hue(x, 2 * np.pi * hue)
    assert (ours - theirs).abs().max() < 0.9 * abs(hue) + 1e-6
    assert (ours - theirs).abs().mean() < 0.15 * abs(hue) + 1e-6
    yiq = torch.from_numpy(augment.YIQ).float()
    before, after = (torch.complex(*torch.einsum("yc,bchw->ybhw", yiq, image)[1:]) for image in (x, theirs))
    turn = -(after * before.conj()).sum().angle() / (2 * np.pi)
    assert turn.item() == pytest.approx(hue, rel=0.1, abs=1e-6)
