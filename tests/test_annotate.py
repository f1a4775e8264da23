"""People as the oracle: what is asked, which masks are taken, and that nothing is lost or counted twice."""

import json
import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import answer, asked, events
from PIL import Image

from data._splits import deal
from experiments.acquisition import pictures
from experiments.annotate import answers, nearest, page, request
from experiments.components.randomness import generator
from experiments.errors import AwaitingLabels, BadData, Refused
from experiments.predict.familiar import features
from experiments.predict.opened import open_run
from experiments.records.ledger import Ledger
from experiments.store import Item

pytestmark = pytest.mark.usefixtures("single_thread")
CLASSES = 3
IMAGE = {"id": "a/b", "name": "a__b", "sha256": "f" * 64, "height": 6, "width": 8}


def weights(folder):
    return [event["weights"] for event in events(folder, "entropy") if event["event"] == "evaluated"]


def test_a_run_without_ground_truth_equals_one_whose_oracle_knew_it(lab, truth, tmp_path, capsys, experiment):
    share = {"audit": 0.5}
    with pytest.raises(AwaitingLabels, match="2 of 2 masks are awaited: .*cycle_000/index.html"):
        lab(**share)
    assert AwaitingLabels.code == 0
    (record,) = (tmp_path / "results" / "entropy_0" / "sacred").glob("*.json")
    assert json.loads(record.read_text())["status"] == "AWAITING_LABELS"
    place, names = asked(tmp_path / "results", "cycle_000")
    shown = (place / "index.html").read_text()
    assert shown.count("at random, for the audit") == 1  # whose image is drawn without the model's mask to begin from
    assert [path.stem for path in (place / "prediction").iterdir()] == names[:1]
    for name in names:
        assert f"labels/{name}.png" in shown and "http" not in shown
        original = tmp_path / "lab" / "images" / f"{name}.bmp"
        assert (place / "images" / f"{name}.bmp").read_bytes() == original.read_bytes()
    original = tmp_path / "lab" / "images" / f"{names[0]}.bmp"
    with Image.open(original) as image, Image.open(place / "prediction" / f"{names[0]}.png") as prediction:
        assert prediction.size == image.size and prediction.mode == "P"
    Image.new("L", (9, 9), 1).save(place / "labels" / f"{names[0]}.png")
    Image.new("L", (9, 9), 1).save(place / "labels" / "im_77.png")
    answer(truth, place, names[1:])
    capsys.readouterr()
    with pytest.raises(AwaitingLabels, match="1 of 2 masks are awaited"):
        lab(**share)
    said = capsys.readouterr().out
    assert f"{names[0]}.png is 9 x 9, its image" in said and "im_77.png is for no image that was asked for" in said
    answer(truth, place, names)
    append, stopped = Ledger.append, []

    def once(self, event, *more, **values):  # as if killed between keeping a mask and saying so
        if event == "answered" and not stopped:
            stopped.append(event)
            raise KeyboardInterrupt
        return append(self, event, *more, **values)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ledger, "append", once)
        with pytest.raises(KeyboardInterrupt):
            lab(**share)
    with pytest.raises(AwaitingLabels, match="cycle_001"):
        lab(**share)
    answer(truth, *asked(tmp_path / "results", "cycle_001"))
    assert lab(**share).status == "COMPLETED"
    found = events(tmp_path / "results", "entropy")
    counted = [id for event in found if event["event"] == "answered" for id in event["masks"]]
    assert len(counted) == len(set(counted)) == 4
    assert lab(**share).status == "COMPLETED" and events(tmp_path / "results", "entropy") == found

    given = {"initial": "given", "given.ids": [q["id"] for q in found[0]["queries"]], "start": 2}
    shutil.copytree(truth / "truth", tmp_path / "lab" / "truth")
    lab(to="oracle", **share, **given, **{"folder.masks": "truth", "folder.unlabelled": False})
    known = [event for event in events(tmp_path / "oracle", "entropy") if event["event"] == "audited"]
    assert [event for event in found if event["event"] == "audited"] == known and len(known) == 2
    assert weights(tmp_path / "results") == weights(tmp_path / "oracle") and len(weights(tmp_path / "oracle")) == 3


def test_a_mask_drawn_anew_counts_from_then_on_and_the_old_one_stays(lab, truth, tmp_path, capsys):
    with pytest.raises(AwaitingLabels):
        lab()
    first, names = asked(tmp_path / "results", "cycle_000")
    answer(truth, first, names)
    (image,) = (
        image for image in json.loads((first / "manifest.json").read_text())["images"] if image["name"] == names[1]
    )
    with Image.open(first / "labels" / f"{names[1]}.png") as mask:
        second = np.array(mask)
    second[-4:] = 255
    Image.fromarray(second).save(first / "labels" / f"{image['sha256']}.png")  # somebody else answered the same
    os.utime(first / "labels" / f"{names[1]}.png", (1, 1))
    capsys.readouterr()
    with pytest.raises(AwaitingLabels):
        lab()
    twice = f"{names[1]} was drawn 2 times ({names[1]}.png, {image['sha256']}.png): all are kept, the last one counts."
    assert twice in capsys.readouterr().out
    versions = next(
        e["masks"] for e in events(tmp_path / "results", "entropy") if "masks" in e and e["event"] == "answered"
    )
    assert answers.digest_of(second) == versions[names[1]][-1]["sha256"] != versions[names[1]][0]["sha256"]
    before = weights(tmp_path / "results")
    path = first / "labels" / f"{names[0]}.png"
    with Image.open(path) as image:
        drawn = np.array(image)
    drawn[:4] = 255  # nobody looked there after all
    Image.fromarray(drawn).save(path)
    answer(truth, *asked(tmp_path / "results", "cycle_001"))
    capsys.readouterr()
    lab()
    assert f"{names[0]} was drawn anew" in capsys.readouterr().out
    versions = [e["masks"][names[0]] for e in events(tmp_path / "results", "entropy") if names[0] in e.get("masks", {})]
    hashes = [version["sha256"] for (version,) in versions]
    kept = {path.stem for path in (tmp_path / "results" / "entropy_0" / "masks").iterdir()}
    assert len(set(hashes)) == 2 and set(hashes) <= kept and len(kept) == 6
    assert weights(tmp_path / "results")[:2] == before
    last = events(tmp_path / "results", "entropy")[-1]
    assert last["event"] == "evaluated" and last["foreground"] > 0
    lab()  # everything is there: the masks of each cycle are found as they were then
    path = tmp_path / "results" / "entropy_0" / "masks" / f"{hashes[0]}.png"
    Image.fromarray(drawn // 255).save(path)
    with pytest.raises(Refused, match="is not the mask that the ledger counts"):
        lab(cycles=3)


def test_what_was_edited_in_a_request_is_refused(lab, tmp_path):
    with pytest.raises(AwaitingLabels):
        lab()
    place, names = asked(tmp_path / "results", "cycle_000")
    text = (place / "manifest.json").read_text()
    opened = open_run(tmp_path / "results" / "entropy_0", device="cpu", threads=1)
    rows = {name: seen(opened, tmp_path / "lab" / "images" / f"{name}.bmp") for name in [*names, "im_2", "im_3"]}
    near = {name: min(("im_2", "im_3"), key=lambda other, row=rows[name]: np.linalg.norm(row - rows[other]))
            for name in names}  # fmt: skip
    assert {image["id"]: image["nearest"] for image in json.loads(text)["images"]} == near
    assert json.loads(text)["nearest_by"] == "Euclidean distance of features by the bottleneck of model=unet"
    swapped = text.replace(f'"name": "{names[0]}"', f'"name": "{names[1]}"')
    for other in (text.replace('"gland"', '"vessel"'), text.replace('"height": ', '"height": 1'), swapped, "{", "[]"):
        (place / "manifest.json").write_text(other)
        with pytest.raises(Refused, match="is not as it was written: remove it, and the same command"):
            lab()
    (place / "manifest.json").unlink()
    with pytest.raises(AwaitingLabels):
        lab()
    assert (place / "manifest.json").read_text() == text


def seen(opened, path):
    """(D,) features of an image file by a run's model, with nothing of experiments/acquisition."""
    image = torch.from_numpy(np.array(Image.open(path).convert("RGB")))[None]
    return features(opened.model, opened.layers["bottleneck"], image)[0]


def test_a_model_without_features_names_no_nearest_image_and_says_why():
    state = SimpleNamespace(config={"model": "mine"}, active=SimpleNamespace(n_labelled=4), encoder=None)
    state.components = {"model": SimpleNamespace(HAS=("features",))}
    assert nearest.among(state, [7, 8], 0, None) == ([None] * 2, "no image was labelled when these were asked for")
    none = "model=mine has no features to compare, encoder=... would give some"
    assert nearest.among(state, [7, 8], 1, None) == ([None] * 2, none)
    state.components["model"].LAYERS = {"encoder": "0"}
    assert nearest.among(state, [7], 1, lambda: False) == ([None], "the weights that asked are gone")


def test_images_that_come_between_two_starts_join_the_pool_and_nothing_else_is_taken(lab, truth, tmp_path, capsys):
    images = tmp_path / "lab" / "images"
    late = (images / "im_11.bmp").rename(tmp_path / "im_11.bmp")
    with pytest.raises(AwaitingLabels, match="7 of 7"):
        lab(query=7)
    began = events(tmp_path / "results", "entropy")[0]["images"]
    shutil.copytree(tmp_path / "results", tmp_path / "killed")
    shutil.copy(late, images / "a_first.bmp")  # sorted before all others, and with a mask that would move those drawn
    shutil.copy(truth / "truth" / "im_11.png", tmp_path / "lab" / "masks" / "a_first.png")
    shutil.copy(late, images / "z_last.bmp")
    append = Ledger.append

    def killed(self, event, *more, **values):
        append(self, event, *more, **values)
        if event == "joined":
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ledger, "append", killed)
        with pytest.raises(KeyboardInterrupt):
            lab(to="killed", query=7)
    for to in ("killed", "results"):
        capsys.readouterr()
        with pytest.raises(AwaitingLabels, match="7 of 7"):
            lab(to=to, query=7)
        said = "New since the last start, and in the pool from now on: a_first, z_last."
        assert (said in capsys.readouterr().out) == (to == "results")
    ledgers = [(tmp_path / to / "entropy_0" / "ledger.jsonl").read_bytes() for to in ("killed", "results")]
    assert ledgers[0] == ledgers[1]
    (event,) = [event for event in events(tmp_path / "results", "entropy") if event["event"] == "joined"]
    assert [image["id"] for image in event["images"]] == ["a_first", "z_last"] and event["cycle"] == 1
    assert len({image["sha256"] for image in event["images"]}) == 1  # the same picture twice
    last = (images / "z_last.bmp").rename(tmp_path / "z_last.bmp")
    with pytest.raises(Refused, match="holds a run with z_last, which the folder lacks now"):
        lab(query=7)
    shutil.copy(images / "im_5.bmp", images / "z_last.bmp")
    with pytest.raises(Refused, match="other train images"):
        lab(query=7)
    shutil.copy(last, images / "z_last.bmp")
    answer(truth, *asked(tmp_path / "results", "cycle_000"))
    with pytest.raises(AwaitingLabels, match="1 of 2"):
        lab(query=7)
    assert set(asked(tmp_path / "results", "cycle_001")[1]) == {"a_first", "z_last"}
    found = events(tmp_path / "results", "entropy")
    assert found[0]["images"] == began and [e["pool"] for e in found if e["event"] == "evaluated"] == [7, 2]
    (tmp_path / "results" / "entropy_0" / "queries" / "cycle_001" / "labels" / "z_last.png").write_bytes(
        (truth / "truth" / "im_11.png").read_bytes()
    )
    assert lab(query=7).status == "COMPLETED"
    finished = events(tmp_path / "results", "entropy")
    shutil.copy(images / "im_5.bmp", images / "later.bmp")
    capsys.readouterr()
    assert lab(query=7).status == "COMPLETED" and events(tmp_path / "results", "entropy") == finished
    assert "before this finished run goes on, as with cycles=3: later." in capsys.readouterr().out


def test_strategies_may_ask_for_the_first_images_too(lab, tmp_path):
    with pytest.raises(AwaitingLabels, match="start/index.html"):
        lab(initial="random", start=4)
    place, names = asked(tmp_path / "results", "start")
    assert len(names) == 4 and not list((place / "prediction").iterdir())


def test_no_two_values_of_a_mask_have_one_colour():
    assert len({pictures.mask_colour(number) for number in range(256)}) == 256


def save(tmp_path, array, name="a__b.png", **how):
    path = tmp_path / name
    image = Image.fromarray(array)
    if "palette" in how:
        image = Image.frombytes("P", array.shape[::-1], array.tobytes())
        image.putpalette(how["palette"])
    image.save(path)
    return path


def test_a_mask_is_read_from_numbers_colours_and_palettes(tmp_path):
    mask = np.random.default_rng(0).integers(0, CLASSES, (6, 8)).astype(np.uint8)
    mask[0, :2] = 255
    colours = np.array([pictures.mask_colour(n) for n in range(256)], np.uint8)[mask]
    own = [0, 0, 0, 9, 9, 9, 1, 2, 3, *[7, 8, 9] * 253]
    for path in (
        save(tmp_path, mask),
        save(tmp_path, colours, "rgb.png"),
        save(tmp_path, mask, "palette.png", palette=own),
        save(tmp_path, mask, "a.tif"),
        save(tmp_path, mask, "a.bmp"),
    ):
        assert (answers.checked(path, IMAGE, CLASSES) == mask).all(), path
    (tmp_path / "first.png").write_bytes(pictures.mask_png(mask))
    assert (answers.checked(tmp_path / "first.png", IMAGE, CLASSES) == mask).all()
    answers.keep(tmp_path, answers.digest_of(mask), mask)
    assert (answers.read(tmp_path, answers.digest_of(mask), (6, 8)) == mask).all()
    assert (answers.read(tmp_path, answers.digest_of(mask), (3, 4)) == mask[1::2, 1::2]).all()


@pytest.mark.parametrize(
    "array, reason",
    [
        (np.ones((5, 8), np.uint8), "8 x 5, its image 8 x 6"),
        (np.full((6, 8), 3, np.uint8), "holds 3: the classes are 0 to 2"),
        (np.full((6, 8), 255, np.uint8), "holds 0 and 255 alone"),
        (np.eye(6, 8, dtype=np.uint8) * 255, "holds 0 and 255 alone"),
        (np.full((6, 8, 3), 77, np.uint8), r"the colour \(77, 77, 77\)"),
    ],
)
def test_a_mask_that_cannot_be_meant_is_named(tmp_path, array, reason):
    with pytest.raises(BadData, match=reason):
        answers.checked(save(tmp_path, array), IMAGE, CLASSES)
    with pytest.raises(BadData, match="save the mask as PNG"):
        answers.checked(save(tmp_path, np.ones((6, 8), np.uint8), "a__b.jpg"), IMAGE, CLASSES)


def test_a_mask_finds_its_image_by_hash_then_id_then_name(tmp_path):
    other = IMAGE | {"id": "c", "name": "c", "sha256": "e" * 64}
    images = [IMAGE, other]
    for name, row in (
        ("a__b.png", {}),
        (f"{'f' * 64}.tif", {}),
        ("x.png", {"id": "a/b"}),
        ("c.png", {"sha256": "f" * 64}),
    ):
        assert answers.image_of(tmp_path / name, images, row) is IMAGE
    with pytest.raises(BadData, match="for no image that was asked for"):
        answers.image_of(tmp_path / "d.png", images, {})
    with pytest.raises(BadData, match="c.png is by its hash dddddddddddd of an image that was not asked for"):
        answers.image_of(tmp_path / "c.png", images, {"sha256": "d" * 64})
    with pytest.raises(BadData, match="c.png is said to be of c, by the hash of a/b"):
        answers.image_of(tmp_path / "c.png", images, {"sha256": "f" * 64, "id": "c"})


def test_no_two_ids_share_a_file():
    ids = [
        "a/b",
        "a__b",
        "a_/b",
        "a/_b",
        "a___b",
        "a_b",
        "b",
        "a/b/c",
        "a__b/c",
        "a/b__c",
        "_a",
        "a_",
        "a_/_b",
        "a____b",
    ]
    assert len({request.file_name(id) for id in ids}) == len(ids)
    assert not any("/" in request.file_name(id) for id in ids)
    assert [request.file_name(id) for id in ("a/b", "im_0", "p7/im_1")] == ["a__b", "im_0", "p7__im_1"]


def test_who_drew_a_mask_and_how_long_it_took(tmp_path):
    assert answers.table(tmp_path / "answers.csv") == {}
    (tmp_path / "answers.csv").write_text("file,seconds,annotator\na__b.png,61.5,'=Ann\n")
    assert answers.table(tmp_path / "answers.csv")["a__b.png"] == {
        "file": "a__b.png",
        "seconds": "61.5",
        "annotator": "=Ann",
    }


def test_only_images_with_masks_validate_or_test():
    masked = [Item(f"m{i}", None, f"m{i}.png", source=f"s{i // 2}") for i in range(8)]
    bare = [Item(f"u{i}", None, None, source=f"s{i}") for i in range(8)]  # s0 to s3 have masks of other images
    items = [*bare, *masked]
    train, val, test = deal(items, {}, {"val": 0.25, "test": 0.25}, generator(0), "folder")
    assert all(item.mask for item in [*val, *test]) and len(val) == len(test) == 2
    held = {item.source for item in [*val, *test]}
    assert [item for item in items if item.source not in held] == train
    with pytest.raises(Refused, match="u0 is in the list of val and has no mask"):
        deal(items, {"val": [0]}, {"val": 0, "test": 0}, generator(0), "folder")


def test_a_page_shows_images_whatever_their_name():
    image = {"id": "50%#1", "name": "50%#1", "image": "images/50%#1.png", "group": "", "score": None, "rank": 0}
    image |= {"height": 8, "width": 8}
    assert 'src="images/50%25%231.png"' in page.figure(1, image, "bald")
