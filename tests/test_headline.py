"""The measure that a dataset states judges its runs everywhere, and masks that cannot be measured are told before."""

import io
import json
from contextlib import redirect_stdout

import numpy as np
import pytest
import torch
from conftest import own_file

from analysis import plots, report, runs
from analysis.statistics import __main__ as statistics_command
from experiments.components import ROOT
from experiments.errors import BadData, Refused
from experiments.steps import loop
from experiments.store import IGNORE, foreground

SHAPES = '''"""Shapes: drawn squares, 1 in every image and 2 in few, for tests."""

from pathlib import Path

import numpy as np
from sacred import Ingredient

from experiments.store import IGNORE, Item, Split, Splits

ingredient = Ingredient("zz_shapes")
CLASSES, CHANNELS, HAS, HEADLINE = ("background", "square", "rare"), 3, ("validation",), "miou"


@ingredient.config
def settings():
    masks = "drawn"  # "ignored": 255 where a class was meant; "empty": nothing drawn; "empty val": there alone


@ingredient.capture
def load(rng, masks):
    def part(name, n, empty):
        items = [Item(f"{name}{k}", Path(f"{k}"), Path(f"{k}")) for k in range(n)]
        return Split(items, lambda path: draw(path)[0], lambda path: draw(path)[1] * (masks == "ignored" or not empty))

    def draw(path):
        mask = np.zeros((16, 16), np.uint8)
        mask[3:9, 3:9] = 1
        if int(path.name) % 4 == 0:
            mask[10:15, 10:15] = 2
        seen = (100 * mask[..., None] + np.random.default_rng(int(path.name)).integers(0, 50, (16, 16, 3)))
        return seen.astype(np.uint8), np.where(mask, IGNORE, 0).astype(np.uint8) if masks == "ignored" else mask

    return Splits(part("train", 12, False), part("val", 4, masks == "empty val"), part("test", 6, masks == "empty"), 0)
'''


@pytest.fixture(scope="module")
def shapes(experiment, tmp_path_factory):
    """shapes(**updates): one tiny run on the dataset above; (Sacred's Run, what it printed)."""
    file = ROOT / "data" / "zz_shapes.py"

    def run(to, **updates):
        tiny = {"dataset": "zz_shapes", "results_dir": str(to), "runs_dir": "", "threads": 1, "cycles": 1, "start": 4}
        tiny |= {"query": 2, "mc_iters": 2, "unet.width": 2, "trainer.epochs": 2, "trainer.draws": 2}
        with redirect_stdout(io.StringIO()) as printed:
            made = experiment.run(config_updates=tiny | {"evaluation.passes": 1} | updates)
        return made, printed.getvalue()

    with own_file(file, SHAPES):
        yield run


@pytest.fixture(scope="module")
def judged(shapes, tmp_path_factory):
    """(results folder, Run, printed) of one run each of bald and random."""
    results = tmp_path_factory.mktemp("judged")
    shapes(results, heuristic="random")
    return results, *shapes(results)


def evaluated(results, label="bald"):
    lines = [json.loads(line) for line in (results / f"{label}_0" / "ledger.jsonl").read_text().splitlines()]
    return lines[0], [line for line in lines if line["event"] == "evaluated"]


def test_the_curve_the_result_and_the_lines_are_of_the_headline(judged):
    results, run, printed = judged
    start, events = evaluated(results)
    curve = [event["metrics"]["test.miou"] for event in events]
    assert start["headline"] == "test.miou" and np.load(results / "bald_0.npy").tolist() == curve
    assert run.result == curve[-1] and f"test mIoU {curve[-1]:.3f}" in printed and "would give mIoU" in printed
    assert run.info["headline"] == "test.miou"
    assert (run.info["best"], run.info["last"]) == (round(max(curve), 3), round(curve[-1], 3))
    assert {"test.dice", "test.iou", "test.miou", "test.class_dice", "test.deterministic_miou"} <= events[0][
        "metrics"
    ].keys()
    assert {"val.dice", "val.miou", "val.class_dice"} <= events[0]["metrics"].keys()


def test_a_class_in_neither_is_null_in_the_ledger_and_nan_in_the_array(judged):
    results, *_ = judged
    _, events = evaluated(results)
    dice = np.load(results / "bald_0" / "dice.npy")
    assert dice.shape == (2, 6, 3) and dice.dtype == np.float64
    assert np.isfinite(dice[:, [0, 4], 2]).all()  # the rare class is there
    said = np.array([event["per_image"]["dice"] for event in events], dtype=object)
    assert ((said == None) == np.isnan(dice)).all()  # noqa: E711  elementwise
    means = np.nan_to_num(np.nanmean(dice[..., 1:], axis=2), nan=1.0).mean(1)
    assert means.tolist() == pytest.approx([event["metrics"]["test.dice"] for event in events])


def test_analysis_follows_the_headline(judged, tmp_path):
    results, *_ = judged
    frame = runs.load(results)
    assert runs.headline(frame) == "test.miou"
    with pytest.raises(SystemExit, match="Two runs are needed"):
        statistics_command.main([str(results)])  # not: there is no metric
    plots.main(results, tmp_path / "curves.png")
    page, _ = report.report(results)
    assert "Values are test mIoU, 0 to 1" in page and "test Dice" not in page
    cells = runs.load(results, per_image=True)
    assert len(cells) == 2 * 2 * 6 * 3 and cells["dice"].dtype == float


def test_runs_of_two_headlines_are_not_mixed(judged, undisturbed):
    import pandas as pd

    frames = [runs.load(source) for source in (judged[0], undisturbed)]
    assert runs.headline(frames[1]) == "test.dice" and runs.headline(frames[1].drop(columns="headline")) == "test.dice"
    with pytest.raises(Refused, match="judged by test.dice and test.miou"):
        runs.headline(pd.concat(frames))


def test_masks_of_0_and_255_are_refused_before_anything_is_trained(shapes, tmp_path):
    with pytest.raises(BadData) as refused:
        shapes(tmp_path, **{"zz_shapes.masks": "ignored"})
    message = str(refused.value)
    assert "masks of zz_shapes opened so far hold 0 and 255 only" in message and "`> 127`" in message
    assert "no pixel of class 1 square or 2 rare" in message and "\n" not in message
    assert not list(tmp_path.rglob("ledger.jsonl"))


def test_test_images_without_foreground_have_no_dice_instead_of_a_perfect_one(shapes, tmp_path):
    run, printed = shapes(tmp_path, **{"zz_shapes.masks": "empty"})
    _, events = evaluated(tmp_path)
    assert "None of the 6 test images has a pixel of a foreground class: Dice and IoU cannot be measured" in printed
    assert "no foreground in the test images" in printed and run.result is None
    assert not {"test.dice", "test.miou", "test.class_dice"} & events[-1]["metrics"].keys()
    assert {"test.accuracy", "test.ece", "val.dice"} <= events[-1]["metrics"].keys()
    assert not list(tmp_path.glob("*.npy")) and events[-1]["per_image"] == {}
    assert len(runs.load(tmp_path)) == 2


def test_validation_without_foreground_cannot_choose_weights_by_dice(shapes, tmp_path):
    with pytest.raises(Refused, match="None of the 4 validation images .* trainer.select_by=miou .*: use loss"):
        shapes(tmp_path, **{"zz_shapes.masks": "empty val", "trainer.select_by": "miou"})
    shapes(tmp_path, **{"zz_shapes.masks": "empty val", "cycles": 0, "trainer.select_by": "loss"})


def test_foreground_is_counted_as_the_dataset_has_it():
    """Where no class is called background the first one is paid for too; what is ignored never is."""
    mask = torch.tensor([[0, 1, 2], [IGNORE, 0, 1]], dtype=torch.uint8)
    for classes, expected in ((("background", "a", "b"), 3), (("sky", "a", "b"), 5)):
        assert loop.cost([mask], foreground(classes).start)["foreground"] == expected
