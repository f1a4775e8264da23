"""SAM2 with LoRA: which thirds move, what trains, one encoding for all views and passes, the published forward."""

import json
from hashlib import sha256

import numpy as np
import pytest
import torch
from conftest import events, ledger_bytes
from safetensors.torch import load_file
from test_model import build, check_layers, given, images
from torch.nn import functional

from experiments.acquisition.prediction import pass_keys
from experiments.errors import Refused
from experiments.network import checkpoint
from experiments.network.inference import Network
from experiments.network.ready import train
from experiments.records.ledger import Ledger
from models import sam2_lora

pytestmark = pytest.mark.usefixtures("single_thread")


@pytest.fixture
def adapted():
    """A model whose LoRA is not 0, as after training."""
    model, _ = build("sam2_lora")
    with torch.no_grad():
        for layer in loras(model):
            for b in layer.b:
                b.normal_(0, 0.05, generator=torch.Generator().manual_seed(1))
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny SAM2 in a folder, as save_pretrained writes it; published ones have equal positional matrices, too."""
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("sam2-trial")
    base = sam2_lora.drawn(*sam2_lora.SIZES["trial"])
    base.prompt_encoder.shared_embedding.load_state_dict(base.shared_image_embedding.state_dict())
    base.save_pretrained(folder)
    return folder


def loras(model):
    return [module for module in model.modules() if isinstance(module, sam2_lora.Lora)]


def test_each_part_of_lora_moves_its_third_in_every_block():
    """Also where a stage begins and the layer puts out queries of twice the width."""
    model, _ = build("sam2_lora")
    layers = loras(model)
    assert len(layers) == 8 and sum(layer.fused.out_features == 6 * layer.fused.in_features for layer in layers) == 3
    for layer in layers:
        width = layer.fused.out_features // 3
        x = torch.rand(2, 5, layer.fused.in_features)
        with torch.no_grad():
            plain = layer.fused(x)
            assert torch.equal(layer(x), plain)
            for part, third in ((0, 0), (1, 2)):
                layer.b[part].fill_(1.0)
                moved = (layer(x) - plain).abs().view(2, 5, 3, width)
                layer.b[part].zero_()
                assert moved[:, :, third].min() > 0 and moved[:, :, [k for k in range(3) if k != third]].max() == 0


def test_all_of_lora_trains_and_nothing_of_the_frozen_encoder(adapted):
    train(adapted)
    sum(weight * logits.square().mean() for weight, logits in adapted(images(size=(64, 64)))).backward()
    assert all(p.grad.abs().max() > 0 for layer in loras(adapted) for p in [*layer.a, *layer.b])
    trained = {name for name, p in adapted.named_parameters() if p.grad is not None}
    assert trained == {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert not any(name.startswith("embed.") for name in trained if ".qkv.a." not in name and ".qkv.b." not in name)
    assert {name.split(".")[0] for name in trained} == {"embed", "decoders"}


def test_merged_and_unmerged_agree_by_the_size_of_the_logits(adapted):
    x = images(size=(96, 64))
    with torch.inference_mode():
        logits = adapted.eval()(x)
        for block in adapted.embed.encoder.backbone.blocks:
            block.attn.qkv, kept = block.attn.qkv.merged(), block.attn.qkv
            block.kept = kept
        merged = adapted(x)
        for block in adapted.embed.encoder.backbone.blocks:
            block.attn.qkv = block.kept.fused
        without = adapted(x)
    size = logits.abs().max()
    assert (merged - logits).abs().max() < 1e-4 * size < (without - logits).abs().max()


def test_training_parts_the_decoders():
    model, _ = build("sam2_lora")
    train(model)
    x, pairs = images(size=(64, 64)), {}
    for p in (0.1, 0.0):
        for drop in model.drops:
            drop.p = p
        model.dropout_keys.now = pass_keys((0, "drawn", 1), "train", "ab", 1)[0]
        (_, one), (_, other) = model(x)
        pairs[p] = torch.equal(one, other)
    assert pairs == {0.1: False, 0.0: True}


def test_a_checkpoint_holds_no_frozen_weight(adapted):
    kept = checkpoint.kept(adapted)
    trainable = [p for p in adapted.parameters() if p.requires_grad]
    buffers = sum(b.numel() for b in adapted.buffers())
    assert sum(value.numel() for value in kept.values()) <= sum(p.numel() for p in trainable) + buffers
    assert not any(".fused." in name or ".mlp." in name and "backbone" in name for name in kept)


def test_three_views_and_all_passes_take_one_encoding(adapted):
    with torch.no_grad():
        adapted.decoders[1].mask.mask_tokens.weight.mul_(-1)  # as after training, when they differ
    network, encoded = Network(adapted), []
    adapted.embed.register_forward_hook(lambda module, inputs, maps: encoded.append(len(inputs[0])))
    x, keys = images(), pass_keys((0, "drawn", 1), "score", "ab", 5)
    with torch.inference_mode():
        list(network.passes(x, keys))
        encoded.clear()
        views = network.prompted(x)
        assert encoded == [2]
        passes = torch.stack(list(network.passes(x, keys)))
        assert encoded == [2, 2] and passes.std(0).max() > 0
        assert torch.allclose(views[0], adapted(x), atol=1e-3 * views[0].std())
    assert [view.shape for view in views] == [(2, 2, 97, 131)] * 3
    apart = [(views[a] - views[b]).abs().max() for a, b in ((0, 1), (0, 2), (1, 2))]
    assert min(apart) > 1e-3 * views[0].std()


def test_the_forward_is_that_of_transformers_with_and_without_points(folder):
    """Whose own takes square images of one size alone."""
    from transformers import Sam2Model

    base = Sam2Model.from_pretrained(folder).eval()
    ours = sam2_lora.Sam2Lora(Sam2Model.from_pretrained(folder), classes=3).eval()
    x = torch.rand(1, 3, 1024, 1024, generator=torch.Generator().manual_seed(0))
    spots, labels = torch.tensor([[[100.0, 40.0], [700.0, 900.0]]]), torch.tensor([[1, 0]])
    with torch.inference_mode():
        maps = ours.encode(x)
        for given_points in ({}, {"input_points": spots[:, None], "input_labels": labels[:, None]}):
            theirs = base(pixel_values=x, multimask_output=True, **given_points).pred_masks[:, 0]
            more = (spots, labels) if given_points else ()
            logits = ours.decoders[1](*maps, *more)
            theirs = functional.interpolate(theirs, scale_factor=4.0, mode="bilinear")
            torch.testing.assert_close(logits, theirs, atol=1e-4 * float(theirs.std()), rtol=1e-4)


def test_points_lie_deepest_in_the_largest_part_of_each_class():
    mask = np.zeros((40, 60), dtype=int)
    mask[5:16, 10:21] = 1  # 11 x 11, deepest at its centre
    mask[30:33, 40:43] = 1
    logits = torch.nn.functional.one_hot(torch.tensor(mask), 3).permute(2, 0, 1)[None].float()
    spots, labels = sam2_lora.points(logits)
    assert spots[0, 1].tolist() == [4 * 15 + 1.5, 4 * 10 + 1.5] and labels.tolist() == [[0, 1, 0]]
    assert torch.equal(spots[0, 2], spots[0, 0])  # the third class is nowhere
    assert mask[int(spots[0, 0, 1]) // 4, int(spots[0, 0, 0]) // 4] == 0


def test_weights_of_a_folder(folder):
    model, module = build("sam2_lora", weights=str(folder))
    known, own = load_file(folder / "model.safetensors"), model.state_dict()
    fused = {name: value for name, value in own.items() if ".qkv.fused." in name}
    assert len(fused) == 16
    for name, value in fused.items():
        assert torch.equal(value, known[name.replace("embed.encoder.", "vision_encoder.").replace(".fused", "")])
    for decoder in model.decoders:
        assert torch.equal(decoder.mask.mask_tokens.weight, known["mask_decoder.mask_tokens.weight"][:3])
        assert torch.equal(decoder.mask.conv_s0.weight, known["mask_decoder.conv_s0.weight"])
    assert sha256((folder / "model.safetensors").read_bytes()).hexdigest() in model.pretrained.values()
    check_layers(model, module.LAYERS, (128, 128))
    assert given(sam2_lora.has, sam2_lora, weights=str(folder)) == sam2_lora.HAS
    assert "pretrained" not in given(sam2_lora.has, sam2_lora)


@pytest.mark.parametrize("say", ["channels", "absent", "config alone"])
def test_what_cannot_be_is_refused(folder, tmp_path, say):
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    settings, said = {
        "channels": ({"channels": 1}, "takes images of 3 channels"),
        "absent": ({"weights": "no/such-sam"}, "sam2_lora.weights=no/such-sam cannot be read"),
        "config alone": ({"weights": str(tmp_path)}, "has no model.safetensors"),
    }[say]
    with pytest.raises(Refused, match=said):
        given(sam2_lora.build, sam2_lora, **({"channels": 3, "classes": 2} | settings))


def test_a_cold_start_by_mask_discrepancy_that_was_stopped_ends_bit_identical(smoke, folder, tmp_path, monkeypatch):
    """The pretrained model chooses the first images; training goes on from the last cycle's weights, from a file."""
    settings = {
        "model": "sam2_lora",
        "sam2_lora.weights": str(folder),
        "heuristic": "mask_discrepancy",
        "mask_discrepancy.source": "prompts",
        "mask_discrepancy.threshold": 0.5,
        "initial": "none",
        "trainer.warm_start": True,
        "trainer.replay": False,
        "trainer.loss": "dice8_ce2",
        "trainer.optimizer": "adamw",
        "trainer.clip": 1.0,
        "cycles": 2,
        "pool_size": 6,
    }
    smoke(**settings)
    start, first, *_ = found = events(tmp_path / "results", "mask_discrepancy")
    assert start["queries"] == [] and first["images"] == 0 and "pretrained" in json.dumps(start)
    scores = [q["score"] for e in found if e["event"] == "queried" for q in e["queries"]]
    assert len(scores) == 4 and all(0 < score < 1 for score in scores)
    append = Ledger.append

    def stopped(book, event, *args, **values):
        made = append(book, event, *args, **values)
        if event == "evaluated" and made["cycle"] == 1:
            raise KeyboardInterrupt
        return made

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Ledger, "append", stopped)
        smoke(to="stopped", **settings)
    saved = list((tmp_path / "stopped" / "mask_discrepancy_0" / "checkpoint").glob("*.safetensors"))
    assert saved and not any(".fused." in name for file in saved for name in load_file(file))
    smoke(to="stopped", **settings)
    assert ledger_bytes(tmp_path / "stopped", "mask_discrepancy") == ledger_bytes(
        tmp_path / "results", "mask_discrepancy"
    )


def test_prompts_of_a_model_without_any_are_refused(smoke):
    with pytest.raises(Refused, match="needs views of an image under several prompts.*model=sam2_lora has them"):
        smoke(heuristic="mask_discrepancy", **{"mask_discrepancy.source": "prompts"})
