"""Prediction on images of one's own: the run's own numbers, tiles without seams, what is resumed and refused."""

import csv
import json
import shutil

import numpy as np
import pytest
import tifffile
import torch
from conftest import TEST, settings
from PIL import Image

from experiments.errors import Refused
from experiments.predict.__main__ import main
from experiments.predict.opened import open_run, scaled, seen_size
from experiments.predict.segment import Segmenter, answer
from experiments.predict.tiles import blended, fades, spans
from experiments.store.reading import pixels

pytestmark = pytest.mark.usefixtures("single_thread")


@pytest.fixture(scope="module")
def learnt(tmp_path_factory, phantom_root, experiment):
    """The results folder of a run that learnt enough to find glands in some images."""
    results = tmp_path_factory.mktemp("learnt")
    more = {"start": 8, "cycles": 0, "unet.width": 4, "evaluation.passes": 3}
    more |= {"trainer.epochs": 8, "trainer.draws": 6, "trainer.validate_every": 4}
    experiment.run(config_updates=settings(phantom_root, results, **more), named_configs=["smoke"])
    return results


@pytest.fixture
def images(phantom_root, tmp_path):
    """A folder of the phantom's test images alone."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(1, TEST + 1):
        shutil.copy(phantom_root / "seed_0" / f"testA_{number}.bmp", folder)
    return folder


@pytest.fixture
def predicted(learnt, phantom_root, tmp_path):
    """predicted(images, *words): (exit code, the table's rows) of one prediction into tmp_path/out."""

    def run(images, *words, to="out"):
        line = [learnt / "bald_0", images, "-o", tmp_path / to, "--data", phantom_root, "--device", "cpu", *words]
        return main([str(word) for word in line]), rows(tmp_path / to)

    return run


def rows(folder):
    with open(folder / "predictions.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_masks_of_the_test_images_have_the_dice_of_the_run(predicted, images, learnt, phantom_root, tmp_path):
    code, table = predicted(images)
    dice = []
    for row in table:
        mask = pixels(tmp_path / "out" / "masks" / f"{row['id']}.png", indices=True) == 1
        true = np.array(Image.open(phantom_root / "seed_0" / f"{row['id']}_anno.bmp")) > 0
        dice.append(2 * (mask & true).sum() / (mask.sum() + true.sum()))
        assert [int(row["pixels of background"]), int(row["pixels of gland"])] == [(~mask).sum(), mask.sum()]
        assert 0 < float(row["uncertainty"]) < np.log(2)
    assert code == 0 and len(dice) == TEST and np.mean(dice) > 0.3
    assert np.mean(dice) == pytest.approx(np.load(learnt / "bald_0.npy")[-1], abs=1e-6)
    with Image.open(tmp_path / "out" / "contact_sheet.png") as sheet:
        assert sheet.size[0] > 400


def test_it_continues_and_takes_new_and_changed_images(predicted, images, tmp_path, monkeypatch):
    seen = []
    segment = Segmenter.segment

    def spied(self, members):
        seen.extend(id for id, *_ in members)
        return segment(self, members)

    monkeypatch.setattr(Segmenter, "segment", spied)
    late = images / "testA_4.bmp"
    late.rename(tmp_path / "late.bmp")
    _, first = predicted(images)
    with open(tmp_path / "out" / "predictions.csv", "a") as file:
        file.write("testA_4,half a li")  # as a crash leaves it
    (tmp_path / "late.bmp").rename(late)
    Image.fromarray(255 - np.array(Image.open(images / "testA_2.bmp"))).save(images / "testA_2.bmp")
    (tmp_path / "out" / "masks" / "testA_3.png").unlink()
    seen.clear()
    _, again = predicted(images)
    assert sorted(seen) == ["testA_2", "testA_3", "testA_4"]
    last = {row["id"]: row for row in again}
    assert len(last) == TEST and last["testA_2"]["sha256"] != {r["id"]: r for r in first}["testA_2"]["sha256"]
    _, whole = predicted(images, to="anew")
    assert sorted(last.values(), key=str) == sorted(whole, key=str)
    for row in whole:
        name = f"{row['id']}.png"
        assert (tmp_path / "out" / "masks" / name).read_bytes() == (tmp_path / "anew" / "masks" / name).read_bytes()


def test_another_prediction_and_files_of_others_are_not_overwritten(predicted, images, tmp_path):
    predicted(images)
    with pytest.raises(Refused, match="other weights or settings: choose another -o, or --force"):
        predicted(images, "--passes", "0")
    assert predicted(images, "--passes", "0", "--force")[0] == 0
    (tmp_path / "theirs" / "masks").mkdir(parents=True)
    (tmp_path / "theirs" / "masks" / "testA_1.png").write_text("drawn by hand")
    with pytest.raises(Refused, match="holds files of something else"):
        predicted(images, to="theirs")
    assert (tmp_path / "theirs" / "masks" / "testA_1.png").read_text() == "drawn by hand"


def test_one_bad_image_is_named_and_stops_no_other(predicted, images, capsys):
    (images / "torn.png").write_bytes((images / "testA_1.bmp").read_bytes()[:100])
    (images / "=cmd.bmp").write_bytes((images / "testA_1.bmp").read_bytes())
    code, table = predicted(images)
    said = capsys.readouterr().out
    assert code == 1 and len(table) == TEST + 1
    assert "torn.png cannot be read as a PNG image" in said and "1 of 6 images could not be read" in said
    assert "'=cmd" in [row["id"] for row in table]  # no formula to a spreadsheet


def test_images_of_all_kinds_are_read_as_the_dataset_folder_does(predicted, images, tmp_path):
    first = np.array(Image.open(images / "testA_1.bmp"))
    shutil.rmtree(images)
    (images / "deeper").mkdir(parents=True)
    Image.fromarray(first).save(images / "deeper" / "colour.png")
    tifffile.imwrite(images / "deep.tif", first.astype(np.uint16) * 257, photometric="rgb")
    tifffile.imwrite(images / "stack.tif", np.stack([first[..., 0], first[..., 1]]), photometric="minisblack")
    _, table = predicted(images, "--format", "tif", "--uncertainty", "--probability", "--passes", "0")
    assert [row["id"] for row in table] == ["deep", "deeper/colour", "stack_000", "stack_001"] or len(table) == 4
    masks = {row["id"]: tifffile.imread(tmp_path / "out" / "masks" / f"{row['id']}.tif") for row in table}
    assert (masks["deep"] == masks["deeper/colour"]).all() and masks["stack_000"].shape == first.shape[:2]
    p = tifffile.imread(tmp_path / "out" / "probability" / "deep.tif")
    doubt = tifffile.imread(tmp_path / "out" / "uncertainty" / "deep.tif")
    np.testing.assert_allclose(p.sum(0), 1, atol=1e-5)
    np.testing.assert_allclose(doubt, -(p * np.log(p)).sum(0), atol=1e-5)
    assert ((p[1] > p[0]) == masks["deep"]).all()


def test_what_is_empty_or_unlike_the_labelled_images_is_suspicious(predicted, images, learnt, phantom_root):
    labelled = open_run(learnt / "bald_0", "cpu").labelled()
    shutil.copy(phantom_root / "seed_0" / f"{labelled[0]}.bmp", images)
    noise = np.random.default_rng(0).integers(0, 2, (96, 96, 3), dtype=np.uint8) * 255
    Image.fromarray(noise).save(images / "noise.png")
    _, table = predicted(images)
    found = {row["id"]: row for row in table}
    assert found[labelled[0]]["nearest"] == labelled[0] and float(found[labelled[0]]["distance"]) < 1e-3
    assert "far" in found["noise"]["suspicious"] and float(found["noise"]["distance"]) > 1
    for row in table:
        assert ("empty" in row["suspicious"]) == (row["pixels of gland"] == "0")


def test_without_the_dataset_distances_are_left_out_and_said(learnt, images, tmp_path, capsys):
    line = [learnt / "bald_0", images, "-o", tmp_path / "out", "--data", tmp_path / "nowhere" / "x\0"]
    (tmp_path / "nowhere").write_text("a file")
    line[-1] = tmp_path / "nowhere"
    assert main([str(word) for word in line]) == 0
    assert "is not judged" in capsys.readouterr().out
    assert {row["distance"] for row in rows(tmp_path / "out")} == {""}


def test_a_link_out_of_the_folder_is_refused(predicted, images, tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "elsewhere.png")
    (images / "link.png").symlink_to(tmp_path / "elsewhere.png")
    with pytest.raises(Refused, match="leads out of"):
        predicted(images)


@pytest.mark.parametrize("held, reason", [(None, "holds no run"), ("", "holds no run"), ("ledger", "does not hold")])
def test_what_is_no_finished_run_is_refused(learnt, images, tmp_path, held, reason):
    folder = tmp_path / "run"
    if held is not None:
        folder.mkdir()
    if held:
        shutil.copy(learnt / "bald_0" / "ledger.jsonl", folder)
    with pytest.raises(Refused, match=reason):
        main([str(folder), str(images), "-o", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_the_ledger_says_what_a_model_must_know(learnt):
    start = json.loads((learnt / "bald_0" / "ledger.jsonl").read_text().splitlines()[0])
    assert (start["classes"], start["channels"]) == (["background", "gland"], 3)


@pytest.mark.parametrize("tile, overlap", [(64, 32), (96, 32), (128, 64)])
@pytest.mark.parametrize("length", [65, 100, 128, 300])
def test_the_weights_of_tiles_add_up_to_one(length, tile, overlap):
    parts = spans(length, tile, overlap)
    total = np.zeros(length)
    for (first, last), weight in zip(parts, fades(parts, overlap), strict=True):
        assert first % 32 == 0 and overlap <= last - first <= tile or length <= tile
        total[first:last] += weight
    np.testing.assert_allclose(total, 1, atol=1e-6)
    assert parts[0][0] == 0 and parts[-1][1] == length


def test_tiles_give_what_the_whole_gives_where_a_network_sees_less_than_is_discarded():
    image = np.random.default_rng(0).random((300, 200, 1), dtype=np.float32)

    def smoothed(part, corner):  # a network that sees 12 pixels to each side, of an overlap's 3/7 x 32 = 13
        return torch.nn.functional.avg_pool2d(torch.from_numpy(part)[None, ..., 0], 25, 1, 12)[0].numpy()[None]

    whole = smoothed(image, None)
    np.testing.assert_allclose(blended(smoothed, image, 1, 96, 32), whole, atol=1e-6)


def test_a_large_image_is_cut_and_its_borders_do_not_show(predicted, images, tmp_path):
    first = np.array(Image.open(images / "testA_1.bmp").resize((128, 128)))
    shutil.rmtree(images)
    images.mkdir()
    Image.fromarray(np.tile(first, (2, 7, 1))).save(images / "large.png")  # 256 x 896
    how = ("--passes", "0", "--probability")
    predicted(images, *how, to="whole")
    predicted(images, *how, "--tile", "832", "--overlap", "416", to="tiles")
    whole, tiles = (tifffile.imread(tmp_path / to / "probability" / "large.tif") for to in ("whole", "tiles"))
    assert spans(896, 832, 416) == [(0, 832), (416, 896)]
    assert np.abs(whole - tiles).max() < 1e-3 and (whole != tiles).any()
    with pytest.raises(Refused, match="at most half of a tile"):
        predicted(images, "--tile", "64", "--overlap", "64")


def test_the_size_at_which_the_model_sees_an_image():
    assert seen_size((100, 60), {}) == (100, 60)
    assert seen_size((100, 60), {"resize": 0.5}) == (50, 30)
    assert seen_size((100, 60), {"height": 32, "width": 0}) == (32, 60)
    assert seen_size((100, 60), {"height": 32, "width": 0}, 2.0) == (200, 120)
    with pytest.raises(Refused, match="0.2 um: set --scale"):
        seen_size((100, 60), {"pixel": 0.2})
    image = np.random.default_rng(0).integers(0, 255, (8, 6, 2), dtype=np.uint8)
    assert scaled(image, (8, 6)) is image and scaled(image, (4, 3)).shape == (4, 3, 2)


def test_a_mask_is_given_at_the_size_of_the_file(predicted, images, tmp_path):
    _, table = predicted(images, "--scale", "0.5", "--passes", "0")
    for row in table:
        size = int(row["width"]), int(row["height"])
        for path in (tmp_path / "out" / "masks" / f"{row['id']}.png", images / row["file"]):
            with Image.open(path) as image:
                assert image.size == size


@pytest.mark.parametrize("classes", [2, 5])
def test_an_enlarged_answer_is_that_of_enlarged_probabilities(classes):
    mean = torch.rand(classes, 12, 10, generator=torch.Generator().manual_seed(0)).softmax(0)
    mask, doubt = answer(mean, (30, 25))
    large = torch.nn.functional.interpolate(mean[None], size=(30, 25), mode="bilinear")[0]
    assert (mask == large.argmax(0).numpy()).all()
    np.testing.assert_allclose(doubt, -(large * large.log()).sum(0).numpy(), atol=1e-5)
