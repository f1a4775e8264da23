"""The audit: drawn uniformly whatever the strategy, measured on weights that never saw it, the same when resumed.

ASKMASK_ISIC=1 adds a loop on 40 real images, about a minute of one core.
"""

import csv
import json
import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT, events, settings
from PIL import Image
from scipy import stats

from experiments.errors import AwaitingLabels, Refused
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
        opened = as_of(tmp_path / "results" / "entropy_0", cycle, tmp_path / f"then_{cycle}")
        assert opened.weights == evaluated["weights"] and not set(asked) & set(opened.labelled())
        drawn = [[phantom_root / "seed_0" / f"{id}{end}.bmp" for end in ("", "_anno")] for id in asked]
        by_hand = [dice(opened.model, *paths) for paths in drawn]
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


def as_of(folder, cycle, then):
    """The run of a folder, opened as it was when it had been trained in this cycle; `then` is where its copy lies."""
    shutil.copytree(folder, then)
    lines = (then / "ledger.jsonl").read_bytes().splitlines(keepends=True)
    ends = [number for number, line in enumerate(lines, 1) if json.loads(line)["event"] == "evaluated"]
    (then / "ledger.jsonl").write_bytes(b"".join(lines[: ends[cycle]]))
    return open_run(then, device="cpu", threads=1)


def dice(model, image, mask):
    """Foreground Dice of one image, given the paths, with nothing of experiments/evaluation."""
    image = np.array(Image.open(image).convert("RGB"))
    true = np.array(Image.open(mask)) > 0
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


ISIC = ROOT.parent / "shared" / "data" / "ISIC-2017"


@pytest.mark.skipif(not os.environ.get("ASKMASK_ISIC"), reason="a loop on real images, set ASKMASK_ISIC=1")
def test_on_real_images_the_audit_is_about_the_true_dice_of_the_pool(experiment, tmp_path, table):
    """40 lesions, 12 masks at first; what is asked for is answered with the experts' masks, as by people."""
    if not ISIC.exists():
        pytest.skip(f"{ISIC} is not there")
    root, truth, result = tmp_path / "lab", tmp_path / "truth", tmp_path / "results" / "entropy_0"
    for folder in (root / "images", root / "masks", truth):
        folder.mkdir(parents=True)
    paths = sorted((ISIC / "ISIC-2017_Training_Data").glob("*.jpg"))[::50][:40]
    for number, path in enumerate(paths):
        shutil.copy(path, root / "images")
        mask = np.array(Image.open(ISIC / "ISIC-2017_Training_Part1_GroundTruth" / f"{path.stem}_segmentation.png"))
        Image.fromarray((mask > 127).astype(np.uint8)).save(truth / f"{path.stem}.png")
        if number < 12:
            shutil.copy(truth / f"{path.stem}.png", root / "masks")
    (root / "val.txt").write_text("\n".join(path.stem for path in paths[:4]))
    asks = {"heuristic": "entropy", "initial": "annotated", "query": 8, "cycles": 3, "audit": 0.5, "checkpoint": "all"}
    own = {"root": str(root), "unlabelled": True, "test": 0.0, "classes": "background,lesion", "val_file": "val.txt"}
    asks |= {"dataset": "folder", "evaluation.dropout": False, **{f"folder.{key}": own[key] for key in own}}
    asks = {key: value for key, value in settings(root, tmp_path / "results", **asks).items() if key != "phantom.root"}
    for cycle in range(3):
        with pytest.raises(AwaitingLabels, match=f"cycle_00{cycle}"):
            experiment.run(config_updates=asks, named_configs=["frozen_glas"])
        place = result / "queries" / f"cycle_00{cycle}"
        for image in json.loads((place / "manifest.json").read_text())["images"]:
            shutil.copy(truth / f"{image['name']}.png", place / "labels")
    assert experiment.run(config_updates=asks, named_configs=["frozen_glas"]).status == "COMPLETED"
    lines = ["labelled | audit Dice (95 % t interval) | true Dice of the others | 1,000 audits: mean, interval holds"]
    for cycle, event in enumerate(audits(tmp_path / "results")):
        opened, found = as_of(result, cycle, tmp_path / f"then_{cycle}"), event["metrics"]
        known = {*opened.labelled(), *event["ids"], *(path.stem for path in paths[:4])}
        others = [path for path in paths if path.stem not in known]
        true = [dice(opened.model, path, truth / f"{path.stem}.png") for path in others]
        pool = np.array([*true, *(row[1] for row in event["per_image"]["dice"])])
        rng = np.random.default_rng(cycle)
        many = [audit.estimate(rng.choice(pool, 4, replace=False)) for _ in range(1000)]
        mean = np.mean([one["audit.dice"] for one in many])
        holds = np.mean([one["audit.low"] <= pool.mean() <= one["audit.high"] for one in many])
        limits = f"({found['audit.low']:.3f} to {found['audit.high']:.3f})"
        said = f"{event['images']} | {found['audit.dice']:.3f} {limits} of 4 | {np.mean(true):.3f} of {len(true)}"
        lines.append(f"{said} | {mean:.3f} where the pool has {pool.mean():.3f}, {holds:.0%}")
        assert mean == pytest.approx(pool.mean(), abs=0.02) and holds > 0.7
    table(lines)
    assert len(lines) == 4
