"""The U-Net has its published size, steerable dropout sites, and answers at the size of its input."""

import pytest
import torch
from torch import nn

from experiments.network.dropout import KeyedDropout, patch
from models import unet

pytestmark = pytest.mark.usefixtures("single_thread")
SITES = 11


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
