"""`cache_dir`: a later run takes the decoded images from a file, which is never trusted further than it can be."""

import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, ledger_bytes
from PIL import Image
from test_loaders import NAMES, SETTINGS, archives, load, picture, save  # noqa: F401  archives is a fixture

from data import folder
from experiments.records.files import hold
from experiments.store import Item, Split, Splits, Store, cache

DRAWN = 6


@pytest.fixture
def opened(monkeypatch):
    """The image files that are opened, in order."""
    paths, there = [], Image.open
    monkeypatch.setattr(Image, "open", lambda path, *rest, **more: paths.append(path) or there(path, *rest, **more))
    return paths


def read(splits, dataset, place):
    return cache.read(splits, dataset, str(place), lambda split: Store(split, "cpu"))


def fingerprints(stores):
    return [store and store.fingerprint for store in stores]


@pytest.fixture
def drawn(tmp_path):
    """A dataset=folder of six images; drawn() loads its Splits."""
    for n in range(DRAWN):
        save(tmp_path / f"images/{n}.png", picture(n, 10 + n % 2))
        save(tmp_path / f"masks/{n}.png", np.ones((10 + n % 2, 16)))
    return lambda **settings: load("folder", tmp_path, classes="background,cell", **settings)


def file_in(place):
    [file] = Path(place).iterdir()
    return file


@pytest.mark.parametrize("name", NAMES)
def test_every_dataset_is_decoded_once_and_taken_afterwards(archives, name, tmp_path, opened, capsys):  # noqa: F811
    module = import_module(f"data.{name}")
    splits = load(name, archives[name], **SETTINGS.get(name, {}))
    plain = fingerprints(read(splits, module, ""))
    assert fingerprints(read(splits, module, tmp_path)) == plain and "are kept in" in capsys.readouterr().out
    again = load(name, archives[name], run=1, **SETTINGS.get(name, {}))  # may well be split otherwise
    opened.clear()
    stores = read(again, module, tmp_path)
    assert not opened and "were taken from" in capsys.readouterr().out and len(list(tmp_path.iterdir())) == 1
    for store, split in zip(stores, again[:3], strict=True):
        assert all((store.image(i).numpy() == split[i]).all() for i in range(len(split)))


def test_tiles_and_pages_are_taken_too(drawn, tmp_path, opened):
    pages = [Image.fromarray(picture(n).astype(np.uint8)) for n in range(4)]
    pages[0].save(tmp_path / "images/stack.tif", save_all=True, append_images=pages[1:])
    masks = [Image.fromarray(np.ones((12, 16), np.uint8))] * 4
    masks[0].save(tmp_path / "masks/stack.tif", save_all=True, append_images=masks[1:])
    splits = drawn(tile=16, resize=2.0)
    first = read(splits, folder, tmp_path / "cache")
    opened.clear()
    assert fingerprints(read(splits, folder, tmp_path / "cache")) == fingerprints(first) and not opened
    assert sum(map(len, splits[:3])) == (DRAWN + 4) * 2 * 2


def test_a_changed_image_is_decoded_anew_and_nothing_else(drawn, tmp_path, opened, capsys):
    place = tmp_path / "cache"
    before = read(drawn(), folder, place)
    save(tmp_path / "images/3.png", 255 - picture(3, 11))
    opened.clear()
    after = read(drawn(), folder, place)
    assert {Path(path).name for path in opened} == {"3.png"} and "5 of them as they were" in capsys.readouterr().out
    assert sum(a != b for a, b in zip(fingerprints(before), fingerprints(after), strict=True)) == 1
    assert fingerprints(after) == fingerprints(read(drawn(), folder, ""))
    opened.clear()
    read(drawn(), folder, place)
    assert not opened
    then = (tmp_path / "images/3.png").stat()
    save(tmp_path / "images/3.png", picture(3, 11))
    os.utime(tmp_path / "images/3.png", ns=(then.st_atime_ns, then.st_mtime_ns + 1))
    assert fingerprints(read(drawn(), folder, place)) == fingerprints(before)


def test_other_settings_have_a_file_of_their_own_and_other_sources_a_new_one(drawn, tmp_path, opened, monkeypatch):
    place = tmp_path / "cache"
    read(drawn(), folder, place)
    read(drawn(resize=0.5), folder, place)
    assert len(list(place.iterdir())) == 2
    opened.clear()
    read(drawn(crop=8, val=0.5), folder, place)  # which no image depends on
    assert not opened
    monkeypatch.setattr(cache, "hash_sources", lambda *arguments, **more: "of an edited data/folder.py")
    read(drawn(), folder, place)
    assert len(opened) == DRAWN and len(list(place.iterdir())) == 2


DAMAGES = {
    "cut in the index": lambda data: data[:-40],
    "cut in the images": lambda data: data[:200],
    "empty": lambda data: b"",
    "no cache at all": lambda data: b"\x89PNG" * 100,
    "one bit": lambda data: data[:5] + bytes([data[5] ^ 1]) + data[6:],
    "a longer image": lambda data: data.replace(b"[10, 16, 3", b"[11, 16, 3"),
    "a negative side": lambda data: data.replace(b"[10, 16, 3", b"[-1, 16, 3"),
    "a deep index": lambda data: data[:-16] + b"[" * 10**5 + (10**5).to_bytes(8, "little") + cache.MAGIC,
    "a large index": lambda data: data[:-16] + (2**62).to_bytes(8, "little") + cache.MAGIC,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_made_anew_and_one_line_says_so(drawn, tmp_path, opened, capsys, damage):
    splits = drawn()
    whole = fingerprints(read(splits, folder, tmp_path / "cache"))
    file = file_in(tmp_path / "cache")
    sound = file.read_bytes()
    file.write_bytes(DAMAGES[damage](sound))
    assert file.read_bytes() != sound
    capsys.readouterr()
    opened.clear()
    assert fingerprints(read(splits, folder, tmp_path / "cache")) == whole
    assert len(opened) == (1 if damage == "one bit" else DRAWN)
    assert file.read_bytes() == sound and capsys.readouterr().out.count("is damaged") == 1


@pytest.mark.parametrize("kind", ["a file", "a closed folder", "a link", "a pipe"])
def test_where_nothing_can_be_kept_the_run_goes_on_and_one_line_says_so(drawn, tmp_path, capsys, kind):
    splits, place = drawn(), tmp_path / "cache"
    if kind == "a file":
        place.write_text("")
    elif kind == "a closed folder":
        if os.getuid() == 0:
            pytest.skip("root may write anywhere")
        place.mkdir(mode=0o500)
    else:
        read(splits, folder, place)
        file = file_in(place)
        file.unlink()
        (file.symlink_to(tmp_path / "images/0.png") if kind == "a link" else os.mkfifo(file))
    capsys.readouterr()
    stores = read(splits, folder, place)
    assert fingerprints(stores) == fingerprints(read(splits, folder, ""))
    said = capsys.readouterr().out
    assert str(place) in said and "the run goes on without it. To mend that" in said and said.count("\n") == 1


def test_a_full_disk_leaves_nothing_behind(drawn, tmp_path, capsys):
    import resource  # of Unix, as fcntl

    place, limit = tmp_path / "cache", resource.getrlimit(resource.RLIMIT_FSIZE)
    splits = drawn()
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))
        stores = read(splits, folder, place)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert fingerprints(stores) == fingerprints(read(splits, folder, ""))
    said = capsys.readouterr().out
    assert "cannot be written (File too large): the run goes on without it" in said and "free the disk" in said
    assert not list(place.iterdir())


def test_of_processes_that_start_at_once_each_reads_whole_images(drawn, tmp_path):
    whole = fingerprints(read(drawn(), folder, ""))
    line = "import sys; sys.path[:0] = ['tests', '.']; from test_cache import *; " + (
        f"print(fingerprints(read(load('folder', {str(tmp_path)!r}, classes='background,cell'), folder, "
        f"{str(tmp_path / 'cache')!r})))"
    )
    started = [
        subprocess.Popen([sys.executable, "-W", "ignore", "-c", line], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    for process in started:
        said, _ = process.communicate(timeout=120)
        assert said.splitlines()[-1] == str(whole) and "is damaged" not in said and "cannot" not in said
    assert file_in(tmp_path / "cache").suffix == ".images"


def test_who_does_not_hold_the_lock_writes_nothing(drawn, tmp_path, capsys):
    splits = drawn()
    read(splits, folder, tmp_path / "cache")
    file = file_in(tmp_path / "cache")
    file.unlink()
    held = hold(file.with_suffix(".lock"))
    assert read(splits, folder, tmp_path / "cache") and not file.exists() and "is held" in capsys.readouterr().out
    held.close()
    read(splits, folder, tmp_path / "cache")
    assert file_in(tmp_path / "cache") == file


def test_what_a_killed_writer_left_is_in_nobodys_way(drawn, tmp_path):
    splits, place = drawn(), tmp_path / "cache"
    read(splits, folder, place)
    file = file_in(place)
    whole = file.read_bytes()
    file.rename(file.with_name(file.name + ".part"))
    file.with_suffix(".lock").touch()
    read(splits, folder, place)
    assert file_in(place) == file and file.read_bytes() == whole


def test_what_is_in_no_file_or_read_by_what_has_no_name_is_not_kept(tmp_path, capsys):
    image = np.zeros((4, 5, 3), np.uint8)
    for reader, said in ((lambda path: image, "which has no name"), (blank, "is no file")):
        split = Split([Item("a", Path("nowhere"), Path("nowhere"))], reader, None)
        stores = read(Splits(split, None, None, 0), folder, tmp_path / "cache")
        assert (stores[0].image(0) == torch.zeros(4, 5, 3)).all() and stores[1:] == [None, None]
        assert said in capsys.readouterr().out and not (tmp_path / "cache").exists()


def blank(path):
    return np.zeros((4, 5, 3), np.uint8)


def test_runs_with_a_cache_are_the_run_without_and_open_no_mask_of_the_pool(smoke, undisturbed, tmp_path, capsys):
    for to in ("first", "second"):
        smoke(to=to, cache_dir=str(tmp_path / "cache"))
        assert ledger_bytes(tmp_path / to) == ledger_bytes(undisturbed)
    said = capsys.readouterr().out
    assert "25 decoded images, 0 of them" in said and "25 decoded images were taken" in said
    index = file_in(tmp_path / "cache").read_bytes()
    assert b"128, 128, 3, " in index and b"128, 128, 1, " not in index
