"""`train` and `query`, one step at a time: what they leave in turn is what a whole run leaves, byte for byte."""

import json

import pytest
from conftest import events, settings

from experiments.errors import Paused, Refused

pytestmark = pytest.mark.usefixtures("single_thread")
TIMES = {"timing.jsonl", "lock"}


def files(results):
    """{path: bytes} of all that a run leaves but TIMES, Sacred's records and the folders for people."""
    paths = [path for path in results.rglob("*") if path.is_file() and path.name not in TIMES]
    apart = ("sacred", "images", "prediction", "uncertainty", "labels")
    kept = [path for path in paths if path.parent.name not in apart and path.parent.parent.name != "queries"]
    return {str(path.relative_to(results)): path.read_bytes() for path in kept}


def test_steps_in_turn_are_a_whole_run(longer, phantom_root, experiment, tmp_path):
    tiny = settings(phantom_root, tmp_path, cycles=2)

    def step(name):
        return experiment.run(name, config_updates=dict(tiny), named_configs=["smoke"])

    with pytest.raises(Refused, match="bald_0 has not begun: next is `python active.py train with ...`"):
        step("query")
    assert not list(tmp_path.iterdir())
    with pytest.raises(Paused, match="cycle 0 is trained and tested; next is `python active.py query with"):
        step("train")
    (record,) = (tmp_path / "bald_0" / "sacred").glob("*.json")
    assert json.loads(record.read_text())["status"] == "INTERRUPTED" and Paused.code == 0
    before = files(tmp_path)
    with pytest.raises(Refused, match="bald_0 is trained already: next is `python active.py query with"):
        step("train")
    assert files(tmp_path) == before
    with pytest.raises(Paused, match="cycle_000/index.html shows what .*cycle_000.csv ranks.* `python active.py train"):
        step("query")
    place = tmp_path / "bald_0" / "queries" / "cycle_000"
    asked = json.loads((place / "manifest.json").read_text())["images"]
    assert len(asked) == 2 and all((place / image["uncertainty"]).exists() for image in asked)
    page = (place / "index.html").read_text()
    assert "<h1>2 images asked for</h1>" in page and "The dataset has the masks" in page and "Draw" not in page
    with pytest.raises(Refused, match="bald_0 is asked already: next is `python active.py train with"):
        step("query")
    with pytest.raises(Paused, match="cycle 1 is trained"):
        step("train")
    with pytest.raises(Paused, match="cycle_001/index.html"):
        step("query")
    assert step("train").status == "COMPLETED"
    found, expected = files(tmp_path), files(longer)
    assert found.keys() == expected.keys()
    assert [name for name in expected if found[name] != expected[name]] == []
    for name in ("train", "query"):
        with pytest.raises(Refused, match=f"is finished: there is nothing left to {name}; cycles=3 goes on"):
            step(name)
    assert files(tmp_path) == expected


def test_so_they_are_with_an_audit_repeats_given_images_and_stop_at(longer, phantom_root, experiment, tmp_path):
    first = [query["id"] for query in events(longer)[0]["queries"]]
    (tmp_path / "given.csv").write_text("id,why\n" + "".join(f"{id},mine\n" for id in first))
    more = {"audit": 0.5, "repeat": 0.5, "stop_at": 1.0, "initial": "given", "given.file": str(tmp_path / "given.csv")}
    more |= {"start": len(first), "cycles": 2}

    def start(command, to, **changed):
        updates = settings(phantom_root, tmp_path / to, **more | changed)
        return experiment.run(command, config_updates=updates, named_configs=["smoke"])

    for name in ("train", "query", "train", "query"):
        with pytest.raises(Paused):
            start(name, "steps")
    page = (tmp_path / "steps" / "bald_0" / "queries" / "cycle_001" / "index.html").read_text()
    assert "at random, for the audit" in page and "again, for how far two drawings agree" in page
    assert start("train", "steps").status == start("main", "whole").status == "COMPLETED"
    found, expected = files(tmp_path / "steps"), files(tmp_path / "whole")
    assert found.keys() == expected.keys()
    assert [name for name in expected if found[name] != expected[name]] == []
    kinds = [event["event"] for event in events(tmp_path / "whole")]
    assert kinds.count("audited") == 2 and kinds.count("repeated") == 1


def test_a_run_that_reached_stop_at_or_has_no_pool_left_takes_no_step(phantom_root, experiment, tmp_path):
    learning = {"start": 8, "unet.width": 4, "trainer.epochs": 8, "trainer.draws": 6, "trainer.validate_every": 4}

    def start(command, **more):
        updates = settings(phantom_root, tmp_path, **learning | more)
        return experiment.run(command, config_updates=updates, named_configs=["smoke"])

    assert start("train", stop_at=1e-6).status == "COMPLETED"
    with pytest.raises(Refused, match="is finished: there is nothing left to query; it reached stop_at=1e-06"):
        start("query", stop_at=1e-6)
    assert start("train", start=1.0, label="all").status == "COMPLETED"
    with pytest.raises(Refused, match="is finished: there is nothing left to query; its pool is empty"):
        start("query", start=1.0, label="all")
