"""Training learns, repeats bitwise, keeps what validation says is best, and refuses what cannot work."""

import copy
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments.components import defaults
from experiments.errors import Refused
from experiments.network.ready import make_ready
from experiments.store import IGNORE, Item, Split, Store
from experiments.training import augment, trainer
from experiments.training.losses import LOSSES
from models.unet import UNet

pytestmark = pytest.mark.usefixtures("single_thread")
SIDE = 48
PLACE = (0, "discs", 0)
FAST = dict(epochs=2, draws=2, batch=4, lr=0.01, validate_every=1, precision="float32")


@pytest.fixture
def settings(monkeypatch):
    """settings(lr=...): the trainer's and augmentation's functions have these settings, else defaults."""

    def attach(ingredient, **updates):
        values = defaults(ingredient) | updates
        assert values.keys() == defaults(ingredient).keys()
        for function in ingredient.captured_functions:
            monkeypatch.setattr(function, "config", values)

    def settings(**updates):
        attach(augment.ingredient)
        attach(trainer.ingredient, **(FAST | updates))

    return settings


def disc(seed):
    """A bright disc on dark noise, and its mask."""
    rng = np.random.default_rng(seed)
    (y, x), radius = rng.integers(16, 32, 2), rng.integers(8, 15)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    mask = ((rows - y) ** 2 + (columns - x) ** 2 < radius**2).astype(np.uint8)
    image = rng.normal(50 + 150 * mask[..., None], 10, (SIDE, SIDE, 3)).clip(0, 255).astype(np.uint8)
    return image, mask


def make_store(seeds, labelled=None):
    discs = {f"disc{seed}": disc(seed) for seed in seeds}
    items = [Item(id, Path(id), Path(id)) for id in discs]
    store = Store(Split(items, lambda path: discs[path.name][0], lambda path: discs[path.name][1]), "cpu")
    store.label(range(len(items)) if labelled is None else labelled)
    return store


def make_model(classes=2, p=0.1):
    torch.manual_seed(0)
    return make_ready(UNet(3, classes, 2, p), (0.0,) * 3, (1.0,) * 3, torch.device("cpu"))


def fit(model, train, val=None, labelled=(0, 1), crop=SIDE, place=PLACE, **more):
    return trainer.fit(model, train, list(labelled), val, place, crop, **more)


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


def validation_loss(model, store, loss="dice_ce"):
    return trainer.validate(model, store, LOSSES[loss], lambda pixels: None)["loss"]


# ---- schedules


def factors(**updates):
    """The factor of the learning rate at an epoch, for 10 steps an epoch."""
    values = defaults(trainer.ingredient) | dict(epochs=20, lr=0.5) | updates
    wanted = (
        "optimizer",
        "lr",
        "momentum",
        "weight_decay",
        "schedule",
        "warmup",
        "step_size",
        "gamma",
        "power",
    )
    values = {name: values[name] for name in (*wanted, "epochs")}
    made, scheduler = trainer.make_optimizer(torch.nn.Linear(2, 2), **values, steps_per_epoch=10)
    assert made.param_groups[0]["lr"] == pytest.approx(0.5 * scheduler.lr_lambdas[0](0))
    return lambda epoch: scheduler.lr_lambdas[0](round(epoch * 10))


@pytest.mark.parametrize(
    ("schedule", "start", "quarter", "middle", "end"),
    [
        ("constant", 1, 1, 1, 1),
        ("cosine", 1, (1 + math.sqrt(0.5)) / 2, 0.5, 0),
        ("poly", 1, 0.75**0.9, 0.5**0.9, 0),
        ("step", 1, 1, 0.1, 0.01),
    ],
)
def test_a_schedule_at_its_start_middle_and_end(schedule, start, quarter, middle, end):
    factor = factors(schedule=schedule, step_size=10)
    got = [factor(epoch) for epoch in (0, 5, 10, 20)]
    assert got == pytest.approx([start, quarter, middle, end], abs=1e-12)


def test_step_falls_at_every_step_size_epochs():
    factor = factors(schedule="step", step_size=3, gamma=0.5)
    assert [factor(e) for e in (2.9, 3, 5.9, 6)] == pytest.approx([1, 0.5, 0.5, 0.25])


@pytest.mark.parametrize("schedule", trainer.SCHEDULES)
def test_warm_up_rises_linearly_and_the_schedule_follows(schedule):
    factor = factors(schedule=schedule, warmup=4.0)
    rise = [factor(epoch) for epoch in (0, 0.9, 1.9, 3.9)]
    assert rise == pytest.approx([1 / 40, 10 / 40, 20 / 40, 1])
    assert factor(4) == 1
    expected = {"constant": 1, "step": 1, "cosine": 0.5, "poly": 0.5**0.9}[schedule]
    assert factor(12) == pytest.approx(expected)  # in the middle of what is left


@pytest.mark.parametrize(
    ("optimizer", "kind"),
    [("sgd", torch.optim.SGD), ("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)],
)
def test_the_optimizer_is_the_named_one_with_its_settings(settings, optimizer, kind):
    settings(optimizer=optimizer, lr=0.02, weight_decay=0.03, momentum=0.8)
    made, _ = trainer.make_optimizer(torch.nn.Linear(2, 2), steps_per_epoch=3)
    group = made.param_groups[0]
    assert type(made) is kind and (group["lr"], group["weight_decay"]) == (0.02, 0.03)
    assert optimizer != "sgd" or (group["momentum"], group["nesterov"]) == (0.8, True)


def test_sgd_without_momentum_is_plain(settings):
    settings(optimizer="sgd", momentum=0.0)
    made, _ = trainer.make_optimizer(torch.nn.Linear(2, 2), steps_per_epoch=3)
    assert not made.param_groups[0]["nesterov"]


# ---- fit


def test_training_learns_to_find_discs_that_it_has_not_seen(settings):
    settings(epochs=10, draws=6)
    model, _ = make_model()
    val = make_store([7, 8])
    before = validation_loss(model, val)
    seen = fit(model, make_store([0, 1, 2]), val, labelled=(0, 1, 2))
    assert validation_loss(model, val) == pytest.approx(seen["loss"], abs=1e-6)
    assert seen["loss"] < 0.6 * before and seen["dice"] > 0.7
    assert seen["iou"] < seen["dice"]


def trained(settings, place=PLACE, **updates):
    settings(**updates)
    model, _ = make_model()
    fit(model, make_store([0, 1]), place=place)
    return weights(model)


def test_training_repeats_bitwise(settings):
    torch.manual_seed(1)
    one = trained(settings)
    np.random.seed(4)
    torch.rand(100)
    assert same(one, trained(settings))
    assert not same(one, trained(settings, place=(1, "discs", 0)))


@pytest.mark.parametrize(("setting", "value"), [("loss", "ce"), ("optimizer", "sgd"), ("schedule", "constant")])
def test_a_setting_has_an_effect(settings, setting, value):
    assert not same(trained(settings), trained(settings, **{setting: value}))


def test_bfloat16_trains_float32_weights(settings):
    half = trained(settings, precision="bfloat16")
    assert {t.dtype for t in half.values() if t.is_floating_point()} == {torch.float32}
    assert all(t.isfinite().all() for t in half.values())
    assert not same(half, trained(settings))


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # torch's own
def test_a_compiled_step_is_the_step_itself(settings):
    """With a small network, for compiling the U-Net takes minutes."""
    layers = [torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.BatchNorm2d(4), torch.nn.ReLU(), torch.nn.Dropout(0.5)]
    torch.manual_seed(0)
    network = torch.nn.Sequential(*layers, torch.nn.Conv2d(4, 2, 1))
    network.multiple = 32  # which no crop of 48 is
    found = []
    for compiled in (False, True):
        settings(optimizer="sgd", lr=0.1, compiled=compiled)
        model, first = make_ready(copy.deepcopy(network), (0.0,) * 3, (1.0,) * 3, torch.device("cpu"))
        fit(model, make_store([0, 1, 2]), make_store([8]), labelled=(0, 1, 2))
        found.append(weights(model))
    assert not same(found[0], first)
    for name, tensor in found[0].items():
        torch.testing.assert_close(found[1][name], tensor, atol=1e-4, rtol=1e-4)


def test_only_labelled_images_teach(settings):
    """Images that are not in `labelled` change nothing, whatever they show and with masks open or not."""
    settings()
    one, two = make_model()[0], make_model()[0]
    fit(one, make_store([0, 1, 2]))
    fit(two, make_store([0, 1, 9], labelled=[0, 1]))
    assert same(weights(one), weights(two))


def scripted(monkeypatch, model, **values):
    """validate() answers with these values in turn; returns the weights that it saw."""
    seen = []

    def validate(model, store, objective, advance):
        seen.append(weights(model))
        filler = {"loss": 1.0, "dice": 0.5, "iou": 0.5}
        return filler | {name: given[len(seen) - 1] for name, given in values.items()}

    monkeypatch.setattr(trainer, "validate", validate)
    return seen


@pytest.mark.parametrize(
    ("select_by", "values", "best"),
    [
        ("dice", {"dice": [0.2, 0.9, 0.5, 0.9], "loss": [4, 3, 2, 1]}, 1),
        ("iou", {"iou": [0.2, 0.3, 0.5, 0.4], "dice": [4, 3, 2, 1]}, 2),
        ("loss", {"loss": [0.2, 0.9, 0.5, 0.9], "dice": [1, 2, 3, 4]}, 0),
        ("loss", {"loss": [0.4, 0.3, 0.2, 0.1]}, 3),
    ],
)
def test_the_weights_of_the_best_validation_are_kept(settings, monkeypatch, select_by, values, best):
    settings(epochs=4, select_by=select_by)
    model, _ = make_model()
    seen = scripted(monkeypatch, model, **values)
    kept = fit(model, make_store([0, 1]), make_store([5]))
    assert len(seen) == 4 and not same(seen[0], seen[3])
    assert kept["epoch"] == best + 1 and kept[select_by] == values[select_by][best]
    assert same(weights(model), seen[best])


def test_dice_that_is_kept_is_that_of_the_restored_weights(settings):
    settings(epochs=5, select_by="dice", draws=4)
    model, _ = make_model()
    val = make_store([7, 8])
    kept = fit(model, make_store([0, 1]), val)
    again = trainer.validate(model, val, LOSSES["dice_ce"], lambda pixels: None)
    assert {**again, "epoch": kept["epoch"]} == pytest.approx(kept, abs=1e-6)


def test_patience_stops_after_validations_without_a_better_value(settings, monkeypatch):
    settings(epochs=8, patience=2)
    model, _ = make_model()
    seen = scripted(monkeypatch, model, loss=[5, 4, 4, 3, 3, 3, 1, 0])
    kept = fit(model, make_store([0, 1]), make_store([5]))
    assert len(seen) == 6 and kept["epoch"] == 4
    assert same(weights(model), seen[3])


def test_no_patience_trains_to_the_end(settings, monkeypatch):
    settings(epochs=5, patience=0)
    model, _ = make_model()
    seen = scripted(monkeypatch, model, loss=[1, 2, 3, 4, 5])
    assert fit(model, make_store([0, 1]), make_store([5]))["epoch"] == 1 and len(seen) == 5


def test_the_last_epoch_is_always_validated(settings, monkeypatch):
    settings(epochs=5, validate_every=2)
    model, _ = make_model()
    seen = scripted(monkeypatch, model, loss=[3, 2, 1])
    assert fit(model, make_store([0, 1]), make_store([5]))["epoch"] == 5 and len(seen) == 3


def test_without_validation_the_last_weights_stay(settings):
    settings()
    model, first = make_model()
    assert fit(model, make_store([0, 1])) == {}
    assert not same(weights(model), first) and model.dropout_keys.now is None


@pytest.mark.parametrize(("crop", "side"), [(64, 64), (0, 48), (40, 40)])
def test_a_crop_beyond_the_image_is_padded_with_0_and_ignored(settings, monkeypatch, crop, side):
    inputs, masks = [], []

    def watched(logits, given):
        masks.append(given)
        return LOSSES["dice_ce"](logits, given)

    monkeypatch.setitem(trainer.LOSSES, "ce", watched)
    settings(loss="ce", epochs=1)
    model, _ = make_model()
    model.register_forward_pre_hook(lambda module, given: inputs.append(given[0].detach().clone()))
    fit(model, make_store([0, 1]), crop=crop)
    inputs, masks = torch.cat(inputs), torch.cat(masks)
    assert inputs.shape == (4, 3, side, side) and masks.shape == (4, side, side)
    ignored = masks == IGNORE
    assert (ignored.sum((1, 2)) == max(0, side**2 - SIDE**2)).all()
    assert (inputs.movedim(1, -1)[ignored] == 0).all() and (inputs.movedim(1, -1)[~ignored] > 0).any()


def test_an_epoch_shows_every_labelled_image_draws_times_in_even_steps(settings, monkeypatch):
    settings(epochs=3, draws=5, batch=4)
    shown = []
    crops = augment.crops

    def watched(store, indices, *rest):
        shown.append(indices)
        return crops(store, indices, *rest)

    monkeypatch.setattr(augment, "crops", watched)
    pixels = []
    fit(make_model()[0], make_store([0, 1, 2]), labelled=(0, 2), advance=lambda n, note="": pixels.append(n))
    assert [len(part) for part in shown] == [4, 3, 3] * 3
    for epoch in range(3):
        assert torch.cat(shown[3 * epoch : 3 * epoch + 3]).bincount().tolist() == [5, 0, 5]
    assert sum(pixels) == 3 * 30 * SIDE**2
    assert not torch.equal(torch.cat(shown[:3]), torch.cat(shown[3:6]))


def test_a_single_logit_trains(settings):
    settings(epochs=10, draws=6, lr=0.03)
    model, _ = make_model(classes=1)
    val = make_store([7])
    before = validation_loss(model, val)
    assert fit(model, make_store([0, 1]), val)["loss"] < 0.8 * before


@pytest.mark.parametrize("val", [None, [5]])
def test_divergence_is_refused_naming_the_learning_rate(settings, val):
    settings(optimizer="sgd", lr=1e30, epochs=3, draws=8)
    with pytest.raises(Refused, match=r"diverged by epoch 1 .* lower trainer\.lr"):
        fit(make_model()[0], make_store([0, 1]), val and make_store(val))


def test_weights_that_diverge_in_the_last_step_are_refused(settings):
    """One step in all: the loss before it is finite, what it leaves is not."""
    settings(optimizer="sgd", lr=1e38, epochs=1, draws=2)
    model, _ = make_model()
    with pytest.raises(Refused, match=r"trainer\.lr"):
        fit(model, make_store([0, 1]), make_store([5]))


# ---- before and between


def test_begin_puts_the_first_weights_back_unless_a_warm_start_goes_on(settings):
    settings()
    model, first = make_model()
    fit(model, make_store([0, 1]))
    learnt = weights(model)
    assert not same(learnt, first)
    trainer.reset_weights(model=model, first=first, cycle=1, warm_start=True)
    assert same(weights(model), learnt)
    trainer.reset_weights(model=model, first=first, cycle=1, warm_start=False)
    assert same(weights(model), first)
    model.load_state_dict(learnt)
    trainer.reset_weights(model=model, first=first, cycle=0, warm_start=True)
    assert same(weights(model), first)


def test_the_first_weights_are_a_copy(settings):
    settings()
    model, first = make_model()
    kept = {name: tensor.clone() for name, tensor in first.items()}
    fit(model, make_store([0, 1]))
    assert same(first, kept)


def test_finish_normalises_by_mean_and_std():
    seen = []
    network = torch.nn.Sequential(torch.nn.Dropout(0.5))
    network.forward = lambda x: seen.append(x)
    model, _ = make_ready(network, (0.5, 0.25, 0.0), (0.5, 1.0, 2.0), torch.device("cpu"))
    model(torch.ones(1, 3, 2, 2))
    assert seen[0][0, :, 0, 0].tolist() == [1, 0.75, 0.5]


def test_a_device_that_is_not_there_is_refused():
    for device in ("cuda:99", "abacus"):
        with pytest.raises(Refused, match=f"device={device} cannot be used"):
            trainer.prepare(device=device, threads=0, deterministic=False)
    if torch.version.cuda is None:
        with pytest.raises(Refused, match=r"pip install --force-reinstall torch==2\.\S+ --index-url"):
            trainer.prepare(device="cuda", threads=0, deterministic=False)


@pytest.mark.parametrize("val", [None, [5]])
def test_a_weight_that_is_not_finite_is_refused_though_the_loss_is(settings, monkeypatch, val):
    """As behind a ReLU that takes NaN for 0: neither loss nor Dice says anything."""
    settings(epochs=1, draws=2)
    model, _ = make_model()
    spare = torch.nn.Parameter(torch.tensor([0.0, float("nan")]))
    model.register_parameter("spare", spare)
    with pytest.raises(Refused, match=r"weights after epoch 1 are not finite .spare.: lower trainer\.lr"):
        fit(model, make_store([0, 1]), val and make_store(val))
    with pytest.raises(Refused, match="first weights are not finite .spare.: mend its file in models/"):
        make_ready(model, (0.0,), (1.0,), torch.device("cpu"))


def test_deterministic_runs_may_use_cublas(monkeypatch):
    """On a GPU torch refuses cuBLAS in such runs without this setting."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "x")  # so that the real one comes back
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    try:
        trainer.prepare(device="cpu", threads=0, deterministic=True)
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    finally:
        trainer.prepare(device="cpu", threads=0, deterministic=False)


def test_a_lone_crop_that_batch_norm_cannot_take_is_refused_in_one_line(smoke):
    with pytest.raises(Refused, match=r"1 crop\(s\) of 32 x 32 are too little .* raise trainer.batch"):
        smoke(start=1, cycles=0, phantom={"crop": 32}, trainer={"draws": 1, "batch": 1})


@pytest.mark.parametrize("part", ["trainer", "prediction"])
def test_compiling_without_a_compiler_is_refused(smoke, part, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(Refused, match=f"{part}.compiled=True takes a C.. compiler"):
        smoke(**{part: {"compiled": True}})


@pytest.mark.parametrize("gpu", [True, False])
def test_a_step_that_does_not_fit_names_the_setting_to_lower(settings, monkeypatch, gpu):
    settings()
    model, _ = make_model()

    def full(x):
        if gpu:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
        return torch.empty(2**50)  # the CPU's allocator raises another error

    monkeypatch.setattr(model, "forward", full)
    with pytest.raises(Refused, match="A step of 4 crop.s. of 48 x 48 does not fit on cpu: lower trainer.batch"):
        fit(model, make_store([0, 1]))


def test_another_error_in_a_step_is_not_explained_away(settings, monkeypatch):
    settings()
    model, _ = make_model()
    monkeypatch.setattr(model, "forward", lambda x: (_ for _ in ()).throw(ValueError("my own")))
    with pytest.raises(ValueError, match="my own"):
        fit(model, make_store([0, 1]))


# ---- networks that name what they are trained by


class Several(torch.nn.Module):
    """A frozen stem, a body that learns slowly, a norm without decay, a functional dropout and an auxiliary head."""

    def __init__(self, weight=0.4):
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 4, 3, padding=1).requires_grad_(False)
        self.body, self.norm = torch.nn.Conv2d(4, 4, 3, padding=1), torch.nn.BatchNorm2d(4)
        self.head, self.aux, self.weight = torch.nn.Conv2d(4, 2, 1), torch.nn.Conv2d(4, 2, 1), weight

    def groups(self):
        yield {"params": [*self.stem.parameters(), *self.body.parameters()], "lr": 0.1}
        yield {"params": self.norm.parameters(), "weight_decay": 0.0}

    def forward(self, x):
        y = torch.nn.functional.dropout(self.norm(self.body(self.stem(x))).relu(), 0.5, self.training)
        return [(1.0, self.head(y)), (self.weight, self.aux(y))] if self.training else self.head(y)


def several(**more):
    torch.manual_seed(0)
    return make_ready(Several(**more), (0.0,) * 3, (1.0,) * 3, torch.device("cpu"))


def test_the_model_names_groups_of_its_parameters(settings):
    settings(lr=0.02, weight_decay=0.03, schedule="cosine")
    model, _ = several()
    made, scheduler = trainer.make_optimizer(model, steps_per_epoch=3)
    slow, norm, rest = made.param_groups
    assert ([g["lr"] for g in made.param_groups], norm["weight_decay"], rest["weight_decay"]) == (
        pytest.approx([0.002, 0.02, 0.02]),
        0.0,
        0.03,
    )
    assert [len(g["params"]) for g in made.param_groups] == [2, 2, 4] and slow["params"][0] is model.body.weight
    for _ in range(6):
        made.step()
        scheduler.step()
    assert [g["lr"] for g in made.param_groups] == pytest.approx([0, 0, 0])


def test_what_is_frozen_stays_and_a_functional_dropout_repeats(settings):
    found = []
    for noise in (1, 2):
        settings()
        model, first = several()
        torch.manual_seed(noise)
        fit(model, make_store([0, 1]), make_store([8]))
        found.append(weights(model))
    assert same(found[0], found[1]) and not any(name.startswith("stem") for name in first)
    moved = {name for name in first if not torch.equal(first[name], found[0][name])}
    assert moved == first.keys()
    assert all(torch.equal(found[0][name], several()[0].state_dict()[name]) for name in ("stem.weight", "stem.bias"))
    settings()
    model, _ = several()
    fit(model, make_store([0, 1]), place=(0, "discs", 1))
    assert not same(weights(model), found[0])


def test_several_outputs_are_trained_by_their_weights(settings):
    """With the weight 0 an auxiliary head learns nothing, but for the decay."""
    settings(weight_decay=0.0)
    moved = {}
    for weight in (0.0, 0.4):
        model, first = several(weight=weight)
        fit(model, make_store([0, 1]))
        moved[weight] = {
            name: not torch.equal(first[name], tensor) for name, tensor in weights(model).items() if name in first
        }
    assert moved[0.4]["aux.weight"] and not moved[0.0]["aux.weight"] and moved[0.0]["head.weight"]


def test_long_gradients_are_shortened(settings):
    """By plain SGD a step is as long as the gradient."""
    steps = {}
    for clip in (0.0, 1e-3):
        settings(
            optimizer="sgd", momentum=0.0, lr=1.0, weight_decay=0.0, schedule="constant", clip=clip, epochs=1, draws=1
        )
        model, first = make_model()
        names = dict(model.named_parameters())
        fit(model, make_store([0, 1]))
        steps[clip] = sum((names[n] - first[n]).square().sum() for n in names).sqrt().item()
    assert steps[0.0] > 0.1 and steps[1e-3] == pytest.approx(1e-3, rel=0.01)
