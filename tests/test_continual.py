"""Continual training: a cycle goes on from the last weights, on all labelled images or on the newest query's alone."""

import shutil

import pytest
from conftest import events, ledger_bytes

from experiments.errors import Refused
from experiments.training import trainer

pytestmark = pytest.mark.usefixtures("single_thread")
NEWEST = {"trainer.warm_start": True, "trainer.replay": False, "checkpoint": "all", "cycles": 2}


@pytest.fixture
def taught(monkeypatch):
    """The sorted ids that each training was given."""
    seen, fit = [], trainer.fit

    def noted(model, train, labelled, *rest, **more):
        seen.append(sorted(train.ids[i] for i in labelled))
        return fit(model, train, labelled, *rest, **more)

    monkeypatch.setattr(trainer, "fit", noted)
    return seen


def queries(results):
    return [sorted(q["id"] for q in event["queries"]) for event in events(results) if "queries" in event]


def test_without_replay_a_cycle_trains_on_its_query_alone_and_a_cut_run_ends_as_one_that_was_not(
    smoke, tmp_path, taught
):
    smoke(**NEWEST)
    whole, asked = ledger_bytes(tmp_path / "results"), queries(tmp_path / "results")
    assert taught == asked and len(asked) == 3 and all(asked)
    assert [e["images"] for e in events(tmp_path / "results") if e["event"] == "evaluated"] == [2, 4, 6]
    for kept in (3, 4):  # before the training that goes on, and after it
        taught.clear()
        cut = tmp_path / f"cut_{kept}"
        shutil.copytree(tmp_path / "results", cut)
        for number in range(kept // 2, 3):
            (cut / "bald_0" / "checkpoint" / f"cycle_{number:03d}.safetensors").unlink()
        (cut / "bald_0" / "ledger.jsonl").write_bytes(b"".join(whole.splitlines(keepends=True)[:kept]))
        smoke(to=cut.name, **NEWEST)
        assert ledger_bytes(cut) == whole and taught == asked[kept // 2 :]


def test_with_replay_a_warm_start_trains_on_all_that_is_labelled(smoke, tmp_path, taught):
    smoke(**NEWEST | {"trainer.replay": True, "cycles": 1})
    first, second = queries(tmp_path / "results")
    assert taught == [first, sorted(first + second)]


def test_to_forget_the_labels_and_the_weights_is_refused(smoke, tmp_path):
    with pytest.raises(Refused, match="trainer.replay=False forgets all earlier labels.*set trainer.warm_start=True"):
        smoke(**NEWEST | {"trainer.warm_start": False})
    assert not (tmp_path / "results").exists()
