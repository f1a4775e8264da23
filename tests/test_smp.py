"""segmentation_models_pytorch for real: architectures, encoders, weights from files, by `make test-smp`."""

from hashlib import sha256
from importlib.util import find_spec

import pytest
import torch

if not find_spec("torchvision"):
    pytest.skip("no torchvision: make test-smp has an environment with it", allow_module_level=True)
import schemas  # noqa: F401  before torchvision
from safetensors.torch import save_file
from test_model import build, check_layers, check_passes, check_training, given

from experiments.errors import Refused
from models import smp

pytestmark = pytest.mark.usefixtures("single_thread")
MOBILE = [(name, "mobilenet_v2") for name in smp.ARCHITECTURES if name not in ("Segformer", "DeepLabV3")]
OTHERS = [
    ("Segformer", "mit_b0"),
    ("DeepLabV3", "resnet18"),
    ("Unet", "tu-tf_efficientnet_lite0"),
    ("FPN", "efficientnet-b0"),
]


@pytest.mark.parametrize("architecture, encoder", MOBILE + OTHERS)
def test_an_architecture_answers_draws_and_trains(architecture, encoder):
    settings = {"architecture": architecture, "encoder": encoder}
    model, module = build("smp", **settings)
    check_layers(model, module.LAYERS, (97, 131))
    check_passes(model)
    check_training(lambda: build("smp", **settings)[0])


def test_features_are_the_encoders_maps_at_their_strides():
    model, _ = build("smp")
    shapes = {}
    for name in ("features", "deepest", "decoded"):
        hook = lambda m, i, out, name=name: shapes.__setitem__(name, out)  # noqa: E731
        model.get_submodule(name).register_forward_hook(hook)
    model.eval()(torch.rand(1, 3, 128, 96))
    assert [tuple(made.shape[1:]) for made in shapes["features"]] == [
        (64, 64, 48), (64, 32, 24), (128, 16, 12), (256, 8, 6), (512, 4, 3)
    ]  # fmt: skip
    assert torch.equal(shapes["deepest"], shapes["features"][-1]) and shapes["decoded"].shape == (1, 16, 128, 96)


def test_al_segs_deeplab_with_its_auxiliary_head():
    """CRC-AL's: 128 channels on a ResNet-18, an FCN on the last but one map whose loss weighs .4."""
    settings = {"architecture": "DeepLabV3", "decoder_channels": 128, "auxiliary": 0.4, "p_features": 0.0}
    model, _ = build("smp", **settings)
    (one, logits), (weight, more) = model.train()(torch.rand(2, 3, 64, 96))
    assert (one, weight) == (1.0, 0.4) and logits.shape == more.shape == (2, 2, 64, 96)
    assert model.head[0].in_channels == 128 and model.eval()(torch.rand(1, 3, 64, 96)).shape == (1, 2, 64, 96)
    check_training(lambda: build("smp", **settings)[0])
    encoder, *_ = model.groups()
    assert sum(p.numel() for p in encoder["params"]) == 11_176_512


def test_parameters_that_no_logits_depend_on_are_frozen():
    model, _ = build("smp", architecture="PSPNet")
    frozen = {path.split(".")[1] for path, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"layer3", "layer4"}


@pytest.mark.parametrize("ending", [".safetensors", ".pth"])
def test_weights_of_an_encoder_from_a_file(tmp_path, ending):
    other = given(smp.build, smp, channels=3, classes=2).encoder
    file = tmp_path / f"encoder{ending}"
    state = {name: tensor.contiguous() for name, tensor in other.state_dict().items()}
    save_file(state, file) if ending == ".safetensors" else torch.save(state, file)
    model = given(smp.build, smp, channels=3, classes=2, weights=str(file))
    assert all(torch.equal(value, state[name]) for name, value in model.encoder.state_dict().items())
    assert model.pretrained == {f"resnet18 {file}": sha256(file.read_bytes()).hexdigest()}
    assert given(smp.has, smp, weights=str(file)) == smp.HAS and given(smp.has, smp) == ("features",)
    with pytest.raises(Refused, match="holds no weights of this encoder"):
        given(smp.build, smp, channels=3, classes=2, weights=str(file), encoder="resnet34")


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"encoder": "resnet17"}, "smp.encoder=resnet17 cannot be had.*Did you mean resnet1"),
        ({"weights": "imagenet"}, "smp.encoder=resnet18 cannot be had.*Name other weights, or none"),
        ({"weights": "absent.pth"}, "smp.weights=absent.pth holds no weights"),
    ],
)
def test_what_cannot_be_had_is_refused_in_one_line(settings, said):
    with pytest.raises(Refused, match=said) as refused:
        given(smp.build, smp, channels=3, classes=2, **settings)
    assert "\n" not in str(refused.value)


def test_channels_of_a_decoder_that_has_not_one_number():
    with pytest.raises(Refused, match="smp.decoder_channels is of FPN"):
        given(smp.check, smp, decoder_channels=64)


def test_normalisation_is_the_encoders():
    assert build("smp", encoder="tu-tf_efficientnet_lite0")[0].mean == (0.5,) * 3 and build("smp")[0].mean == smp.MEAN
