"""Every heuristic, batch and initial set in a real run: trained, asked, labelled, tested again."""

import pytest
from conftest import TRAIN, events

from experiments.components import load, names

EVERY = [name for name in names("heuristic") if name not in ("given", "first")]
FEW = {"crc": {"crc.alpha": 0.2}, "learning_loss": {"trainer.batch": 2}}  # what 5 validation images and 4 crops allow


@pytest.mark.parametrize("name", EVERY)
def test_a_heuristic_runs(smoke, tmp_path, name):
    smoke(heuristic=name, **FEW.get(name, {}))
    queries = [e["queries"] for e in events(tmp_path / "results", name) if "queries" in e]
    ids = [query["id"] for asked in queries for query in asked]
    assert len(queries) == 2 and len(ids) == 4 == len(set(ids))
    assert (tmp_path / "results" / f"{name}_0" / "queries" / "cycle_000.png").is_file()


@pytest.mark.parametrize("batch", [name for name in names("batch") if name != "top"])
def test_a_batch_runs(smoke, tmp_path, batch):
    smoke(heuristic="entropy", batch=batch)
    asked = events(tmp_path / "results", "entropy")[2]["queries"]
    assert len({query["id"] for query in asked}) == 2 and all(query["score"] is not None for query in asked)


@pytest.mark.parametrize("initial", [name for name in names("initial") if name not in ("given", "none")])
def test_an_initial_set_is_the_same_for_every_heuristic(smoke, tmp_path, initial):
    first = []
    for heuristic in ("random", "entropy"):
        smoke(heuristic=heuristic, initial=initial, cycles=0)
        first.append(events(tmp_path / "results", heuristic)[0]["queries"])
    module = load("initial", initial)
    count = sum(TRAIN.values()) - 5 if getattr(module, "ANNOTATED", False) else 2
    assert [q["id"] for q in first[0]] == [q["id"] for q in first[1]] and len(first[0]) == count
    assert not getattr(module, "NEEDS_MODEL", True)
