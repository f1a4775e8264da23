"""The audit: drawn uniformly whatever the strategy, measured on weights that never saw it, the same when resumed."""

import csv
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import events
from PIL import Image
from scipy import stats

from experiments.errors import Refused
from experiments.predict.opened import open_run
from experiments.records.ledger import Ledger
from experiments.records.stored_records import measured
from experiments.steps import audit

pytestmark = pytest.mark.usefixtures("single_thread")
SHARE = {"audit": 0.5, "query": 4, "cycles": 2, "heuristic": "entropy", "unet.width": 4}
SHARE |= {"trainer.optimizer": "adam", "trainer.lr": 0.02, "trainer.epochs": 4, "trainer.draws": 4}  # learns something


def audits(results, label="entropy"):
    return [event for event in events(results, label) if event["event"] == "audited"]


def test_an_audit_is_the_dice_of_the_weights_that_asked_on_images_that_nobody_chose(smoke, phantom_root, tmp_path):
    smoke(**SHARE, checkpoint="all", **{"evaluation.dropout": False})
    found = events(tmp_path / "results", "entropy")
    kinds, seen = ["start", *["evaluated", "queried", "audited"] * 2, "evaluated"], []
    assert [event["event"] for event in found] == kinds
    for cycle, event in enumerate(audits(tmp_path / "results")):
        evaluated, queried = found[1 + 3 * cycle : 3 + 3 * cycle]
        asked = [query["id"] for query in queried["queries"] if query.get("audit")]
        assert event["cycle"] == cycle and event["ids"] == asked and len(asked) == 2
        assert event["images"] == evaluated["images"] == 2 + 4 * cycle
        then = tmp_path / f"then_{cycle}"
        shutil.copytree(tmp_path / "results" / "entropy_0", then)
        lines = (then / "ledger.jsonl").read_bytes().splitlines(keepends=True)
        (then / "ledger.jsonl").write_bytes(b"".join(lines[: 2 + 3 * cycle]))
        opened = open_run(then, device="cpu", threads=1)
        assert opened.weights == evaluated["weights"] and not set(asked) & set(opened.labelled())
        by_hand = [dice(opened.model, phantom_root / "seed_0", id) for id in asked]
        seen += by_hand
        assert event["metrics"]["audit.dice"] == pytest.approx(np.mean(by_hand), abs=1e-6)
        low, high = stats.t.interval(0.95, 1, np.mean(by_hand), stats.sem(by_hand))
        limits = event["metrics"]["audit.low"], event["metrics"]["audit.high"]
        assert limits == pytest.approx((max(low, 0), min(high, 1)), abs=1e-6)
        with open(tmp_path / "results" / "entropy_0" / "queries" / f"cycle_{cycle:03d}.csv") as file:
            rows = {row["id"]: row for row in csv.DictReader(file)}
        assert len(rows) == evaluated["pool"] and sorted(row["picked"] for row in rows.values())[-4:] == list("0123")
        assert [rows[id]["score"] for id in asked] == ["", ""] and sum(row["score"] != "" for row in rows.values()) > 2
    assert found[-1]["images"] == 10 and len(set(seen)) == 4 and max(seen) > 0.1
    (record,) = (tmp_path / "results" / "entropy_0" / "sacred").glob("*.json")
    stored = [event["metrics"].get("audit.dice") for event in measured(record)]
    assert stored == [event["metrics"]["audit.dice"] for event in audits(tmp_path / "results")] + [None]


def dice(model, root, id):
    """Foreground Dice of one image, with nothing of experiments/evaluation."""
    image = np.array(Image.open(root / f"{id}.bmp").convert("RGB"))
    true = np.array(Image.open(root / f"{id}_anno.bmp")) > 0
    with torch.no_grad():
        logits = model(torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255)
    predicted = ((logits[0, 1] - logits[0, 0] if logits.shape[1] > 1 else logits[0, 0]) > 0).numpy()
    return 2 * (predicted & true).sum() / (predicted.sum() + true.sum())


def test_a_run_that_is_stopped_before_and_after_an_audit_has_the_same_one(smoke, tmp_path, capsys):
    once = SHARE | {"cycles": 1}
    smoke(**once)
    said = capsys.readouterr().out
    assert "cycle 0/1: audit Dice" in said and "% t interval" in said and "on 2 images drawn at random" in said
    append = Ledger.append

    def stopped(self, event, *more, **values):
        found = append(self, event, *more, **values)
        if event in ("queried", "audited"):
            raise KeyboardInterrupt
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ledger, "append", stopped)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                smoke(to="stopped", **once)
    assert events(tmp_path / "stopped", "entropy")[-1]["event"] == "audited"
    smoke(to="stopped", **once)
    ledgers = [(tmp_path / to / "entropy_0" / "ledger.jsonl").read_bytes() for to in ("results", "stopped")]
    assert ledgers[0] == ledgers[1]
    smoke(to="random", **once | {"heuristic": "random"})
    first, other = audits(tmp_path / "results")[0], audits(tmp_path / "random", "random")[0]
    assert first == other  # no strategy has a say in it


def test_every_image_is_drawn_equally_often():
    ids = [f"im_{number}" for number in range(20)]
    counts = np.zeros(20)
    for cycle in range(2000):
        state = SimpleNamespace(config={"audit": 0.1, "query": 30}, train=SimpleNamespace(ids=ids))
        state.at = lambda cycle: (0, "phantom", cycle)
        drawn = audit.draw(state, cycle, range(20))
        assert len(set(drawn)) == 2  # of a pool that is smaller than the query
        counts[drawn] += 1
    assert stats.chisquare(counts).pvalue > 0.01


def test_an_audit_of_no_image_is_refused(smoke):
    with pytest.raises(Refused, match="audit=0.1 of a query of 4 is no image: make query larger"):
        smoke(audit=0.1, query=4)
    assert audit.size(0.9, 4) == 3 and audit.size(0.1, 1) == 0 and audit.size(0.0, 50) == 0
    assert audit.estimate([0.5]) == {"audit.dice": 0.5}
