"""Images of one's own: read from paths and declared values alone, bit for bit as a dataset's own file reads them."""

import json
import os
import shutil
from collections import Counter
from pathlib import Path
from unicodedata import normalize

import numpy as np
import pytest
import tifffile
from conftest import events
from PIL import Image

from data import folder, glas
from experiments.components import defaults
from experiments.components.randomness import generator
from experiments.errors import Refused
from experiments.store import IGNORE, Store

REAL = Path(__file__).resolve().parents[2] / "shared/data"
LESION = {"values": "0:background,255:lesion"}


def real(name):
    if not (REAL / name).is_dir():
        pytest.skip(f"the real {name} is not at {REAL}")
    return REAL / name


def load(root, seed=0, **settings):
    known = defaults(folder.ingredient) | {"root": str(root)} | settings
    assert known.keys() == defaults(folder.ingredient).keys()
    return folder.load(rng=np.random.default_rng(seed), **known)


def refusal(root, **settings):
    with pytest.raises(Refused) as caught:
        for split in filter(None, load(root, **settings)[:3]):
            Store(split, "cpu").label(range(len(split)))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    return str(caught.value)


def opened(splits):
    """{id: (image, mask)} as a run sees them."""
    found = {}
    for split in filter(None, splits[:3]):
        store = Store(split, "cpu", classes=splits.classes)
        store.label(range(len(store)))
        found |= {id: (store.image(i).numpy(), store.mask(i).numpy()) for i, id in enumerate(store.ids)}
    return found


def disc(k, size=(24, 32)):
    """(image (H, W, 3), mask (H, W) of 0 and 1): one disc, elsewhere for every k."""
    y, x = np.mgrid[: size[0], : size[1]]
    mask = (np.hypot(y - 8 - k % 7, x - 9 - k % 11) < 5).astype(np.uint8)
    noise = np.random.default_rng(k).integers(0, 60, (*size, 3))
    return (noise + 120 * mask[..., None]).astype(np.uint8), mask


def save(path, array, **more):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **more)


def draw(root, n=10, value=255, image="images/{}.png", mask="masks/{}.png"):
    """Images p0_0, p0_1, p1_2 ...: two of each patient."""
    for k in range(n):
        pixels, there = disc(k)
        save(root / image.format(f"p{k // 2}_{k}"), pixels)
        save(root / mask.format(f"p{k // 2}_{k}"), there * np.uint8(value))
    return root


def lists(where, splits):
    """Settings that deal images into these splits, in their order."""
    given = {}
    for part in ("train", "val", "test"):
        file = where / f"{part}.txt"
        file.write_text("\n".join(getattr(splits, part).ids))
        given[f"{part}_file"] = str(file)
    return given


def as_glas(where, splits):
    names = {"images": ".", "masks": ".", "image_pattern": "{name}.bmp", "mask_pattern": "{name}_anno.bmp"}
    return names | {"values": "0:background,1-255:gland", "name": "glas"} | lists(where, splits)


def test_glas_is_read_as_by_its_own_file(tmp_path):
    own = {"root": str(real("GlaS")), "resize": 0.5, "crop": 128, "folds": 5, "fold": 0, "split": "patients"}
    expected = glas.load(rng=np.random.default_rng(0), **own)
    found = load(own["root"], resize=0.5, crop=128, **as_glas(tmp_path, expected))
    assert found.classes == glas.CLASSES and found.headline == glas.HEADLINE and found.crop == expected.crop
    for part, other in zip(found[:3], expected[:3], strict=True):
        assert part.ids == other.ids
        for item, known in list(zip(part.items, other.items, strict=True))[::4]:
            assert np.array_equal(part.read_image(item.image), other.read_image(known.image))
            assert np.array_equal(part.read_mask(item.mask), other.read_mask(known.mask))


def test_a_run_on_glas_is_that_of_its_own_file_bit_for_bit(tmp_path, experiment):
    table = (real("GlaS") / "Grade.csv").read_bytes().decode("utf-8-sig").split("\r")
    rows = [row for row in table[1:] if int(row.split(",")[0].split("_")[-1]) <= (20 if row[:5] == "train" else 2)]
    for name in (row.split(",")[0] for row in rows):
        for file in (f"{name}.bmp", f"{name}_anno.bmp"):
            (tmp_path / file).symlink_to(REAL / "GlaS" / file)
    (tmp_path / "Grade.csv").write_text("\r".join([table[0], *rows]), newline="")
    tiny = {"results_dir": str(tmp_path / "results"), "runs_dir": "", "threads": 1, "cycles": 1}
    same = {"root": str(tmp_path), "resize": 0.2, "crop": 32}
    own = same | {"folds": 3}
    experiment.run(config_updates=tiny | {"dataset": "glas", "label": "own", "glas": own}, named_configs=["smoke"])
    splits = glas.load(rng=generator(0, "glas", "split"), **own, fold=0, split="patients")
    given = same | as_glas(tmp_path, splits)
    typed = tiny | {"dataset": "folder", "label": "folder", "folder": given}
    experiment.run(config_updates=typed, named_configs=["smoke"])
    own, other = (events(tmp_path / "results", label) for label in ("own", "folder"))
    assert [event["event"] for event in own] == ["start", "evaluated", "queried", "evaluated"]
    for key in ("data", "classes", "headline", "test", "constant_dice", "queries", "metrics", "per_image", "weights"):
        assert [event.get(key) for event in own] == [event.get(key) for event in other], key


CAMVID = "sky,building,pole,road,pavement,tree,sign,fence,car,pedestrian,cyclist"


def test_camvid_by_its_lists(tmp_path):
    root = real("CamVid")
    names = {
        "images": ".",
        "masks": ".",
        "image_pattern": "{part}/{name}.png",
        "mask_pattern": "{part}annot/{name}.png",
    }
    files = {f"{part}_file": f"{part}.txt" for part in ("train", "val", "test")}
    splits = load(root, classes=CAMVID, ignore=11, **names, **files)
    assert [len(split) for split in splits[:3]] == [367, 101, 233]
    assert splits.classes == tuple(CAMVID.split(",")) and splits.headline == "miou"
    for part in ("train", "val", "test"):
        split, listed = getattr(splits, part), (root / f"{part}.txt").read_text().split()[::2]
        assert split.ids == [f"{part}/{Path(line).stem}" for line in listed]
        for item in split.items[::25]:
            name = Path(item.id).name
            image, raw = (np.array(Image.open(root / f"{part}{of}" / f"{name}.png")) for of in ("", "annot"))
            assert np.array_equal(split.read_image(item.image), image)
            assert np.array_equal(split.read_mask(item.mask), np.where(raw == 11, IGNORE, raw))


def test_nuclei_as_kaggle_has_them(tmp_path):
    """A folder for each image, a file for each nucleus, images RGBA."""
    for k in range(6):
        image, mask = disc(k)
        save(tmp_path / f"id{k}/images/id{k}.png", np.dstack([image, np.full_like(mask, 255)]))
        save(tmp_path / f"id{k}/masks/a.png", mask * np.uint8(255))
        save(tmp_path / f"id{k}/masks/b.png", np.roll(mask, 9, axis=1) * np.uint8(255))
    names = {"images": ".", "masks": ".", "image_pattern": "{id}/images/*.png", "mask_pattern": "{id}/masks/*.png"}
    assert "folder.several=True" in refusal(tmp_path, **names, **LESION)
    found = opened(load(tmp_path, **names, several=True, **LESION))
    for k in range(6):
        image, mask = disc(k)
        assert np.array_equal(found[f"id{k}"][0], image)
        assert np.array_equal(found[f"id{k}"][1], mask | np.roll(mask, 9, axis=1))


def test_polyps_in_jpeg_with_masks_in_jpeg(tmp_path):
    """Values that JPEG blurred are refused with what was found, or snapped where a setting says so."""
    for k in range(6):
        image, mask = disc(k)
        save(tmp_path / f"images/{k}.jpg", image, quality=90)
        save(tmp_path / f"masks/{k}.jpg", mask * np.uint8(255), quality=80)
    said = refusal(tmp_path, **LESION)
    assert "folder.snap=True" in said and ".jpg holds 1, 2, " in said and "beside 0, 255" in said
    assert '"folder.values=0:background,255:foreground" folder.snap=True' in refusal(tmp_path)
    for k in range(6):
        colours = np.array([[0, 0, 0], [0, 200, 0], [200, 0, 0]], np.uint8)[disc(k)[1] * (1 + (k > 2))]
        save(tmp_path / f"masks/{k}.jpg", colours, quality=80)
    assert "or #000000:background,#00ff00:polyp" in refusal(tmp_path)  # in so few pixels no colour stands out
    for k in range(6):
        save(tmp_path / f"masks/{k}.jpg", disc(k)[1] * np.uint8(255), quality=80)
    found = opened(load(tmp_path, snap=True, **LESION))
    assert all(np.array_equal(found[str(k)][1], disc(k)[1]) for k in range(6))
    assert all(np.array_equal(found[str(k)][0], Image.open(tmp_path / f"images/{k}.jpg")) for k in range(6))


def test_vessels_in_tiff_with_masks_in_gif(tmp_path):
    """21_training.tif and 21_manual1.gif; a GIF numbers its colours as it likes: white alone is its 0."""
    for k in range(21, 27):
        image, mask = disc(k)
        save(tmp_path / f"images/{k}_training.tif", image, compression="tiff_lzw")
        save(tmp_path / f"1st_manual/{k}_manual1.gif", (mask if k > 21 else mask | 1) * np.uint8(255))
    names = {"masks": "1st_manual", "image_pattern": "{eye}_training.tif", "mask_pattern": "{eye}_manual1.gif"}
    found = opened(load(tmp_path, **names, **LESION))
    assert sorted(found) == [str(k) for k in range(21, 27)] and found["21"][1].all()
    assert all(np.array_equal(found[str(k)][1], disc(k)[1]) for k in range(22, 27))
    assert all(np.array_equal(found[str(k)][0], disc(k)[0]) for k in range(21, 27))


def test_masks_in_tiff_are_read_as_they_are_stored(tmp_path):
    """A bool array of tifffile, and a mask with ImageJ's inverting LUT, say that 0 is shown as white."""
    for k in range(6):
        image, mask = disc(k)
        save(tmp_path / f"images/{k}.png", image)
        (tmp_path / "masks").mkdir(exist_ok=True)
        stored = mask.astype(bool) if k % 2 else mask * np.uint8(255)
        tifffile.imwrite(tmp_path / f"masks/{k}.tif", stored, photometric="miniswhite")
        tifffile.imwrite(tmp_path / f"images/{k}.tif", image[..., 0], photometric="miniswhite")
    found = opened(load(tmp_path, image_pattern="{name}.png", **LESION))
    assert all(np.array_equal(found[str(k)][1], disc(k)[1]) for k in range(6))
    shown = opened(load(tmp_path, image_pattern="{name}.tif", **LESION))  # an image as it is shown
    assert all(np.array_equal(shown[str(k)][0][..., 0], 255 - disc(k)[0][..., 0]) for k in range(6))


def test_one_stack_by_the_names_of_its_two_files(tmp_path):
    """As the ISBI challenge of 2012 has it: train-volume.tif, train-labels.tif and a test volume without labels."""
    drawn = [disc(k) for k in range(10)]
    tifffile.imwrite(tmp_path / "train-volume.tif", np.stack([image[..., 0] for image, _ in drawn]))
    tifffile.imwrite(tmp_path / "test-volume.tif", np.stack([image[..., 0] for image, _ in drawn]))
    tifffile.imwrite(tmp_path / "train-labels.tif", np.stack([255 - mask * np.uint8(255) for _, mask in drawn]))
    files = {"images": "train-volume.tif", "masks": "train-labels.tif", "channels": 1}
    given = {"values": "0:membrane,255:cell"} | files
    assert "folder.source='(.*)'" in refusal(tmp_path, **given)
    found = opened(load(tmp_path, source="(.*)", **given))
    assert sorted(found) == [f"train-volume_{k:03d}" for k in range(10)]
    assert all(np.array_equal(found[f"train-volume_{k:03d}"][1], 1 - drawn[k][1]) for k in range(10))
    assert "(" in (line := refusal(tmp_path, **given | {"masks": "labels.tif"})) and "train-labels.tif" in line


@pytest.fixture
def stacks(tmp_path):
    """Two stacks of 6 slices: grey images of 16 bits, masks of three classes."""
    for name in "ab":
        drawn = [disc(k + 6 * (name == "b")) for k in range(6)]
        for part, pages in (
            ("images", [d[0][..., 0].astype(np.uint16) * 100 for d in drawn]),
            ("masks", [d[1] + (d[0][..., 0] > 170) for d in drawn]),
        ):
            (tmp_path / part).mkdir(exist_ok=True)
            tifffile.imwrite(tmp_path / part / f"{name}.tif", np.stack(pages), photometric="minisblack")
    return tmp_path


def test_a_stack_is_slices_of_one_source(stacks):
    splits = load(stacks, classes="outside,membrane,core", channels=1, white=25500, test=0, val=0.5)
    assert sorted([splits.train.ids[0], splits.val.ids[0]]) == ["a_000", "b_000"] and len(splits.val) == 6
    assert splits.train.ids == sorted(splits.train.ids) and splits.channels == 1 and splits.headline == "miou"
    found = opened(splits)
    for k in range(6):
        image, mask = disc(k)
        assert np.array_equal(found[f"a_{k:03d}"][0][..., 0], image[..., 0])
        assert np.array_equal(found[f"a_{k:03d}"][1], mask + (image[..., 0] > 170))
    (stacks / "images/b.tif").unlink()
    assert "one source, a" in refusal(stacks, classes="outside,membrane,core")
    assert len(load(stacks, classes="outside,membrane,core", source="(.*)").train) == 4
    tifffile.imwrite(stacks / "masks/a.tif", np.zeros((3, 24, 32), np.uint8), photometric="minisblack")
    assert "has 3 pages, its image 6" in refusal(stacks, classes="outside,membrane,core", source="(.*)")


def test_a_run_has_the_classes_and_channels_of_the_settings(stacks, tmp_path, experiment):
    given = {"root": str(stacks), "classes": "background,membrane,core", "channels": 1, "white": 25500}
    given |= {"source": "(.*)", "crop": 16}
    tiny = {"results_dir": str(tmp_path / "results"), "runs_dir": "", "threads": 1, "cycles": 1, "noted": ["entropy"]}
    run = experiment.run(config_updates=tiny | {"dataset": "folder", "folder": given}, named_configs=["smoke"])
    start, first, *_ = events(tmp_path / "results")
    assert start["classes"] == ["background", "membrane", "core"] and start["headline"] == "test.miou"
    assert len(first["per_image"]["dice"][0]) == 3 and run.info["headline"] == "test.miou"


def test_sources_stay_whole_and_the_test_set_is_that_of_every_run(tmp_path):
    draw(tmp_path, 20)
    drawn = [load(tmp_path, seed, source="^(p[0-9]+)_", **LESION) for seed in range(4)]
    for splits in drawn:
        sides = [{item.source for item in split.items} for split in splits[:3]]
        assert [len(side) for side in sides] == [6, 2, 2] and len(set.union(*sides)) == 10
        assert all(count == 2 for split in splits[:3] for count in Counter(i.source for i in split.items).values())
    assert len({tuple(splits.test.ids) for splits in drawn}) == 1 and len({tuple(s.val.ids) for s in drawn}) > 1
    assert drawn[0].train.ids == sorted(drawn[0].train.ids, key=lambda id: int(id.split("_")[1]))
    alone = load(tmp_path, val=0, test=0, **LESION)
    assert len(alone.train) == 20 and alone.val is None and alone.test is None
    (tmp_path / "val.txt").write_text("p0_0\n")
    assert "Images of p0 are in" in refusal(tmp_path, source="^(p[0-9]+)_", val_file="val.txt", **LESION)
    (tmp_path / "test.txt").write_text("images/p0_1.png masks/p0_1.png\n\nelsewhere/p0_0.png\n")
    assert "two lists, val and test" in refusal(tmp_path, val_file="val.txt", test_file="test.txt", **LESION)
    assert load(tmp_path, test_file="test.txt", **LESION).test.ids == ["p0_1", "p0_0"]
    (tmp_path / "val.txt").write_text("p7_77\n")
    assert "val.txt names p7_77" in refusal(tmp_path, val_file="val.txt", **LESION)
    (tmp_path / "val.txt").write_text("\n\n")
    assert "lists no image" in refusal(tmp_path, val_file="val.txt", **LESION)


def test_a_meaning_is_proposed_from_masks_outside_the_pool_and_has_to_be_confirmed(tmp_path, capsys):
    draw(tmp_path)
    pool = load(tmp_path, **LESION).train
    for item in pool.items:
        item.mask.write_bytes(b"opened")
    said = refusal(tmp_path)
    assert 'type "folder.values=0:background,255:foreground"' in said and "folder.confirm=True" in said
    assert "4 validation and test masks hold the values 0 (" in said
    splits = load(tmp_path, confirm=True)
    assert splits.classes == ("background", "foreground") and splits.headline == "dice"
    printed = capsys.readouterr().out
    assert "taken as folder.values=0:background,255:foreground." in printed and "any other is refused" in printed
    assert splits.val.read_mask(splits.val.items[0].mask).max() == 1
    nobody = refusal(tmp_path, val=0, test=0)
    assert "folder.classes=background,lesion" in nobody and "none is proposed" in nobody
    with pytest.raises(Refused, match="cannot be read as a PNG"):
        pool.read_mask(pool.items[0].mask)


def test_255_is_proposed_as_ignored_only_beside_other_classes(tmp_path):
    draw(tmp_path, value=1)
    for path in (tmp_path / "masks").iterdir():
        mask = np.array(Image.open(path))
        mask[0] = 255
        Image.fromarray(mask).save(path)
    assert '"folder.values=0:background,1:class1,255:ignore"' in refusal(tmp_path)
    assert "holds 255 (4.2% of its pixels) beside 0, 1" in refusal(tmp_path, classes="background,disc")
    found = opened(load(tmp_path, classes="background,disc", ignore=255))
    assert all((mask[0] == IGNORE).all() and mask[1:].max() == 1 for _, mask in found.values())


def test_colours_are_classes_where_they_are_named(tmp_path):
    draw(tmp_path)
    colours = np.array([[0, 0, 0], [0, 255, 0], [255, 0, 128]], np.uint8)
    numbers = {}
    for number, path in enumerate(sorted((tmp_path / "masks").iterdir())):
        numbers[path.stem] = np.array(Image.open(path)) // 255 * (1 + number % 2)
        Image.fromarray(colours[numbers[path.stem]]).save(path)
    assert "#000000:background,#00ff00:class1,#ff0080:class2" in refusal(tmp_path)
    assert "has colours (#000000, " in refusal(tmp_path, classes="a,b")
    found = opened(load(tmp_path, values="#000000:background,#00FF00:road,#ff0080:ignore"))
    for id, mask in numbers.items():
        assert np.array_equal(found[id][1], np.where(mask == 2, IGNORE, mask))
    near = opened(load(tmp_path, values="#100000:background,#00f000:road,#f00070:car", snap=True))
    assert all(np.array_equal(near[id][1], mask) for id, mask in numbers.items())


def test_images_of_every_depth(tmp_path, capsys):
    grey = (np.arange(24 * 32).reshape(24, 32) * 85).astype(np.uint16)
    rgb, many = np.stack([grey, grey // 2, grey // 3], axis=-1), np.stack([grey // 256] * 5, axis=-1).astype(np.uint8)
    save(tmp_path / "images/a.png", grey)
    tifffile.imwrite(tmp_path / "images/b.tif", rgb, photometric="rgb", compression="zlib")
    save(tmp_path / "images/c.bmp", (grey // 256).astype(np.uint8))
    save(tmp_path / "images/d.gif", (grey > 9000).astype(np.uint8) * np.uint8(255))
    for name in "abcd":
        save(tmp_path / f"masks/{name}.png", np.eye(24, 32, dtype=np.uint8))
    given = {"classes": "background,line", "val": 0, "test": 0}

    def images(**more):
        splits = load(tmp_path, **given, **more)
        return [splits.train.read_image(item.image) for item in splits.train.items]

    a, b, c, d = images()
    assert np.array_equal(a[..., 0], np.rint(grey / 257)) and (a == a[..., :1]).all()
    assert np.array_equal(b, np.rint(rgb / 257)) and np.array_equal(c[..., 2], grey // 256)
    assert np.array_equal(np.unique(d), [0, 255])
    assert [image.shape for image in images(channels=1, resize=0.5)] == [(12, 16, 1)] * 4
    assert np.array_equal(images(black=1000, white=2000)[0][..., 0], np.rint((grey.clip(1000, 2000) - 1000.0) * 0.255))
    assert "16 bits are shown with 8: 1000 and 2000 become 0 and 255" in capsys.readouterr().out
    low, high = np.percentile(grey, [2, 98])
    found = images(percentile=2.0)[0][..., 0]
    assert (found[grey <= low] == 0).all() and (found[grey >= high] == 255).all() and found.std() > a.std()
    for path in (tmp_path / "images").iterdir():
        path.unlink()
        tifffile.imwrite(path.with_suffix(".tif"), many, photometric="minisblack", planarconfig="contig")
    assert "has 5 channels, not 3: set folder.channels" in refusal(tmp_path, **given)
    assert np.array_equal(images(channels=5)[0], many)


def touch(path, content=b"x"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def floats(path):
    tifffile.imwrite(path, np.zeros((24, 32), np.float32))


def planes(path):
    tifffile.imwrite(path, np.zeros((3, 24, 32), np.uint8), photometric="minisblack", metadata={"axes": "CYX"})


def alone_in_alpha(path):
    mask = np.array(Image.open(path))
    Image.fromarray(np.dstack([np.full_like(mask, 255)] * 3 + [mask])).save(path)


def turned(path):
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(disc(0)[0]).save(path, exif=exif)


FAULTS = [
    (lambda root: (root / "masks/p0_0.png").unlink(), {}, ["1 of 10 images have no mask (p0_0.png)"]),
    (lambda root: [p.unlink() for p in (root / "masks").glob("p[0-2]*")], {}, ["6 of 10", "p0_0.png", "p1_2.png ..."]),
    (lambda root: save(root / "images/p0_0.jpg", disc(0)[0]), {}, ["the same name", "p0_0.jpg and", "p0_0.png"]),
    (lambda root: save(root / "masks/p0_0.bmp", disc(0)[1]), {}, ["several masks", "p0_0.bmp and", "several=True"]),
    (
        lambda root: save(root / "masks/p0_0.png", disc(0)[1][:9] * np.uint8(255)),
        {},
        ["p0_0.png is 32 x 9, its image 32 x 24"],
    ),
    (lambda root: touch(root / "images/p0_0.png"), {}, ["p0_0.png cannot be read as a PNG image"]),
    (lambda root: touch(root / "images/a.dcm"), {}, ["a.dcm is DICOM: export 8- or 16-bit PNG"]),
    (lambda root: touch(root / "images/a.nii.gz"), {}, ["a.nii.gz is a volume: save its slices"]),
    (lambda root: touch(root / "masks/p0_0.npy"), {}, ["p0_0.npy is an array: save"]),
    (lambda root: (root / "images/p0_0.png").unlink() or floats(root / "images/p0_0.tif"), {}, ["float", "8 or 16"]),
    (lambda root: (root / "images/p0_0.png").unlink() or turned(root / "images/p0_0.jpg"), {}, ["shown turned"]),
    (lambda root: [p.unlink() for p in (root / "images").iterdir()], {}, ["images holds 0 PNG", "folder.images=..."]),
    (None, {"images": "photos"}, ["photos is no folder", "holds images, masks)", "folder.images="]),
    (lambda root: touch(root / "a/b.png"), {"masks": "a/b/c"}, ["c is no folder: put the masks"]),
    (
        lambda root: [shutil.copytree(root / "images", root / f"images/{name}") for name in ("train", "test")],
        {"masks": "annotations"},
        ["annotations is no folder", "holds images, masks)"],
    ),
    (
        lambda root: [p.rename(p.with_stem(f"{p.stem}_seg")) for p in (root / "masks").iterdir()],
        {},
        ["10 of 10 images have no mask", "folder.mask_pattern={name}_seg.png"],
    ),
    (
        lambda root: [p.rename(p.with_suffix(".json")) for p in (root / "masks").iterdir()],
        {},
        ["p0_0.json is no picture", "PNG masks", "folder.masks="],
    ),
    (
        lambda root: [shutil.move(root / name, root / "train" / name) for name in ("images", "masks")],
        {"images": "photos"},
        ["both in", "of images, masks, folder.images=... folder.masks=..."],
    ),
    (
        lambda root: [alone_in_alpha(path) for path in (root / "masks").iterdir()],
        {},
        ["one colour", "lies in the transparency", "save the alpha channel"],
    ),
    (
        lambda root: (root / "masks/p0_0.png").unlink() or floats(root / "masks/p0_0.tif"),
        {},
        ["float", "whole numbers"],
    ),
    (
        lambda root: (root / "images/p0_0.png").unlink() or planes(root / "images/p0_0.tif"),
        {},
        ["p0_0.png has 1 pages, its image 3", "channels", "as one page"],
    ),
    (None, {"masks": "images"}, ["both in", "folder.mask_pattern={name}_mask.png"]),
    (None, {"mask_pattern": "{name}_mask.png"}, ["masks holds 10", "none of which fits the pattern"]),
    (None, {"mask_pattern": "*.png"}, ["folder.mask_pattern=*.png names no image"]),
    (None, {"mask_pattern": "{stem}.png"}, ["name different parts"]),
    (None, {"source": "^q"}, ["folder.source=^q fits no part of the name p0_0"]),
    (None, {"source": "("}, ["no regular expression"]),
    (None, {"values": "0:background;255:lesion"}, ["is not read at"]),
    (None, {"values": "0:background,0-255:lesion"}, ["value 0 is given two meanings"]),
    (None, {"values": "0:background,#ffffff:lesion"}, ["numbers or colours"]),
    (None, {"values": "0:background"}, ["two classes or more"]),
    (None, {"classes": "background,lesion", "ignore": 1, "values": ""}, ["value 1 is given two meanings"]),
    (None, {"classes": "background,lesion", "values": "0:background,255:lession"}, ["'lession'"]),
    (None, {"classes": "background,lesion", "values": ""}, ["holds 255 (", "beside 0, 1", "folder.snap=True"]),
    (None, {"black": 9, "white": 9}, ["folder.black=9 is not below"]),
    (None, {"val_file": "absent.txt"}, ["absent.txt cannot be read as a list"]),
    (None, {"test": 0.99}, ["val cannot be drawn", "folder.val=0"]),
]


@pytest.mark.parametrize("harm, settings, said", FAULTS)
def test_a_fault_is_one_line(tmp_path, harm, settings, said):
    draw(tmp_path)
    if harm:
        harm(tmp_path)
    line = refusal(tmp_path, **LESION | settings)
    assert all(part in line for part in said), line


def test_what_is_no_image_is_in_nobodys_way(tmp_path):
    draw(tmp_path)
    for name in (
        "images/.hidden.png",
        "images/Thumbs.db",
        "masks/notes.txt",
        "images/__MACOSX/a.png",
        "images/.a/b.png",
    ):
        touch(tmp_path / name)
    save(tmp_path / "masks/of_no_image.png", disc(0)[1])
    assert sum(len(split) for split in load(tmp_path, **LESION)[:3]) == 10


def test_names_pair_however_their_accents_are_written(tmp_path):
    """An archive packed on a Mac has e and an accent for each é."""
    for k, name in enumerate(("größe", "café", "naïve")):
        image, mask = disc(k)
        save(tmp_path / "images" / f"{normalize('NFD', name)}.png", image)
        save(tmp_path / "masks" / f"{normalize('NFC', name)}.png", mask * np.uint8(255))
    assert {"größe", "café", "naïve"} == set(opened(load(tmp_path, **LESION)))


def test_subfolders_are_parts_of_names(tmp_path):
    for place in ("one", "two"):
        draw(tmp_path, 4, image=f"images/{place}/{{}}.png", mask=f"masks/{place}/{{}}_m.png")
    splits = load(tmp_path, mask_pattern="{name}_m.png", source="^[a-z]+", test=0, val=0.5, **LESION)
    assert {splits.train.ids[0], splits.val.ids[0]} == {"one/p0_0", "two/p0_0"}
    os.remove(tmp_path / "images/two/p0_0.png")
    (tmp_path / "test.txt").write_text("p0_1.png")
    assert "may be any of 2 images" in refusal(tmp_path, mask_pattern="{name}_m.png", test_file="test.txt", **LESION)


def test_a_typed_run_is_refused_with_what_to_type(tmp_path, experiment):
    draw(tmp_path)
    typed = {"dataset": "folder", "folder.root": str(tmp_path), "results_dir": str(tmp_path / "results")}
    with pytest.raises(Refused, match="folder.values=0:background,255:foreground"):
        experiment.run(config_updates=typed | {"runs_dir": ""}, named_configs=["smoke"])
    assert not (tmp_path / "results").exists() and json.dumps(defaults(folder.ingredient))


def test_tiles_cover_an_image_and_stay_on_its_side(tmp_path):
    whole = {}
    for k in range(6):
        whole[f"s{k}"] = disc(k, (50, 100 + k))
        save(tmp_path / f"images/s{k}.png", whole[f"s{k}"][0])
        save(tmp_path / f"masks/s{k}.png", whole[f"s{k}"][1])
    given = {"classes": "background,disc", "tile": 32}
    splits, halves = load(tmp_path, **given), load(tmp_path, resize=0.5, **given)
    assert not {i.source for i in splits.train.items} & {i.source for i in [*splits.val.items, *splits.test.items]}
    found, half = opened(splits), opened(halves)
    assert len(found) == 6 * 2 * 4 and len(half) == 6 * 2
    for name, (image, mask) in whole.items():
        parts = {id: pair for id, pair in found.items() if id.startswith(f"{name}_y")}
        assert all(max(part.shape) <= 32 for _, part in parts.values())
        for number, expected in ((0, image), (1, mask)):
            rows = [[pair[number] for id, pair in sorted(parts.items()) if f"_y{y:05d}" in id] for y in (0, 25)]
            assert np.array_equal(np.vstack([np.hstack(row) for row in rows]), expected)
    (tmp_path / "test.txt").write_text("s3.png")
    assert {item.source for item in load(tmp_path, test_file="test.txt", **given).test.items} == {"s3"}
    assert load(tmp_path, confirm=True, tile=200).train.ids[0] in whole  # no tiles are needed
    assert "2 validation and test masks hold the values 0 (" in refusal(tmp_path, tile=32)
    save(tmp_path / "masks/s3.png", whole["s3"][1].T)
    assert "s3.png is 50 x 103, its image 103 x 50" in refusal(tmp_path, **given)


def test_masks_of_tiles_are_read_at_the_files_size_too(tmp_path):
    """The tiles of a file are all of it, whatever the images are scaled by."""
    values = np.random.default_rng(0).integers(0, 2, (37, 53)).astype(np.uint8)
    for n in range(4):
        for place, drawn in (("images", values * 200), ("masks", values)):
            (tmp_path / place).mkdir(exist_ok=True)
            Image.fromarray(drawn).save(tmp_path / place / f"{n}.png")
    for resize, tile in ((0.6, 16), (1.0, 16), (0.5, 0), (2.0, 40)):
        split = load(tmp_path, classes="a,b", resize=resize, tile=tile).test
        parts = [split.read_original(item.mask) for item in split.items if item.source == split.items[0].source]
        if tile:
            rows = {}
            for item, part in zip(split.items, parts, strict=False):
                rows.setdefault(item.id.split("_")[1], []).append(part)
            parts = [np.vstack([np.hstack(row) for row in rows.values()])]
        assert np.array_equal(parts[0], values)


LAYOUTS = [
    ("{part}/images/{name}.png", "{part}/masks/{name}.png", {}),
    ("images/{part}/{name}.png", "masks/{part}/{name}.png", {}),
    ("{part}/{name}.png", "{part}annot/{name}.png", {}),
    ("{part}/{name}.png", "{part}_labels/{name}.png", {}),
    ("{part}/{name}.png", "{part}/{name}_mask.png", {"mask_pattern": "{name}_mask.png"}),
    ("{part}/img/{name}.png", "{part}/label/{name}.png", {"images": "img", "masks": "label"}),
]


def draw_parts(root, image, mask, parts):
    for part, names in parts.items():
        for name in names:
            value = hash((part, name)) % 200
            save(root / image.format(part=part, name=name), np.full((8, 9, 3), value, np.uint8))
            save(root / mask.format(part=part, name=name), np.eye(8, 9, dtype=np.uint8))


@pytest.mark.parametrize("image, mask, settings", LAYOUTS)
@pytest.mark.parametrize("val", ["val", "valid", "validation"])
def test_folders_called_train_val_and_test_are_the_split(tmp_path, capsys, image, mask, settings, val):
    """Though their images are called the same."""
    parts = {"train": "abcd", val: "ab", "test": "bce"}
    draw_parts(tmp_path, image, mask, parts)
    for tile in (0, 16):
        splits = load(tmp_path, classes="a,b", tile=tile, **settings)
        for split, (part, names) in zip(splits[:3], parts.items(), strict=True):
            assert [item.id[-1] for item in split.items] == list(names)
            assert all(f"/{part}/" in str(item.image) for item in split.items)
            assert all(split.read_mask(item.mask).sum() == 8 for item in split.items)
    assert load(tmp_path, classes="a,b", seed=1, **settings).val.ids == splits.val.ids


def test_where_a_folder_is_missing_its_images_are_drawn_and_masks_left_out_are_told(tmp_path, capsys):
    draw_parts(tmp_path, *LAYOUTS[0][:2], {"train": "abcdefghij", "test": "xy"})
    splits = load(tmp_path, classes="a,b", val=0.3)
    assert len(splits.val) == 3 and [item.id for item in splits.test.items] == ["test/x", "test/y"]
    shutil.rmtree(tmp_path / "test/masks")
    splits = load(tmp_path, classes="a,b", val=0.3, test=0)
    assert splits.test is None and len(splits.train) == 7
    assert "test/images have no masks, and are left out" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "train/masks")
    assert "train/masks is no folder" in refusal(tmp_path, classes="a,b")


def test_folders_that_share_a_source_are_refused(tmp_path):
    draw_parts(tmp_path, *LAYOUTS[0][:2], {"train": ["p1_a", "p2_a", "p3_a"], "test": ["p4_a", "p2_b"]})
    asked = {"classes": "a,b", "source": "^(p[0-9])", "val": 0}
    assert "Images of p2 are in train and in test: lists and folders keep" in refusal(tmp_path, **asked)
    assert len(load(tmp_path, classes="a,b", val=0).test) == 2


def test_lists_and_patterns_go_before_folders(tmp_path):
    draw_parts(tmp_path, *LAYOUTS[2][:2], {"train": "abcd", "val": "ab", "test": "bce"})
    given = {"images": ".", "masks": ".", "image_pattern": "{p}/{name}.png", "mask_pattern": "{p}annot/{name}.png"}
    splits = load(tmp_path, classes="a,b", **given)
    assert sum(map(len, splits[:3])) == 9 and len({i.id.split("/")[0] for i in splits.train.items}) > 1
    (tmp_path / "t.txt").write_text("val/a\nval/b\n")
    assert load(tmp_path, classes="a,b", test_file="t.txt", val=0, **given).test.ids == ["val/a", "val/b"]


def test_the_mask_of_tiles_that_follow_each_other_is_decoded_once(tmp_path, monkeypatch):
    from data import _values

    for k in range(5):
        image, mask = disc(k, (48, 64))
        save(tmp_path / f"images/{k}.png", image)
        save(tmp_path / f"masks/{k}.png", mask * np.uint8(255))
    opened, merged = Counter(), _values.merged
    monkeypatch.setattr(_values, "merged", lambda mask, colours: opened.update(mask.paths) or merged(mask, colours))
    splits = load(tmp_path, tile=32, test=0, val=0, **LESION)
    masks = [splits.train.read_mask(item.mask) for item in splits.train.items]
    assert len(masks) == 20 and set(opened.values()) == {1} and len(opened) == 5
    masks[0][:] = 9  # whoever changes a tile changes no other
    assert splits.train.read_mask(splits.train.items[0].mask).max() <= 1
