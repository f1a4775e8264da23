"""Every file in models/ runs, repeats and resumes at any size of image; the U-Net is the published one."""

import csv
import inspect
import shutil
from contextlib import suppress

import numpy as np
import pytest
import torch
from conftest import SMALL, events, ledger_bytes, settings
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from experiments.acquisition.prediction import pass_keys
from experiments.components import configure, defaults, load, names
from experiments.errors import Refused
from experiments.network import checkpoint, ready
from experiments.network.dropout import KeyedDropout, patch
from experiments.network.inference import Network
from experiments.network.layers import layer_outputs
from models import modunet, unet

pytestmark = pytest.mark.usefixtures("single_thread")
CPU, PLACE, SITES = torch.device("cpu"), (0, "drawn", 1), 11


def count(model, kind):
    return sum(isinstance(module, kind) for module in model.modules())


@pytest.fixture(scope="module")
def published():
    return unet.UNet(3, 2, 16, 0.1)


def test_width_16_is_the_published_network(published):
    assert sum(p.numel() for p in published.parameters()) == 14_154_706


def test_there_are_eleven_dropout_sites_of_the_given_probability(published):
    assert [m.p for m in published.modules() if isinstance(m, nn.Dropout)] == [0.1] * SITES


def test_modunet_is_the_published_network():
    model = modunet.ModUNet(3, 2)
    assert sum(p.numel() for p in model.parameters()) == 6_822_594
    assert [m.p for m in model.modules() if isinstance(m, nn.Dropout)] == [0.5] * 6
    shapes = {}
    for path in modunet.LAYERS["encoder"] + modunet.LAYERS["scales"]:
        layer = model.get_submodule(path)
        layer.register_forward_hook(lambda m, i, out, path=path: shapes.__setitem__(path, tuple(out.shape[1:])))
    with torch.inference_mode():
        assert model.eval()(torch.rand(1, 3, 50, 43)).shape == (1, 2, 50, 43)
    assert list(shapes.values()) == [
        (64, 50, 43), (128, 25, 21), (256, 12, 10), (512, 6, 5), (256, 12, 10), (128, 25, 21), (64, 50, 43)
    ]  # fmt: skip


def test_build_passes_every_setting_on():
    model = unet.build(channels=1, classes=3, width=2, p=0.25)
    assert model(torch.rand(2, 1, 64, 64)).shape == (2, 3, 64, 64)
    assert {m.p for m in model.modules() if isinstance(m, nn.Dropout)} == {0.25}
    assert model.first[0].out_channels == 2


@pytest.mark.parametrize("size", [(97, 131), (33, 40), (64, 64), (32, 1), (1, 1)])
def test_any_size_in_is_the_same_size_out(size):
    model = unet.UNet(3, 2, 2, 0.1).eval()
    with torch.inference_mode():
        logits = model(torch.rand(2, 3, *size))
    assert logits.shape == (2, 2, *size)
    assert logits.isfinite().all()


def test_every_layer_that_is_named_for_heuristics_exists(published):
    paths = []
    for value in unet.LAYERS.values():
        paths += [value] if isinstance(value, str) else value
    assert paths
    for path in paths:
        assert any(True for _ in published.get_submodule(path).parameters()), path  # raises if there is none


def test_the_bottleneck_is_the_deepest_layer_and_the_decoder_the_last_at_full_size(published):
    shapes = {}
    for name in ("bottleneck", "decoder"):
        layer = published.get_submodule(unet.LAYERS[name])
        layer.register_forward_hook(lambda m, i, out, name=name: shapes.__setitem__(name, tuple(out.shape)))
    with torch.inference_mode():
        published.eval()(torch.rand(1, 3, 64, 64))
    assert shapes == {"bottleneck": (1, 512, 2, 2), "decoder": (1, 16, 64, 64)}


def test_patching_makes_every_site_keyed_and_numbers_them():
    model = unet.UNet(3, 2, 2, 0.1)
    keys = patch(model)
    sites = [m for m in model.modules() if isinstance(m, KeyedDropout)]
    assert count(model, nn.Dropout) == 0 and len(sites) == SITES
    assert sorted(site.layer for site in sites) == list(range(SITES))
    assert all(site.keys is keys for site in sites)
    assert {site.p for site in sites} == {round(0.1 * 65536) / 65536}


def test_every_site_takes_part_in_a_stochastic_pass():
    """Dropout at one site alone, whichever it is, changes the answer, and no dropout gives the plain one."""
    torch.manual_seed(0)
    model = unet.UNet(3, 2, 2, 0.5).eval()
    keys = patch(model)
    sites = [m for m in model.modules() if isinstance(m, KeyedDropout)]
    x = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        plain = model(x)
        keys.now = torch.tensor([12345])
        for alone in sites:
            for site in sites:
                site.p = 0.5 if site is alone else 0
            assert not torch.equal(model(x), plain), alone.layer
        keys.now = None
        assert torch.equal(model(x), plain)


def test_patching_keeps_the_weights_names():
    """A checkpoint of the unpatched network loads into the patched one."""
    model, other = unet.UNet(3, 2, 2, 0.1), unet.UNet(3, 2, 2, 0.1)
    patch(model)
    model.load_state_dict(other.state_dict())


# ---- every model


NAMED = {"frozen": {"lite": {"weights": "none", "width": 4}}}  # settings of what a model names


def given(function, module, **more):
    """What a component's captured function gives for the file's own settings, and for `more`."""
    for section, own in NAMED.get(module.ingredient.path, {}).items():
        configure(load("model", section), {section: own})
    wanted = inspect.signature(function).parameters
    settings = defaults(module.ingredient) | more
    return function(**{name: value for name, value in settings.items() if name in wanted})


def usable():
    """The models whose packages are here."""
    found = []
    for name in names("model"):
        module = load("model", name)
        with suppress(Refused):
            if hasattr(module, "check"):
                given(module.check, module)
            found.append(name)
    return found


MODELS = usable()


def build(name, **settings):
    """A model as a run has it, from a fixed seed, and its file."""
    torch.manual_seed(0)
    module = load("model", name)
    model = given(module.build, module, channels=3, classes=2, **settings)
    return ready.make_ready(model, module.MEAN, module.STD, CPU)[0], module


def images(n=2, size=(97, 131)):
    return torch.rand(n, 3, *size, generator=torch.Generator().manual_seed(4))


def check_layers(model, layers, size):
    """Logits of that size, and maps of every layer."""
    for layer, paths in layers.items():
        with torch.inference_mode(), layer_outputs(model.eval(), paths) as maps:
            logits = model(images(size=size))
            assert all(made.dim() == 4 and len(made) == 2 and made.isfinite().all() for made in maps()), layer
    assert logits.shape == (2, 2, *size) and logits.isfinite().all() and logits.std() > 0


def check_passes(model):
    """Passes differ; folded, cut at the first dropout and in any batch they are those of the model itself."""
    x, keys = images(3), pass_keys(PLACE, "score", "abc", 3)
    network = Network(model, mc_chunk=2)
    with torch.inference_mode():
        passes = torch.stack(list(network.passes(x, keys)))
        alone = torch.stack(list(Network(model).passes(x[1:2], keys[:, 1:2])))
        plain, scale = model.eval()(x), passes.std()
        model.dropout_keys.now = keys[2]
        itself = model(x)
        model.dropout_keys.now = None
        assert torch.equal(model(x), plain)
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert (passes[one] - passes[other]).std() > 1e-3 * scale
    torch.testing.assert_close(network(x), plain, atol=1e-3 * scale, rtol=1e-3)
    torch.testing.assert_close(passes[:, 1:2], alone, atol=1e-3 * scale, rtol=1e-3)
    torch.testing.assert_close(passes[2], itself, atol=1e-3 * scale, rtol=1e-3)


def check_training(make):
    """What trains gets a gradient and nothing else does; no random number is drawn but by keys."""
    grads = []
    for model in (make(), make()):
        before = torch.get_rng_state()
        ready.train(model)
        model.dropout_keys.now = pass_keys(PLACE, "train", "ab", 1)[0]
        outputs = model(images(size=(64, 64)))
        outputs = outputs if isinstance(outputs, list) else [(1.0, outputs)]
        sum(weight * logits.square().mean() for weight, logits in outputs).backward()
        assert torch.equal(torch.get_rng_state(), before)
        assert not [path for path, p in model.named_parameters() if p.requires_grad == (p.grad is None)]
        grads.append([p.grad for p in model.parameters() if p.grad is not None])
    assert grads[0] and all(map(torch.equal, *grads))


@pytest.mark.parametrize("size", [(128, 128), (97, 131)])
@pytest.mark.parametrize("name", MODELS)
def test_a_model_answers_at_the_size_of_its_input_and_its_layers_are_maps(name, size):
    model, module = build(name)
    check_layers(model, module.LAYERS, size)


@pytest.mark.parametrize("name", MODELS)
def test_passes_differ_and_depend_on_image_and_pass_alone(name):
    check_passes(build(name)[0])


@pytest.mark.parametrize("name", MODELS)
def test_what_trains_gets_a_gradient_and_nothing_is_drawn_by_itself(name):
    check_training(lambda: build(name)[0])


@pytest.mark.parametrize("name", MODELS)
def test_a_checkpoint_brings_the_model_back(name, tmp_path):
    model, _ = build(name)
    with torch.no_grad():
        for p in checkpoint.kept(model).values():
            p.add_(0.01) if p.is_floating_point() else None
    save_file({path: p.contiguous() for path, p in checkpoint.kept(model).items()}, tmp_path / "weights.safetensors")
    other, _ = build(name)
    with torch.inference_mode():
        expected, before = model.eval()(images()), other.eval()(images())
        checkpoint.load(other, load_file(tmp_path / "weights.safetensors"))
        assert torch.equal(other(images()), expected) and not torch.equal(before, expected)


@pytest.fixture(scope="session")
def sized(tmp_path_factory, phantom_root):
    """sized(height, width): as phantom_root, every image and mask cut or mirrored to this size."""
    made = {}

    def sized(height, width):
        if (height, width) not in made:
            root = made[height, width] = tmp_path_factory.mktemp(f"Phantom_{height}_{width}")
            shutil.copytree(phantom_root, root, dirs_exist_ok=True)
            for path in root.rglob("*.bmp"):
                pixels = np.array(Image.open(path))
                more = [(0, max(0, wanted - side)) for wanted, side in zip((height, width), pixels.shape, strict=False)]
                pixels = np.pad(pixels, more + [(0, 0)] * (pixels.ndim - 2), mode="reflect")[:height, :width]
                Image.fromarray(pixels).save(path)
        return made[height, width]

    return sized


@pytest.fixture
def small(experiment, tmp_path, sized):
    """small(model, size, **settings): the smoke run of a small model on images of this size; where its results lie."""

    def run(model, size, to="results", **more):
        try:
            asked = settings(sized(*size), tmp_path / to, model=model, **SMALL.get(model, {}), **more)
            experiment.run(config_updates=asked, named_configs=["smoke"])
        except Refused as refused:
            if "pip install" not in str(refused):
                raise
            pytest.skip(str(refused))
        return tmp_path / to

    return run


@pytest.mark.parametrize("model", names("model"))
def test_a_models_passes_differ_and_a_killed_run_ends_as_one_that_was_not(small, tmp_path, model):
    """Cut after its first test, without a checkpoint, it trains the cycle again, to ask the same and go on alike."""
    results = small(model, (128, 128), heuristic="bald")
    whole, folder = ledger_bytes(results), results / "bald_0"
    with open(folder / "queries" / "cycle_000.csv") as file:
        scores = [float(row["score"]) for row in csv.DictReader(file)]
    assert min(scores) > 0 and len(set(scores)) == len(scores) > 10
    shutil.copytree(results, tmp_path / "killed")
    shutil.rmtree(tmp_path / "killed" / "bald_0" / "checkpoint")
    cut = b"".join(whole.splitlines(keepends=True)[:2])
    (tmp_path / "killed" / "bald_0" / "ledger.jsonl").write_bytes(cut)
    assert ledger_bytes(small(model, (128, 128), to="killed", heuristic="bald")) == whole
    first, second = (e["weights"] for e in events(results) if e["event"] == "evaluated")
    assert first != second


@pytest.mark.parametrize("model", names("model"))
def test_a_models_features_choose_among_images_of_odd_sizes(small, model):
    results = small(model, (97, 131), heuristic="coreset")
    asked = [query["id"] for e in events(results, "coreset") if "queries" in e for query in e["queries"]]
    assert len(set(asked)) == 4
