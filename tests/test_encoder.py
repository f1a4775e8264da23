"""With `encoder=` strategies and initial sets compare a pretrained network's features, whatever model is trained."""

import csv
import shutil
from functools import partial
from hashlib import sha256
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import events, ledger_bytes, settings
from PIL import Image
from scipy.spatial.distance import cdist
from torch.nn import functional as F

from experiments.acquisition.pool import Pool
from experiments.errors import Refused
from experiments.network.remembered import Remembered
from experiments.study import grid
from heuristics.typiclust import unit_features
from models import lite

pytestmark = pytest.mark.usefixtures("single_thread")
CLUSTERED = {"initial": "kmeans", "heuristic": "coreset", "cycles": 2}


def draw(path, seed):
    """Weights of an encoder as published ones lie in a file."""
    torch.manual_seed(seed)
    net = lite.LiteUNet(3, 2, 2)
    torch.save({f"encoder.{name}": tensor for name, tensor in net.encoder.state_dict().items()}, path)
    return path


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return draw(tmp_path_factory.mktemp("weights") / "encoder.pth", 5)


@pytest.fixture(scope="module")
def run(phantom_root, experiment, file):
    """run(results, **settings): a run of smoke that looks through that encoder."""

    def run(results, **more):
        asked = {"encoder": "lite", "lite.weights": str(file)} | more
        experiment.run(config_updates=settings(phantom_root, results, **asked), named_configs=["smoke"])
        return results

    return run


@pytest.fixture(scope="module")
def whole(run, tmp_path_factory):
    """(results of an undisturbed run, shapes of all that its encoder looked at)."""
    looked, compute = [], Remembered.compute

    def counted(self, image):
        looked.append(tuple(image.shape))
        return compute(self, image)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Remembered, "compute", counted)
        results = run(tmp_path_factory.mktemp("whole"), **CLUSTERED)
    return results, looked


@pytest.fixture(scope="module")
def by_hand(whole, phantom_root, file):
    """{id: (D,)} of the training images: the mean over the encoder's last map of the image grown at its border."""
    net, found = lite.LiteUNet(3, 2, 2).eval(), {}
    net.encoder.load_state_dict({k.removeprefix("encoder."): v for k, v in torch.load(file).items()})
    for name in training_ids(whole[0]):
        x = torch.from_numpy(np.array(Image.open(phantom_root / "seed_0" / f"{name}.bmp"))).permute(2, 0, 1)[None] / 255
        height, width = x.shape[2:]
        x = F.pad((x - 0.5) / 0.5, (0, -width % 32, 0, -height % 32), mode="replicate")
        with torch.inference_mode():
            deepest = net.encoder(x)[-1][..., : -(-height // 32), : -(-width // 32)]
        found[name] = deepest.mean((0, 2, 3)).double().numpy()
    return found


def training_ids(results):
    with open(results / "coreset_0" / "queries" / "cycle_000.csv") as rows:
        left = [row["id"] for row in csv.DictReader(rows)]
    return asked(results)[0] + left


def asked(results, label="coreset"):
    """The ids of each query, those of the initial set first."""
    return [[q["id"] for q in event["queries"]] for event in events(results, label) if "queries" in event]


def test_coreset_picks_what_is_farthest_by_the_encoders_features(whole, by_hand):
    first, *queries = asked(whole[0])
    known = list(first)
    for query in queries:
        for picked in query:
            left = [name for name in by_hand if name not in known]
            rows, labelled = (np.array([by_hand[name] for name in names]) for names in (left, known))
            far = dict(zip(left, cdist(rows, labelled).min(1), strict=True))
            second = sorted(far.values())[-2]
            assert far[picked] > (1 - 1e-3) * max(far.values()) and max(far.values()) > 1.001 * second
            known.append(picked)
    assert len(known) == 6


def test_the_initial_set_is_one_image_of_each_cluster_of_the_encoders_features(whole, by_hand):
    """Of two clusters all ways to part the images by a plane are tried: none has less variance within."""
    names = list(by_hand)
    rows = np.array([by_hand[name] for name in names])
    first = [names.index(name) for name in asked(whole[0])[0]]

    def within(of):
        return sum(((rows[of == k] - rows[of == k].mean(0)) ** 2).sum() for k in (0, 1))

    def settled(of):
        for _ in range(50):
            centres = np.array([rows[of == k].mean(0) for k in (0, 1)])
            of = cdist(rows, centres).argmin(1)
        return of

    pairs = [settled(cdist(rows, rows[[a, b]]).argmin(1)) for a in range(len(rows)) for b in range(a)]
    best = min(pairs, key=within)
    for k in (0, 1):
        members = np.flatnonzero(best == k)
        nearest = members[np.linalg.norm(rows[members] - rows[members].mean(0), axis=1).argmin()]
        assert nearest in first


def test_every_image_goes_through_the_encoder_once_in_a_run(whole, by_hand):
    looked = [shape for shape in whole[1] if shape != (1, 3, 64, 64)]  # a blank one, as it is built
    assert len(looked) == len(by_hand) == 16


def test_the_picks_are_the_same_whatever_model_is_trained(run, whole, tmp_path):
    other = run(tmp_path / "other", **CLUSTERED, model="modunet", **{"modunet.width": 4})
    assert asked(other) == asked(whole[0])
    weights = [[e["weights"] for e in events(results, "coreset") if "weights" in e] for results in (other, whole[0])]
    assert not set(weights[0]) & set(weights[1])


def test_a_cut_run_ends_as_an_undisturbed_one(run, whole, file, tmp_path):
    shutil.copytree(whole[0], tmp_path / "cut")
    ledger = tmp_path / "cut" / "coreset_0" / "ledger.jsonl"
    lines = ledger.read_bytes().splitlines(keepends=True)
    ledger.write_bytes(b"".join(lines[:2]))
    run(tmp_path / "cut", **CLUSTERED)
    assert ledger_bytes(tmp_path / "cut", "coreset") == ledger_bytes(whole[0], "coreset") == b"".join(lines)
    assert events(whole[0], "coreset")[0]["encoder"] == {file.name: sha256(file.read_bytes()).hexdigest()}


def test_a_run_goes_on_with_the_same_encoder_only(run, whole, file, tmp_path):
    results, right = shutil.copytree(whole[0], tmp_path / "results"), file.read_bytes()
    longer = CLUSTERED | {"cycles": 3}
    try:
        draw(file, 6)
        with pytest.raises(Refused, match="began with other weights .encoder.encoder.pth [0-9a-f]{8} -> [0-9a-f]{8}"):
            run(results, **longer)
    finally:
        file.write_bytes(right)
    with pytest.raises(Refused, match="another configuration .*encoder 'lite' -> ''"):
        run(results, **longer, encoder="", model="lite")


def test_initial_sets_look_through_the_encoder_before_anything_is_labelled():
    images = torch.randint(0, 256, (5, 8, 6, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    deepest = partial(F.avg_pool2d, kernel_size=2)
    looking = SimpleNamespace(encoder=lambda x: [x, deepest(x)])
    pool = Pool("ebcda", [""] * 5, lambda: [([3, 1], images[[3, 1]]), ([0, 2, 4], images[[0, 2, 4]])], looking)
    order, rows, _ = unit_features(pool, "bottleneck", "")
    assert [pool.ids[i] for i in order] == list("abcde")
    expected = F.normalize(deepest(images[order].permute(0, 3, 1, 2) / 255).mean((2, 3)).double())
    torch.testing.assert_close(rows, expected, atol=1e-6, rtol=1e-6)


def test_a_study_takes_a_list_of_encoders():
    assert grid.declared("encoder") == ("", True)


def test_a_learned_strategy_keeps_to_the_layer_that_it_was_trained_on(run, tmp_path, experiment, phantom_root):
    ours = run(tmp_path / "ours", heuristic="learning_loss")
    experiment.run(
        config_updates=settings(phantom_root, tmp_path / "plain", heuristic="learning_loss"), named_configs=["smoke"]
    )
    scores = [
        [q["score"] for e in events(results, "learning_loss") for q in e.get("queries", [])]
        for results in (ours, tmp_path / "plain")
    ]
    assert scores[0] == scores[1] and len(set(scores[0])) > 2


REFUSED = {
    "drawn weights": ({"lite.weights": "none"}, "encoder=lite has no pretrained weights.*set lite.weights="),
    "a model without any": (
        {"encoder": "unet"},
        "encoder=unet has no pretrained .*encoder=lite .pip install",
    ),
    "another's encoder": ({"encoder": "frozen"}, "encoder=frozen looks through an encoder itself: name that one"),
    "no model": ({"encoder": "litee"}, "There is no model 'litee'. Did you mean lite"),
    "two answers": ({"heuristic": "herding", "herding.weights": __file__}, "encoder=lite gives .*herding.weights"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_gives_no_features_is_refused_in_a_line_and_nothing_is_left(run, tmp_path, name):
    more, said = REFUSED[name]
    more = {"model": "lite", "heuristic": "coreset"} | more
    with pytest.raises(Refused, match=said) as refused:
        run(tmp_path / "results", **more)
    assert "\n" not in str(refused.value) and not (tmp_path / "results").exists()
