"""A frozen encoder's features, computed once of each image, are its own: whoever asks, and in whatever company."""

import shutil

import numpy as np
import pytest
import torch
from conftest import ROOT, events, own_file
from PIL import Image
from torch import nn

from experiments.acquisition.prediction import floats, pass_keys
from experiments.components import configure, load, names
from experiments.errors import Refused
from experiments.network import checkpoint, ready
from experiments.network.dropout import patch
from experiments.network.inference import Network
from experiments.network.layers import layer_outputs
from experiments.network.remembered import Remembered, keep_in
from experiments.store import Item, Split, Store
from experiments.training import solve
from models import frozen

pytestmark = pytest.mark.usefixtures("single_thread")
CPU, PLACE = torch.device("cpu"), (0, "drawn", 1)
SMALL = {"lite": {"weights": "none", "width": 4}, "modunet": {"width": 4}, "monai": {"width": 4}, "unet": {"width": 2}}
LITE = {"lite.weights": "none", "lite.width": 4}


def build(channels=3, **settings):
    """The model as a run has it, from a fixed seed."""
    torch.manual_seed(0)
    configure(frozen, SMALL | {"frozen": {"width": 8} | settings})
    return ready.make_ready(frozen.build(channels=channels, classes=2), frozen.MEAN, frozen.STD, CPU)[0].eval()


def images(n=3, size=(97, 131), channels=3, seed=4):
    """(n, channels, *size) uint8 as a Store has them, channels last."""
    drawn = torch.Generator().manual_seed(seed)
    small = torch.randint(0, 256, (n, channels, 13, 17), generator=drawn).float()
    return nn.functional.interpolate(small, size=size, mode="bilinear").round().byte().permute(0, 2, 3, 1)


def remember(net):
    return Remembered(net, load("model", "lite").LAYERS["encoder"], 3, [0.5], [0.5], 32, memory=1)


def counted(model):
    """A list that grows by one with each image that the encoder looks at."""
    seen = []
    model.encoder.net.encoder.stem.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    return seen


LIVE = '''"""The network of frozen as any model: its encoder in float32 at every step, nothing kept."""

from sacred import Ingredient
from torch import nn

from experiments.components import load
from models.frozen import LAYERS, MEAN, STD, Light

ingredient = Ingredient("zz_live")
NAMES, HAS = {"encoder": "model"}, ("features",)


@ingredient.config
def settings():
    encoder = "lite"


@ingredient.capture
def build(channels, classes, encoder):
    net = load("model", encoder).build(channels=channels, classes=classes)
    return Light(EndToEnd(net.encoder.requires_grad_(False)), classes, 0.1, 8)


class EndToEnd(nn.Module):
    strides, widths = (2, 4, 8, 16, 32), (16, 24, 40, 112, 320)

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        height, width = x.shape[-2:]
        x = nn.functional.pad((x - 0.5) / 0.5, (0, -width % 32, 0, -height % 32), mode="replicate")
        maps = self.net(x)
        return [maps[i][..., : -(-height // k), : -(-width // k)] for i, k in enumerate(self.strides)]
'''


def test_logits_are_those_of_the_network_run_end_to_end():
    with own_file(ROOT / "models" / "zz_live.py", LIVE):
        live = load("model", "zz_live")
    model, x = build(), floats(images())
    nn.init.normal_(model.head.weight, std=0.5)
    keys = pass_keys(PLACE, "score", "abc", 4)
    with torch.inference_mode():
        ours, plain = torch.stack(list(Network(model).passes(x, keys))), Network(model)(x)
        assert len(model.encoder.kept) == 3 and {m.dtype for m in model.encoder.kept.popitem()[1]} == {torch.float16}
        model.encoder = live.EndToEnd(model.encoder.net.encoder)
        theirs = torch.stack(list(Network(model).passes(x, keys)))
        torch.testing.assert_close(plain, model(x), atol=1e-3, rtol=0)
    assert theirs.std() > 0.1 and (theirs[0] - theirs[1]).abs().max() > 0.1
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=0)


@pytest.fixture(scope="module")
def square(tmp_path_factory, phantom_root):
    """As phantom_root, of every image and mask the upper left 96 x 96 pixels."""
    root = tmp_path_factory.mktemp("Square")
    shutil.copytree(phantom_root, root, dirs_exist_ok=True)
    for path in root.rglob("*.bmp"):
        Image.fromarray(np.array(Image.open(path))[:96, :96]).save(path)
    return root


def test_a_run_asks_for_what_the_network_run_end_to_end_asks_for(smoke, square, tmp_path, capsys):
    """Beside an encoder that is frozen but looks anew at each crop, the whole image, whose colours stay as they are."""
    smoke(root=square, model="frozen", **LITE, **{"frozen.width": 8, "trainer.epochs": 3})
    said = "frozen keeps features of whole images: no crops, and of augment only flip and rotate."
    assert said in capsys.readouterr().out
    plain = {f"augment.{name}": 0.0 for name in ("brightness", "contrast", "saturation", "hue")}
    with own_file(ROOT / "models" / "zz_live.py", LIVE):
        smoke(root=square, to="live", model="zz_live", **LITE, **plain, **{"trainer.epochs": 3, "phantom.crop": 0})
    ours, theirs = (events(tmp_path / to) for to in ("results", "live"))
    print(ours[1]["metrics"], theirs[1]["metrics"])
    print(ours[2]["queries"], theirs[2]["queries"])
    for one, other in zip(ours, theirs, strict=True):
        asked = [[query["id"] for query in event.get("queries", [])] for event in (one, other)]
        assert asked[0] == asked[1]
        assert one.get("metrics", {}) == pytest.approx(other.get("metrics", {}), abs=2e-3)


def test_an_image_is_looked_at_once_and_has_the_same_features_in_any_company():
    model, pictures = build(), images()
    seen = counted(model)
    with torch.inference_mode():
        together = model(floats(pictures))
    assert seen == [1, 1, 1]
    assert torch.equal(model(floats(pictures[1:2])), model(floats(pictures[[1]])))
    model(floats(pictures[[2, 0]])).sum().backward()  # what was kept in inference mode trains as well
    assert seen == [1, 1, 1]
    again = build()
    for alone, among in zip(again.encoder(floats(pictures[[1]])), model.encoder(floats(pictures)), strict=True):
        assert torch.equal(alone, among[1:2])
    torch.testing.assert_close(again(floats(pictures)), together)
    model(floats(pictures.flip(2)))
    assert sum(seen) == len(model.encoder.kept) == 6
    noisy = floats(pictures) + 0.01 * torch.randn(pictures.permute(0, 3, 1, 2).shape)
    model(noisy)
    assert sum(seen) == 9 and len(model.encoder.kept) == 6


def test_nothing_is_kept_beyond_the_memory(capsys):
    model = build()
    model.encoder.memory = 1
    seen = counted(model)
    for _ in range(2):
        model(floats(images()))
    assert len(model.encoder.kept) == 1 and len(seen) == 5
    said = "1 images' features fill the memory for them: others are computed anew; to keep all, set cache_dir.\n"
    assert capsys.readouterr().out == said


def test_members_of_an_ensemble_keep_the_features_of_one_encoder_together():
    pair = nn.ModuleList([build(), build()])
    keep_in("", pair, CPU)
    for model in pair:
        model(floats(images()))
    assert pair[0].encoder.kept is pair[1].encoder.kept and len(pair[0].encoder.kept) == 3


def test_the_encoder_draws_nothing_under_any_name_of_its_dropout():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.convolve, self.drop = nn.Conv2d(3, 4, 1), nn.Dropout(0.5)
            self.again, self.seen = self.drop, nn.Identity()

        def forward(self, x):
            return self.seen(self.again(self.drop(self.convolve(x))))

    encoder = Remembered(Twice(), ["seen"], 3, [0.5], [0.5], 1, memory=1)
    keys = patch(nn.Sequential(encoder))
    x = floats(images(1))
    plain = encoder.compute(x)[0]
    keys.now = torch.tensor([1])
    assert torch.equal(encoder.compute(x)[0], plain)


def test_the_head_alone_is_trained_and_saved():
    model = build()
    assert not [name for name in checkpoint.kept(model) if name.startswith("encoder")]
    assert checkpoint.origin(model)["frozen"] == checkpoint.origin(build())["frozen"]
    before = {name: tensor.clone() for name, tensor in model.encoder.net.state_dict().items()}
    moments = [b.clone() for b in model.encoder.net.buffers()]
    ready.train(model)
    model(floats(images())).square().mean().backward()
    assert {name.partition(".")[0] for name, p in model.named_parameters() if p.grad is not None} == {
        *("narrow", "body", "head")
    }
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.encoder.net.state_dict().items())
    assert all(map(torch.equal, model.encoder.net.buffers(), moments))


def test_features_are_found_again_in_a_folder_by_weights_and_image(tmp_path, capsys):
    model, pictures = build(), images()
    keep_in(tmp_path, model, CPU)
    logits = model(floats(pictures))
    (folder,), again = tmp_path.iterdir(), build()
    assert len([*folder.iterdir()]) == 3
    keep_in(tmp_path, again, CPU)
    seen = counted(again)
    assert torch.equal(again(floats(pictures)), logits) and not seen
    damaged, *_ = sorted(folder.iterdir())
    for content in (b"", b"nonsense", damaged.read_bytes()[:-1] + b"\1"):
        damaged.write_bytes(content)
        again.encoder.kept.clear()
        assert torch.equal(again(floats(pictures)), logits) and len(seen) == 1
        seen.clear()
    other = build()
    with torch.no_grad():
        other.encoder.net.encoder.stem[1].weight[0, 0, 0, 0] += 1e-3
    assert remember(other.encoder.net.requires_grad_()).identity != model.encoder.identity
    assert capsys.readouterr().out == ""
    blocked = tmp_path / "file"
    blocked.write_text("")
    alone = build()
    keep_in(blocked, alone, CPU)
    assert torch.equal(alone(floats(pictures)), logits)
    assert f"Features cannot be kept in {blocked}/features-" in capsys.readouterr().out


def test_what_the_decoder_was_drawn_as_is_no_part_of_the_weights():
    torch.manual_seed(1)
    configure(frozen, {"lite": {"weights": "none", "width": 8}})
    lite = load("model", "lite")
    one, other = (lite.build(channels=3, classes=2) for _ in range(2))
    other.encoder.load_state_dict(one.encoder.state_dict())
    assert remember(one).identity == remember(other).identity


OTHERS = sorted(set(names("model")) - {"frozen"})


@pytest.mark.parametrize("encoder", OTHERS)
def test_any_models_encoder_serves_with_the_maps_that_it_gives_itself(encoder):
    sections = SMALL | {"frozen": {"encoder": encoder, "width": 4}}
    file = load("model", encoder)
    configure(frozen, sections)
    try:
        file.check() if hasattr(file, "check") else None
        torch.manual_seed(0)
        model = ready.make_ready(frozen.build(channels=3, classes=2), frozen.MEAN, frozen.STD, CPU)[0].eval()
        torch.manual_seed(0)
        itself = ready.make_ready(file.build(channels=3, classes=2), file.MEAN, file.STD, CPU)[0].eval()
    except Refused as refused:
        pytest.skip(str(refused))
    x = floats(images(1, (64, 96)))
    with torch.no_grad(), layer_outputs(itself, file.LAYERS["encoder"]) as maps:
        itself(x)
        for ours, theirs in zip(model.encoder.compute(x), maps(), strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    for paths in frozen.LAYERS.values():
        with torch.no_grad(), layer_outputs(model, paths) as maps:
            assert model(floats(images(1, (33, 45)))).shape == (1, 2, 33, 45)
            assert all(len(made) == 1 for made in maps())


def test_a_grey_image_of_five_pixels_is_an_image():
    assert build(channels=1)(floats(images(1, (5, 1), 1))).shape == (1, 2, 5, 1)


def linear(**settings):
    model = build(head="linear", **settings)
    with torch.no_grad():
        for weight in model.narrow.parameters():
            weight.normal_()
    return model


def test_the_linear_heads_passes_differ_and_its_shares_are_those_of_maps_grown_before():
    model, x = linear(p=0.5), floats(images())
    network, maps = Network(model), model.features(x)
    with torch.inference_mode():
        passes = torch.stack(list(network.passes(x, pass_keys(PLACE, "score", "abc", 3))))
        assert passes.std(0).max() > 0.1
        torch.testing.assert_close(network(x), model(x), atol=1e-4, rtol=1e-4)
        joined = torch.cat(model.beside([norm(m) for norm, m in zip(model.norms, maps, strict=True)]), 1)
        weights = torch.cat([narrow.weight for narrow in model.narrow], 1)
        torch.testing.assert_close(
            model.coarse(maps), nn.functional.conv2d(joined, weights, model.narrow[0].bias), atol=1e-4, rtol=1e-4
        )


def test_the_linear_head_is_the_logistic_regression_of_its_features(drawn_store):
    """Against scikit-learn, whose one vector of weights for two classes is penalised half as much, on whole cells."""
    from sklearn.linear_model import LogisticRegression

    model = linear()
    (strength,) = solve.solutions(model, drawn_store, [0, 1], [0.01])
    x = torch.cat([floats(drawn_store.image(i)[None]) for i in (0, 1)])
    with torch.no_grad():
        parts = model.beside([norm(m) for norm, m in zip(model.norms, model.features(x), strict=True)])
        rows = torch.cat(parts, 1).movedim(1, -1).flatten(0, 2)
        ours = model.coarse(model.features(x)).softmax(1)[:, 1].flatten()
    cells = torch.stack([drawn_store.mask(i)[::4, ::4] for i in (0, 1)]).flatten()
    exact = LogisticRegression(C=2 / (0.01 * len(rows)), max_iter=1000, tol=1e-6).fit(rows, cells)
    assert (ours - torch.from_numpy(exact.predict_proba(rows)[:, 1])).abs().max() < 0.02
    assert 0.05 < ours.std()


@pytest.fixture
def drawn_store():
    """Four images of 64 x 64 whose bright cells of 4 x 4 pixels are class 1."""
    cells = np.random.default_rng(0).integers(0, 2, (4, 16, 16), dtype=np.uint8)
    masks = cells.repeat(4, 1).repeat(4, 2)
    noise = np.random.default_rng(1).integers(0, 90, (4, 64, 64, 3), dtype=np.uint8)
    pictures = noise + 120 * masks[..., None]
    items = [Item(str(i), i, i) for i in range(4)]
    store = Store(Split(items, lambda i: pictures[i], lambda i: masks[i]), CPU, classes=("background", "cell"))
    store.label(range(4))
    return store


@pytest.mark.parametrize("choose", ["validation", "labelled"])
def test_held_out_images_choose_the_penalty_and_the_ledger_says_so(smoke, square, tmp_path, choose):
    smoke(root=square, model="frozen", **LITE, **{"frozen.head": "linear", "frozen.choose": choose})
    tested = [e for e in events(tmp_path / "results") if e["event"] == "evaluated"]
    by = {
        "validation": ["5 validation images"] * 2,
        "labelled": ["2 labelled images in 2 folds", "4 labelled images in 4 folds"],
    }
    assert [e["solved"]["by"] for e in tested] == by[choose]
    for e in tested:
        reached = e["solved"]["loss"]
        assert f"{e['solved']['l2']:g}" == min(reached, key=reached.get) and len(set(reached.values())) == 5
        assert (e["metrics"]["val.loss"] == min(reached.values())) == (choose == "validation")


def test_a_strategy_that_takes_part_in_training_steps_is_refused_where_there_are_none(smoke, square):
    with pytest.raises(Refused, match="heuristic=learning_loss takes part in training steps"):
        smoke(root=square, model="frozen", **LITE, **{"frozen.head": "linear", "heuristic": "learning_loss"})


@pytest.mark.parametrize("asked, said", [("frozen", "frozen.encoder=frozen has no features"), ("nothing", "no model")])
def test_an_encoder_that_is_none_is_refused(smoke, square, asked, said):
    with pytest.raises(Refused, match=said):
        smoke(root=square, model="frozen", **{"frozen.encoder": asked})


@pytest.mark.parametrize("head", ["light", "linear"])
def test_logits_of_few_classes_grow_one_class_after_the_other_to_the_same_bits(head, monkeypatch):
    """What lies side by side in memory does so in the image: a quarter of the time."""
    model, made = build(head=head).train(), {}
    for few in (frozen.FEW, 0):
        monkeypatch.setattr(frozen, "FEW", few)
        logits = model(floats(images()))
        logits.square().sum().backward()
        made[few] = logits, [p.grad.clone() for p in model.parameters() if p.grad is not None]
        model.zero_grad()
    (ours, gradients), (theirs, expected) = made.values()
    assert ours.stride(3) == 1 == theirs.stride(1) and torch.equal(ours, theirs) and len(expected) > 3
    assert all(map(torch.equal, gradients, expected))
