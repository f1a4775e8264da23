"""The doctor names every seeded fault with file, reason and fix, no other, and mends what is certain."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image

from data.doctor import __main__ as command
from data.doctor import examine as examine_module
from data.doctor.dataset import asked
from data.doctor.examine import SETS, examine
from data.doctor.files import FILE, LISTING
from data.doctor.fixes import FIXES, mend
from data.doctor.page import page
from data.doctor.pairs import paired
from data.doctor.pixels import IMAGE, MASK, PAIR
from experiments.components import ROOT, names
from experiments.errors import Refused
from experiments.store import Item, Split, Splits

REAL = ROOT.parent / "shared/data/GlaS"
CLASSES = ("background", "nucleus", "gland")
COUNTS = {"train": 10, "val": 3, "test": 3}


def draw(rng, height=64, width=64):
    """An image (H, W, 3) and its mask (H, W): one dark nucleus and one red gland, anywhere but in the middle."""
    y, x = np.mgrid[:height, :width]
    mask = np.zeros((height, width), np.uint8)
    mask[((y - rng.uniform(12, 20)) / 9) ** 2 + ((x - rng.uniform(10, 20)) / 7) ** 2 < 1] = 1
    mask[((y - rng.uniform(26, 34)) / 6) ** 2 + ((x - rng.uniform(28, 46)) / 13) ** 2 < 1] = 2
    image = np.array([[215, 180, 205], [70, 40, 120], [200, 60, 80]])[mask] + rng.normal(0, 9, (height, width, 3))
    coarse = rng.normal(0, 12, (height // 4 + 1, width // 4 + 1)).repeat(4, 0).repeat(4, 1)[:height, :width, None]
    return (image + coarse).clip(0, 255).astype(np.uint8), mask


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """A folder with train/, val/ and test/ of images/ and masks/ in PNG; three of train are not square."""
    root, rng = tmp_path_factory.mktemp("clean"), np.random.default_rng(0)
    for part, count in COUNTS.items():
        for role in ("images", "masks"):
            (root / part / role).mkdir(parents=True)
        for n in range(count):
            image, mask = draw(rng, *((44, 64) if part == "train" and n < 3 else (64, 64)))
            Image.fromarray(image).save(root / part / "images" / f"{part}{n}.png")
            Image.fromarray(mask).save(root / part / "masks" / f"{part}{n}.png")
    return root


@pytest.fixture
def folder(clean, tmp_path):
    return Path(shutil.copytree(clean, tmp_path / "set"))


def diagnose(root, classes=CLASSES, splits=None):
    return examine(splits or paired(root), classes, root)


def told(faults):
    return {(fault.kind, Path(fault.path).name) for fault in faults}


# each spoils a set in one way and says which file is named

IMAGE5, MASK5 = "train/images/train5.png", "train/masks/train5.png"


def again(root, name, change, **how):
    """Save what `change` makes of a file's array in its place."""
    with Image.open(root / name) as image:
        pixels = np.array(image)
    made = change(pixels)
    (made if isinstance(made, Image.Image) else Image.fromarray(made)).save(root / name, **how)
    return Path(name).name


def bytes_of(root, name, change):
    (root / name).write_bytes(change((root / name).read_bytes()))
    return Path(name).name


def renamed(root, old, new, change=lambda image: image, **how):
    with Image.open(root / old) as image:
        change(image).save(root / new, **how)
    (root / old).unlink()
    return Path(new).name


def missing_mask(root):
    (root / MASK5).unlink()
    return "train5.png"


def missing_image(root):
    (root / IMAGE5).unlink()
    return "train5.png"


def broken_link(root):
    (root / MASK5).unlink()
    (root / MASK5).symlink_to(root / "nowhere.png")
    return "train5.png"


def link_out(root):
    shutil.move(root / MASK5, root.parent / "elsewhere.png")
    (root / MASK5).symlink_to(root.parent / "elsewhere.png")
    return "train5.png"


def beside(suffix):
    def make(root):
        shutil.copy(root / IMAGE5, root / f"train/images/{suffix}")
        if suffix.endswith(".bmp"):
            Image.open(root / IMAGE5).save(root / f"train/images/{suffix}")
        return "train5.png"

    return make


def not_utf8(root):
    for role in ("images", "masks"):
        os.rename(root / f"train/{role}/train5.png", os.fsencode(root / f"train/{role}/") + b"/h\xe4.png")
    return os.fsdecode(b"h\xe4.png")


def made_folder(root):
    (root / IMAGE5).unlink()
    (root / IMAGE5).mkdir()
    return "train5.png"


def pipe(root):
    (root / IMAGE5).unlink()
    os.mkfifo(root / IMAGE5)
    return "train5.png"


def flipped_bytes(root):
    return bytes_of(root, IMAGE5, lambda data: data[:60] + bytes(255 - b for b in data[60:400]) + data[400:])


def header(width, height):
    """Of a PNG that promises so many pixels of 8 bits."""
    import struct
    import zlib

    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    return start + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))


def frames(name, ending, **how):
    def make(root):
        with Image.open(root / name) as image:
            first = image.convert("RGB")
            turned = first.rotate(90)
        (root / name).unlink()
        first.save((root / name).with_suffix(ending), save_all=True, append_images=[turned], **how)
        return Path(name).with_suffix(ending).name

    return make


def alpha(root):
    def change(image):
        clear = np.full(image.shape[:2], 255, np.uint8)
        clear[:20] = 0
        return np.dstack([image, clear])

    return again(root, IMAGE5, change)


def tagged(name, orientation):
    """A camera's JPEG: its pixels lie as the sensor does, its mask as it is shown."""

    def make(root):
        exif = Image.Exif()
        exif[274] = orientation
        return renamed(
            root,
            f"train/images/{name}.png",
            f"train/images/{name}.jpg",
            lambda image: image.transpose(Image.Transpose.ROTATE_90),
            exif=exif,
            quality=95,
            subsampling=0,
        )

    return make


def floats(name, hole=False):
    def make(root):
        def change(image):
            values = (image if image.ndim == 2 else image[..., 0]).astype(np.float32)
            values[0, 0] = np.nan if hole else values[0, 0]
            return Image.fromarray(values)

        return renamed(
            root, name, str(Path(name).with_suffix(".tif")), lambda image: change(np.array(image)), compression=None
        )

    return make


def grey_palette(root):
    def change(mask):
        image = Image.fromarray(np.array([2, 0, 1], np.uint8)[mask])
        image.putpalette([1, 1, 1, 2, 2, 2, 0, 0, 0])
        return image

    return again(root, MASK5, change)


def vivid_palette(root):
    def change(mask):
        image = Image.fromarray(mask * 40)
        image.putpalette([v for i in range(256) for v in (i, 255 - i, 90)])
        return image

    return again(root, MASK5, change)


def as_jpeg(root):
    return renamed(root, MASK5, "train/masks/train5.jpg", lambda i: Image.fromarray(np.array(i) * 100), quality=60)


def averaged(root):
    def change(mask):
        small = Image.fromarray(mask * 100).resize((40, 40), Image.Resampling.BILINEAR)
        return small.resize((64, 64), Image.Resampling.BILINEAR)

    return again(root, MASK5, change)


def copied_mask(root):
    shutil.copy(root / "train/masks/train6.png", root / MASK5)
    return "train6.png"


def copied(to):
    def make(root):
        for role in ("images", "masks"):
            shutil.copy(root / f"train/{role}/train5.png", root / to.format(role=role))
        return Path(to).name

    return make


def noisy(to, change):
    def make(root):
        name = copied(to)(root)
        again(root, to.format(role="images"), change)
        return name

    return make


def brighter(image):
    noise = np.random.default_rng(1).normal(0, 4, image.shape)
    return (image * 0.93 + 9 + noise).clip(0, 255).astype(np.uint8)


def compressed(image):
    small = Image.fromarray(image).resize((56, 56), Image.Resampling.BICUBIC)
    return small.resize((64, 64), Image.Resampling.BICUBIC)


def no_gland(root):
    for n in range(COUNTS["train"]):
        again(root, f"train/masks/train{n}.png", lambda mask: np.where(mask == 2, 0, mask).astype(np.uint8))
    return "train0.png"


def mask5(change, **how):
    return lambda root: again(root, MASK5, change, **how)


def image5(change, **how):
    return lambda root: again(root, IMAGE5, change, **how)


def cut_short(root):
    def change(image):
        image[44:] = 128  # what a decoder makes of a JPEG that ends there
        return image

    return again(root, IMAGE5, change)


def animation(root):
    with Image.open(root / IMAGE5) as image:
        first = image.convert("RGB")
    first.save(root / IMAGE5, save_all=True, append_images=[first.rotate(90)])
    return "train5.png"


def tagged_png(root):
    exif = Image.Exif()
    exif[274] = 3
    return again(root, IMAGE5, lambda image: image, exif=exif)


def shown(mask):
    return np.dstack([mask * 100, mask * 0, 200 - mask * 100]).astype(np.uint8)


SEEDS = {
    "mask is not there": ("missing", missing_mask),
    "image is not there": ("missing", missing_image),
    "mask is a link to nothing": ("missing", broken_link),
    "mask's name differs by case": (
        "missing",
        lambda root: os.rename(root / MASK5, root / "train/masks/TRAIN5.png") or "train5.png",
    ),
    "link out of the folder": ("outside the root", link_out),
    "a.png and a.bmp": ("duplicate stem", beside("train5.bmp")),
    "a.png and a.PNG": ("case clash", beside("train5.PNG")),
    "name is no UTF-8": ("name no UTF-8", not_utf8),
    "a folder for an image": ("no file", made_folder),
    "a named pipe for an image": ("no file", pipe),
    "zero bytes": ("empty file", lambda root: bytes_of(root, IMAGE5, lambda data: b"")),
    "zero bytes of a mask": ("empty file", lambda root: bytes_of(root, MASK5, lambda data: b"")),
    "text for an image": ("unknown format", lambda root: bytes_of(root, IMAGE5, lambda data: b"<svg/>")),
    "SVG in a mask": ("unknown format", lambda root: bytes_of(root, MASK5, lambda data: b"<svg onload=alert(1)>")),
    "PNG called JPG": ("wrong extension", lambda root: renamed(root, IMAGE5, "train/images/train5.jpg", format="PNG")),
    "BMP called PNG": ("wrong extension", lambda root: again(root, MASK5, lambda mask: mask, format="BMP")),
    "50,000 x 50,000": ("huge header", lambda root: bytes_of(root, IMAGE5, lambda data: header(50_000, 50_000))),
    "12,000 x 12,000": ("huge header", lambda root: bytes_of(root, MASK5, lambda data: header(12_000, 12_000))),
    "half an image": ("truncated", lambda root: bytes_of(root, IMAGE5, lambda data: data[: len(data) // 2])),
    "half a mask": ("truncated", lambda root: bytes_of(root, MASK5, lambda data: data[: len(data) // 2])),
    "flipped bytes": ("damaged", flipped_bytes),
    "GIF with frames": ("animated", frames(IMAGE5, ".gif")),
    "TIFF with pages": ("several pages", frames(IMAGE5, ".tif")),
    "CMYK": (
        "CMYK",
        lambda root: renamed(root, IMAGE5, "train/images/train5.jpg", lambda i: i.convert("CMYK"), quality=95),
    ),
    "16-bit image": ("16-bit image", image5(lambda image: image[..., 0].astype(np.uint16) * 257)),
    "float image with NaN": ("float image", floats(IMAGE5, hole=True)),
    "transparent image": ("transparent image", alpha),
    "EXIF rotation": ("EXIF rotation", tagged("train1", 6)),
    "EXIF rotation of a square": ("EXIF rotation", tagged("train5", 6)),
    "16-bit mask": ("16-bit mask", mask5(lambda mask: mask.astype(np.uint16))),
    "float mask": ("float mask", floats(MASK5)),
    "float mask with NaN": ("float mask", floats(MASK5, hole=True)),
    "RGB mask of colours": ("RGB mask", mask5(shown)),
    "RGB mask of greys": ("RGB mask", mask5(lambda mask: np.dstack([mask] * 3))),
    "RGBA mask": ("RGBA mask", mask5(lambda mask: np.dstack([mask] * 3 + [mask * 0 + 255]))),
    "LA mask": ("LA mask", mask5(lambda mask: Image.fromarray(np.dstack([mask, mask * 0 + 255]), "LA"))),
    "1-bit mask": ("1-bit mask", mask5(lambda mask: mask > 0)),
    "palette with moved greys": ("palette mask", grey_palette),
    "palette with other indices": ("palette mask", vivid_palette),
    "JPEG mask": ("JPEG mask", as_jpeg),
    "0 and 255 alone": ("0/255 mask", mask5(lambda mask: (mask > 0).astype(np.uint8) * 255)),
    "0, 127 and 255": ("undeclared value", mask5(lambda mask: np.array([0, 127, 255], np.uint8)[mask])),
    "value 7": ("undeclared value", mask5(lambda mask: np.where(mask == 2, 7, mask).astype(np.uint8))),
    "averaged mask": ("interpolated mask", averaged),
    "background alone": ("no foreground", mask5(lambda mask: mask * 0)),
    "foreground alone": ("no background", mask5(lambda mask: np.maximum(mask, 1))),
    "all ignored": ("all ignored", mask5(lambda mask: mask * 0 + 255)),
    "mask smaller than image": ("other size", mask5(lambda mask: mask[:-4])),
    "mask turned by 90 degrees": (
        "rotated size",
        lambda root: again(root, "train/masks/train1.png", lambda mask: np.rot90(mask).copy()),
    ),
    "mask transposed": ("misaligned", mask5(lambda mask: mask.T.copy())),
    "mask mirrored": ("misaligned", mask5(lambda mask: mask[:, ::-1].copy())),
    "mask moved": ("misaligned", mask5(lambda mask: np.roll(mask, (14, 11), (0, 1)))),
    "another image's mask": ("copied mask", copied_mask),
    "image of one colour": ("one colour", image5(lambda image: image * 0 + 90)),
    "image of next to one colour": (
        "one colour",
        image5(lambda image: np.random.default_rng(0).integers(248, 251, image.shape).astype(np.uint8)),
    ),
    "image that was fetched in part": ("cut off", cut_short),
    "PNG with frames": ("several pages", animation),
    "PNG that is shown turned": ("EXIF rotation", tagged_png),
    "copy in training": ("copy", copied("train/{role}/zz.png")),
    "copy in the test images": ("copy", copied("test/{role}/zz.png")),
    "near-duplicate in training": ("near-duplicate", noisy("train/{role}/zz.png", brighter)),
    "near-duplicate in the test images": ("near-duplicate", noisy("test/{role}/zz.png", brighter)),
    "resized near-duplicate": ("near-duplicate", noisy("val/{role}/zz.png", compressed)),
    "class that no training mask has": ("absent class", no_gland),
}
TWO_CLASSES = {"0 and 255 alone", "1-bit mask"}
# what one spoilt file shows besides
ALSO = {
    "mask's name differs by case": {"missing"},
    "EXIF rotation": {"rotated size"},
    "EXIF rotation of a square": {"misaligned"},
    "copy in training": {"shared mask"},
    "another image's mask": {"misaligned"},
    "resized near-duplicate": set(),
    "class that no training mask has": {"misaligned"},
}


def two_classes(root):
    for path in root.glob("*/masks/*.png"):
        with Image.open(path) as image:
            mask = np.array(image)
        if mask.max() < 3:
            Image.fromarray((mask > 0).astype(np.uint8)).save(path)


def test_there_are_enough_seeds():
    assert len(SEEDS) >= 40 and len({kind for kind, _ in SEEDS.values()}) >= 30


@pytest.mark.parametrize("seed", SEEDS)
def test_a_seeded_fault_is_named(folder, seed):
    kind, spoil = SEEDS[seed]
    if seed in TWO_CLASSES:
        two_classes(folder)
    name = spoil(folder)
    faults = diagnose(folder, ("background", "gland") if seed in TWO_CLASSES else CLASSES)
    assert (kind, name) in told(faults), told(faults)
    assert {fault.kind for fault in faults} <= {kind} | ALSO.get(seed, set()), told(faults)
    for fault in faults:
        line = command.line(fault)
        assert fault.found and fault.fix and "\n" not in line and line.encode()


def test_processes_find_what_one_does(folder, monkeypatch):
    for seed in ("PNG that is shown turned", "copy in the test images", "value 7", "half an image"):
        SEEDS[seed][1](folder)
    expected, forked = diagnose(folder), Mock(wraps=examine_module.forked)
    monkeypatch.setattr(examine_module, "forked", forked)
    monkeypatch.setattr(examine_module, "MANY", 3)
    monkeypatch.setattr(examine_module, "TOGETHER", 2)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1})
    assert diagnose(folder) == expected != []
    assert forked.call_count == 1


def test_a_killed_doctor_leaves_no_process():
    script = """
import os, time
from data.doctor.examine import forked
def read(part):
    os.write(1, b"%d\\n" % os.getpid())
    time.sleep(part)
list(forked(read, [20, 20], 2))
"""
    with subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        readers = [int(parent.stdout.readline()) for _ in range(2)]
        parent.kill()
    assert ended(readers, within=10)


def test_a_killed_reader_is_said_in_one_line():
    with pytest.raises(Refused, match="A process that read files was killed"):
        list(examine_module.forked(lambda part: os.kill(os.getpid(), signal.SIGKILL), [1], 1))


def ended(processes, within):
    deadline = time.monotonic() + within
    while alive := [number for number in processes if Path(f"/proc/{number}").exists()]:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return not alive


def test_a_clean_set_has_none(clean):
    assert diagnose(clean) == []


@pytest.mark.skipif(not REAL.is_dir(), reason=f"the real GlaS is not at {REAL}")
def test_the_real_glas_has_its_known_faults_alone():
    """Its official test images are in part of patients that are in training too."""
    dataset = asked("glas", [f"glas.root={REAL}"])
    faults = examine(dataset.load(), dataset.module.CLASSES, dataset.root)
    assert {fault.kind for fault in faults} == {"source in two splits"} and len(faults) <= 2


def test_the_drawn_phantom_and_its_layout(phantom_root, tmp_path):
    """Serial sections of one patient are near-duplicates by design, and no fault where they lie in one split."""
    dataset = asked("phantom", [f"phantom.root={phantom_root}"])
    splits = dataset.load()
    faults = examine(splits, dataset.module.CLASSES, dataset.root)
    assert {fault.kind for fault in faults} <= {"source in two splits"}
    root = Path(shutil.copytree(phantom_root, tmp_path / "Phantom"))
    item = asked("phantom", [f"phantom.root={root}"]).load().train.items[2]
    again(
        root / "seed_0",
        item.mask.name,
        lambda ids: Image.fromarray(ids * 40).resize(ids.shape[::-1], 2, reducing_gap=1),
    )
    again(root / "seed_0", item.mask.name, lambda ids: Image.fromarray(ids).rotate(7, Image.Resampling.BILINEAR))
    again(root / "seed_0", item.image.name, lambda image: image[:-5])
    dataset = asked("phantom", [f"phantom.root={root}"])
    found = told(examine(dataset.load(), dataset.module.CLASSES, root))
    assert ("interpolated mask", item.mask.name) in found
    assert {kind for kind, _ in found} <= {"interpolated mask", "source in two splits"}


def test_sources_and_names_that_stand_on_two_sides(clean):
    splits = paired(clean)

    def moved(split, **change):
        return Split([item._replace(**change) for item in split.items], split.read_image, split.read_mask)

    one = Splits(moved(splits.train, source="7"), moved(splits.val, source="8"), moved(splits.test, source="7"), 0)
    assert told(diagnose(clean, splits=one)) == {("source in two splits", "test0.png")}
    one = Splits(splits.train, moved(splits.val, id="train1"), splits.test, 0)
    assert [(f.kind, f.found) for f in diagnose(clean, splits=one)] == [("duplicate id", "4 images are called train1")]
    first, second = splits.train.items[4:6]
    shared = [first, second._replace(mask=first.mask)]
    one = Splits(Split(shared, splits.train.read_image, splits.train.read_mask), None, None, 0)
    assert ("shared mask", "train4.png") in told(diagnose(clean, splits=one))
    shared = [first, second._replace(image=first.image)]
    one = Splits(Split(shared, splits.train.read_image, splits.train.read_mask), None, None, 0)
    [found] = [fault for fault in diagnose(clean, splits=one) if fault.kind == "shared image"]
    assert found.path == first.image and found.found == "it is the image of train4.png, train5.png"
    pages = [item._replace(image=first.image, mask=first.mask) for item in (first, second)]  # of one file each
    one = Splits(Split(pages, splits.train.read_image, splits.train.read_mask), None, None, 0)
    assert not {"shared image", "shared mask"} & {fault.kind for fault in diagnose(clean, splits=one)}
    through = [first._replace(image=clean / ".." / "other" / "a.png")]
    one = Splits(Split(through, splits.train.read_image, splits.train.read_mask), None, None, 0)
    assert ("outside the root", "a.png") in told(diagnose(clean, splits=one))


def test_every_check_has_a_fix_and_a_seed():
    kinds = set().union(FILE, LISTING, IMAGE, MASK, PAIR, SETS)
    assert kinds <= FIXES.keys()
    elsewhere = {"duplicate id", "source in two splits", "shared mask", "shared image"}
    assert kinds - {kind for kind, _ in SEEDS.values()} - elsewhere == set()


MENDED = (
    "PNG called JPG|BMP called PNG|CMYK|EXIF rotation|16-bit mask|float mask|RGB mask of greys|RGBA mask|LA mask|"
    "1-bit mask|palette with moved greys|0 and 255 alone"
).split("|")
NOT_MENDED = (
    "averaged mask|value 7|RGB mask of colours|16-bit image|mask turned by 90 degrees|float mask with NaN|JPEG mask|"
    "transparent image|EXIF rotation of a square|palette with other indices|0, 127 and 255"
).split("|")


def files_of(root):
    return {path.relative_to(root): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("seed", MENDED)
def test_a_certain_mend_passes_and_leaves_the_originals(folder, clean, tmp_path, seed):
    classes = ("background", "gland") if seed in TWO_CLASSES else CLASSES
    if seed in TWO_CLASSES:
        two_classes(folder)
    masks = {path.stem: path for path in folder.glob("*/masks/*")}
    with Image.open(masks["train5"]) as image:
        true = np.array(image)
    name = SEEDS[seed][1](folder)
    before = files_of(folder)
    done = mend(diagnose(folder, classes), folder, tmp_path / "mended", classes)
    assert [path.name for path in done] == [name] and files_of(folder) == before
    assert diagnose(tmp_path / "mended", classes) == []
    part = paired(tmp_path / "mended").train
    item = next(item for item in part.items if item.id == "train5")
    assert np.array_equal(part.read_mask(item.mask), true)
    assert files_of(tmp_path / "mended").keys() == before.keys()


@pytest.mark.parametrize("seed", NOT_MENDED)
def test_what_is_not_certain_is_not_mended(folder, tmp_path, seed):
    SEEDS[seed][1](folder)
    before = files_of(folder)
    assert mend(diagnose(folder), folder, tmp_path / "mended", CLASSES) == []
    assert files_of(tmp_path / "mended") == before == files_of(folder)


def test_a_corrected_copy_is_never_written_over_anything(folder, tmp_path):
    for target in (folder, folder / "inner", tmp_path, folder / "train"):
        with pytest.raises(Refused, match="--fix"):
            mend([], folder, target, CLASSES)
    link_out(folder)
    outside = tmp_path / "elsewhere.png"
    again(tmp_path, "elsewhere.png", lambda mask: mask.astype(np.uint16))
    before = outside.read_bytes()
    assert mend(diagnose(folder), folder, tmp_path / "mended", CLASSES) == []
    assert outside.read_bytes() == before


@pytest.fixture
def drawn_dataset(monkeypatch, folder):
    """`main(*words)` of the doctor with `folder` as dataset, a stand-in whose load refuses as the real one may."""
    from types import SimpleNamespace

    from data.doctor import dataset

    def refuse(**settings):
        raise Refused(f"{folder}/train/masks has no train5.png.")

    module = SimpleNamespace(CLASSES=CLASSES, load=refuse, ingredient=SimpleNamespace(path="folder"))
    monkeypatch.setattr(command, "asked", lambda name, words: dataset.Dataset(module, {"root": str(folder)}))
    return lambda *words: command.main([str(folder), *words])


def test_a_folder_that_its_dataset_refuses_is_examined_all_the_same(drawn_dataset, folder, capsys):
    missing_mask(folder)
    no_gland_in = folder / "train/masks/train6.png"
    no_gland_in.write_bytes(b"")
    assert drawn_dataset() == 1
    said = capsys.readouterr().out.splitlines()
    assert any("layout" in line and "has no train5.png" in line for line in said)
    assert any(f"{no_gland_in}: empty file" in line for line in said) and said[-1] == "folder: 16 images, 3 faults."


def test_many_faults_are_a_table_with_three_examples_each(capsys):
    from data.doctor.examine import Fault

    kinds = ("truncated", "0/255 mask", "missing")
    faults = [Fault(kinds[n % 3], Path(f"{n}.png"), "half of it") for n in range(10_000)]
    said = command.lines(faults)
    assert len(said) == 1 + 3 * (1 + 3) and any("3334" in line for line in said)
    assert sum("fetch it again" in line for line in said) == 1


def test_the_page_stands_alone_and_escapes_names(folder):
    name = "<img src=x onerror=alert(1)>.png"
    for role in ("images", "masks"):
        (folder / f"train/{role}/train5.png").rename(folder / f"train/{role}/{name}")
    again(folder, f"train/masks/{name}", lambda mask: np.where(mask == 2, 7, mask).astype(np.uint8))
    html = page("folder", 16, diagnose(folder))
    assert "&lt;img src=x" in html and "<img src=x" not in html
    assert html.count("data:image/png;base64,") == 2 and "http" not in html


def test_the_command(clean, phantom_root, tmp_path):
    line = [
        sys.executable,
        "-m",
        "data.doctor",
        "phantom",
        f"phantom.root={phantom_root}",
        "--html",
        tmp_path / "p.html",
    ]
    done = subprocess.run([str(word) for word in line], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode in (0, 1) and "phantom: 25 images" in done.stdout and not done.stderr
    assert (tmp_path / "p.html").stat().st_size > 1000


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["phanto"], "Did you mean phantom?"),
        (["phantom", "phantom.rot=x"], "Did you mean phantom.root?"),
        (["phantom", "phantom.seed=-1"], "phantom.seed must be at least 0"),
        (["phantom", "seed=1"], "Did you mean phantom.seed?"),
        (["/nowhere/at/all"], "is no folder"),
        (["glas", "glas.root=/nowhere"], "GlaS is not at /nowhere"),
    ],
)
def test_what_is_mistyped_is_refused_in_one_line(words, said):
    with pytest.raises(Refused) as caught:
        command.main(words)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_path_needs_the_dataset_folder(clean):
    if "folder" in names("dataset"):
        assert asked(str(clean), []).settings["root"] == str(clean)
    else:
        with pytest.raises(Refused, match="data/folder.py is not there"):
            asked(str(clean), [])


def test_commands_are_no_datasets():
    assert not {"doctor", "preview"} & set(names("dataset"))


def test_a_bomb_is_refused_in_little_memory(tmp_path):
    """50,000 x 50,000 pixels would be 2.5 GB."""
    script = """
import sys
from pathlib import Path
from data.doctor.examine import examine
from data.doctor.pairs import paired
root = Path(sys.argv[1])
faults = examine(paired(root), ("background", "gland"), root)
print([f.kind for f in faults], int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) // 1024)
"""
    for role in ("images", "masks"):
        (tmp_path / role).mkdir()
        (tmp_path / role / "a.png").write_bytes(header(50_000, 50_000))
    done = subprocess.run([sys.executable, "-c", script, tmp_path], cwd=ROOT, capture_output=True, text=True)
    kinds, memory = done.stdout.strip().rsplit(" ", 1)
    assert kinds.count("huge header") == 2, done.stderr
    assert int(memory) < 300


@pytest.mark.parametrize("shape", [(64, 96, 3), (50, 37, 3), (64, 64, 1), (45, 100, 4), (20, 11, 3)])
def test_images_that_are_shrunk_together_are_as_each_alone(shape):
    from data.doctor.examine import _shrink
    from data.doctor.sets import Record

    images = np.random.default_rng(0).integers(0, 256, (5, *shape), dtype=np.uint8)
    waiting = [(Record("train", Item(str(n), "", "")), image) for n, image in enumerate(images)]
    for record, image in list(waiting):
        alone = Record("train", record.item)
        _shrink([(alone, image)])
        record.alone = alone.thumb
        expected = Image.fromarray(image[..., 0] if shape[2] == 1 else image[..., :3]).resize((32, 32), Image.BOX)
        assert np.abs(alone.thumb - np.asarray(expected).astype(float).reshape(32, 32, -1)).max() <= 1
    records = [record for record, _ in waiting]
    _shrink(waiting)
    assert not waiting and all((record.thumb == record.alone).all() for record in records)


def test_ten_thousand_pairs_are_compared_in_bounded_time():
    from data.doctor.sets import Record, near_duplicates

    rng = np.random.default_rng(0)
    thumbs = rng.integers(0, 256, (3000, 32, 32, 3), dtype=np.uint8)
    records = [
        Record("train", Item(str(n), Path(f"{n}.png"), Path(f"{n}m.png")), thumb=thumb, digest=n)
        for n, thumb in enumerate(thumbs)
    ]
    began = time.perf_counter()
    assert list(near_duplicates(records, ())) == [] and time.perf_counter() - began < 20


def draw_object(rng, size=(40, 50)):
    y, x = np.mgrid[: size[0], : size[1]]
    return (y - rng.uniform(12, 28)) ** 2 + (x - rng.uniform(12, 38)) ** 2 < 70


def painted(rng, mask):
    colours = np.array([[215, 180, 205], [90, 40, 120]])[mask.astype(int)]
    return (colours + rng.normal(0, 12, colours.shape)).clip(0, 255).astype(np.uint8)


def save_file(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def test_tiles_pages_and_masks_of_several_files_are_examined_by_their_files(tmp_path, capsys):
    """No false alarm on sound ones, and each fault is told once, with its file."""
    rng = np.random.default_rng(0)
    for n in range(6):
        one, other = draw_object(rng), draw_object(rng)
        save_file(tmp_path / f"tiles/images/{n}.png", painted(rng, one))
        save_file(tmp_path / f"tiles/masks/{n}.png", one.astype(np.uint8))
        save_file(tmp_path / f"several/id{n}/images/a.png", painted(rng, one | other))
        for k, mask in enumerate((one, other)):
            save_file(tmp_path / f"several/id{n}/masks/{k}.png", mask * np.uint8(255))
    for stack in "abc":
        masks = [draw_object(rng) for _ in range(4)]
        for role, made in (("images", [painted(rng, m)[..., 0] for m in masks]), ("masks", masks)):
            (tmp_path / "pages" / role).mkdir(parents=True, exist_ok=True)
            first, *more = (Image.fromarray(np.asarray(page).astype(np.uint8)) for page in made)
            first.save(tmp_path / f"pages/{role}/{stack}.tif", save_all=True, append_images=more)
    names = ["folder.image_pattern={id}/images/*.png", "folder.mask_pattern={id}/masks/*.png", "folder.several=True"]
    asked = {
        "tiles": ["folder.classes=background,cell", "folder.tile=32"],
        "several": ["folder.values=0:background,255:cell", "folder.images=.", "folder.masks=.", *names],
        "pages": ["folder.classes=background,cell", "folder.channels=1"],
    }
    for kind, words in asked.items():
        assert command.main([str(tmp_path / kind), *words]) == 0, capsys.readouterr().out
        assert "no faults" in capsys.readouterr().out
    wrong = {"tiles": "images/3.png", "several": "id3/masks/1.png", "pages": "masks/b.tif"}
    for kind, name in wrong.items():
        file = tmp_path / kind / name
        file.write_bytes(file.read_bytes()[:-60])
        line = ["--html", str(tmp_path / "page.html"), "--fix", str(tmp_path / f"{kind}_mended")]
        assert command.main([str(tmp_path / kind), *asked[kind], *line]) == 1
        out = capsys.readouterr().out.splitlines()
        assert sum(str(file) in line for line in out) == 1 and "1 fault." in " ".join(out), out
        assert str(file) in (tmp_path / "page.html").read_text()


def test_masks_that_are_equal_by_chance_are_no_copies(tmp_path):
    """Discs of whole pixels on few places: each mask explains its own image, as it does not once it was copied."""
    rng = np.random.default_rng(0)
    for n in range(12):
        mask = np.roll(draw_object(np.random.default_rng(1)), 4 * (n % 3), 1)
        save_file(tmp_path / f"images/{n:02d}.png", painted(rng, mask))
        save_file(tmp_path / f"masks/{n:02d}.png", mask.astype(np.uint8))
    classes = ("background", "disc")
    assert diagnose(tmp_path, classes) == []
    shutil.copy(tmp_path / "masks/01.png", tmp_path / "masks/00.png")
    assert "copied mask" in {fault.kind for fault in diagnose(tmp_path, classes)}


def test_a_folder_with_parts_that_lack_masks_is_refused_in_one_line(tmp_path, capsys):
    """As DRIVE has it: the layout is what is told, not what the plainest reading of it meets."""
    for n in range(4):
        for part in ("training", "test"):
            save_file(tmp_path / part / f"images/{n}.png", painted(np.random.default_rng(n), np.eye(40, dtype=bool)))
    with pytest.raises(Refused, match="training/masks is no folder .* holds images"):
        command.main([str(tmp_path), "folder.classes=background,vessel"])


def test_values_that_a_folder_does_not_declare_are_named_as_such(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for n in range(6):
        mask = draw_object(rng)
        save_file(tmp_path / f"images/{n}.png", painted(rng, mask))
        save_file(tmp_path / f"masks/{n}.png", mask * np.uint8(255 if n else 7))
    assert command.main([str(tmp_path), "folder.values=0:background,255:disc"]) == 1
    said = capsys.readouterr().out
    assert f"{tmp_path}/masks/0.png: undeclared value: " in said and "holds 7" in said and "1 fault." in said


@pytest.mark.skipif(not REAL.is_dir(), reason=f"the real GlaS is not at {REAL}")
def test_mirrored_and_moved_masks_of_real_tissue_are_named_in_part():
    """A third of those that lie wrong, where colours tell little, and none that lies well."""
    from data.doctor import alignment

    dataset, seen = asked("glas", [f"glas.root={REAL}"]), []
    splits = dataset.load()

    def kept(records, classes):
        seen.extend(records)
        return ()

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SETS, "misaligned", kept)
        examine(splits, dataset.module.CLASSES, dataset.root)
    assert not list(alignment.misaligned(seen, ()))
    for lay in (np.fliplr, np.flipud, lambda mask: np.roll(mask, (4, 3), (0, 1))):
        named = 0
        for first in range(4):
            spoilt = seen[first::8]
            sound = [record.mask_thumb for record in spoilt]
            for record in spoilt:
                record.mask_thumb, record.share = np.ascontiguousarray(lay(record.mask_thumb)), None
            found = [record for record, _, _ in alignment.misaligned(seen, ())]
            assert all(any(record is other for other in spoilt) for record in found)
            named += len(found)
            for record, mask in zip(spoilt, sound, strict=True):
                record.mask_thumb, record.share = mask, None
        assert named > 0.28 * sum(len(seen[first::8]) for first in range(4))
