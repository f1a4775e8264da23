"""Volumes as slices, of NIfTI and HDF5 files that this draws: order, sources, spacing, values, and what is refused."""

import gzip
import json
import sys

import numpy as np
import pytest
from conftest import ROOT, events

from data import hdf5_slices, nifti_slices
from experiments.components import defaults
from experiments.errors import BadData, Refused
from experiments.store import Store, cache

nibabel = pytest.importorskip("nibabel", reason="nibabel is not installed: pip install -r requirements-data.txt")
h5py = pytest.importorskip("h5py", reason="h5py is not installed: pip install -r requirements-data.txt")
SHAPE = (10, 12, 7)  # of a NIfTI volume's array
HALVES = np.full(SHAPE, 1.5)
ZOOMS = (0.5, 0.75, 3.0)


def load(module, root, run=0, **settings):
    return module.load(rng=np.random.default_rng(run), **defaults(module.ingredient) | {"root": str(root)} | settings)


def refusal(module, root, error=Refused, **settings):
    with pytest.raises(error) as caught:
        splits = load(module, root, **settings)
        for split in filter(None, splits[:3]):
            for item in split.items:
                split.read_image(item.image), split.read_mask(item.mask)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def volume(number, shape=SHAPE):
    """Grey values and a mask of classes 1 and 2 in its middle slices."""
    rng = np.random.default_rng(number)
    mask = np.zeros(shape, np.uint8)
    mask[3:7, 4:9, 2:5], mask[4:6, 5:7, 3] = 1, 2
    return rng.normal(100 * number, 50, shape).astype(np.float32), mask


def save(path, array, zooms=ZOOMS):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, np.diag([*zooms, 1.0])), path)


def draw_nifti(root, count=6, image_ending=".nii.gz"):
    for n in range(1, count + 1):
        image, mask = volume(n)
        save(root / f"imagesTr/case_{n * 4}{image_ending}", image)
        save(root / f"labelsTr/case_{n * 4}.nii.gz", mask)
    return root


@pytest.fixture(scope="module")
def niftis(tmp_path_factory):
    return draw_nifti(tmp_path_factory.mktemp("NIfTI"))


THREE = {"classes": ["background", "a", "b"]}


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_are_the_volumes_across_an_axis_in_order(niftis, axis):
    splits = load(nifti_slices, niftis, axis=axis, black=-200.0, white=900.0, **THREE)
    assert splits.classes == ("background", "a", "b") and splits.crop == 0
    names = [f"case_{n * 4}" for n in range(1, 7)]
    assert sorted({i.source for s in splits[:3] for i in s.items}, key=lambda n: int(n[5:])) == names
    assert [len(split) for split in splits[:3]] == [SHAPE[axis] * n for n in (4, 1, 1)]
    for split in splits[:3]:
        store = Store(split, "cpu", classes=splits.classes)
        store.label(range(len(store)))
        for place, item in enumerate(split.items):
            k = place % SHAPE[axis]
            image, mask = (np.take(each, k, axis) for each in volume(int(item.source[5:]) // 4))
            assert item.id == f"{item.source}_{k:04}"
            grey = np.rint(((image + 200) * (255 / 1100)).clip(0, 255))
            assert np.abs(store.image(place)[..., 0].numpy() - grey).max() <= 1
            assert (store.mask(place).numpy() == mask).all()
            sides = [zoom for n, zoom in enumerate(ZOOMS) if n != axis]
            assert item.spacing == pytest.approx((ZOOMS[axis], *sides))


def test_the_test_volumes_are_the_same_in_every_run_and_whole(niftis):
    runs = [load(nifti_slices, niftis, run) for run in range(4)]
    assert len({tuple(splits.test.ids) for splits in runs}) == 1
    assert len({tuple(splits.val.ids) for splits in runs}) > 1
    for splits in runs:
        sides = [{item.source for item in split.items} for split in splits[:3]]
        assert sum(map(len, sides)) == len(set.union(*sides)) == 6
    assert load(nifti_slices, niftis, val=0.0, test=0.0)[1:3] == (None, None)


def test_each_volume_has_its_own_percentiles_and_halves_its_sides(niftis):
    splits = load(nifti_slices, niftis, resize=0.5, **THREE)
    item = splits.train.items[3]
    images = np.stack([splits.train.read_image(i.image) for i in splits.train.items if i.source == item.source])
    assert images.shape == (7, 5, 6, 1) and 80 < images.mean() < 170
    assert splits.train.read_mask(item.mask).shape == (5, 6) and item.spacing == pytest.approx((3.0, 1.0, 1.5))
    whole = splits.train.read_original(item.mask)
    assert (whole == volume(int(item.source[5:]) // 4)[1][:, :, 3]).all()


def test_empty_slices_may_leave_the_pool_alone(niftis, capsys):
    kept, left = (load(nifti_slices, niftis, empty=empty, **THREE) for empty in ("keep", "drop"))
    assert [len(split) for split in left[:3]] == [4 * 3, 7, 7]
    assert left.train.ids == [i for i in kept.train.ids if 2 <= int(i[-4:]) < 5]
    assert "16 of 28 slices to learn from have no foreground" in capsys.readouterr().out


def test_values_stand_for_classes_and_a_volume_is_decoded_once(niftis, tmp_path, monkeypatch):
    for n in (1, 2, 3):
        image, mask = volume(n)
        save(tmp_path / f"imagesTr/{n}_0000.nii", np.stack([image, -image], -1))
        save(tmp_path / f"labelsTr/{n}.nii", np.choose(mask, [0, 4, 1]).astype(np.float32))
    settings = {"image_ending": "_0000.nii", "mask_ending": ".nii", "values": [0, 1, 4], "val": 0.0} | THREE
    splits = load(nifti_slices, tmp_path, channel=1, **settings)
    n = int(splits.train.items[0].source)
    masks = np.stack([splits.train.read_mask(item.mask) for item in splits.train.items[:7]], -1)
    assert (masks == np.choose(volume(n)[1], [0, 2, 1])).all()
    read, real = [], nifti_slices.volume
    monkeypatch.setattr(nifti_slices, "volume", lambda path, *how: read.append(path) or real(path, *how))
    first = Store(load(nifti_slices, tmp_path, channel=0, **settings).train, "cpu")
    assert len(read) == len(set(read)) == 2
    other = Store(splits.train, "cpu")
    assert first.fingerprint != other.fingerprint
    assert "channel" in refusal(nifti_slices, tmp_path, BadData, channel=2, **settings)


def test_images_and_masks_may_lie_together_in_folders(tmp_path):
    for n in range(3):
        image, mask = volume(n)
        save(tmp_path / f"case{n}/case{n}_t1.nii.gz", image)
        save(tmp_path / f"case{n}/case{n}_t2.nii.gz", image)
        save(tmp_path / f"case{n}/case{n}_seg.nii.gz", mask)
    settings = {"images": ".", "masks": ".", "image_ending": "_t1.nii.gz", "mask_ending": "_seg.nii.gz"} | THREE
    splits = load(nifti_slices, tmp_path, **settings)
    assert [len(split) for split in splits[:3]] == [7, 7, 7] and splits.test.items[0].source.startswith("case")
    settings["image_ending"] = ".nii.gz"
    assert "6 of 6 volumes have no mask" in refusal(nifti_slices, tmp_path, **settings)


FAULTS = [
    (lambda root: (root / "labelsTr/case_8.nii.gz").unlink(), {}, ["1 of 3 volumes have no mask", "case_8.nii.gz"]),
    (lambda root: (root / "imagesTr/case_8.nii.gz").write_bytes(b"no volume"), {}, ["case_8.nii.gz cannot be read"]),
    (lambda root: (root / "imagesTr/case_8.nii.gz").write_bytes(gzip.compress(bytes(400))), {}, ["case_8.nii.gz"]),
    (lambda root: cut(root / "imagesTr/case_8.nii.gz"), {}, ["case_8.nii.gz cannot be read as a NIfTI volume"]),
    (lambda root: save(root / "imagesTr/case_8.nii.gz", np.full(SHAPE, np.nan)), {}, ["case_8.nii.gz", "no numbers"]),
    (
        lambda root: save(root / "labelsTr/case_8.nii.gz", np.full(SHAPE, 1.5)),
        {},
        ["case_8.nii.gz holds the values 1.5 "],
    ),
    (lambda root: save(root / "imagesTr/case_8.nii.gz", np.zeros((3, 4))), {}, ["case_8.nii.gz is an array of (3, 4)"]),
    (lambda root: None, {"images": "absent"}, ["absent is no folder", "nifti_slices.root="]),
    (lambda root: None, {"image_ending": "_0000.nii.gz"}, ["holds no *_0000.nii.gz"]),
    (lambda root: None, {"image_ending": ".png"}, ["no NIfTI file's ending"]),
    (lambda root: None, {"classes": ["a"]}, ["two classes or more"]),
    (lambda root: None, {"values": [0, 1]}, ["2 values for 3 classes"]),
    (lambda root: None, {"black": 2.0, "white": 1.0}, ["nifti_slices.black=2.0 is above"]),
    (lambda root: None, {"test": 0.4, "val": 0.9}, ["all of one source", "nifti_slices.val=0"]),
]


def cut(path):
    path.write_bytes(path.read_bytes()[:-300])


@pytest.mark.parametrize(
    "fault, settings, said", FAULTS, ids=lambda value: str(value) if isinstance(value, list) else ""
)
def test_what_is_wrong_with_volumes_is_one_line(tmp_path, fault, settings, said):
    draw_nifti(tmp_path, 2 if settings.get("test") == 0.4 else 3)
    fault(tmp_path)
    message = refusal(nifti_slices, tmp_path, **{"val": 0.0} | THREE | settings)
    assert all(part in message for part in said), message


def draw_hdf5(root, part, scans, shape=(11, 9), channels=True):
    """As the published preprocessing: the slices of a volume follow each other, numbered over all."""
    (root / part).mkdir(parents=True)
    about, number = {}, 0
    with h5py.File(root / part / "data.hdf5", "w") as data, h5py.File(root / part / "label.hdf5", "w") as label:
        for scan, slices in scans.items():
            for position in range(slices):
                image = np.random.default_rng(number).uniform(0, 1, shape).astype(np.float32)
                mask = np.zeros(shape, np.uint8)
                if 0 < position < slices - 1:
                    mask[2:6, 3:7], mask[3, 3] = 1, 2
                data[str(number)], label[str(number)] = (image[None] if channels else image), mask
                about[number] = {"scan_name": scan, "slice_position": position, "num_slices": slices}
                number += 1
    (root / part / "slice_info.json").write_text(json.dumps(about))


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    root = tmp_path_factory.mktemp("HDF5")
    draw_hdf5(root, "train", {f"hippocampus_{n:03}": 5 + n for n in range(4)})
    draw_hdf5(root, "test", {"hippocampus_090": 6, "hippocampus_091": 4})
    return root


def test_stored_slices_keep_their_volumes_and_order(stored):
    splits = load(hdf5_slices, stored, val=0.3)
    assert splits.classes == ("background", "anterior", "posterior") and splits.channels == 1
    assert len(splits.train) + len(splits.val) == 26 and len(splits.test) == 10
    assert splits.test.ids[:2] == ["test_hippocampus_090_0000", "test_hippocampus_090_0001"]
    sides = [{item.source for item in split.items} for split in splits[:3]]
    assert sum(map(len, sides)) == len(set.union(*sides)) == 6
    assert [int(i.image.name) for i in splits.test.items] == list(range(10))  # 2 before 10
    for split in splits[:3]:
        store = Store(split, "cpu", classes=splits.classes)
        store.label(range(len(store)))
        for place, item in enumerate(split.items):
            grey = np.rint(np.random.default_rng(int(item.image.name)).uniform(0, 1, (11, 9)).astype(np.float32) * 255)
            assert (store.image(place)[..., 0].numpy() == grey).all()
    smaller = load(hdf5_slices, stored, resize=0.5, empty="drop").train
    assert smaller[0].shape == (6, 4, 1) and smaller.read_original(smaller.items[0].mask).shape == (11, 9)
    assert all(smaller.read_mask(item.mask).any() for item in smaller.items)


def spoil(root, change):
    """The train files with one slice changed: (data, label) of h5py."""
    with h5py.File(root / "train/data.hdf5", "a") as data, h5py.File(root / "train/label.hdf5", "a") as label:
        change(data, label)


def replaced(file, key, value):
    del file[key]
    file[key] = value


HDF5_FAULTS = [
    (lambda data, label: replaced(label, "3", np.full((11, 9), 7)), ["label.hdf5/3 holds the values 7"]),
    (
        lambda data, label: replaced(data, "3", np.full((1, 11, 9), np.inf)),
        ["data.hdf5/3 holds values that are"],
    ),
    (lambda data, label: replaced(data, "3", h5py.ExternalLink("/etc/passwd", "/x")), ["data.hdf5 holds 3 as a link"]),
    (lambda data, label: replaced(data, "3", h5py.SoftLink("/4")), ["data.hdf5 holds 3 as a link"]),
    (lambda data, label: replaced(data, "3", "text"), ["no plain array of numbers at 3"]),
    (lambda data, label: replaced(data, "3", np.zeros((2, 2, 2, 2))), ["(2, 2, 2, 2) at 3"]),
    (lambda data, label: data.pop("3"), ["the slice 3 is in one of"]),
    (lambda data, label: (data.pop("3"), label.pop("3"), data.pop("4"), label.pop("4")), []),
]


@pytest.mark.parametrize(
    "change, said", HDF5_FAULTS, ids=lambda value: value[0] if isinstance(value, list) and value else ""
)
def test_what_is_wrong_with_stored_slices_is_one_line(tmp_path, change, said):
    draw_hdf5(tmp_path, "train", {"a": 4, "b": 4})
    draw_hdf5(tmp_path, "test", {"c": 3}, channels=False)
    spoil(tmp_path, change)
    if said:
        message = refusal(hdf5_slices, tmp_path, val=0.0)
        assert all(part in message for part in said), message


def test_what_is_no_hdf5_or_absent_is_one_line(stored, tmp_path):
    draw_hdf5(tmp_path, "train", {"a": 4, "b": 4})
    assert str(tmp_path / "test/data.hdf5") in refusal(hdf5_slices, tmp_path)
    draw_hdf5(tmp_path, "test", {"c": 3})
    (tmp_path / "test/slice_info.json").write_text("{}")
    assert "slice_info.json does not say scan_name" in refusal(hdf5_slices, tmp_path)
    (tmp_path / "train/data.hdf5").write_bytes(b"no HDF5")
    assert "train/data.hdf5 cannot be read as an HDF5 file" in refusal(hdf5_slices, tmp_path)
    assert "black=2.0 is not below" in refusal(hdf5_slices, stored, black=2.0)


@pytest.mark.parametrize("module, package", [(nifti_slices, "nibabel"), (hdf5_slices, "h5py")])
def test_without_the_package_one_line_says_what_to_type(module, package, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, package, None)
    [pinned] = [line for line in (ROOT / "requirements-data.txt").read_text().splitlines() if line.startswith(package)]
    assert refusal(module, tmp_path).endswith(f"needs one more package: pip install {pinned}")
    assert f"`pip install {pinned}`" in module.__doc__ and not list(tmp_path.iterdir())


def test_both_can_be_kept_decoded(niftis, stored, tmp_path):
    for module, root in ((nifti_slices, niftis), (hdf5_slices, stored)):
        splits = load(module, root)
        first, again = (
            cache.read(splits, module, str(tmp_path / "cache"), lambda split: Store(split, "cpu")) for _ in range(2)
        )
        assert [store.fingerprint for store in first] == [store.fingerprint for store in again]
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_a_run_on_volumes_measures_each_whole_in_the_spacing_of_its_file(experiment, niftis, tmp_path):
    asked = {"dataset": "nifti_slices", "nifti_slices.root": str(niftis), "nifti_slices.classes": THREE["classes"]}
    asked |= {"evaluation.distances": True, "heuristic": "entropy", "start": 4, "query": 4, "cycles": 1, "threads": 1}
    asked |= {"trainer.epochs": 2, "unet.width": 2, "mc_iters": 2, "evaluation.passes": 1, "augment.rotate": False}
    experiment.run(config_updates=asked | {"results_dir": str(tmp_path / "results"), "runs_dir": ""})
    start, first, _, last = events(tmp_path / "results", "entropy")
    assert start["headline"] == "test.class_dice" and start["classes"] == ["background", "a", "b"]
    farthest = np.hypot(np.hypot(9 * 0.5, 11 * 0.75), 6 * 3.0)
    for event in (first, last):
        assert {"test.volume_dice", "test.volume_iou"} < set(event["metrics"])
        assert 0 < event["metrics"]["test.volume_hd95"] <= farthest + 1e-6
        assert event["metrics"]["test.hd"] <= np.hypot(9 * 0.5, 11 * 0.75) + 1e-6
