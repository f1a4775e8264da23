"""What the report says of runs that nobody has tested or finished: audits, agreement, and what is under way."""

import json
import shutil

import numpy as np
import pytest
from conftest import asked, events
from PIL import Image
from scipy import stats
from test_report import SETTINGS, Page, check, make, png

from analysis import audits, live, runs
from analysis.report import report
from experiments.errors import AwaitingLabels, Refused
from experiments.records.ledger import Ledger


def labelling(folder, run, found, label="bald"):
    """A run without test images: an audit (Dice, low, high) after each training, repeats of .9 after the second."""
    settings = {**SETTINGS, "label": label, "run": run, "seed": run, "audit": 0.5, "repeat": 0.5}
    query = [{"id": "train_0", "region": None, "score": 0.5, "rank": 0, "passes": 2}]
    with Ledger(folder / f"{label}_{run}", settings, ["a" * 64, "b" * 64, None]) as book:
        book.append("start", queries=query, classes=["background", "gland"], test=[])
        for cycle, (dice, low, high) in enumerate([*found, (None, None, None)]):
            values = {"metrics": {"val.dice": 0.5 + cycle / 10}, "per_image": {}, "weights": "c" * 64}
            book.append("evaluated", cycle, images=2 + 2 * cycle, pixels=100 + cycle, pool=9, **values)
            if dice is not None:
                book.append("queried", cycle, queries=query, memory={})
                measured = {"audit.dice": dice, "audit.low": low, "audit.high": high}
                of = {"images": 2 + 2 * cycle, "ids": ["train_7"], "per_image": {"dice": [[0.9, dice]]}}
                book.append("audited", cycle, metrics=measured, **of)
            if cycle == 1 and dice is not None:
                agreed = {"repeat.dice": 0.9, "repeat.between": 0.9}
                book.append("repeated", cycle, metrics=agreed, by=["between"], **of)
        book.write_arrays()
    return folder / f"{label}_{run}"


def record(place, status, cycles):
    """What Sacred keeps of a start, as far as it is read."""
    (place / "sacred").mkdir()
    said = {"status": status, "config": {"cycles": cycles}, "meta": {"command": "main"}}
    (place / "sacred" / "20261128-000000-a.json").write_text(json.dumps(said))


def test_audits_are_a_curve_with_intervals_and_no_test_is_made_up(tmp_path):
    for run, shift in enumerate((0.0, 0.02, 0.07)):
        labelling(tmp_path, run, [(0.5 + shift, 0.4, 0.6), (0.7 + shift, 0.6, 0.8)])
    labelling(tmp_path, 0, [(0.3, 0.1, 0.5)], "entropy")
    frame = runs.load(tmp_path)
    assert "test.dice" not in frame and frame["audit.dice"].notna().sum() == 7
    rows = audits.table(frame).set_index(["label", "images"])
    values = np.array([0.5, 0.52, 0.57])
    low, high = stats.t.interval(0.95, 2, values.mean(), stats.sem(values))
    assert rows.loc["bald", 2][["runs", "mean", "low", "high"]].tolist() == pytest.approx([3, values.mean(), low, high])
    assert rows.loc["entropy", 2][["mean", "low", "high"]].tolist() == [0.3, 0.1, 0.5]
    text, tables = report(tmp_path)
    page = Page(text)
    check(page)
    assert "There are no test images, so no test Dice is shown." in page.text
    table = next(table for table in page.tables if "audit Dice (95 % interval)" in table[0])
    assert table[1] == ["bald", "2", "3", "0.530 0.440 to 0.620", "–"] and len(table) == 4
    agreement = next(table for table in page.tables if "between annotators" in table[0])
    assert agreement[1:] == [["bald", "3", "0.900", "–", "0.900"]]
    assert "audit.dice" in tables["curves.csv"]


def test_audits_stand_beside_the_test_where_there_is_one(smoke, tmp_path):
    smoke(audit=0.5, repeat=0.5, cycles=2)
    (label, images, count, mean, low, high, test), later = audits.table(runs.load(tmp_path / "results")).to_numpy()
    found = events(tmp_path / "results")
    evaluated, audited = ([e for e in found if e["event"] == kind] for kind in ("evaluated", "audited"))
    assert (label, images, count) == ("bald", 2, 1) and later[1] == 4
    assert mean == audited[0]["metrics"]["audit.dice"] and test == evaluated[0]["metrics"]["test.dice"]
    text, _ = report(tmp_path / "results")
    page = Page(text)
    check(page)
    assert "Lines without marks are the test Dice of the same runs." in page.text and "bald (1 run): test" in text
    assert "How far people agree" in page.text


def test_what_is_under_way_is_on_the_page_that_follows_it(tmp_path):
    make(tmp_path, "random", 0, [0.5, 0.6])
    place = labelling(tmp_path, 0, [(0.5, 0.4, 0.6), (0.7, 0.6, 0.8)])
    record(place, "RUNNING", 4)
    rows = [
        {"cycle": 1, "train": 20, "evaluate": 1},
        {"cycle": 1, "query": 4},
        {"cycle": 2, "train": 60, "evaluate": 5},
    ]
    (place / "timing.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (place / "queries" / "cycle_001.png").write_bytes(png())
    text, _ = report(tmp_path, refresh=5)
    page = Page(text)
    check(page)
    # two trainings of 8 and 10 images after one of 6 in 60 s, each with a test of 5 s and a query of 4 s
    assert "bald run 0: about 3 min left" in page.text and "run 0 of bald is going on (6 of 10 images)" in page.text
    assert "Query 2: train_0." in page.text
    labels = [figure["aria-label"] for figure in page.all("figure") if "aria-label" in figure]
    assert "validation 0.700 at 6 labelled images; audit 0.700 at 4 labelled images" in labels
    assert any("What the last query asked for: train_0" in image["alt"] for image in page.all("img"))
    assert "Under way" not in report(tmp_path)[0]
    (place / "timing.jsonl").write_text('{"cycle": 2, "train": "long"}\n')
    assert "bald run 0" in report(tmp_path, refresh=5)[0] and live.left(place, events(tmp_path)) == ""


def test_a_page_follows_a_lab_before_anything_is_finished(lab, truth, tmp_path):
    with pytest.raises(AwaitingLabels):
        lab()
    results = tmp_path / "results"
    before = live.stamp(results)
    page = Page(report(results, refresh=5)[0])
    assert "Active learning under way" in page.text
    place, names = asked(results, "cycle_000")
    assert f"waits for masks of 2 images, 0 files in {place / 'labels'}" in page.text
    assert f"Query 1: {', '.join(names)}." in page.text and "left" not in page.text.partition("Left out")[0]
    with pytest.raises(Refused, match="There is no finished run here"):
        report(results)
    # a queue of suspects beside it, one of its masks drawn anew
    queue = results / "entropy_0" / "suspects"
    shutil.copytree(place, queue)
    (queue / "outlines").mkdir()
    (queue / "outlines" / f"{names[0]}.png").write_bytes(png())
    Image.new("L", (4, 4)).save(queue / "labels" / f"{names[0]}.png")
    assert live.stamp(results) != before
    page = Page(report(results, refresh=5)[0])
    assert "entropy_0: 2 masks that models which never saw them disagree with most, 1 drawn anew" in page.text
    assert [i["alt"] for i in page.all("img")][-1].startswith(f"{names[0]} with the outlines")
    shutil.copytree(queue, tmp_path / "elsewhere")
    (queue / "outlines" / f"{names[0]}.png").unlink()
    (queue / "outlines" / f"{names[0]}.png").symlink_to(tmp_path / "elsewhere" / "outlines" / f"{names[0]}.png")
    assert len(Page(report(results, refresh=5)[0]).all("img")) == len(page.all("img")) - 1
