"""The published datasets: tiny archives of the official layouts, drawn here, and the real ones where they are."""

import json
import shutil
from collections import Counter
from importlib import import_module

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from data import _files, axon_myelin, camvid, camvid12, cityscapes, isic2017, mgd1k, voc2012
from experiments.components import defaults, written
from experiments.errors import BadData, Refused
from experiments.store import IGNORE, Store, decode, reading

REAL = ROOT.parent / "shared" / "data"
NAMES = "axon_myelin bdd100k camvid camvid12 cityscapes isic2017 mg203 mgd1k voc2012".split()


def load(name, root, run=0, **settings):
    module = import_module(f"data.{name}")
    chosen = defaults(module.ingredient) | {"root": str(root)} | settings
    return module.load(rng=np.random.default_rng(run), **chosen)


def save(path, pixels, palette=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(pixels, np.uint8))
    if palette:
        image.putpalette([component for n in range(256) for component in (n * 37 % 256, n * 91 % 256, n * 53 % 256)])
    image.save(path)


def picture(number, height=12, width=16):
    return np.random.default_rng(number).integers(0, 256, (height, width, 3))


def stripes(values, height=12, width=16):
    """A mask of upright stripes of these values."""
    return np.tile(np.asarray(values)[np.arange(width) * len(values) // width], (height, 1))


def draw_camvid(root):
    for part, frames in (("train", ["0001TP_006690", "0006R0_f00930"]), ("val", ["0016E5_07959"])):
        draw_frames(root, part, frames)
    draw_frames(root, "test", ["Seq05VD_f00000", "0001TP_008550"])  # not in the order of names


def draw_frames(root, part, frames):
    for number, frame in enumerate(frames):
        save(root / part / f"{frame}.png", picture(number))
        save(root / f"{part}annot" / f"{frame}.png", stripes([0, 3, 10, 11]))
    lines = [f"/SegNet/CamVid/{part}/{frame}.png /SegNet/CamVid/{part}annot/{frame}.png" for frame in frames]
    (root / f"{part}.txt").write_text("\n".join(lines) + "\n")


def draw_isic(root, test=False):
    parts = {"Training": range(20), "Validation": range(20, 23), "Test_v2": range(23, 27)}
    for part, numbers in parts.items():
        for n in numbers:
            save(root / f"ISIC-2017_{part}_Data" / f"ISIC_{n:07}.jpg", picture(n, 12 + n % 3))
            save(root / f"ISIC-2017_{part}_Data" / f"ISIC_{n:07}_superpixels.png", picture(n))
            if part != "Test_v2" or test:
                mask = root / f"ISIC-2017_{part}_Part1_GroundTruth" / f"ISIC_{n:07}_segmentation.png"
                save(mask, stripes([0, 255], 12 + n % 3))
        rows = [f"ISIC_{n:07},{float(n % 4 == 0)},{float(n % 4 == 1)}" for n in numbers]
        table = root / f"ISIC-2017_{part}_Part3_GroundTruth.csv"
        table.write_text("\n".join(["image_id,melanoma,seborrheic_keratosis", *rows]) + "\n")


def draw_axons(root):
    for rat in range(1, 9):
        samples = (9, 10) if rat == 3 else (rat,)
        for sample in samples:
            name = f"sub-rat{rat}_sample-data{sample}_SEM"
            grey = np.random.default_rng(sample).integers(0, 256, (96, 160))
            values = stripes([0, 127 + rat % 2, 255], 96, 160)
            if rat in (5, 6):  # with an alpha channel
                values = np.dstack([values, np.full_like(values, 255)])
            if rat == 2:
                values[0, 60:62] = 130, 233
            save(root / f"sub-rat{rat}/micr/{name}.png", grey)
            for kind in ("axonmyelin", "axon", "myelin"):
                save(root / f"derivatives/labels/sub-rat{rat}/micr/{name}_seg-{kind}-manual.png", values)
        about = {"PixelSize": [0.1, 0.1] if rat != 7 else [0.05, 0.05], "PixelSizeUnits": "um"}
        stem = f"sub-rat{rat}" if rat == 3 else f"sub-rat{rat}_sample-data{rat}"
        (root / f"sub-rat{rat}/micr/{stem}_SEM.json").write_text(json.dumps(about))


def draw_voc(root):
    lists = {"train": [f"2007_{n:06}" for n in range(20)], "val": [f"2008_{n:06}" for n in range(3)]}
    lists["trainaug"] = lists["train"] + [f"2009_{n:06}" for n in range(5)]
    lists["trainval"] = lists["train"] + lists["val"]
    for name in {*lists["trainaug"], *lists["val"]}:
        save(root / "JPEGImages" / f"{name}.jpg", picture(1, 12 + int(name[-1]) % 2))
        mask = stripes([0, 255, 15, 20], 12 + int(name[-1]) % 2)
        if not name.startswith("2009"):
            save(root / "SegmentationClass" / f"{name}.png", mask, palette=True)
        save(root / "SegmentationClassAug" / f"{name}.png", mask)
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    for part, names in lists.items():
        (root / f"ImageSets/Segmentation/{part}.txt").write_text("\n".join(names) + "\n")


def draw_cityscapes(root):
    cities = {"train": [f"city{n}" for n in range(18)], "val": ["frankfurt", "lindau"], "test": ["berlin"]}
    for part, names in cities.items():
        for city in names:
            for scene in range(2):
                name = f"{city}_{scene:06}_000019"
                save(root / "leftImg8bit" / part / city / f"{name}_leftImg8bit.png", picture(scene))
                mask = root / "gtFine" / part / city / f"{name}_gtFine_labelIds.png"
                save(mask, stripes([0, 7, 9, 33]) if part != "test" else stripes([0]))
                save(mask.with_name(f"{name}_gtFine_labelTrainIds.png"), stripes([255, 0, 255, 18]))


def draw_bdd(root):
    for part, count in (("train", 20), ("val", 3), ("test", 2)):
        for n in range(count):
            save(root / "images/10k" / part / f"{n:08x}-{part}.jpg", picture(n))
            if part != "test":
                save(root / "labels/sem_seg/masks" / part / f"{n:08x}-{part}.png", stripes([0, 18, 255]))


def draw_glands(root, folder="img"):
    """As upstream: train holds the images that test as well."""
    for part, names in (("train", range(24)), ("test", range(18, 24))):
        for n in names:
            save(root / part / folder / f"{n:03}.png", picture(n))
            save(root / part / "label" / f"{n:03}.png", stripes([0, 255]))
    (root / "train.txt").write_text("\n".join(f"{n:03}" for n in range(18)))
    (root / "test.txt").write_text("\n".join(f"{n:03}" for n in range(18, 24)))


DRAW = {
    "camvid": draw_camvid,
    "camvid12": draw_camvid,
    "isic2017": draw_isic,
    "axon_myelin": draw_axons,
    "voc2012": draw_voc,
    "cityscapes": draw_cityscapes,
    "bdd100k": draw_bdd,
    "mgd1k": draw_glands,
    "mg203": draw_glands,
}
# images to train, validate and test; values that their masks hold
EXPECTED = {
    "camvid": (2, 1, 2, {0, 3, 10, IGNORE}),
    "camvid12": (2, 1, 2, {0, 3, 10, 11}),
    "isic2017": (16, 4, 3, {0, 1}),
    "axon_myelin": (5, 1, 3, {0, 1, 2}),
    "voc2012": (18, 2, 3, {0, 15, 20, IGNORE}),
    "cityscapes": (32, 4, 4, {0, 18, IGNORE}),
    "bdd100k": (18, 2, 3, {0, 18, IGNORE}),
    "mgd1k": (15, 3, 6, {0, 1}),
    "mg203": (15, 3, 6, {0, 1}),
}
SETTINGS = {"isic2017": {"folds": 5}, "axon_myelin": {"tile": 0}, "mgd1k": {"folds": 6}, "mg203": {"folds": 6}}


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """{name: a drawn archive}, only to be read."""
    roots = {name: tmp_path_factory.mktemp(name) for name in NAMES}
    for name, root in roots.items():
        DRAW[name](root)
        for path in list(root.rglob("*.*"))[:40]:
            path.with_name(f"._{path.name}").write_bytes(b"what macOS leaves in archives")
    return roots


def copied(archives, name, tmp_path):
    shutil.copytree(archives[name], tmp_path / name)
    return tmp_path / name


def refusal(*arguments, **settings):
    with pytest.raises(Refused) as caught:
        load(*arguments, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def sources(split):
    return {item.source for item in split.items}


@pytest.mark.parametrize("name", NAMES)
def test_counts_classes_and_pixels(archives, name):
    module = import_module(f"data.{name}")
    splits = load(name, archives[name], **SETTINGS.get(name, {}))
    *counts, values = EXPECTED[name]
    assert [len(split) for split in splits[:3]] == counts
    ids = [item for split in splits[:3] for item in split.ids]
    assert len(set(ids)) == len(ids)
    for split in splits[:3]:
        store = Store(split, "cpu", classes=module.CLASSES)
        store.label(range(len(split)))  # refuses what is no class
        assert store.pixels.shape[1] == module.CHANNELS
        assert set(np.flatnonzero(store.mask_pixels)) - {IGNORE} == values - {IGNORE}
        assert (store.mask_pixels[IGNORE] > 0) == (IGNORE in values) or name == "axon_myelin"


@pytest.mark.parametrize("name", NAMES)
def test_a_split_depends_on_the_run_alone_and_the_test_images_never(archives, name):
    settings = SETTINGS.get(name, {})
    first, again, other = (load(name, archives[name], run, **settings) for run in (0, 0, 1))
    assert all(a.ids == b.ids for a, b in zip(first[:3], again[:3], strict=True))
    assert first.test.ids == other.test.ids
    if name not in ("camvid", "camvid12", "axon_myelin"):
        assert any(load(name, archives[name], run, **settings).val.ids != first.val.ids for run in range(1, 4))
        folds = settings.get("folds", defaults(import_module(f"data.{name}").ingredient)["folds"])
        parts = [load(name, archives[name], fold=fold, **settings).val.ids for fold in range(folds)]
        assert sorted(sum(parts, [])) == sorted(first.train.ids + first.val.ids)
        assert f"fold is {folds}" in refusal(name, archives[name], fold=folds, **settings)
        assert "folds is 99" in refusal(name, archives[name], **settings | {"folds": 99})


@pytest.mark.parametrize("name", NAMES)
def test_every_missing_file_is_one_line(archives, name, tmp_path):
    """Also nothing at all, and an image or a mask of each split."""
    message = refusal(name, tmp_path / "absent", **SETTINGS.get(name, {}))
    assert str(tmp_path / "absent") in message and f"{name}.root=" in message and "://" in message
    root = copied(archives, name, tmp_path)
    if name in ("mgd1k", "mg203"):
        shutil.rmtree(root / "test/img")  # train holds them as well
    splits = load(name, root, **SETTINGS.get(name, {}))
    for split in splits[:3]:
        for path in (split.items[0].image, split.items[0].mask):
            file = path.parent if name == "axon_myelin" else path
            held = file.read_bytes()
            file.unlink()
            assert str(file) in refusal(name, root, **SETTINGS.get(name, {}))
            file.write_bytes(held)


@pytest.mark.parametrize("name", NAMES)
def test_what_lies_beside_an_archives_files_is_in_nobodys_way(archives, name, tmp_path):
    """What systems, browsers and editors leave, and lists that went through Windows."""
    root = shutil.copytree(archives[name], tmp_path / "a")
    for folder in [root, *(path for path in root.rglob("*") if path.is_dir())]:
        (folder / "README.txt").write_text("Read me.")
        for junk in (".DS_Store", "Thumbs.db", "desktop.ini", "._0.png", "index.html", "Copy of notes.docx"):
            (folder / junk).write_bytes(b"junk")
        for file in [path for path in folder.iterdir() if path.suffix in (".png", ".jpg")]:
            (folder / f"._{file.name}").write_bytes(b"\0\5\x16\7")
    (root / "__MACOSX").mkdir()
    for path in root.rglob("*.txt"):
        if path.name != "README.txt":
            lines = path.read_text().splitlines()
            path.write_bytes(b"\xef\xbb\xbf" + "\r\n\r\n".join([*lines, "  ", ""]).encode())
    for path in root.rglob("*.csv"):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_text().replace("\n", "\r\n").encode() + b"\r\n")
    given = SETTINGS.get(name, {})
    for one, other in zip(load(name, archives[name], **given)[:3], load(name, root, **given)[:3], strict=True):
        assert one.ids == other.ids and one.groups == other.groups
        assert [i.mask.relative_to(archives[name]) for i in one.items] == [
            i.mask.relative_to(root) for i in other.items
        ]


@pytest.mark.parametrize("name", NAMES)
def test_no_image_is_opened_at_load_and_a_damaged_one_is_named(archives, name, tmp_path):
    root = copied(archives, name, tmp_path)
    splits = load(name, root, **SETTINGS.get(name, {}))
    for item in splits.train.items[:1]:
        for path, read in ((item.image, splits.train.read_image), (item.mask, splits.train.read_mask)):
            file = path.parent if name == "axon_myelin" else path
            file.write_bytes(b"damaged")
            with pytest.raises(BadData, match=file.name):
                read(path)
    if name != "axon_myelin":  # whose tiles need the sizes
        assert load(name, root, **SETTINGS.get(name, {})).train.ids == splits.train.ids


@pytest.mark.parametrize("name", NAMES)
def test_each_says_what_it_is_whose_and_where_it_is_from(name):
    module = import_module(f"data.{name}")
    about = written("dataset", name)["__doc__"]
    first, _, source, *_ = about.splitlines()
    assert first.endswith(".") and "https://" in source
    assert "Terms" in about or "dataset=camvid`" in about
    assert module.HEADLINE == {"isic2017": "dice", "mgd1k": "dice", "mg203": "dice", "axon_myelin": "class_dice"}.get(
        name, "miou"
    )
    assert module.HAS and module.IGNORE == IGNORE and len(set(module.CLASSES)) == len(module.CLASSES) > 1


def test_all_are_read_at_one_size_and_nothing_is_averaged(archives):
    for name in ("camvid", "voc2012", "isic2017", "bdd100k", "mgd1k", "cityscapes"):
        settings = SETTINGS.get(name, {}) | {"height": 9, "width": 7}
        split = load(name, archives[name], **settings).test
        item = split.items[0]
        assert split[0].shape == (9, 7, 3)
        mask = split.read_mask(item.mask)
        assert mask.shape == (9, 7) and set(np.unique(mask)) <= EXPECTED[name][3]
        whole = load(name, archives[name], **settings | {"height": 0, "width": 0}).test
        with Image.open(item.image) as file:
            assert np.array_equal(whole[0], np.asarray(file.convert("RGB")))
        assert whole[0].shape[:2] == whole.read_mask(item.mask).shape


def test_camvid_keeps_the_order_of_its_lists_and_knows_the_sequences(archives, tmp_path):
    splits = load("camvid", archives["camvid"])
    assert splits.test.ids == ["Seq05VD_f00000", "0001TP_008550"]
    assert [item.source for item in splits.test.items] == ["Seq05VD", "0001TP"]
    assert camvid12.CLASSES == (*camvid.CLASSES, "void") and len(camvid.CLASSES) == camvid.VOID
    root = copied(archives, "camvid", tmp_path)
    (root / "test.txt").unlink()
    assert load("camvid", root).test.ids == ["0001TP_008550", "Seq05VD_f00000"]
    with open(root / "train.txt", "a") as file:
        file.write("/SegNet/CamVid/train/0001TP_1.png /SegNet/CamVid/trainannot/0001TP_1.png\n")
    assert f"{root}/train/0001TP_1.png is missing" in refusal("camvid", root)
    (root / "train.txt").write_text("/SegNet/CamVid/train/0001TP_006690.png x\n" * 2)
    assert "listed twice" in refusal("camvid", root)
    (root / "train.txt").write_bytes(b"\xff\xfe\xff")
    assert "train.txt cannot be read" in refusal("camvid", root)


def test_isic_tests_on_the_official_test_where_its_masks_are(archives, tmp_path):
    splits = load("isic2017", archives["isic2017"], folds=5)
    assert splits.test.ids == ["ISIC_0000020", "ISIC_0000021", "ISIC_0000022"]
    assert Counter(splits.train.groups + splits.val.groups) == {"melanoma": 5, "keratosis": 5, "nevus": 10}
    draw_isic(tmp_path, test=True)
    official = load("isic2017", tmp_path)
    assert len(official.train) == 20 and official.val.ids == splits.test.ids
    assert official.test.ids == [f"ISIC_{n:07}" for n in range(23, 27)]
    table = tmp_path / "ISIC-2017_Training_Part3_GroundTruth.csv"
    table.write_text("image_id,melanoma\nISIC_0000000,1.0\n")
    assert str(table) in refusal("isic2017", tmp_path)
    table.unlink()
    assert not any(load("isic2017", tmp_path).train.groups)


def test_isic_reads_the_folders_of_the_published_code(archives, tmp_path):
    for part in ("Training", "Validation"):
        shutil.copytree(archives["isic2017"] / f"ISIC-2017_{part}_Data", tmp_path / f"{part}_Data")
        masks = archives["isic2017"] / f"ISIC-2017_{part}_Part1_GroundTruth"
        shutil.copytree(masks, tmp_path / f"{part}_GroundTruth")
    assert load("isic2017", tmp_path).test.ids == load("isic2017", archives["isic2017"], folds=5).test.ids


def test_tiles_hold_every_pixel_once_and_no_rat_is_on_two_sides(archives):
    root = archives["axon_myelin"]
    splits = load("axon_myelin", root, tile=16)
    parts = [sources(split) for split in splits[:3]]
    assert parts[1:] == [{"sub-rat4"}, {"sub-rat2", "sub-rat7", "sub-rat8"}]
    assert not parts[0] & parts[1] and not parts[0] & parts[2]
    whole, half = (load("axon_myelin", root, tile=0, pixel=pixel) for pixel in (0, 0.2))
    assert whole.val[0].shape == (96, 160, 3) and half.val[0].shape == (48, 80, 3)
    assert [half.test[i].shape for i in range(3)] == [(48, 80, 3), (24, 40, 3), (48, 80, 3)]
    tiles = [splits.val[i] for i in range(len(splits.val))]
    assert len(tiles) == 15 and {tile.shape for tile in tiles} == {(16, 16, 3)}
    rows = [np.concatenate(tiles[n : n + 5], axis=1) for n in range(0, 15, 5)]
    assert np.array_equal(np.concatenate(rows), half.val[0])
    masks = [splits.val.read_mask(item.mask) for item in splits.val.items]
    rows = [np.concatenate(masks[n : n + 5], axis=1) for n in range(0, 15, 5)]
    assert np.array_equal(np.concatenate(rows), half.val.read_mask(half.val.items[0].mask))
    uneven = load("axon_myelin", root, tile=20, pixel=0)
    sides = {uneven.val[i].shape[:2] for i in range(len(uneven.val))}
    assert sum(a * b for a, b in map(np.shape, map(uneven.val.read_mask, (i.mask for i in uneven.val.items)))) == 15360
    assert max(max(side) for side in sides) - min(min(side) for side in sides) <= 2


def test_stray_values_of_axons_are_ignored_and_many_refused(archives, tmp_path):
    splits = load("axon_myelin", archives["axon_myelin"], tile=0, pixel=0)
    mask = splits.test.read_mask(splits.test.items[0].mask)
    assert (mask == IGNORE).sum() == 2 and splits.test.items[0].source == "sub-rat2"
    root = copied(archives, "axon_myelin", tmp_path)
    path = splits.val.items[0].mask.parent
    save(root / path.relative_to(archives["axon_myelin"]), stripes([0, 1, 2], 96, 160))
    split = load("axon_myelin", root).val
    with pytest.raises(BadData, match="holds the values 1, 2, not 0 background"):
        split.read_mask(split.items[0].mask)


def test_rats_are_named_and_pixels_have_a_width(archives, tmp_path):
    root = archives["axon_myelin"]
    assert "has no sub-rat9" in refusal("axon_myelin", root, test=["sub-rat9"])
    assert "sub-rat4 cannot both" in refusal("axon_myelin", root, test=["sub-rat4"])
    assert "none is left" in refusal("axon_myelin", root, test=[f"sub-rat{n}" for n in (1, 2, 3, 5, 6, 7, 8)])
    alone = load("axon_myelin", root, test=[], val=[])
    assert alone.val is None and alone.test is None
    root = copied(archives, "axon_myelin", tmp_path)
    about = root / "sub-rat1/micr/sub-rat1_sample-data1_SEM.json"
    for text, said in (("{", "does not say PixelSize"), ('{"PixelSize": [1], "PixelSizeUnits": "mm"}', "not a width")):
        about.write_text(text)
        assert said in refusal("axon_myelin", root) and load("axon_myelin", root, pixel=0)
    about.unlink()
    assert "axon_myelin.pixel=0" in refusal("axon_myelin", root)


def test_a_micrograph_is_decoded_once_for_all_its_tiles(archives, monkeypatch):
    opened = []
    monkeypatch.setattr(axon_myelin, "decode", lambda path, *rest: opened.append(path) or decode(path, *rest))
    split = load("axon_myelin", archives["axon_myelin"], tile=16).train
    Store(split, "cpu", classes=axon_myelin.CLASSES)
    assert len(split) > 20 and sorted(opened) == sorted({item.image.parent for item in split.items})


@pytest.mark.parametrize("name", NAMES)
def test_masks_are_read_at_their_own_size_too(archives, name):
    """Scaled by nearest neighbour they are what the run sees; of tiles, all pixels of a micrograph once."""
    seen = {"pixel": 0.3, "tile": 16} if name == "axon_myelin" else {"height": 24, "width": 48}
    if name == "axon_myelin":
        split = load(name, archives[name], **seen).test
        micrographs = {item.mask.parent for item in split.items}
        tiles = [split.read_original(item.mask) for item in split.items]
        assert sum(tile.size for tile in tiles) == sum(np.prod(reading.size(path)) for path in micrographs)
        assert len(tiles) > 2 * len(micrographs) and {1, 2} < set(np.unique(np.concatenate([t.ravel() for t in tiles])))
        return
    split = load(name, archives[name], **SETTINGS.get(name, {}) | seen).test
    for item in split.items:
        own, scaled = split.read_original(item.mask), split.read_mask(item.mask)
        assert own.shape == reading.size(item.mask) and scaled.shape == (24, 48)
        assert np.array_equal(np.array(Image.fromarray(own).resize((48, 24), Image.Resampling.NEAREST)), scaled)


def test_voc_takes_the_augmented_list_and_refuses_one_that_holds_test_images(archives, tmp_path):
    assert len(load("voc2012", archives["voc2012"], augmented=True).train) == 22
    root = copied(archives, "voc2012", tmp_path)
    listed = root / "ImageSets/Segmentation/trainaug.txt"
    listed.write_text(
        "".join(f"/JPEGImages/{n}.jpg /SegmentationClassAug/{n}.png\n" for n in listed.read_text().split())
    )
    assert len(load("voc2012", root, augmented=True).train) == 22
    (root / "SegmentationClassAug").rename(root / "SegmentationClassTrainAug")  # as CRC-AL calls it
    assert len(load("voc2012", root, augmented=True).train) == 22
    shutil.rmtree(root / "SegmentationClassTrainAug")
    assert "SBD" in refusal("voc2012", root, augmented=True)
    with open(root / "ImageSets/Segmentation/train.txt", "a") as file:
        file.write("2008_000001\n")
    assert "lists 2008_000001, an image that tests" in refusal("voc2012", root)


def test_a_palette_is_read_as_numbers(archives):
    split = load("voc2012", archives["voc2012"]).test
    with Image.open(split.items[0].mask) as file:
        assert file.mode == "P"
    assert set(np.unique(split.read_mask(split.items[0].mask))) == {0, 15, 20, IGNORE}
    assert voc2012.CLASSES[15] == "person" and voc2012.CLASSES[20] == "tv monitor" and len(voc2012.CLASSES) == 21


def test_cityscapes_masks_agree_and_cities_stay_together(archives, tmp_path):
    ids, train_ids = (load("cityscapes", archives["cityscapes"], masks=m) for m in ("labelIds", "labelTrainIds"))
    for a, b in zip(ids.train.items, train_ids.train.items, strict=True):
        assert np.array_equal(ids.train.read_mask(a.mask), train_ids.train.read_mask(b.mask))
    assert not sources(ids.train) & sources(ids.val) and len(sources(ids.val)) == 2
    assert cityscapes.OF_IDS[7] == 0 and cityscapes.OF_IDS[33] == 18 and cityscapes.OF_IDS[14] == IGNORE
    root = copied(archives, "cityscapes", tmp_path)
    for path in root.rglob("*labelTrainIds.png"):
        path.unlink()
    assert "csCreateTrainIdLabelImgs" in refusal("cityscapes", root, masks="labelTrainIds")


def test_no_gland_image_that_tests_is_learnt_from(archives, tmp_path):
    for folder, listed in (("img", True), ("image", True), ("img", False)):
        root = tmp_path / f"{folder}{listed}"
        draw_glands(root, folder)
        if not listed:
            (root / "train.txt").unlink()
            (root / "test.txt").unlink()
        splits = load("mgd1k", root, folds=6)
        assert splits.test.ids == [f"{n:03}" for n in range(18, 24)]
        assert sorted(splits.train.ids + splits.val.ids) == [f"{n:03}" for n in range(18)]
    (root / "train.txt").write_text("000\n018\n")
    assert "both list 018" in refusal("mgd1k", root)


def test_gland_masks_of_any_png_are_taken(tmp_path):
    save(tmp_path / "a.png", np.dstack([stripes([0, 100, 200, 255])] * 3))
    assert mgd1k.read_mask(tmp_path / "a.png", 0, 0)[0].tolist() == [0] * 8 + [1] * 8


def test_a_value_of_no_class_is_refused_when_the_mask_is_opened(archives, tmp_path):
    root = copied(archives, "bdd100k", tmp_path)
    split = load("bdd100k", root).test
    save(split.items[0].mask, stripes([0, 19]))
    store = Store(split, "cpu", classes=cityscapes.CLASSES)
    with pytest.raises(BadData, match="holds the values 19"):
        store.label([0])


def test_groups_keep_their_share_in_a_fold(archives):
    splits = load("isic2017", archives["isic2017"], folds=5)
    assert Counter(splits.val.groups) == {"melanoma": 1, "keratosis": 1, "nevus": 2}
    assert isic2017.HAS == ("groups", "validation") and _files.FOLDS["folds"].least == 2


def test_two_cycles_count_no_void_and_are_judged_by_the_headline(experiment, tmp_path):
    frames = [f"0001TP_{n:06}" for n in range(6)]
    for part in ("train", "val", "test"):
        draw_frames(tmp_path / "CamVid", part, frames)
    tiny = {"dataset": "camvid", "camvid.root": str(tmp_path / "CamVid"), "camvid.height": 12, "camvid.width": 16}
    tiny |= {"heuristic": "entropy", "start": 2, "query": 2, "results_dir": str(tmp_path), "runs_dir": "", "threads": 1}
    tiny |= {"trainer.epochs": 2, "unet.width": 2, "mc_iters": 2, "evaluation.passes": 1, "augment.rotate": False}
    experiment.run(config_updates=tiny)
    lines = [json.loads(line) for line in (tmp_path / "entropy_0/ledger.jsonl").read_text().splitlines()]
    assert lines[0]["headline"] == "test.miou" and tuple(lines[0]["classes"]) == camvid.CLASSES
    evaluated = [line for line in lines if line["event"] == "evaluated"]
    assert len(evaluated) == 3
    assert np.load(tmp_path / "entropy_0.npy").tolist() == [line["metrics"]["test.miou"] for line in evaluated]
    assert all(np.shape(line["per_image"]["dice"]) == (6, 11) for line in evaluated)
    counted = np.array(evaluated[-1]["calibration"]["bins"])[:, 0].sum()
    assert counted == 6 * 12 * 12  # of 6 x 12 x 16 pixels, for a quarter of each mask is void


def real(name):
    if not (REAL / name).is_dir():
        pytest.skip(f"the real {name} is not at {REAL / name}")
    return REAL / name


def pixels(splits, classes):
    """Pixels of each value in the masks of each split."""
    return [
        sum(np.bincount(split.read_mask(item.mask).ravel(), minlength=256) for item in split.items)
        for split in splits[:3]
    ]


def test_real_camvid():
    splits = load("camvid", real("CamVid"))
    assert [len(split) for split in splits[:3]] == [367, 101, 233]
    assert [Counter(i.source for i in split.items) for split in splits[:3]] == [
        {"0001TP": 62, "0006R0": 101, "0016E5": 204},
        {"0016E5": 101},
        {"0001TP": 62, "Seq05VD": 171},
    ]
    assert all(split.ids == sorted(split.ids) and split[0].shape == (180, 240, 3) for split in splits[:3])
    counted = pixels(splits, camvid.CLASSES)
    assert [found[IGNORE] for found in counted] == [628476, 74417, 388377]
    assert all(found[:11].all() and not found[11:IGNORE].any() for found in counted)
    with_void = pixels(load("camvid12", real("CamVid")), camvid12.CLASSES)
    assert [found[11] for found in with_void] == [628476, 74417, 388377]


def test_real_isic():
    splits = load("isic2017", real("ISIC-2017"), height=0, width=0)
    assert [len(split) for split in splits[:3]] == [1800, 200, 150]
    assert splits.test.ids[0] == "ISIC_0001769" and splits.test[0].shape == (256, 256, 3)
    found = Counter(splits.train.groups + splits.val.groups)
    assert found == {"nevus": 1372, "melanoma": 374, "keratosis": 254}
    share = np.mean([splits.test.read_mask(item.mask).mean() for item in splits.test.items])
    assert share == pytest.approx(0.1737, abs=1e-4)


def test_real_axons():
    root = real("AxonMyelinSEM")
    whole = load("axon_myelin", root, tile=0, pixel=0)
    assert [len(split) for split in whole[:3]] == [6, 1, 3] and len(sources(whole.train)) == 4
    counted = pixels(whole, axon_myelin.CLASSES)
    assert [found[IGNORE] for found in counted] == [0, 0, 9]  # rat 2
    assert sum(counted)[:3].tolist() == [5204631, 5283934, 4303815]
    tiles = load("axon_myelin", root)
    assert not sources(tiles.train) & (sources(tiles.val) | sources(tiles.test))
    assert len({item.id for split in tiles[:3] for item in split.items}) == sum(map(len, tiles[:3])) > 200
