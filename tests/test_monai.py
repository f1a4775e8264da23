"""MONAI's networks: each answers at any size, draws by keys, trains; widths and packages that they need."""

import pytest
import torch
from test_model import build, check_layers, check_passes, check_training, given

from experiments.errors import Refused
from models import monai

pytestmark = pytest.mark.usefixtures("single_thread")
STRIDES = {  # of the three levels of the encoder and of what the head reads
    "UNet": [4, 8, 16, 2],
    "AttentionUnet": [4, 8, 16, 1],
    "BasicUNet": [4, 8, 16, 1],
    "SegResNet": [2, 4, 8, 1],
    "DynUNet": [4, 8, 16, 1],
    "FlexibleUNet": [8, 16, 32, 1],
    "SwinUNETR": [4, 8, 32, 1],
}


@pytest.mark.parametrize("network", monai.NETWORKS)
def test_a_network_answers_draws_and_trains(network):
    width = 12 if network == "SwinUNETR" else 8
    model, module = build("monai", network=network, width=width)
    check_layers(model, module.LAYERS, (97, 131))
    check_passes(model)
    check_training(lambda: build("monai", network=network, width=width)[0])
    seen = []
    hooks = [tap.register_forward_hook(lambda m, i, out: seen.append(128 // out.shape[-2])) for tap in model.taps]
    with torch.inference_mode():
        model.eval()(torch.rand(1, 3, 128, 96))
    assert seen == STRIDES[network] and len(hooks) == 4


def test_a_width_that_a_network_cannot_have_and_a_missing_package_are_refused(monkeypatch):
    with pytest.raises(Refused, match="monai.width=16 suits no SwinUNETR: it takes a multiple of 12"):
        given(monai.check, monai, network="SwinUNETR")
    given(monai.check, monai, network="SwinUNETR", width=12)
    monkeypatch.setattr(monai, "find_spec", lambda name: None)
    with pytest.raises(Refused, match="SwinUNETR needs einops: pip install einops"):
        given(monai.check, monai, network="SwinUNETR", width=12)
