"""Metrics and losses against closed forms, and against MONAI, torchmetrics and torch where these agree."""

import math
from types import SimpleNamespace

import pytest
import torch
from monai.losses import DiceLoss
from monai.metrics import compute_dice, compute_iou
from sklearn.metrics import jaccard_score, precision_score, recall_score
from torch.nn import functional as F
from torchmetrics.functional.classification import multiclass_calibration_error

from experiments.errors import Refused
from experiments.evaluation import metrics
from experiments.store import IGNORE, foreground
from experiments.training.losses import LOSSES

CLASSES = 3


def drawn(seed, classes=CLASSES, shape=(4, 13, 11)):
    """(labels, masks): the second image has no class 2 at all, the third none in its mask alone."""
    rng = torch.Generator().manual_seed(seed)
    labels, masks = torch.randint(classes, (2, *shape), generator=rng)
    labels[1][labels[1] == 2] = 0
    masks[1][masks[1] == 2] = 0
    masks[2][masks[2] == 2] = 1
    return labels, masks.to(torch.uint8)


def one_hot(numbers, classes=CLASSES):
    return F.one_hot(numbers.long(), classes).movedim(-1, 1).float()


def table(labels, masks, classes=2):
    return metrics.counts(torch.tensor([labels]), torch.tensor([masks], dtype=torch.uint8), classes)


def test_counts_are_both_predicted_and_true_pixels_and_leave_ignored_ones_out():
    counted = table([[0, 1, 1, 1], [1, 0, 1, 0]], [[0, 1, 1, 0], [IGNORE, IGNORE, 0, 1]])
    assert counted.tolist() == [[[1, 2, 3], [2, 4, 3]]]
    assert counted.dtype == torch.int64


def test_dice_iou_and_accuracy_closed_form():
    counted = table([[0, 1, 1, 1], [1, 0, 1, 0]], [[0, 1, 1, 0], [IGNORE, IGNORE, 0, 1]])
    assert metrics.dice(counted).tolist() == [pytest.approx([2 / 5, 4 / 7])]
    assert metrics.iou(counted).tolist() == [pytest.approx([1 / 4, 2 / 5])]
    assert metrics.accuracy(counted).item() == 0.5


@pytest.mark.parametrize("metric", [metrics.dice, metrics.iou])
@pytest.mark.parametrize(
    ("labels", "masks", "foreground"),
    [
        ([[0, 0]], [[0, 0]], 1),  # in neither
        ([[0, 1]], [[0, 0]], 0),  # only predicted
        ([[0, 0]], [[0, 1]], 0),  # only true
        ([[0, 1]], [[0, IGNORE]], 1),  # predicted only where nothing counts
        ([[1, 1]], [[IGNORE, IGNORE]], 1),  # nothing counts
    ],
)
def test_a_class_in_neither_scores_1_and_in_one_alone_0(metric, labels, masks, foreground):
    assert metric(table(labels, masks))[0, 1].item() == foreground


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("ours", "monai"), [(metrics.dice, compute_dice), (metrics.iou, compute_iou)])
def test_overlap_is_that_of_monai_with_empty_classes_counted(ours, monai, seed):
    labels, masks = drawn(seed)
    expected = monai(one_hot(labels), one_hot(masks), include_background=True, ignore_empty=False).double()
    assert (expected[1:3, 2] == torch.tensor([1, 0])).all()  # both empty conventions occur
    expected[1, 2] = torch.nan  # of more than two classes one in neither is skipped
    found = ours(metrics.counts(labels, masks, CLASSES))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0, equal_nan=True)


FOREGROUND = slice(1, 255)


@pytest.mark.parametrize("seed", range(3))
def test_two_classes_score_as_they_always_did(seed):
    """Bit for bit the mean of all images' values with empty ones counted 1, and the pooled Dice of before."""
    rng = torch.Generator().manual_seed(seed)
    labels, masks = torch.randint(2, (2, 37, 9, 8), generator=rng)
    labels[3], masks[3], labels[5], masks[6] = 0, 0, 0, 0
    counted = metrics.counts(labels, masks.to(torch.uint8), 2)
    both, predicted, true = counted.double().unbind(-1)
    before = torch.where(predicted + true > 0, 2 * both / (predicted + true), 1.0)
    found = metrics.overlaps(counted, FOREGROUND)
    assert torch.equal(metrics.dice(counted), before) and before[3, 1] == 1 and before[5, 1] == 0
    assert found["dice"] == before[:, 1:].mean().item()
    assert found["iou"] == metrics.iou(counted)[:, 1:].mean().item()
    assert found["class_dice"] == (2 * both.sum(0) / (predicted + true).sum(0))[1].item()


def test_a_class_in_neither_is_skipped_in_the_mean_of_its_image_and_an_empty_image_counts_1():
    rows = [[0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 2, 2]], [[0, 1, 0, 0], [0, 0, 0, 0], [0, 1, 2, 2]]
    labels, masks = (torch.tensor(row).view(3, 1, 4) for row in rows)
    counted = metrics.counts(labels, masks.to(torch.uint8), 4)
    nan = math.nan
    expected = torch.tensor([[2 / 3, nan, nan], [nan, nan, nan], [0, 1, nan]], dtype=torch.float64)
    torch.testing.assert_close(metrics.dice(counted)[:, 1:], expected, equal_nan=True)
    found = metrics.overlaps(counted, FOREGROUND)
    assert found["dice"] == pytest.approx((2 / 3 + 1 + 1 / 2) / 3)
    assert found["class_dice"] == pytest.approx((2 / 4 + 1) / 2)  # class 3 does not occur: not counted
    assert found["miou"] == pytest.approx((1 / 3 + 1) / 2)


def test_a_class_that_is_predicted_but_nowhere_true_is_0_in_its_images_and_not_in_the_pooled_means():
    labels, masks = torch.tensor([[[0, 1, 2]]]), torch.tensor([[[0, 1, 1]]], dtype=torch.uint8)
    counted = metrics.counts(labels, masks, 3)
    found = metrics.overlaps(counted, FOREGROUND)
    assert metrics.dice(counted)[0, 2] == 0 and found["dice"] == pytest.approx(1 / 3)
    assert found["class_dice"] == pytest.approx(2 / 3)


def test_classes_without_a_background_all_count():
    labels = masks = torch.tensor([[[0, 0, 1, 1]]])
    labels = labels.clone()
    labels[0, 0, 1] = 1
    counted = metrics.counts(labels, masks.to(torch.uint8), 2)
    assert metrics.overlaps(counted, foreground(("sky", "road")))["miou"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert metrics.overlaps(counted, foreground(("background", "road")))["miou"] == pytest.approx(2 / 3)


def rare_class_study():
    """(truth, one that never finds the rare class, one that finds 90 % of it, with false alarms in 30 images)."""
    truth = torch.zeros(100, 40, 40, dtype=torch.int64)
    truth[:, 5:20, 5:20] = 1
    truth[:5, 25:35, 25:35] = 2
    blind, finder = truth.clone(), truth.clone()
    blind[blind == 2] = 0
    finder[:5, 25, 25:35] = 0
    finder[50:80, 0, :2] = 2
    return truth, blind, finder


@pytest.mark.parametrize("headline", ["miou", "class_dice"])
def test_the_pooled_headline_prefers_the_model_that_finds_a_rare_class(headline):
    truth, blind, finder = rare_class_study()
    masks = truth.to(torch.uint8)
    blind, finder = (metrics.overlaps(metrics.counts(labels, masks, 3), FOREGROUND) for labels in (blind, finder))
    assert blind["class_dice"] == 0.5 and finder["class_dice"] > 0.9
    assert finder[headline] > blind[headline] + 0.4
    assert blind["dice"] > finder["dice"]  # why the mean over images is no headline of such a dataset


def test_without_any_foreground_nothing_is_measured():
    masks = torch.zeros(3, 4, 4, dtype=torch.uint8)
    assert metrics.overlaps(metrics.counts(masks.long(), masks, 3), FOREGROUND) == {}
    masks[0, 0, 0] = IGNORE
    assert metrics.overlaps(metrics.counts(masks.long(), masks, 3), FOREGROUND) == {}


def test_a_headline_is_one_of_three():
    assert metrics.headline(SimpleNamespace()) == "test.dice"
    assert metrics.headline(SimpleNamespace(HEADLINE="miou")) == "test.miou"
    with pytest.raises(Refused, match="HEADLINE of data.mine is one of dice, miou, class_dice, not 'iuo'"):
        metrics.headline(SimpleNamespace(HEADLINE="iuo", __name__="data.mine"))


@pytest.mark.parametrize("metric", [metrics.dice, metrics.iou, metrics.accuracy])
def test_ignored_pixels_count_as_if_cut_off(metric):
    labels, masks = drawn(4)
    masks[:, :, 6:] = IGNORE
    whole = metrics.counts(labels, masks, CLASSES)
    cut = metrics.counts(labels[:, :, :6], masks[:, :, :6], CLASSES)
    torch.testing.assert_close(metric(whole), metric(cut), atol=0, rtol=0, equal_nan=True)
    assert not torch.equal(metric(whole), metric(metrics.counts(labels, drawn(4)[1], CLASSES)))


def test_pixel_accuracy_weights_images_by_their_pixels():
    counted = table([[1, 1, 1]], [[1, IGNORE, IGNORE]]), table([[0, 0, 0]], [[1, 1, 0]])
    assert metrics.accuracy(torch.cat(counted)).item() == 0.5  # 2 of 4 pixels, not the mean of 1 and 1/3


def half_sure(labels, classes):
    """Probabilities (B, C, H, W) of .6 for the label, the rest in equal parts."""
    p = torch.full((len(labels), classes, *labels.shape[1:]), 0.4 / (classes - 1))
    return p.scatter_(1, labels[:, None], 0.6)


@pytest.mark.parametrize(("seed", "classes"), [(0, 3), (1, 3), (2, 2), (3, 6)])
def test_precision_recall_and_weighted_iou_are_those_of_scikit_learn(seed, classes):
    labels, masks = drawn(seed, classes)
    labels[labels == classes - 1] = 0  # a class that is never predicted
    if classes > 3:
        masks[masks == 3] = 0  # and one that is only predicted
    masks[0, 2:5] = IGNORE
    counted = metrics.counts(labels, masks, classes)
    found = metrics.over_pixels(counted, counted, FOREGROUND)
    truth, guess = masks[masks != IGNORE].numpy(), labels[masks != IGNORE].numpy()
    there = [number for number in range(1, classes) if (truth == number).any()]
    how = dict(labels=there, average="macro", zero_division=0)
    assert found["precision"] == pytest.approx(precision_score(truth, guess, **how), abs=1e-12)
    assert found["recall"] == pytest.approx(recall_score(truth, guess, **how), abs=1e-12)
    weighted = jaccard_score(truth, guess, labels=range(classes), average="weighted", zero_division=0)
    assert found["fwiou"] == pytest.approx(weighted, abs=1e-12)
    one = (masks[3] == 1).ravel(), (labels[3] == 1).ravel()
    assert metrics.precision(counted)[3, 1].item() == pytest.approx(precision_score(*one, zero_division=0))
    assert metrics.recall(counted)[3, 1].item() == pytest.approx(recall_score(*one, zero_division=0))


@pytest.mark.parametrize("metric", [metrics.precision, metrics.recall])
@pytest.mark.parametrize(("labels", "masks", "score"), [([[0, 1]], [[0, 0]], 0), ([[0, 0]], [[0, 1]], 0)])
def test_precision_and_recall_are_0_where_a_class_is_in_one_alone(metric, labels, masks, score):
    assert metric(table(labels, masks))[0, 1] == score
    assert metric(table([[0, 0]], [[0, 0]]))[0, 1] == 1
    assert metric(table([[0, 0]], [[0, 0]], classes=3))[0, 1].isnan()


def test_soft_counts_of_certain_answers_are_the_counts_and_sum_exactly():
    labels, masks = drawn(5)
    masks[:, 3] = IGNORE
    assert torch.equal(metrics.soft_counts(one_hot(labels), masks), metrics.counts(labels, masks, CLASSES).double())
    p = torch.rand(4, CLASSES, 13, 11, generator=torch.Generator().manual_seed(0))
    turned = metrics.soft_counts(p.flip(-1).contiguous(memory_format=torch.channels_last), masks.flip(-1))
    found = metrics.soft_counts(p, masks)
    assert torch.equal(found, turned)
    expected = (p.double() * one_hot(masks.where(masks != IGNORE, 0)) * (masks != IGNORE)[:, None]).sum((2, 3))
    torch.testing.assert_close(found[..., 0], expected, atol=1e-4, rtol=0)


def test_soft_dice_closed_form():
    """Class 1 is true in 2 of 4 pixels: .6 where it is meant, .4 where not, so 2 * (.6 + .4) / (2 + 2)."""
    labels, masks = torch.tensor([[[0, 1, 0, 1]]]), torch.tensor([[[0, 1, 1, 0]]], dtype=torch.uint8)
    soft = metrics.soft_counts(half_sure(labels, 2), masks)
    found = metrics.over_pixels(metrics.counts(labels, masks, 2), soft, FOREGROUND)
    assert found["soft_dice"] == pytest.approx(0.5, abs=1e-6) and found["precision"] == 0.5


def test_the_slices_of_a_volume_count_as_one_image():
    labels, masks = drawn(6)
    counted = metrics.counts(labels, masks, CLASSES)
    found = metrics.of_volumes(counted, ["b", "a", "b", "a"])
    for volume, slices in zip(found, ([0, 2], [1, 3]), strict=True):
        stacked = (each[slices].reshape(1, -1, 11) for each in (labels, masks))
        assert torch.equal(volume, metrics.counts(*stacked, CLASSES)[0])


def test_ece_closed_form():
    """Four pixels of confidence .9, 3 right, one of .6, wrong, one ignored: (4 * .15 + .6) / 5."""
    foreground = torch.tensor([0.9, 0.9, 0.9, 0.9, 0.6, 0.99], dtype=torch.float64).view(1, 1, 1, 6)
    masks = torch.tensor([1, 1, 1, 0, 0, IGNORE], dtype=torch.uint8).view(1, 1, 6)
    bins = metrics.calibration_bins(torch.cat([1 - foreground, foreground], 1), masks)
    assert bins[:, 0].sum() == 5
    assert metrics.ece(bins).item() == pytest.approx((4 * 0.15 + 0.6) / 5, abs=1e-12)


def test_a_bin_of_the_calibration_error_holds_its_upper_end():
    """9/15 is in one bin with .55, as Guo et al. define it: |.6 + .55 - 1| / 2, not (.4 + .55) / 2."""
    foreground = torch.tensor([0.6, 0.55], dtype=torch.float64).view(1, 1, 1, 2)
    masks = torch.tensor([[[1, 0]]], dtype=torch.uint8)
    bins = metrics.calibration_bins(torch.cat([1 - foreground, foreground], 1), masks)
    assert metrics.ece(bins).item() == pytest.approx(0.15 / 2, abs=1e-12)


def test_certain_and_right_has_no_calibration_error_and_certain_and_wrong_has_1():
    p = torch.tensor([0.0, 1.0]).view(1, 2, 1, 1).expand(1, 2, 3, 3)
    for truth, expected in ((1, 0), (0, 1)):
        masks = torch.full((1, 3, 3), truth, dtype=torch.uint8)
        assert metrics.ece(metrics.calibration_bins(p, masks)).item() == expected


@pytest.mark.parametrize("classes", [2, 4])
def test_ece_is_that_of_torchmetrics_without_the_ignored_pixels(classes):
    rng = torch.Generator().manual_seed(classes)
    p = (2 * torch.randn(3, classes, 21, 17, generator=rng)).softmax(1)
    masks = torch.randint(classes, (3, 21, 17), generator=rng).to(torch.uint8)
    masks[torch.rand(masks.shape, generator=rng) < 0.2] = IGNORE
    bins = sum(metrics.calibration_bins(p[i : i + 1], masks[i : i + 1]) for i in range(3))
    counted = masks != IGNORE
    expected = multiclass_calibration_error(
        p.movedim(1, -1)[counted], masks[counted].long(), num_classes=classes, n_bins=15, norm="l1"
    )
    assert expected > 0.1
    assert metrics.ece(bins).item() == pytest.approx(expected.item(), abs=1e-6)


def problem(seed=0, classes=CLASSES, ignored=0):
    """Logits that learn, and masks; the last `ignored` columns are IGNORE."""
    rng = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, classes, 9, 10, generator=rng)
    masks = torch.randint(classes, (3, 9, 10), generator=rng).to(torch.uint8)
    masks[:, :, 10 - ignored :] = IGNORE
    return logits.requires_grad_(), masks


def test_ce_is_that_of_torch_for_each_image():
    logits, masks = problem()
    expected = torch.stack(
        [F.cross_entropy(one[None], mask[None].long()) for one, mask in zip(logits, masks, strict=True)]
    )
    torch.testing.assert_close(LOSSES["ce"](logits, masks), expected)


def test_dice_is_that_of_monai_for_each_image():
    logits, masks = problem()
    expected = DiceLoss(softmax=True, to_onehot_y=True, reduction="none")(logits, masks[:, None].float())
    torch.testing.assert_close(LOSSES["dice"](logits, masks), expected.flatten(1).mean(1))


def test_dice_ce_is_their_sum():
    logits, masks = problem(ignored=2)
    expected = LOSSES["dice"](logits, masks) + LOSSES["ce"](logits, masks)
    assert torch.equal(LOSSES["dice_ce"](logits, masks), expected)


def test_linear_is_1_minus_the_mean_probability_of_the_true_class():
    logits, masks = problem()
    true = logits.softmax(1).gather(1, masks[:, None].long())
    torch.testing.assert_close(LOSSES["linear"](logits, masks), 1 - true.flatten(1).mean(1))
    by_hand = torch.tensor([0.7, 0.2]).log().view(1, 2, 1, 1).expand(1, 2, 1, 2) + 5
    probabilities = torch.tensor([7 / 9, 2 / 9])
    mask = torch.tensor([[[0, 1]]], dtype=torch.uint8)
    torch.testing.assert_close(LOSSES["linear"](by_hand, mask), 1 - probabilities.mean()[None])


@pytest.mark.parametrize("name", LOSSES)
def test_ignoring_pixels_is_cutting_them_out(name):
    logits, masks = problem(ignored=4)
    loss = LOSSES[name](logits, masks)
    torch.testing.assert_close(loss, LOSSES[name](logits[..., :6], masks[..., :6]))
    loss.sum().backward()
    assert (logits.grad[..., 6:] == 0).all()
    assert (logits.grad[..., :6].abs().sum(1) > 0).all()


@pytest.mark.parametrize("name", LOSSES)
def test_an_image_without_any_counted_pixel_gives_a_finite_loss_and_no_gradient(name):
    logits, masks = problem()
    masks[1] = IGNORE
    loss = LOSSES[name](logits, masks)
    loss.sum().backward()
    assert loss.isfinite().all() and logits.grad.isfinite().all()
    assert (logits.grad[1] == 0).all() and (logits.grad[0] != 0).any()


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_per_image_and_falls_to_0_on_the_right_answer(name):
    logits, masks = problem()
    right = 60 * one_hot(masks)
    assert LOSSES[name](logits, masks).shape == (3,)
    assert LOSSES[name](right, masks).abs().max() < 1e-6
    assert LOSSES[name](-right, masks).min() > 0.5
    assert math.isclose(LOSSES[name](logits[1:2], masks[1:2]).item(), LOSSES[name](logits, masks)[1].item())


def test_boundary_of_a_square_is_its_perimeter_and_ignored_pixels_have_none():
    mask = torch.zeros(9, 9, dtype=torch.uint8)
    mask[2:5, 3:7] = 1
    assert metrics.boundary(mask) == 2 * (3 + 4)
    mask[1] = IGNORE
    assert metrics.boundary(mask) == 2 * (3 + 4) - 4
    assert metrics.boundary(torch.full((4, 4), IGNORE)) == 0
