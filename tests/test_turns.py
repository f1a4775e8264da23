"""`train` and `query`, one step at a time: what they leave in turn is what a whole run leaves, byte for byte."""

import json

import pytest
from conftest import settings

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
