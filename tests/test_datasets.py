"""What the dataset files promise: honest splits, faults told in one line, a phantom that is a problem."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data import glas, phantom
from experiments.errors import Refused
from experiments.store import IGNORE, Item, Split, Store, decode, refuse_ignored_foreground

REAL = Path(__file__).resolve().parents[2] / "shared/data/GlaS"
needs_glas = pytest.mark.skipif(not REAL.is_dir(), reason=f"the real GlaS is not at {REAL}")
TOY = [("train_10", "benign"), ("train_9", "malignant"), ("train_1", "benign"), ("train_2", "malignant")]
TOY += [("testB_1", "benign"), ("testA_1", "malignant")]


def load_glas(root, seed=0, **settings):
    settings = {"resize": 1.0, "crop": 416, "folds": 5, "fold": 0, "split": "patients"} | settings
    return glas.load(rng=np.random.default_rng(seed), root=str(root), **settings)


def load_phantom(root, seed=0):
    settings = {"seed": seed, "crop": 96, "folds": 5, "fold": 0, "split": "patients"}
    return phantom.load(rng=np.random.default_rng(0), root=str(root), **settings)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def all_ids(splits):
    return splits.train.ids, splits.val.ids, splits.test.ids


def sources(split):
    return {item.source for item in split.items}


@needs_glas
def test_glas_splits():
    splits = load_glas(REAL)
    assert len(splits.train) + len(splits.val) == 85 and len(splits.test) == 80
    assert splits.crop == 416
    assert all(name.startswith("train") for name in splits.train.ids + splits.val.ids)
    assert splits.test.ids[:2] == ["testA_1", "testA_2"] and splits.test.ids[-1] == "testB_20"
    assert set(splits.train.groups) == {"benign", "malignant"}
    assert all(item.source.isdigit() for split in splits[:3] for item in split.items)
    assert all_ids(load_glas(REAL)) == all_ids(splits)
    assert len({tuple(load_glas(REAL, seed).val.ids) for seed in range(4)}) > 1


@needs_glas
def test_glas_folds_keep_patients_together_and_partition_the_training_set():
    folds = [load_glas(REAL, fold=fold) for fold in range(5)]
    validated = Counter(name for splits in folds for name in splits.val.ids)
    assert len(validated) == 85 and set(validated.values()) == {1}
    for splits in folds:
        assert not set(splits.val.ids) & set(splits.train.ids) and not sources(splits.val) & sources(splits.train)
        assert len(splits.train) + len(splits.val) == 85
    for seed in range(6):  # the first part is near a fifth of each grade, 7.4 and 9.6
        found = Counter(load_glas(REAL, seed).val.groups)
        assert abs(found["benign"] - 7.4) < 2 and abs(found["malignant"] - 9.6) < 2.5


@needs_glas
def test_the_published_glas_split_ignores_patients():
    preset = (Path(__file__).parents[1] / "experiments/presets/glas.yaml").read_text()
    assert "split: images" in preset
    folds = [load_glas(REAL, fold=fold, split="images") for fold in range(5)]
    assert all(len(splits.val) == 17 and Counter(splits.val.groups)["benign"] in (7, 8) for splits in folds)
    assert sum(item.source in sources(folds[0].train) for item in folds[0].val.items) > 12


@needs_glas
def test_every_real_glas_mask_is_taken():
    """No false alarm: drawn instances, some thin, some touching the border, resized by nearest neighbour."""
    for resize in (1.0, 0.5):
        for split in load_glas(REAL, resize=resize)[:3]:
            assert all(split.read_mask(item.mask).any() for item in split.items)


@needs_glas
def test_glas_pixels():
    whole, half = load_glas(REAL), load_glas(REAL, resize=0.5)
    for item in whole.test.items[::20]:
        with Image.open(item.mask) as file:
            ids = np.array(file)
        mask = whole.test.read_mask(item.mask)
        assert mask.dtype == np.uint8 and np.array_equal(mask, ids > 0)
        image, small = whole.test.read_image(item.image), half.test.read_image(item.image)
        assert image.shape == (*mask.shape, 3)
        assert small.shape == (*half.test.read_mask(item.mask).shape, 3)
        assert np.allclose(np.divide(small.shape[:2], image.shape[:2]), 0.5, atol=0.01)
        assert set(np.unique(half.test.read_mask(item.mask))) <= {0, 1}


CAMVID = ("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "cyclist")


def read_camvid(path):
    mask = decode(path, "PNG", "L")
    return np.where(mask == 11, IGNORE, mask)


def read_isic(path):
    return (decode(path, "PNG", "L") > 127).astype(np.uint8)


@pytest.mark.parametrize(
    ("folder", "classes", "read"),
    [
        ("CamVid/valannot", CAMVID, read_camvid),
        ("ISIC-2017/ISIC-2017_Validation_Part1_GroundTruth", ("background", "lesion"), read_isic),
    ],
)
def test_no_false_alarm_on_other_real_masks(folder, classes, read):
    """Void that is ignored, classes without a background, lesions as 255: all opened as a run opens them."""
    place = REAL.parent / folder
    if not place.is_dir():
        pytest.skip(f"the real masks are not at {place}")
    items = [Item(path.stem, path, path) for path in sorted(place.glob("*.png"))[:60]]
    store = Store(Split(items, lambda path: decode(path, "PNG", "RGB"), read), "cpu", classes=classes)
    store.label(range(len(items)))
    refuse_ignored_foreground([store], folder)
    assert len(items) == 60 and store.mask_pixels.sum() == len(store.masks)
    assert store.foreground.start == (0 if classes is CAMVID else 1)


def make_toy(root, rows=TOY, end="\r"):
    root.mkdir(exist_ok=True)
    for name, _ in rows:
        Image.fromarray(np.full((6, 8, 3), 200, np.uint8)).save(root / f"{name}.bmp")
        Image.fromarray(np.arange(48, dtype=np.uint8).reshape(6, 8) // 16).save(root / f"{name}_anno.bmp")
    write_grades(root, rows, end)
    return root


def write_grades(root, rows, end="\r"):
    table = [phantom.HEADER, *(f"{name},{number}, {grade}, x" for number, (name, grade) in enumerate(rows))]
    (root / "Grade.csv").write_bytes(end.join(table).encode())


@pytest.mark.parametrize("end", ["\r", "\n", "\r\n"])
def test_glas_reads_every_line_end(tmp_path, end):
    splits = load_glas(make_toy(tmp_path, end=end), folds=2)
    items = {item.id: item for split in splits[:3] for item in split.items}
    assert {name: item.group for name, item in items.items()} == dict(TOY)
    assert items["train_9"].source == "1"
    assert splits.test.ids == ["testA_1", "testB_1"]
    assert all(ids == sorted(ids, key=lambda name: int(name[6:])) for ids in all_ids(splits)[:2])
    assert Counter(splits.val.groups) == Counter(splits.train.groups) == {"benign": 1, "malignant": 1}


def test_glas_opens_no_image_at_load(tmp_path):
    root = make_toy(tmp_path)
    for path in root.glob("*.bmp"):
        path.write_bytes(b"damaged")
    splits = load_glas(root, folds=2)
    with pytest.raises(Refused, match=splits.train.items[0].image.name):
        splits.train[0]
    with pytest.raises(Refused, match=splits.train.items[0].mask.name):
        splits.train.read_mask(splits.train.items[0].mask)


def refusal(call, *arguments, **settings):
    with pytest.raises(Refused) as caught:
        call(*arguments, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ["train_9.bmp", "train_9_anno.bmp", "testA_1_anno.bmp"])
def test_glas_names_the_missing_file(tmp_path, name):
    root = make_toy(tmp_path)
    (root / name).unlink()
    message = refusal(load_glas, root, folds=2)
    assert str(root / name) in message and glas.SOURCE in message


@pytest.mark.parametrize(
    "rows, fault",
    [
        (TOY[1:], "train_10.bmp is not in Grade.csv"),
        (TOY + TOY[:1], "lists train_10 2 times"),
        (TOY[-2:], "not in Grade.csv"),
        ([*TOY, ("../train_1", "benign")], "'../train_1'"),
        ([*TOY, ("/etc/train_1", "benign")], "'/etc/train_1'"),
        ([*TOY, ("train_1\0", "benign")], "Grade.csv"),
        ([*TOY, ("train_11", "")], "grade (GlaS) ''"),
        ([*TOY, ("train_11", "benign")], "train_11.bmp is missing"),
    ],
)
def test_glas_refuses_a_wrong_table(tmp_path, rows, fault):
    root = make_toy(tmp_path)
    write_grades(root, rows)
    assert fault in refusal(load_glas, root, folds=2)


def test_glas_refuses_an_unfit_folder(tmp_path):
    for root in (tmp_path / "absent", tmp_path):
        message = refusal(load_glas, root)
        assert all(part in message for part in (str(root), glas.SOURCE, "glas.root=", "dataset=phantom"))
    assert "no training images" in refusal(load_glas, make_toy(tmp_path / "test_only", TOY[-2:]))
    (tmp_path / "Grade.csv").write_bytes(b"\xff\xfe\xff")
    assert "Grade.csv cannot be read" in refusal(load_glas, tmp_path)


@pytest.mark.parametrize(
    "setting, value",
    [
        ("resize", 0),
        ("resize", -1.0),
        ("resize", float("nan")),
        ("resize", "big"),
        ("crop", -1),
        ("crop", 0.5),
    ]
    + [("split", "scenes"), ("folds", 1), ("folds", 2.5), ("folds", 3), ("fold", 2), ("fold", -1), ("fold", "a")],
)
def test_glas_refuses_a_wrong_setting(tmp_path, setting, value):
    message = refusal(load_glas, make_toy(tmp_path), **{"folds": 2} | {setting: value})
    assert setting in message and str(value) in message


def test_glas_needs_as_many_patients_as_folds(tmp_path):
    root = make_toy(tmp_path)
    table = [phantom.HEADER, *(f"{name},{name[:5]}, {grade}, x" for name, grade in TOY)]
    (root / "Grade.csv").write_text("\r".join(table))
    assert "only 1 patients" in refusal(load_glas, root, folds=2)
    assert len(load_glas(root, folds=2, split="images").val) == 2


def save_objects(path, resize=lambda image: image):
    """Fifteen discs that are numbered from 1, two of them touching, as an annotation is drawn."""
    y, x = np.mgrid[:60, :100]
    numbers = np.zeros((60, 100), np.uint8)
    for k in range(15):
        numbers[np.hypot(y - 10 - 20 * (k // 5), x - 10 - (19 if k == 1 else 20) * (k % 5)) < 9.5] = k + 1
    resize(Image.fromarray(numbers)).save(path)
    return path


@pytest.mark.parametrize("way", ["BILINEAR", "BICUBIC", "BOX", "LANCZOS"])
@pytest.mark.parametrize("factor", [0.5, 0.7, 2])
def test_instances_that_were_averaged_are_refused_with_the_evidence(tmp_path, way, factor):
    size = round(100 * factor), round(60 * factor)
    path = save_objects(tmp_path / "a_anno.bmp", lambda image: image.resize(size, Image.Resampling[way]))
    if way == "BOX" and factor == 2:
        assert glas.read_mask(path, 1.0).any()  # an average of one pixel is that pixel
        return
    message = refusal(glas.read_mask, path, 1.0)
    assert all(part in message for part in (str(path), "averaging", "% of its outlines", "nearest neighbour"))


@pytest.mark.parametrize("factor", [0.25, 0.5, 0.7, 1, 2])
def test_instances_resized_by_nearest_neighbour_are_taken(tmp_path, factor):
    size = round(100 * factor), round(60 * factor)
    path = save_objects(tmp_path / "a_anno.bmp", lambda image: image.resize(size, Image.Resampling.NEAREST))
    assert set(np.unique(glas.read_mask(path, 1.0))) == {0, 1}
    assert glas.read_mask(path, 0.5).any()


def test_a_mask_saved_as_jpeg_is_refused(tmp_path):
    """Its numbers waver round every outline."""
    save_objects(tmp_path / "a.jpg")
    Image.open(tmp_path / "a.jpg").save(tmp_path / "a.bmp")
    assert "averaging" in refusal(glas.read_mask, tmp_path / "a.bmp", 1.0)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    root = tmp_path_factory.mktemp("phantom")
    return root, load_phantom(root)


def test_phantom_splits(drawn):
    _, splits = drawn
    assert [len(ids) for ids in all_ids(splits)] in ([60, 20, 32], [65, 15, 32])
    assert not sources(splits.train) & sources(splits.val)
    for split in splits[:3]:
        assert set(split.groups) == {"benign", "malignant", "mucinous"}
        assert len({split[i].shape for i in range(len(split))}) > 1
        assert all(min(split[i].shape[:2]) >= splits.crop for i in range(len(split)))
    assert sources(splits.test) - sources(splits.train) - sources(splits.val) == {"13", "14", "15", "16"}


def test_phantom_masks(drawn):
    _, splits = drawn
    shares = []
    for item in splits.test.items:
        with Image.open(item.mask) as file:
            ids = np.array(file)
        assert np.array_equal(np.unique(ids), np.arange(ids.max() + 1)) and ids.max() > 1
        assert ids.shape == splits.test.read_image(item.image).shape[:2]
        shares.append(splits.test.read_mask(item.mask).mean())
    shares = np.array(shares)
    assert 0.30 < shares.mean() < 0.40
    assert 0.45 < (2 * shares / (1 + shares)).mean() < 0.58  # Dice of answering "gland" everywhere


def test_no_threshold_solves_the_phantom(drawn):
    _, splits = drawn
    test = splits.test
    truth = [test.read_mask(item.mask) > 0 for item in test.items]
    dark = [255 - test[i].mean(axis=-1) for i in range(len(test))]
    scores = []
    for level in range(0, 250, 10):
        pairs = [(t, d > level) for t, d in zip(truth, dark, strict=True)]
        scores.append(np.mean([2 * (t & p).sum() / (t.sum() + p.sum()) for t, p in pairs]))
    assert max(scores) < 0.65


def test_phantom_has_consecutive_sections(drawn):
    root, _ = drawn
    scenes = dict(phantom.plan(0))
    repeated = [scene for scene, count in Counter(scenes.values()).items() if count > 1]
    assert len(repeated) == 4
    first, second = [name for name, scene in scenes.items() if scene == repeated[0]][:2]
    sections = contents(root / "seed_0")
    for part in load_phantom(root)[:2]:  # near-duplicates never lie on both sides
        inside = [len([name for name, scene in scenes.items() if scene == s and name in part.ids]) for s in repeated]
        assert set(inside) <= {0, 5}
    assert sections[f"{first}.bmp"] != sections[f"{second}.bmp"]


def test_phantom_is_the_same_everywhere(drawn, tmp_path):
    root, _ = drawn
    load_phantom(tmp_path)
    assert contents(tmp_path / "seed_0") == contents(root / "seed_0")
    assert phantom.plan(1) != phantom.plan(0)
    assert not np.array_equal(phantom.draw_image(1, "testA_1", 64)[1], phantom.draw_image(0, "testA_1", 64)[1])


def test_phantom_is_drawn_once(drawn, monkeypatch):
    root, splits = drawn
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    with monkeypatch.context() as patch:
        patch.setattr(phantom, "draw_image", lambda *_: pytest.fail("drawn again"))
        assert all_ids(load_phantom(root)) == all_ids(splits)
    monkeypatch.setattr(phantom, "plan", lambda seed: [("train_1", 0)])
    phantom.draw_folder(root / "seed_0", 0)  # as a process does that lost the race
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} | {root: 0} == before | {root: 0}


def test_phantom_leaves_nothing_unfinished(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(phantom, "draw_image", interrupt)
    with pytest.raises(KeyboardInterrupt):
        load_phantom(tmp_path)
    assert not list(tmp_path.iterdir())


def test_phantom_refuses_in_one_line(tmp_path):
    assert "seed" in refusal(load_phantom, tmp_path, seed=-1)
    (tmp_path / "file").touch()
    assert "phantom.root" in refusal(load_phantom, tmp_path / "file")
