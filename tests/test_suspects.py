"""Suspects: the score by its closed form and cleanlab's, folds that keep sources whole, swapped masks found."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from conftest import events, ledger_bytes, settings
from PIL import Image

from experiments.annotate.__main__ import main as annotate
from experiments.errors import Refused
from experiments.records.ledger import Ledger
from experiments.store import IGNORE, Item
from experiments.store.reading import pixels
from experiments.suspects import crossfit
from experiments.suspects.__main__ import main
from experiments.suspects.quality import quality, self_confidence

pytestmark = pytest.mark.usefixtures("single_thread")
IMAGES, SWAPPED, SIDE = 40, 4, 32


def test_the_score_is_the_softmin_of_what_the_mask_s_classes_get():
    p = torch.tensor([[[[0.9, 0.2, 0.5]], [[0.1, 0.8, 0.5]]]])
    masks = torch.tensor([[[0, 0, IGNORE]]], dtype=torch.uint8)
    confidence = self_confidence(p, masks)
    assert confidence.tolist() == [[[pytest.approx(0.9), pytest.approx(0.2), 1.0]]]
    weights = np.exp([1.0, 8.0])
    assert quality(confidence, masks).item() == pytest.approx((0.9 * weights[0] + 0.2 * weights[1]) / weights.sum())
    assert quality(confidence, torch.full_like(masks, IGNORE)).item() == 1


def test_the_score_is_cleanlab_s():
    rank = pytest.importorskip("cleanlab.segmentation.rank")
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(3), (5, 6, 7)).transpose(0, 3, 1, 2)
    masks = rng.integers(0, 3, (5, 6, 7))
    expected, _ = rank.get_label_quality_scores(masks, p, verbose=False)
    given = torch.from_numpy(masks.astype(np.uint8))
    assert quality(self_confidence(torch.from_numpy(p), given), given).numpy() == pytest.approx(expected, abs=1e-12)


def test_images_of_one_source_are_in_one_fold_and_each_image_in_one():
    items = [Item(f"{n}", Path(), None, source=f"patient {n // 3}" if n < 12 else "") for n in range(20)]
    folds = crossfit.folds_of(items, 5, np.random.default_rng(0))
    assert sorted(sum(folds, [])) == list(range(20)) and {len(fold) for fold in folds} <= {3, 4, 5}
    for first in range(0, 12, 3):
        assert any({first, first + 1, first + 2} <= set(fold) for fold in folds)
    assert len(crossfit.folds_of(items[:6], 5, np.random.default_rng(0))) == 2
    with pytest.raises(Refused, match="All 3 labelled images are of one source"):
        crossfit.folds_of(items[:3], 5, np.random.default_rng(0))


@pytest.fixture(scope="module")
def drawn(tmp_path_factory, experiment):
    """(folder of images of bright discs, results of a run that was given 40 of 44 masks, ids of the swapped ones)."""
    root, rng = tmp_path_factory.mktemp("Discs"), np.random.default_rng(0)
    for name in ("images", "masks"):
        (root / name).mkdir()
    masks, (rows, columns) = [], np.mgrid[:SIDE, :SIDE]
    for number in range(IMAGES + 10):
        y, x, radius = *rng.uniform(9, SIDE - 9, 2), rng.uniform(5, 9)
        masks.append(((rows - y) ** 2 + (columns - x) ** 2 < radius**2).astype(np.uint8))
        image = rng.normal(70, 20, (SIDE, SIDE, 3)) + 110 * masks[-1][..., None]
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(root / "images" / f"im_{number:02d}.png")
    wrong = list(range(0, SWAPPED * 7, 7))
    kept = {number: masks[wrong[(wrong.index(number) + 1) % SWAPPED]] if number in wrong else mask
            for number, mask in enumerate(masks)}  # fmt: skip
    for number, mask in kept.items():
        Image.fromarray(mask).save(root / "masks" / f"im_{number:02d}.png")
    (root / "val.txt").write_text("".join(f"im_{n}\n" for n in range(IMAGES + 6, IMAGES + 10)))
    (root / "given.txt").write_text("".join(f"im_{n:02d}\n" for n in range(IMAGES)))
    results = root / "results"
    tiny = settings(root, results, cycles=0, start=IMAGES, initial="given", heuristic="random")
    del tiny["phantom.root"]
    tiny |= {"dataset": "folder", "folder.root": str(root), "folder.classes": "background,disc", "folder.crop": 0}
    tiny |= {"folder.test": 0.0, "folder.val_file": "val.txt", "given.file": str(root / "given.txt")}
    tiny |= {"unet.width": 4, "trainer.epochs": 6, "trainer.draws": 1, "trainer.lr": 0.01, "trainer.validate_every": 3}
    experiment.run(config_updates=tiny, named_configs=["smoke"])
    for number in range(IMAGES, IMAGES + 6):
        (root / "masks" / f"im_{number}.png").write_bytes(b"no mask: whoever opens it fails")
    return root, results / "random_0", {f"im_{number:02d}" for number in wrong}


@pytest.fixture(scope="module")
def queue(drawn, tmp_path_factory):
    """The folder of the suspects of that run; do not write."""
    root, run, _ = drawn
    place = tmp_path_factory.mktemp("queue") / "suspects"
    assert main([str(run), "-o", str(place), "--data", str(root), "--most", "6", "--device", "cpu"]) == 0
    return place


def rows(place):
    with open(place / "suspects.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_swapped_masks_come_first_and_no_mask_of_the_pool_is_opened(drawn, queue, table):
    found = [row["id"] for row in rows(queue)]
    early = sum(id in drawn[2] for id in found[: IMAGES // 10])
    table([f"{early} of {SWAPPED} swapped masks of drawn discs are in the first tenth of the queue"])
    assert len(found) == IMAGES and early >= SWAPPED // 2


def test_the_folder_is_one_that_hand_off_formats_take(queue, tmp_path):
    copy = tmp_path / "suspects"
    shutil.copytree(queue, copy)
    asked = json.loads((copy / "manifest.json").read_text())
    assert [image["rank"] for image in asked["images"]] == list(range(6))
    for image in asked["images"]:
        assert all(
            (copy / image[part]).is_file() for part in ("image", "prediction", "uncertainty", "mask", "outlines")
        )
        assert image["outlines"] in (copy / "index.html").read_text()
    assert annotate([str(copy), "--to", "napari"]) == 0
    name = asked["images"][0]["name"]
    (tmp_path / "back").mkdir()
    mask = pixels(copy / asked["images"][0]["mask"], indices=True)
    tifffile.imwrite(tmp_path / "back" / f"{name}.tif", mask)
    assert annotate([str(copy), "--from", "napari", str(tmp_path / "back")]) == 0
    assert (pixels(copy / "labels" / f"{name}.png") == mask).all()


def test_a_fold_that_is_done_is_not_trained_again_and_the_same_queue_comes(drawn, queue, tmp_path, monkeypatch):
    root, run, _ = drawn
    copy = tmp_path / "suspects"
    shutil.copytree(queue, copy)
    before = (copy / "suspects.csv").read_bytes()
    for lost in ("suspects.csv", "manifest.json"):
        (copy / lost).unlink()
    (copy / "folds" / "fold_3.npz").write_bytes((copy / "folds" / "fold_3.npz").read_bytes()[:100])  # as torn
    fitted, fit = [], crossfit.Judge.fit
    monkeypatch.setattr(crossfit.Judge, "fit", lambda self, fold, *more: fitted.append(fold) or fit(self, fold, *more))
    assert main([str(run), "-o", str(copy), "--data", str(root), "--most", "6", "--device", "cpu"]) == 0
    assert fitted == [3] and (copy / "suspects.csv").read_bytes() == before


def test_masks_that_were_given_back_are_never_lost_and_other_folders_refused(drawn, queue, tmp_path):
    root, run, _ = drawn
    line = [str(run), "--data", str(root), "--device", "cpu"]
    copy = tmp_path / "suspects"
    shutil.copytree(queue, copy)
    (copy / "labels" / "im_00.png").write_bytes(b"a mask")
    with pytest.raises(Refused, match="holds masks for the queue there"):
        main([*line, "-o", str(copy)])
    assert main([*line, "-o", str(copy), "--force", "--most", "2"]) == 0
    assert (copy / "labels" / "im_00.png").read_bytes() == b"a mask"
    with pytest.raises(Refused, match="holds something else"):
        main([*line, "-o", str(root)])
    with pytest.raises(Refused, match="holds no run that was trained"):
        main([str(root), "-o", str(tmp_path / "new")])


@pytest.fixture
def corrected(longer, phantom_root, tmp_path):
    """(results of a run after its second training, its suspects written, id of one whose mask was drawn anew)."""
    run = tmp_path / "results" / "bald_0"
    shutil.copytree(longer, tmp_path / "results")
    cut(run, 1)
    assert main([str(run), "--data", str(phantom_root), "--device", "cpu", "--folds", "2"]) == 0
    image = json.loads((run / "suspects" / "manifest.json").read_text())["images"][0]
    mask = pixels(run / "suspects" / image["mask"], indices=True)
    Image.fromarray(np.roll(mask, 25, axis=0)).save(run / "suspects" / "labels" / f"{image['name']}.png")
    return tmp_path / "results", image["id"]


def cut(run, cycle):
    """Take a run back to where it had been trained in this cycle and no more; the weights are trained again."""
    lines = (run / "ledger.jsonl").read_bytes().splitlines(keepends=True)
    ends = [number for number, line in enumerate(lines, 1) if json.loads(line)["event"] == "evaluated"]
    (run / "ledger.jsonl").write_bytes(b"".join(lines[: ends[cycle]]))


def test_a_corrected_mask_counts_from_the_next_training_on(corrected, longer, smoke, tmp_path, capsys):
    """Of a run whose dataset has the masks; stopped anywhere it ends as if it had not been."""
    results, id = corrected
    shutil.copytree(results, tmp_path / "stopped")
    capsys.readouterr()
    smoke(cycles=1)  # this run is finished
    said = capsys.readouterr().out
    assert f"{id} was drawn anew (suspects/{id}.png): from the next training on that mask counts," in said
    assert "_anno.bmp stays as it is." in said and "This run is finished: they count once it goes on" in said
    smoke(cycles=1)
    assert "Taken" not in capsys.readouterr().out
    smoke(cycles=2)
    found, before = events(results), events(longer)
    (answer,) = (event for event in found if event["event"] == "answered")
    assert answer["masks"].keys() == {id} and answer["cycle"] == 2
    kinds = [event["event"] for event in found]
    assert kinds == ["start", "evaluated", "queried", "evaluated", "answered", "queried", "evaluated"]
    without = [event for event in found if event["event"] != "answered"]
    assert without[:-1] == before[:-1]  # the earlier cycles, and what was asked for by their weights
    assert without[-1]["weights"] != before[-1]["weights"]
    append = Ledger.append

    def stopped(self, event, *more, **values):
        append(self, event, *more, **values)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ledger, "append", stopped)
        for _ in range(3):
            with pytest.raises(KeyboardInterrupt):
                smoke(to="stopped", cycles=2)
    smoke(to="stopped", cycles=2)
    assert ledger_bytes(tmp_path / "stopped") == ledger_bytes(results)


def test_a_queue_that_was_edited_is_refused(corrected, smoke):
    manifest = corrected[0] / "bald_0" / "suspects" / "manifest.json"
    asked = json.loads(manifest.read_text())
    asked["images"][0]["id"] = asked["images"][0]["name"] = "train_77"
    manifest.write_text(json.dumps(asked))
    with pytest.raises(Refused, match="suspects/manifest.json is not as it was written: .*experiments.suspects"):
        smoke(cycles=2)
