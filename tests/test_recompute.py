"""Gradient checkpointing changes memory, not weights: bit for bit, whatever the network, its norms and its losses."""

import copy

import pytest
import torch
from conftest import events
from test_model import MODELS, build
from test_training import SIDE, fit, make_store, same, settings, weights  # noqa: F401  a fixture
from torch import nn

from experiments.components import defaults
from experiments.errors import Refused
from experiments.network import joint_norm, ready
from experiments.network.layers import layer_outputs
from experiments.training import learned, recompute
from experiments.training.trainer import ingredient
from heuristics import learning_loss

pytestmark = pytest.mark.usefixtures("single_thread")
KEEPS = {"lite": 1 / 5, "modunet": 1 / 2, "monai": 1 / 3, "sam2_lora": 1 / 4, "unet": 1 / 3}  # of what was kept
SMALL = {"lite": {"weights": "none", "width": 4}, "monai": {"width": 4}, "modunet": {"width": 4}, "unet": {"width": 2}}
TRAINED = [name for name in MODELS if name != "frozen"]


def made(name):
    return build(name, **SMALL.get(name, {}))[0]


def bytes_kept(model, forward, x):
    """Bytes of all tensors that a step keeps for its gradients, without weights and buffers."""
    known = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes() * (storage.data_ptr() not in known)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward(x)
    return sum(kept.values())


def keyed(model, n):
    ready.train(model)
    model.dropout_keys.now = torch.arange(n)
    return model


@pytest.mark.parametrize("name", TRAINED)
def test_weights_are_the_same_bit_for_bit_and_a_step_keeps_far_less(settings, name):  # noqa: F811
    """Running statistics and their counters are among the weights."""
    model = made(name)
    joint_norm.norms(keyed(model, 2))  # all can be joined over processes
    first, found = copy.deepcopy(model), []
    for again in (False, True):
        settings(gradient_checkpointing=again, epochs=2 if name == "unet" else 1, batch=2)
        model = copy.deepcopy(first)
        fit(model, make_store([0, 1]), make_store([8]) if name == "unet" else None)
        found.append(weights(model))
    assert same(*found) and not same(weights(first), found[0])
    x = torch.rand(2, 3, 96, 96)
    plain = bytes_kept(keyed(model, 2), model, x)
    forward = recompute.Recomputing(model)
    forward(x)
    assert bytes_kept(model, forward, x) < KEEPS.get(name, 2 / 3) * plain
    assert not any("forward" in vars(module) for module in model.modules())


class Several(nn.Module):
    """Two heads on a body with functional dropout, and two parts whose inputs change, by themselves or later."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.body = nn.ModuleList(nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)) for _ in range(2))
        self.first = nn.Sequential(Double(), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.scaled = nn.Sequential(Scale(8), nn.Tanh())
        self.heads = nn.ModuleList(nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 2, 1)) for _ in range(2))

    def forward(self, x):
        x = self.first(self.stem(x))
        y = nn.functional.dropout(self.body[0](x), 0.5, self.training)
        z = self.scaled(y)
        y.mul_(2.0)  # no gradient needs y as it was, but `scaled` a second time would
        parts = [head(self.body[1](y) + z) for head in self.heads]
        return [(1.0, parts[0]), (0.4, parts[1])] if self.training else parts[0]


class Double(nn.Module):
    """Changes its input in place, as activations of libraries do."""

    def forward(self, x):
        return x.mul_(2.0)


class Scale(nn.Module):
    """Adds what it learns, so that its gradient needs no input."""

    def __init__(self, channels):
        super().__init__()
        self.shift, self.inner = nn.Parameter(torch.zeros(channels, 1, 1)), nn.Identity()

    def forward(self, x):
        return self.inner(x) + self.shift


def several():
    torch.manual_seed(0)
    return ready.make_ready(Several(), (0.0,) * 3, (1.0,) * 3, torch.device("cpu"))[0]


def test_inputs_that_change_and_dropout_without_keys(settings):  # noqa: F811
    found = []
    for again in (False, True):
        settings(gradient_checkpointing=again)
        model = several()
        fit(model, make_store([0, 1]))
        found.append(weights(model))
    assert same(*found)
    chosen = recompute.blocks(keyed(model, 2), torch.rand(2, 3, SIDE, SIDE))
    assert {model.stem, *model.body, *model.heads} == set(chosen)


def test_looking_for_blocks_changes_nothing():
    model = keyed(made("unet"), 2)
    x = torch.rand(2, 3, SIDE, SIDE)
    before, state, keys = weights(model), torch.get_rng_state(), model.dropout_keys.now
    chosen = recompute.blocks(model, x)
    assert len(chosen) >= 11 and same(before, weights(model)) and model.dropout_keys.now is keys
    assert torch.equal(state, torch.get_rng_state())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_learned_strategy_sees_the_maps_of_blocks_and_of_what_is_inside(settings, monkeypatch):  # noqa: F811
    """Its loss on them trains the model as ever."""
    for function in learning_loss.ingredient.captured_functions:
        monkeypatch.setattr(function, "config", defaults(learning_loss.ingredient))
    found, place = [], (0, "discs", 0)
    for again in (False, True):
        settings(gradient_checkpointing=again)
        model, paths = made("unet"), ["downs.4", "ups.4.join.0"]
        learner = learned.prepare(learning_loss, model, paths, 3, place, torch.device("cpu"))
        strategy = learned.Strategy(learning_loss, learner, paths, [2], place)
        fit(model, make_store([0, 1, 2]), strategy=strategy)
        found.append((weights(model), weights(learner)))
    assert all(map(same, *found))
    settings(gradient_checkpointing=True)
    alone = made("unet")
    fit(alone, make_store([0, 1, 2]))
    assert not same(weights(alone), found[0][0])


def test_a_map_from_inside_a_block_is_that_of_the_model():
    model = keyed(made("unet"), 2)
    x, forward, seen = torch.rand(2, 3, SIDE, SIDE), recompute.Recomputing(model), []
    for function in (model, forward):
        with layer_outputs(model, ["ups.2.join.1"]) as maps:
            function(x)
        (gradient,) = torch.autograd.grad(maps()[0].square().sum(), model.first[0].weight)
        seen.append((maps()[0].detach(), gradient))
    assert all(map(torch.equal, *seen)) and seen[0][1].abs().sum() > 0


def test_a_run_is_the_run_without_it_but_for_the_setting(smoke, undisturbed, tmp_path):
    smoke(**{"trainer.gradient_checkpointing": True})
    one, two = (
        [{k: v for k, v in e.items() if k not in ("settings", "made")} for e in events(folder)]
        for folder in (undisturbed, tmp_path / "results")
    )
    assert one == two and any("weights" in event for event in one)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"trainer.compiled": True}, "trainer.compiled=True decides"),
        ({"model": "frozen", "lite.weights": "none"}, "model=frozen trains no more than a head"),
        ({"model": "frozen", "lite.weights": "none", "frozen.head": "linear"}, "model=frozen trains no more than"),
    ],
)
def test_where_nothing_can_be_computed_again_it_is_refused_before_anything_is_written(smoke, tmp_path, more, said):
    with pytest.raises(Refused, match=said) as refused:
        smoke(heuristic="random", **{"trainer.gradient_checkpointing": True}, **more)
    assert "\n" not in str(refused.value) and not (tmp_path / "results").exists()


def test_a_model_of_single_layers_is_refused():
    class File:
        MEAN, STD = (0.0,) * 3, (1.0,) * 3
        build = staticmethod(lambda channels, classes: nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1)))

    config = {"model": "mine", "trainer": defaults(ingredient) | {"gradient_checkpointing": True}}
    splits = type("Splits", (), {"channels": 3, "classes": ("a", "b"), "crop": 32})
    with pytest.raises(Refused, match="model=mine has no modules of several layers"):
        recompute.check(config, File, splits)
