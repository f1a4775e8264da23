"""Networks other than ours: whatever dropout they have is keyed, whatever size they need they get."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from experiments.acquisition import trial
from experiments.acquisition.prediction import pass_keys
from experiments.errors import Refused
from experiments.network import checkpoint
from experiments.network.dropout import patch, sites
from experiments.network.inference import Network
from experiments.network.layers import layer_outputs
from experiments.network.ready import make_ready, train
from experiments.records.compare import refuse_other_origin

pytestmark = pytest.mark.usefixtures("single_thread")
CPU = torch.device("cpu")
PLACE = (0, "drawn", 1)
PLAIN = (0.0,) * 3, (1.0,) * 3


class DropPath(nn.Module):
    """Stochastic depth as timm, transformers and monai write it: from torch's own generator."""

    def __init__(self, drop_prob):
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x):
        keep = 1 - self.drop_prob
        return x * torch.bernoulli(x.new_full((len(x),) + (1,) * (x.dim() - 1), keep)) / keep if self.training else x


def ready(model):
    return make_ready(model, *PLAIN, CPU)[0]


def images(n=2, size=(24, 20), seed=4):
    return torch.rand(n, 3, *size, generator=torch.Generator().manual_seed(seed))


def keys(ids="ab", passes=1):
    return pass_keys(PLACE, "score", ids, passes)


def dropped(module, x, now):
    """Where a module in training mode puts 0 for ones of the shape of x, with keys or without (None)."""
    model = nn.Sequential(module)
    steering = patch(model)
    steering.now = now
    return model.train()(torch.ones_like(x))


KINDS = {"channels": (nn.Dropout2d(0.5), (2, 3)), "rows": (DropPath(0.5), (1, 2, 3))}


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_of_channels_and_of_rows_is_drawn_by_image_and_pass(kind):
    module, together = KINDS[kind]
    x, now = torch.zeros(64, 64, 5, 4), torch.arange(64) * 7919
    mask = dropped(module, x, now)
    assert set(mask.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(mask.amax(together), mask.amin(together))  # all of a channel, or of a row, or nothing
    kept = (mask.amax(together) > 0).double()
    assert abs(kept.mean() - 0.5) < 4 * (0.25 / kept.numel()) ** 0.5
    assert torch.equal(mask.flip(0), dropped(module, x, now.flip(0)))
    assert torch.equal(dropped(module, x[:9], now[:9]), mask[:9])
    assert not torch.equal(dropped(module, x, now + 2**40), mask)
    assert torch.equal(dropped(module, x, None), torch.ones_like(x))


def test_rows_that_are_parts_of_images_are_dropped_by_image():
    """Window attention: 6 rows an image, or an odd number of elements."""
    x, now = torch.zeros(5 * 6, 7, 3), torch.arange(5) * 7919
    mask = dropped(nn.Dropout(0.5), x, now).view(5, 6, 7, 3)
    assert abs((mask > 0).double().mean() - 0.5) < 4 * (0.25 / mask.numel()) ** 0.5
    alone = dropped(nn.Dropout(0.5), x[:12], now[[3, 1]]).view(2, 6, 7, 3)
    assert torch.equal(alone, mask[[3, 1]])
    assert len({tuple(part.flatten().tolist()) for part in mask.flatten(0, 1)}) == 30  # no two rows alike
    with pytest.raises(Refused, match=r"\(30, 7, 3\), and the batch has 4 images"):
        dropped(nn.Dropout(0.5), x, now[:4])


def test_every_name_of_a_dropout_is_patched_and_p_0_is_none():
    class Aliased(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.off = nn.Dropout(0.5), nn.Dropout(0.0)
            self.second, self.inner = self.first, nn.Sequential(nn.Dropout2d(0.25))
            self.again = self.inner

        def forward(self, x):
            return self.first(x), self.second(x), self.inner(x)

    model = Aliased().train()
    steering = patch(model)
    assert [(site.p, site.axes) for site in sites(model)] == [(0.5, 0), (0.5, 0), (0.25, 2)]
    assert type(model.off) is nn.Dropout and model.again is model.inner
    x = torch.ones(2, 4, 8, 8)
    before = torch.get_rng_state()
    steering.now = keys()[0]
    first, second, inner = model(x)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(first, second) and (first == 0).any() and (second == 0).any() and (inner > 1).any()


def test_balanced_masks_of_a_dropout_that_is_called_with_two_shapes():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.drop, self.head = nn.Dropout(0.5), nn.Conv2d(3, 2, 1)

        def forward(self, x):
            return self.head(F.interpolate(self.drop(F.avg_pool2d(x, 2)), size=x.shape[-2:]) + self.drop(x))

    network = Network(ready(Twice()))
    with torch.inference_mode():
        passes = torch.stack(list(network.passes(images(), keys(passes=4), balanced=True)))
    assert passes.std(0).max() > 0


class Strided(nn.Module):
    """Answers at the size of its input only where that is a multiple of 8."""

    multiple = 8
    mean, std = (0.5, 0.25, 0.0), (0.5, 1.0, 2.0)

    def __init__(self):
        super().__init__()
        self.down, self.drop = nn.Conv2d(3, 8, 8, stride=8), nn.Dropout(0.5)
        self.up = nn.ConvTranspose2d(8, 2, 8, stride=8)

    def forward(self, x):
        return self.up(self.drop(self.down(x)))


@pytest.mark.parametrize("size", [(97, 131), (1, 1), (16, 24)])
def test_images_are_grown_to_the_models_multiple_and_its_answer_cropped(size):
    torch.manual_seed(0)
    plain = Strided().eval()
    model, x, now = ready(Strided()), images(size=size), keys(passes=3)
    checkpoint.load(model, plain.state_dict())
    height, width = size
    shift, scale = (torch.tensor(v).view(1, 3, 1, 1) for v in (Strided.mean, Strided.std))
    larger = F.pad((x - shift) / scale, (0, -width % 8, 0, -height % 8), mode="replicate")
    with torch.inference_mode():
        right = plain(larger)[..., :height, :width]
        assert right.shape == (2, 2, *size)
        for answer in (model.eval()(x), Network(model)(x)):
            torch.testing.assert_close(answer, right, atol=1e-5, rtol=1e-5)
        passes = torch.stack(list(Network(model).passes(x, now)))
        for k, steering in enumerate(now):
            model.dropout_keys.now = steering
            torch.testing.assert_close(passes[k], model(x), atol=1e-5, rtol=1e-5)
    assert passes.shape == (3, 2, 2, *size) and passes.std(0).max() > 0


class HalfFrozen(nn.Module):
    """A frozen part with a batch norm, and a module and a weight under two names."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).requires_grad_(False)
        self.body, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.tied = nn.Conv2d(4, 4, 1)
        self.tied.weight, self.net, self.head = self.body.weight, self.body, nn.Conv2d(4, 2, 1)

    def forward(self, x):
        return self.head(self.tied(self.norm(self.net(self.encoder(x)))))


def test_a_checkpoint_holds_what_training_changes_once(tmp_path):
    from safetensors.torch import load_file, save_file

    torch.manual_seed(0)
    model, first = make_ready(HalfFrozen(), *PLAIN, CPU)
    moments = {f"{part}.{name}" for part in ("encoder.1", "norm") for name in ("running_mean", "running_var")}
    moments |= {"encoder.1.num_batches_tracked", "norm.num_batches_tracked"}
    trained = {f"{part}.{name}" for part in ("body", "norm", "head") for name in ("weight", "bias")} | {"tied.bias"}
    assert first.keys() == trained | moments
    save_file(checkpoint.kept(model), tmp_path / "weights.safetensors")
    other = HalfFrozen()
    other.encoder.load_state_dict(model.encoder.state_dict())
    checkpoint.load(other, load_file(tmp_path / "weights.safetensors"))
    with torch.inference_mode():
        torch.testing.assert_close(other.eval()(images()), model.eval()(images()))


def test_a_ledger_knows_frozen_and_pretrained_weights_by_their_hashes(tmp_path):
    model = HalfFrozen()
    assert checkpoint.origin(nn.Conv2d(3, 2, 1)) == {}
    (key,) = began = checkpoint.origin(model)
    assert key == "frozen" and len(began[key]) == 64
    with torch.no_grad():
        model.head.weight.add_(1)
        assert checkpoint.origin(model) == began
        model.encoder[0].bias[0] += 1e-3
    model.pretrained = {"weights.pth": "ab" * 32}
    now = checkpoint.origin(model)
    assert now["frozen"] != began["frozen"] and now["pretrained"] == {"weights.pth": "ab" * 32}
    refuse_other_origin(tmp_path, {"queries": []} | now, now)
    refuse_other_origin(tmp_path, {"queries": []}, {})
    with pytest.raises(
        Refused, match="began with other weights .frozen .*, pretrained.weights.pth None -> abababab.: put"
    ):
        refuse_other_origin(tmp_path, {"queries": []} | began, now)


def test_a_frozen_batch_norm_keeps_its_statistics():
    model = ready(HalfFrozen())
    train(model)
    model(images())
    assert model.encoder[1].num_batches_tracked == 0 and model.norm.num_batches_tracked == 1
    assert model.training and model.norm.training


def test_weights_of_another_network_are_refused_by_their_first_differences():
    model = HalfFrozen()
    state = checkpoint.kept(model)
    state["head.weight"], state["neck.weight"] = torch.zeros(3, 4, 1, 1), torch.zeros(1)
    del state["body.weight"], state["tied.bias"]
    said = r"body.weight is missing, tied.bias is missing, neck.weight is unknown and 1 more"
    with pytest.raises(RuntimeError, match=said):
        checkpoint.load(model, state)
    state = checkpoint.kept(model) | {"head.weight": torch.zeros(3, 4, 1, 1)}
    with pytest.raises(RuntimeError, match=r"^head.weight is \(3, 4, 1, 1\), not \(2, 4, 1, 1\)$"):
        checkpoint.load(model, state)


class Nested(nn.Module):
    """An encoder that gives a list, a trunk that gives a dict with a list, and a layer of tokens."""

    def __init__(self):
        super().__init__()
        self.encoder, self.trunk, self.tokens, self.idle = (nn.Identity() for _ in range(4))
        self.head = nn.Conv2d(3, 2, 1)

    def forward(self, x):
        maps = self.encoder([x, F.avg_pool2d(x, 2)])
        self.trunk({"maps": (maps[1], 2 * maps[0]), "sizes": [3, 4]})
        self.tokens(x.flatten(2))
        return self.head(x)


def test_layers_that_put_out_lists_and_dicts_give_their_maps():
    model, x = Nested(), images()
    with layer_outputs(model, ["trunk", "encoder"]) as maps:
        model(x)
        half = F.avg_pool2d(x, 2)
        for found, right in zip(maps(), [half, 2 * x, x, half], strict=True):
            torch.testing.assert_close(found, right)
    for path, said in (("tokens", r"puts out no map \(B, D, h, w\) but \(2, 3, 480\)"), ("idle", "takes no part")):
        with pytest.raises(Refused, match=f"names {path}, which {said}"), layer_outputs(model, path) as maps:
            model(x)
            maps()


class Sized(nn.Module):
    """What crosses to the part behind the dropout: maps, windows of them, a size, a table of as many rows as images."""

    def __init__(self):
        super().__init__()
        self.body, self.table = nn.Conv2d(3, 4, 3, padding=1), nn.Parameter(torch.randn(2, 4, 1, 1))
        self.drop, self.head = nn.Dropout(0.5), nn.Conv2d(4, 2, 1)
        self.none, self.off = nn.Identity(), nn.Dropout(0.0)

    def forward(self, x):
        height, width = x.shape[-2:]
        y, table = self.off(self.body(self.none(x))), self.table.sigmoid()
        windows = y.view(-1, 1, 4, height, width)
        z = self.drop(F.conv2d(self.drop(y), table).repeat(1, 2, 1, 1)) + windows[:, 0]
        return F.interpolate(self.head(F.avg_pool2d(z, 2)), size=(height, width))


def test_only_what_is_of_an_image_is_repeated_for_folded_passes():
    torch.manual_seed(0)
    model, now = ready(Sized()), keys(passes=5)
    network, seen = Network(model), []
    rest = network.rest
    network.rest = lambda *known: seen.append([v.shape[0] if hasattr(v, "shape") else v for v in known]) or rest(*known)
    with torch.inference_mode():
        ours = torch.stack(list(network.passes(images(), now)))
        for k, steering in enumerate(now):
            model.dropout_keys.now = steering
            torch.testing.assert_close(ours[k], model(images()), atol=1e-5, rtol=1e-5)
    assert len(seen) == 1 and sorted(seen[0]) == [2, 10, 10, 20, 24] and ours.std(0).max() > 0


class Branching(nn.Module):
    """An encoder that torch.fx cannot look into, and gives a list; dropout behind it."""

    calls = 0

    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, padding=1)

        def forward(self, x):
            Branching.calls += 1
            y = self.conv(x) if float(x.detach().abs().sum()) >= 0 else x
            return [y, y.relu()]

    def __init__(self):
        super().__init__()
        self.encoder, self.drop, self.head = self.Encoder(), nn.Dropout(0.5), nn.Conv2d(4, 2, 1)

    def forward(self, x):
        maps = self.encoder(x)
        return self.head(self.drop(maps[0]) + maps[1])


def test_what_cannot_be_looked_into_is_taken_as_a_whole_and_still_computed_once():
    torch.manual_seed(0)
    model, now = ready(Branching()), keys(passes=5)
    network = Network(model)
    with torch.inference_mode():
        list(network.passes(images(), now))
        Branching.calls = 0
        ours = torch.stack(list(network.passes(images(), now)))
        assert Branching.calls == 1
        for k, steering in enumerate(now):
            model.dropout_keys.now = steering
            torch.testing.assert_close(ours[k], model(images()), atol=1e-5, rtol=1e-5)
    assert ours.std(0).max() > 0


class Wandering(Branching):
    """As it, with the branch where the dropout is, and one that torch draws itself."""

    def forward(self, x):
        y = super().forward(F.dropout(x, 0.5, self.training))
        return y if float(y.sum()) < 1e9 else -y


@pytest.mark.parametrize("kind", [Branching, Wandering])
def test_what_passes_cannot_share_or_leave_out_is_said(kind, capsys):
    file = SimpleNamespace(build=lambda channels, classes: kind(), MEAN=PLAIN[0], STD=PLAIN[1], __file__="models/x.py")
    splits = SimpleNamespace(classes=("background", "gland"), channels=3)
    assert trial.try_model(file, "x", splits, np.zeros((33, 40, 3), np.uint8), (16, 16))
    said = capsys.readouterr().out
    assert ("every stochastic pass computes the whole network" in said) == (kind is Wandering)
    assert ("draws by functions of its own" in said) == (kind is Wandering)


def test_a_network_that_torch_fx_follows_wrongly_is_run_as_it_is():
    """In an `if` a proxy is no tensor, as in MONAI's BasicUNet, and torch.fx says nothing."""

    class Asks(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.drop, self.head = nn.Conv2d(3, 8, 1), nn.Dropout(0.5), nn.Conv2d(8, 2, 1)

        def forward(self, x):
            known = self.drop(self.body(x))
            return self.head(torch.cat([known, x[:, :0]], 1).abs() if isinstance(known, torch.Tensor) else known)

    torch.manual_seed(0)
    model, now = ready(Asks()), keys(passes=2)
    with torch.inference_mode():
        passes = list(Network(model).passes(images(), now))
        for made, steering in zip(passes, now, strict=True):
            model.dropout_keys.now = steering
            torch.testing.assert_close(made, model(images()))
