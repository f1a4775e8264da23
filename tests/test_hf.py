"""Transformers' networks, tiny and from local folders: nothing is fetched."""

import os
import subprocess
import sys
from hashlib import sha256

import pytest
import torch
from conftest import ROOT
from test_model import build, check_layers, check_passes, check_training, given

from experiments.errors import Refused
from models import hf

pytestmark = pytest.mark.usefixtures("single_thread")
SIZES = {
    "segformer": {"depths": [1, 1, 1, 1], "hidden_sizes": [16, 32, 64, 128], "decoder_hidden_size": 32},
    "mobilenet_v2": {"depth_multiplier": 0.35, "output_stride": 16},
    "upernet": {
        "backbone_config": {
            "model_type": "convnext",
            "depths": [1, 1, 1, 1],
            "hidden_sizes": [16, 32, 64, 128],
            "out_indices": [1, 2, 3, 4],
        },
        "hidden_size": 32,
        "auxiliary_in_channels": 64,
        "auxiliary_channels": 16,
    },
    "dpt": {
        "hidden_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "backbone_out_indices": [0, 1, 2, 3],
        "neck_hidden_sizes": [16, 32, 48, 48],
        "fusion_hidden_size": 32,
        "image_size": 64,
    },
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """{family: a folder with the config of a tiny network}."""
    from transformers import CONFIG_MAPPING

    root = tmp_path_factory.mktemp("hf")
    for family, sizes in SIZES.items():
        CONFIG_MAPPING[family](**sizes).save_pretrained(root / family)
    return {family: str(root / family) for family in SIZES}


@pytest.fixture(scope="module")
def saved(folders, tmp_path_factory):
    """A folder with a tiny SegFormer that tells cats from dogs in seven words."""
    from transformers import AutoConfig, SegformerForImageClassification

    folder = tmp_path_factory.mktemp("mit-tiny")
    config = AutoConfig.from_pretrained(folders["segformer"])
    config.num_labels = 7
    net = SegformerForImageClassification(config)
    net.save_pretrained(folder)
    return folder, net.segformer.state_dict()


@pytest.mark.parametrize("family", SIZES)
def test_a_family_from_a_config_alone(folders, family):
    settings = {"weights": folders[family]}
    model, module = build("hf", **settings)
    for size in ((128, 128), (97, 131)):
        check_layers(model, module.LAYERS, size)
    check_passes(model)
    check_training(lambda: build("hf", **settings)[0])
    outputs = model.train()(torch.rand(2, 3, 64, 64))
    assert [weight for weight, _ in outputs] == [1.0, 0.4] if family in ("upernet", "dpt") else outputs.shape[1] == 2
    assert build("hf", auxiliary=0, **settings)[0].train()(torch.rand(2, 3, 64, 64)).shape == (2, 2, 64, 64)
    encoder, *_ = model.groups()
    named = {id(p) for p in encoder["params"]}
    heads = [path for path, p in model.named_parameters() if id(p) not in named]
    assert named and heads and all(path.startswith(("classifier", "auxiliary", "trunk.net.")) for path in heads)


def test_stochastic_depth_is_drawn_by_keys(folders):
    settings = {"weights": folders["segformer"], "drop_path": 0.5, "p": 0}
    check_passes(build("hf", **settings)[0])
    check_training(lambda: build("hf", **settings)[0])


def test_the_encoders_weights_of_a_classifier_are_taken_over_and_the_head_is_drawn(saved, capsys):
    folder, encoder = saved
    model, _ = build("hf", weights=str(folder))
    own = model.trunk.encoder().state_dict()
    assert own.keys() == encoder.keys() and all(torch.equal(own[key], value) for key, value in encoder.items())
    digest = sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert model.pretrained == {f"{folder.name}/model.safetensors": digest}
    assert "tensors of the head are not in" in capsys.readouterr().out
    assert given(hf.has, hf, weights=str(folder)) == ("features", "pretrained")


def test_what_a_network_that_is_drawn_has(folders):
    assert given(hf.has, hf) == ("features",) == given(hf.has, hf, weights=folders["dpt"])


def test_normalisation_follows_family_and_folder(folders, saved):
    assert build("hf", weights=folders["dpt"])[0].mean == (0.5,) * 3 and build("hf")[0].std == hf.STD
    (saved[0] / "preprocessor_config.json").write_text('{"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 1, 1]}')
    model = given(hf.build, hf, weights=str(saved[0]), channels=3, classes=2)
    assert list(model.mean) == [0.1, 0.2, 0.3]
    assert given(hf.build, hf, channels=1, classes=2).mean == (sum(hf.MEAN) / 3,)


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"weights": "no/such-model"}, "hf.weights=no/such-model cannot be read"),
        ({"weights": "SAVED", "channels": 4}, r"do not fit: segformer.*\(16, 3, 7, 7\), not \(16, 4, 7, 7\)"),
        ({"weights": "TORN"}, "cannot be read"),
        ({"weights": "BERT"}, "are of a bert: there are segformer"),
    ],
)
def test_weights_that_cannot_be_had_or_do_not_fit_are_refused_in_one_line(saved, tmp_path, settings, said):
    for file in saved[0].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes()[:-1000] if file.suffix != ".json" else file.read_bytes())
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
    places = {"SAVED": str(saved[0]), "TORN": str(tmp_path), "BERT": str(tmp_path / "bert")}
    settings = {"channels": 3, **settings, "weights": places.get(settings["weights"], settings["weights"])}
    with pytest.raises(Refused, match=said) as refused:
        given(hf.build, hf, classes=2, **settings)
    assert "\n" not in str(refused.value)


def test_a_folder_that_is_no_model_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(Refused, match="has no config.json"):
        hf.check(weights=str(tmp_path))


def test_published_sizes():
    sizes = {name: sum(p.numel() for p in build("hf", network=name)[0].parameters()) for name in list(hf.CONFIGS)[:3]}
    assert sizes == {"segformer_b0": 3_714_658, "segformer_b1": 13_677_762, "segformer_b2": 27_348_162}


@pytest.mark.parametrize(
    "model, package, raised",
    [
        ("hf", "transformers", "ImportError"),
        ("smp", "segmentation_models_pytorch", "ImportError"),
        ("smp", "segmentation_models_pytorch", "RuntimeError"),  # a torchvision that does not go with this torch
    ],
)
def test_without_a_models_extra_one_line_says_what_to_install(tmp_path, model, package, raised):
    """The run is refused and nothing is written."""
    stand_in, here = tmp_path / "packages", tmp_path / "here"
    stand_in.mkdir(), here.mkdir()
    (stand_in / f"{package}.py").write_text(f"raise {raised}('operator torchvision::nms does not exist')")
    line = [sys.executable, "-W", "ignore", str(ROOT / "active.py"), "with", "smoke", f"model={model}"]
    environment = os.environ | {"PYTHONPATH": str(stand_in)}
    done = subprocess.run(line, cwd=here, capture_output=True, text=True, env=environment)
    assert done.returncode == 1 and not list(here.iterdir()) and "Traceback" not in done.stderr
    extra = f"pip install -r requirements-{model}.txt"
    (said,) = [text for text in done.stderr.splitlines() if extra in text]
    assert said.startswith(f"model={model} ") and "operator torchvision::nms does not exist" in said
