"""An ensemble's members share the passes: each is trained as it would be alone, from other weights on other crops."""

import shutil

import pytest
import torch
from conftest import events, ledger_bytes
from safetensors.torch import load_file
from torch import nn

from experiments.acquisition.prediction import pass_keys, two_sided
from experiments.errors import Refused
from experiments.network.ensemble import Ensemble, mean_logits
from experiments.network.inference import Network
from experiments.network.ready import make_ready, members_of

pytestmark = pytest.mark.usefixtures("single_thread")
CERTAIN = {"members": 2, "unet.p": 0.0, "mc_iters": 2, "evaluation.passes": 2}


@pytest.mark.parametrize("classes", [1, 2, 3])
def test_the_answer_without_dropout_is_the_mean_probability(classes):
    logits = [3 * torch.randn(2, classes, 5, 4) for _ in range(3)]
    mean = torch.stack([two_sided(each).softmax(1) for each in logits]).mean(0)
    torch.testing.assert_close(two_sided(mean_logits(logits)).softmax(1), mean)


@pytest.mark.parametrize("balanced", [False, True])
def test_passes_are_shared_by_the_members(balanced):
    torch.manual_seed(0)
    models = [nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Dropout(0.5), nn.Conv2d(4, 2, 1)) for _ in range(2)]
    made = [make_ready(model, (0.0,) * 3, (1.0,) * 3, torch.device("cpu"))[0] for model in models]
    model, x, keys = Ensemble(made), torch.rand(2, 3, 12, 10), pass_keys((0, "drawn", 1), "score", "ab", 5)
    with torch.inference_mode():
        ours = list(Network(model).passes(x, keys, balanced))
        theirs = [p for m in (0, 1) for p in Network(made[m]).passes(x, keys[m::2], balanced)]
        assert len(ours) == 5 and all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
        torch.testing.assert_close(Network(model)(x), mean_logits([member.eval()(x) for member in made]))
        torch.testing.assert_close(model.eval()(x), Network(model)(x))
    assert members_of(model) == made and members_of(made[0]) == [made[0]]


def weights(results):
    state = load_file(next((results / "bald_0" / "checkpoint").iterdir()))
    return [{n.partition(f"members.{m}.")[2]: t for n, t in state.items() if f"members.{m}." in n} for m in (0, 1)]


def test_an_ensemble_disagrees_without_dropout_and_goes_on_as_if_never_stopped(smoke, tmp_path):
    results = tmp_path / "results"
    smoke(**CERTAIN)
    whole, (_, first, asked, _) = ledger_bytes(results), events(results)
    assert all(query["score"] > 0 and query["passes"] == 2 for query in asked["queries"])
    one, two = weights(results)
    assert one.keys() == two.keys() and not torch.equal(one["head.weight"], two["head.weight"])
    smoke(to="alone", cycles=0, heuristic="entropy", **CERTAIN | {"members": 1})
    (alone,) = (e for e in events(tmp_path / "alone", "entropy") if e["event"] == "evaluated")
    assert alone["metrics"]["val.loss"] != first["metrics"]["val.loss"] and alone["images"] == first["images"]
    shutil.rmtree(results / "bald_0" / "checkpoint")
    (results / "bald_0" / "ledger.jsonl").write_bytes(b"".join(whole.splitlines(keepends=True)[:2]))
    smoke(**CERTAIN)
    assert ledger_bytes(results) == whole


def test_features_are_those_of_the_first_member(smoke, tmp_path):
    smoke(heuristic="coreset", **CERTAIN)
    assert len(events(tmp_path / "results", "coreset")) == 4


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"mc_iters": 1}, "mc_iters=1 passes cannot be shared by members=2: set mc_iters=2"),
        ({"evaluation.passes": 1}, "evaluation.passes=1 passes cannot be shared by members=2"),
        ({"heuristic": "vaal"}, "heuristic=vaal learns beside one model: leave out members=2"),
        ({"members": 1}, "model=unet has no dropout to make them differ: set unet.p above 0, train members=5 of it"),
    ],
)
def test_what_an_ensemble_cannot_do_is_refused(smoke, tmp_path, more, said):
    with pytest.raises(Refused, match=said):
        smoke(**CERTAIN | more)
    assert not (tmp_path / "results").exists()
