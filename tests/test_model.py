"""Every file in models/ runs, repeats and resumes at any size of image; the U-Net is the published one."""

import csv
import shutil

import numpy as np
import pytest
import torch
from conftest import events, ledger_bytes, settings
from PIL import Image
from torch import nn

from experiments.components import names
from experiments.errors import Refused
from experiments.network.dropout import KeyedDropout, patch
from models import unet

pytestmark = pytest.mark.usefixtures("single_thread")
SITES = 11
SMALL = {  # settings of each model that make its tests cheap; none: as they are
    "lite": {"lite.width": 2},
    "unet": {},  # smoke has them
}


def count(model, kind):
    return sum(isinstance(module, kind) for module in model.modules())


@pytest.fixture(scope="module")
def published():
    return unet.UNet(3, 2, 16, 0.1)


def test_width_16_is_the_published_network(published):
    assert sum(p.numel() for p in published.parameters()) == 14_154_706


def test_there_are_eleven_dropout_sites_of_the_given_probability(published):
    assert [m.p for m in published.modules() if isinstance(m, nn.Dropout)] == [0.1] * SITES


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
