"""A prepared network is the trained one: folded, what is deterministic once, masks exact; a race finds the best."""

import copy
import gc
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_prediction import PLACE, make_model, make_pool, make_store
from torch import nn
from torch.nn import functional as F

from experiments.acquisition import selection
from experiments.acquisition.prediction import pass_keys, predict, winner
from experiments.errors import Refused
from experiments.evaluation import evaluation
from experiments.network import device, dropout
from experiments.network.inference import Network, plan
from experiments.network.joining import grown
from experiments.network.ready import make_ready
from heuristics import bald, entropy, expected_entropy
from heuristics.batches import stochastic, top

pytestmark = pytest.mark.usefixtures("single_thread")
CPU = torch.device("cpu")
ODD = (33, 20), (32, 21), (33, 21)


@pytest.fixture
def x():
    return torch.rand(2, 3, 40, 36, generator=torch.Generator().manual_seed(4))


def trained(model):
    """With the running means and variances of a network that has seen images."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.uniform_(-0.2, 0.2, generator=generator)
                module.running_var.uniform_(0.5, 2, generator=generator)
                module.weight.uniform_(0.5, 2, generator=generator)
                module.bias.uniform_(-0.2, 0.2, generator=generator)
    return model


def module_by_module(model, x, keys):
    with torch.inference_mode():
        for now in keys:
            model.dropout_keys.now = now
            yield model.eval()(x)
    model.dropout_keys.now = None


def test_passes_are_those_of_the_model_itself(x):
    model = trained(make_model()[0])
    keys = pass_keys(PLACE, "score", "ab", 4)
    with torch.inference_mode():
        ours = torch.stack(list(Network(model).passes(x, keys)))
        alone = Network(model)(x)
    theirs = torch.stack(list(module_by_module(model, x, [*keys, None])))
    assert theirs.std(0).max() > 0.1
    error = (torch.cat([ours, alone[None]]) - theirs).abs().max()
    assert error < 1e-5 * theirs.abs().max()


def test_no_batch_norm_is_left_and_the_model_keeps_its_own():
    model = trained(make_model()[0])
    before = copy.deepcopy(model.state_dict())
    made, *parts = plan(model, False, "float32", CPU)
    kinds = [type(module).__name__ for module in made]
    assert (kinds.count("Folded"), kinds.count("Joined")) == (33, 5 * device.packs(CPU)) and not any(
        isinstance(module, nn.BatchNorm2d) for part in parts for module in part.modules()
    )
    assert sum(isinstance(module, nn.BatchNorm2d) for module in model.modules()) == 32
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


class Odd(nn.Module):
    """Convolutions of every kind: called twice, with a reader beside its ReLU, in groups, dilated, padded otherwise."""

    def __init__(self):
        super().__init__()
        self.first, self.relu, self.dropout = nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Dropout(0.3)
        self.shared = nn.Conv2d(8, 8, 3, 1, padding=2, dilation=2, groups=4, bias=False)
        self.named = nn.Conv2d(8, 8, 3, padding="same")
        self.mirrored = nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect")
        self.norm, self.head = nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1)
        self.twice, self.unlike = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)

    def forward(self, x):
        x = self.dropout(self.relu(self.first(x)))
        y = self.norm(self.shared(x))
        y = self.unlike(self.twice(y)) + self.relu(self.twice(x))
        return self.head(self.mirrored(self.relu(y)) + self.named(y))


def test_packed_convolutions_are_those_of_the_model_at_every_size():
    torch.manual_seed(0)
    model, _ = make_ready(trained(Odd()), (0.0,) * 3, (1.0,) * 3, CPU)
    network, keys = Network(model), pass_keys(PLACE, "score", "ab", 3)
    kinds = [type(module).__name__ for module in network.rest.modules()]
    assert (kinds.count("Folded"), kinds.count("Conv2d"), kinds.count("BatchNorm2d")) == (4, 1, 1)
    assert device.packs(CPU) and {
        module.packed for module in network.rest.modules() if module._get_name() == "Folded"
    } == {True, False}
    with torch.inference_mode():
        for size in ((24, 20), (33, 48), (24, 20)):
            x = torch.rand(2, 3, *size).to(memory_format=torch.channels_last)
            ours = torch.stack(list(network.passes(x, keys)))
            torch.testing.assert_close(ours, torch.stack(list(module_by_module(model, x, keys))), atol=1e-5, rtol=1e-5)
            assert ours.std(0).max() > 0


def test_a_convolution_of_a_doubled_image_is_one_transposed_convolution():
    generator = torch.Generator().manual_seed(6)
    weight, low = (torch.randn(*size, generator=generator).double() for size in ((4, 2, 3, 3), (2, 2, 5, 4)))
    right = F.conv2d(F.interpolate(low, scale_factor=2), weight, padding=1)
    torch.testing.assert_close(F.conv_transpose2d(low, grown(weight).transpose(0, 1), stride=2, padding=1), right)


class Ways(nn.Module):
    """One level up in every way: `way` of joining; only the first two can be one transposed convolution."""

    WAYS = {
        "by size": lambda low, skip: torch.cat([F.interpolate(low, size=skip.shape[-2:]), skip], 1),
        "by factor": lambda low, skip: torch.cat((F.interpolate(low, scale_factor=2), skip), dim=1),
        "by others": lambda low, skip: torch.cat([F.interpolate(low[..., ::3, ::2], scale_factor=(6, 4)), skip], 1),
        "bilinear": lambda low, skip: torch.cat([F.interpolate(low, size=skip.shape[-2:], mode="bilinear"), skip], 1),
        "skip first": lambda low, skip: torch.cat([skip, F.interpolate(low, size=skip.shape[-2:])], 1),
        "three": lambda low, skip: torch.cat([F.interpolate(low, size=skip.shape[-2:]), skip[:, :4], skip[:, 4:]], 1),
        "twice": lambda low, skip: torch.cat([F.interpolate(low, size=skip.shape[-2:]), *[skip[:, :4]] * 2], 1),
        "alone": lambda low, skip: F.interpolate(low, size=skip.shape[-2:]).repeat(1, 2, 1, 1),
        "the other way": lambda low, skip: torch.cat([F.interpolate(low, size=skip.shape[-2:]), skip], 2),
    }

    def __init__(self, way):
        super().__init__()
        self.way, channels = self.WAYS[way], 8 if way == "the other way" else 16
        self.first, self.dropout, self.down = nn.Conv2d(3, 8, 3, padding=1), nn.Dropout(0.3), nn.MaxPool2d(2)
        self.join, self.head = nn.Conv2d(channels, 8, 3, padding=1), nn.Conv2d(8, 2, 1)

    def forward(self, x):
        skip = self.dropout(self.first(x))
        return self.head(self.join(self.way(self.down(skip), skip)))


@pytest.mark.parametrize("way", Ways.WAYS)
def test_every_way_up_is_that_of_the_model_at_every_size(way):
    torch.manual_seed(0)
    model, _ = make_ready(Ways(way), (0.0,) * 3, (1.0,) * 3, CPU)
    network, keys = Network(model), pass_keys(PLACE, "score", "ab", 3)
    kinds = [type(module).__name__ for module in network.rest.modules()]
    assert kinds.count("Joined") == (device.packs(CPU) and way in ("by size", "by factor"))
    with torch.inference_mode():
        for size in ((24, 20), (48, 32), *(ODD if way not in ("by factor", "by others") else ()), (24, 20)):
            x = torch.rand(2, 3, *size).to(memory_format=torch.channels_last)
            ours = torch.stack(list(network.passes(x, keys)))
            torch.testing.assert_close(ours, torch.stack(list(module_by_module(model, x, keys))), atol=1e-5, rtol=1e-5)
            assert ours.std(0).max() > 0


def test_a_grown_image_or_a_joined_one_that_something_else_reads_stays():
    class Two(Ways):
        def forward(self, x):
            skip = self.dropout(self.first(x))
            up = F.interpolate(self.down(skip), size=skip.shape[-2:])
            both = torch.cat([up, skip], 1)
            return self.head(self.join(both)) + (up if self.also == "grown" else both).mean(1, keepdim=True)

    keys = pass_keys(PLACE, "score", "ab", 2)
    for Two.also in ("grown", "joined"):
        model, _ = make_ready(Two("by size"), (0.0,) * 3, (1.0,) * 3, CPU)
        x = torch.rand(2, 3, 16, 16)
        ours = torch.stack(list(Network(model).passes(x, keys)))
        torch.testing.assert_close(ours, torch.stack(list(module_by_module(model, x, keys))), atol=1e-5, rtol=1e-5)


def test_what_does_nothing_is_in_no_ones_way():
    class Between(Ways):
        def forward(self, x):
            skip = self.dropout(self.first(x))
            return self.head(self.join(self.none(self.way(self.down(skip), skip))))

    torch.manual_seed(0)
    network = Between("by size")
    network.none = nn.Sequential(nn.Identity(), nn.Dropout(0.0))
    model, keys = make_ready(network, (0.0,) * 3, (1.0,) * 3, CPU)[0], pass_keys(PLACE, "score", "ab", 2)
    kinds = [type(module).__name__ for module in Network(model).rest.modules()]
    assert kinds.count("Joined") == device.packs(CPU) and not {"Identity", "Dropout"} & set(kinds)
    x = torch.rand(2, 3, 16, 16)
    ours = torch.stack(list(Network(model).passes(x, keys)))
    torch.testing.assert_close(ours, torch.stack(list(module_by_module(model, x, keys))), atol=1e-5, rtol=1e-5)


def test_new_weights_are_taken_over_without_tracing_again(x):
    model = trained(make_model()[0])
    old = Network(model)
    with torch.inference_mode():
        before = old(x)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    new = Network(model)
    assert new.rest is old.rest and Network(model, precision="bfloat16").rest is not old.rest
    with torch.inference_mode():
        right = model.eval()(x)
        assert (new(x) - right).abs().max() < 1e-5 * right.abs().max()
        assert (before - right).abs().max() > 0.1 * right.abs().max()


def test_a_model_that_nobody_holds_is_let_go():
    model = make_model()[0]
    Network(model)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


class Counting(nn.Module):
    calls = 0

    def forward(self, x):
        Counting.calls += 1
        return x


class Branches(nn.Module):
    """Two convolutions before the dropout, one of them beside it."""

    def __init__(self):
        super().__init__()
        self.before, self.beside, self.after = Counting(), nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x):
        y = self.beside(self.before(x))
        return self.after(self.dropout(y) + y)


def test_what_no_dropout_reaches_is_computed_once_a_batch(x, monkeypatch):
    monkeypatch.setattr(torch.fx.Tracer, "is_leaf_module", lambda self, module, path: not isinstance(module, Branches))
    model, _ = make_ready(Branches(), (0.0,) * 3, (1.0,) * 3, CPU)
    network, keys = Network(model), pass_keys(PLACE, "score", "ab", 6)
    with torch.inference_mode():
        list(network.passes(x, keys))  # which tries out what can be folded
        for _ in range(2):
            Counting.calls = 0
            ours = torch.stack(list(network.passes(x, keys)))
            assert Counting.calls == 1
        torch.testing.assert_close(ours, torch.stack(list(module_by_module(model, x, keys))))


class Untraceable(Branches):
    def forward(self, x):
        return super().forward(x) if float(x.sum()) > 0 else x[:, :2]


class Certain(nn.Module):
    def forward(self, x):
        return x[:, :2] * 2


@pytest.mark.parametrize("make", [Untraceable, Certain])
def test_a_model_that_cannot_be_traced_or_has_no_dropout_is_run_all_the_same(x, make):
    torch.manual_seed(0)
    model, _ = make_ready(make(), (0.0,) * 3, (1.0,) * 3, CPU)
    assert (plan(model, False, "float32", CPU) is None) == (make is Untraceable)
    keys = pass_keys(PLACE, "score", "ab", 3)
    with torch.inference_mode():
        ours = torch.stack(list(Network(model).passes(x, keys)))
    torch.testing.assert_close(ours, torch.stack(list(module_by_module(model, x, keys))))
    assert (ours.std(0).max() > 0) == (make is Untraceable)


@pytest.mark.parametrize(("chunk", "rows"), [(1, [2] * 7), (3, [6, 6, 2]), (7, [14]), (50, [14]), (0, [14])])
def test_passes_of_one_step_are_those_of_many(x, chunk, rows):
    model = trained(make_model()[0])
    network, keys, seen = Network(model, mc_chunk=chunk), pass_keys(PLACE, "score", "ab", 7), []
    rest = network.rest
    network.rest = lambda *known: seen.append(len(known[0])) or rest(*known)
    with torch.inference_mode():
        ours = torch.stack(list(network.passes(x, keys)))
    theirs = torch.stack(list(module_by_module(model, x, keys)))
    assert seen == rows and theirs.std(0).max() > 0.1
    assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max()


def test_what_bfloat16_rounds_is_no_reason_to_give_a_graph_up(x):
    """With logits near zero, where it rounds by more than a tenth of the largest."""
    model = trained(make_model()[0])
    with torch.inference_mode():
        model.head.bias -= model.eval()(x[:1]).mean((0, 2, 3))
        model.head.weight *= 1e-3
        model.head.bias *= 1e-3
    network, keys = Network(model, precision="bfloat16"), pass_keys(PLACE, "score", "ab", 2)
    with torch.inference_mode():
        list(network.passes(x, keys))
    assert network.plans[network.settings]


def test_balanced_passes_follow_one_another(x):
    model = trained(make_model()[0])
    network, seen = Network(model, mc_chunk=5), []
    rest = network.rest
    network.rest = lambda *known: seen.append(len(known[0])) or rest(*known)
    with torch.inference_mode():
        assert len(list(network.passes(x, pass_keys(PLACE, "score", "ab", 4), balanced=True))) == 4
    assert seen == [2] * 4


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # torch's own
def test_compiled_passes_are_those_of_the_model_itself(x):
    """With a small network, for compiling the U-Net takes minutes."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Dropout(0.2), nn.ReLU(), nn.Conv2d(4, 2, 1))
    model, _ = make_ready(plain, (0.0,) * 3, (1.0,) * 3, CPU)
    keys = pass_keys(PLACE, "score", "ab", 4)
    with torch.inference_mode():
        ours = torch.stack(list(Network(model, compiled=True).passes(x, keys)))
        balanced = torch.stack(list(Network(model, compiled=True).passes(x, keys, balanced=True)))
        expected = torch.stack(list(Network(model).passes(x, keys, balanced=True)))
    torch.testing.assert_close(ours, torch.stack(list(module_by_module(model, x, keys))), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(balanced, expected, atol=1e-5, rtol=1e-5)
    more = pass_keys(PLACE, "score", "ab", 12)
    with torch.inference_mode(), torch.compiler.set_stance("fail_on_recompile"):  # as it once did for each pass
        assert len(list(Network(model, compiled=True).passes(x, more, balanced=True))) == 12
    assert ours.std(0).max() > 0 and balanced.std(0).max() > 0
    with torch.inference_mode():
        model[0].weight.mul_(2)
        again = torch.stack(list(Network(model, compiled=True).passes(x, keys)))
        torch.testing.assert_close(again, torch.stack(list(module_by_module(model, x, keys))), atol=1e-5, rtol=1e-5)
    assert (again - ours).abs().max() > 0.1


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.parametrize("side", [3, 6, 9])
def test_compiled_masks_are_those_of_the_module_at_any_size(side):
    """Loops of torch.compile once ran past the end of their memory, or gave other masks."""
    keys = dropout.Keys()
    keys.now = pass_keys(PLACE, "score", "ab", 1)[0]
    first, second = (dropout.KeyedDropout(0.1, keys, layer) for layer in (4, 6))
    x = torch.randn(2, 32, side, side, generator=torch.Generator().manual_seed(7))

    def both(x):
        return first(x) + second(2 * x)

    with torch.inference_mode():
        torch.testing.assert_close(torch.compile(both)(x), both(x))


class Counted(Branches):
    """What follows the dropout needs to know how many rows there were before it."""

    def forward(self, x):
        y = self.beside(x)
        rows = y.shape[0]
        return self.after(self.dropout(y).reshape(rows, 4, *x.shape[2:]))


def test_passes_are_not_folded_where_the_rest_takes_other_than_rows(x):
    model, _ = make_ready(Counted(), (0.0,) * 3, (1.0,) * 3, CPU)
    keys = pass_keys(PLACE, "score", "ab", 5)
    with torch.inference_mode():
        ours = torch.stack(list(Network(model).passes(x, keys)))
    torch.testing.assert_close(ours, torch.stack(list(module_by_module(model, x, keys))))
    assert ours.std(0).max() > 0


def test_the_models_normalisation_is_not_lost(x):
    plain = make_model()[1]
    model, _ = make_ready(copy.deepcopy(plain), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), CPU)
    shift, scale = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4)))
    with torch.inference_mode():
        expected = plain((x - shift) / scale)
        torch.testing.assert_close(Network(model)(x), expected, atol=1e-4, rtol=1e-4)


def test_a_pass_that_fails_leaves_no_dropout_on(x):
    model = make_model()[0]
    passes = Network(model).passes(x, pass_keys(PLACE, "score", "ab", 3), balanced=True)
    with torch.inference_mode():
        next(passes)
    passes.close()
    assert (model.dropout_keys.now, model.dropout_keys.shift, model.dropout_keys.bits) == (None, None, None)


def test_the_winner_is_argmax():
    p = torch.randn(3, 5, 9, 8, generator=torch.Generator().manual_seed(1)).round()  # with many ties
    assert torch.equal(winner(p), p.argmax(1)) and (p == p.amax(1, keepdim=True)).sum() > p[:, 0].numel()


def beyond_memory():
    """What torch's allocator on a CPU really raises."""
    return torch.empty(2**50)


def beyond_a_gpu():
    raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize("fail", [beyond_memory, beyond_a_gpu])
@pytest.mark.parametrize("room", [1, 2, 4])
def test_a_batch_that_does_not_fit_is_halved_until_it_does(room, fail):
    model, ids = make_model()[0], ["a", "b", "c", "d", "e"]
    images = torch.randint(256, (5, 24, 20, 3), dtype=torch.uint8)
    keys, network, sizes = pass_keys(PLACE, "score", ids, 3), Network(model), []
    whole, rest = predict(network, images, ids, keys, needs=("last",)), network.rest

    def cramped(*known):
        sizes.append(len(known[0]))
        if sizes[-1] > room:
            fail()
        return rest(*known)

    network.rest = cramped
    parts = predict(network, images, ids, keys, needs=("last",))
    assert sizes[0] == 15 and max(size for size in sizes if size <= room) == min(room, 3) and parts.ids == ids
    for ours, theirs in zip(parts[1:], whole[1:], strict=True):
        same = ours == theirs if not isinstance(ours, torch.Tensor) else None
        assert same or torch.allclose(ours.float(), theirs.float(), atol=1e-5)


@pytest.mark.parametrize("fail", [beyond_memory, beyond_a_gpu])
def test_an_image_that_does_not_fit_alone_is_refused(monkeypatch, fail):
    monkeypatch.setattr(Network, "passes", lambda *args, **how: fail())
    with pytest.raises(Refused, match="One image of 20 x 24 does not fit on cpu"):
        predict(make_model()[0], torch.zeros(2, 24, 20, 3, dtype=torch.uint8), ["a", "b"])


@pytest.mark.parametrize("chunk", [0, 1])
def test_one_more_pass_without_dropout_takes_what_was_computed_for_the_others(chunk):
    """The same bits as alone, and the part before the first dropout is run once for both."""
    images, keys = torch.randint(256, (2, 40, 36, 3), dtype=torch.uint8), pass_keys(PLACE, "test", "ab", 3)
    network = Network(trained(make_model()[0]), mc_chunk=chunk)
    expected, alone = predict(network, images, "ab", keys), predict(network, images, "ab")
    ran, prefix = [], network.prefix
    network.prefix = lambda x: ran.append(len(x)) or prefix(x)
    network.prefix.by_image = prefix.by_image
    both = predict(network, images, "ab", keys, needs=("without",))
    assert ran == [2] and torch.equal(both.without, alone.mean) and not torch.equal(both.mean, both.without)
    for name in ("mean", "second_moment", "votes", "expected_entropy"):
        assert torch.equal(getattr(both, name), getattr(expected, name))
    assert network.keys.now is None


def test_means_alone_are_the_same_means():
    images, keys = torch.randint(256, (2, 40, 36, 3), dtype=torch.uint8), pass_keys(PLACE, "test", "ab", 3)
    network = Network(make_model()[0])
    whole, means = (
        predict(network, images, "ab", keys, ("mean_logits",), means_alone=alone) for alone in (False, True)
    )
    assert torch.equal(whole.mean, means.mean) and torch.equal(whole.mean_logits, means.mean_logits)
    assert means.second_moment is means.votes is means.expected_entropy is None


# ---- balanced masks


@pytest.mark.parametrize(("p", "passes"), [(0.1, 10), (0.1, 20), (0.25, 8), (0.5, 4)])
def test_balanced_masks_drop_every_unit_equally_often(p, passes):
    like = torch.empty(2, 8, 25, 25)
    bits = dropout.lanes(pass_keys(PLACE, "score", "ab", 1)[0], 0, like)
    masks = torch.stack([dropout.keep(bits, p, dropout.turn(k / passes, CPU), torch.float32) for k in range(passes)])
    dropped = (masks == 0).sum(0)
    exact = dropped == round(p * passes)
    assert exact.double().mean() > 0.999  # all but those that the rounding of p and of k / K to 1/65536 shifts by one
    assert (dropped - p * passes).abs().max() <= 1 + 1e-9
    rates = (masks == 0).double().mean((1, 2, 3, 4))
    assert (rates - p).abs().max() < 4 * (p * (1 - p) / like.numel()) ** 0.5
    assert masks.unique().tolist() == pytest.approx([0, 1 / (1 - p)])


def test_balanced_masks_of_neighbours_are_independent():
    bits = dropout.lanes(pass_keys(PLACE, "score", "a", 1)[0], 0, torch.empty(1, 16, 64, 64))
    dropped = (dropout.keep(bits, 0.25, dropout.turn(0.3, CPU), torch.float32) == 0).double()
    for axis in (1, 2, 3):
        a, b = dropped.narrow(axis, 0, dropped.shape[axis] - 1), dropped.narrow(axis, 1, dropped.shape[axis] - 1)
        z = (a * b - 1 / 16).mean() * a.numel() ** 0.5 / (1 / 16 * 15 / 16) ** 0.5
        assert abs(z) < 4.5


def test_balanced_passes_estimate_the_mean_with_less_noise():
    """Against 400 independent passes, eight balanced ones are nearer than eight independent ones."""
    model, images = make_model(p=0.125)[0], torch.randint(256, (1, 40, 36, 3), dtype=torch.uint8)
    network, errors = Network(model), {True: [], False: []}
    many = predict(network, images, "a", pass_keys(PLACE, "many", "a", 400)).mean
    for trial in range(12):
        keys = pass_keys(PLACE, f"trial {trial}", "a", 8)
        for balanced, error in errors.items():
            error.append((predict(network, images, "a", keys, balanced=balanced).mean - many).square().mean().item())
    assert np.mean(errors[True]) < 0.8 * np.mean(errors[False])


def test_balanced_scores_do_not_depend_on_the_batch():
    store = make_store([(40, 36)] * 5)
    model = make_model()[0]
    one, four = (selection.score(bald, make_pool(store, model, batch=n, masks="balanced"), None) for n in (1, 4))
    np.testing.assert_allclose(one, four, atol=1e-6)
    assert not np.allclose(one, selection.score(bald, make_pool(store, model), None), atol=1e-6)


def test_bfloat16_scores_are_those_of_float32_up_to_its_rounding():
    store, model = make_store([(40, 36)] * 12), make_model()[0]
    full, half = (selection.score(bald, make_pool(store, model, precision=p), None) for p in ("float32", "bfloat16"))
    assert not np.array_equal(full, half)
    np.testing.assert_allclose(half, full, rtol=0.1)
    assert np.corrcoef(full, half)[0, 1] > 0.95


# ---- the race


def test_a_race_picks_what_all_passes_would_where_the_leaders_are_clear():
    store, model = make_store([(24, 20)] * 30), make_model()[0]
    pool = make_pool(store, model, mc_iters=16, race=True)
    picked, scores = selection.select(expected_entropy, top, pool, 3, None)
    full, all_scores = selection.select(expected_entropy, top, make_pool(store, model, mc_iters=16), 3, None)
    assert picked == full
    raced = pool.passes == 16
    assert raced.sum() == 12 and (pool.passes[~raced] == 4).all()
    np.testing.assert_allclose(scores[raced], all_scores[raced], atol=1e-6)
    assert not np.allclose(scores[~raced], all_scores[~raced], atol=1e-6)


def test_a_race_is_refused_where_it_means_nothing():
    chosen = SimpleNamespace(__name__="heuristics.chosen", select=lambda pool, n, rng: [])
    for heuristic, batch in ((chosen, top), (bald, stochastic)):
        with pytest.raises(Refused, match="prediction.race"):
            selection.check(heuristic, batch, "mean", race=True)
    selection.check(bald, top, "mean", race=True)


def test_corrected_bald_is_bald_times_k_over_k_minus_1():
    model = make_model()[0]
    images = torch.randint(256, (1, 40, 36, 3), dtype=torch.uint8)
    seen = predict(model, images, "a", pass_keys(PLACE, "score", "a", 5))
    torch.testing.assert_close(bald.uncertainty(seen, corrected=True), bald.uncertainty(seen) * 5 / 4)
    once = predict(model, images, "a")
    assert bald.uncertainty(once, corrected=True).abs().max() < 1e-5 and entropy.uncertainty(once).max() > 0.1


# ---- evaluation


def test_evaluation_sees_each_batch_once_for_both_kinds_of_passes(monkeypatch):
    """Its metrics of the averaged passes and of the single one are those of predictions made apart."""
    model, store = trained(make_model()[0]), make_store([(24, 20)] * 3 + [(20, 24)] * 2)
    for i in range(5):
        store.mask(i).random_(2)
    asked, real = [], Network.passes
    monkeypatch.setattr(Network, "passes", lambda self, *args, **how: asked.append(1) or real(self, *args, **how))
    settings = {"dropout": True, "batch": 0, "distances": False, "spacing": [1.0, 1.0], "original_size": False}
    evaluate = evaluation.evaluate.__wrapped__
    scalars, _, bins = evaluate(model, store, PLACE, 2, passes=3, **settings)
    assert len(asked) == len(list(store.batches(range(5), 0)))
    single, _, alone = evaluate(model, store, PLACE, 2, passes=3, **settings | {"dropout": False})
    assert {f"deterministic_{name}": value for name, value in single.items()}.items() <= scalars.items()
    assert bins["deterministic_bins"] == alone["bins"] != bins["bins"]
