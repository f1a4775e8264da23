"""What is no file is refused before it is opened: a named pipe would wait for ever, a device never ends."""

import os
import signal
import socket

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from data import glas
from experiments.acquisition.predictor import Predictor
from experiments.errors import BadData, Refused
from experiments.records.ledger import Ledger
from experiments.store import reading
from heuristics import given


@pytest.fixture(autouse=True)
def never_waits():
    """An alarm ends a test that hangs; none takes a second."""
    signal.signal(signal.SIGALRM, lambda number, frame: pytest.fail("it waits"))
    signal.alarm(20)
    yield
    signal.alarm(0)


def pipe(path):
    os.mkfifo(path)


def folder(path):
    path.mkdir()


def device(path):
    path.symlink_to("/dev/zero")


def listening(path):
    with socket.socket(socket.AF_UNIX) as made:
        os.chdir(path.parent)
        made.bind(path.name)


def empty(path):
    path.touch()


def endless(path):
    with open(path, "wb") as file:
        file.truncate(2**40)  # sparse: takes no room


def endless_kernel_file(path):
    path.symlink_to("/proc/self/mem")


NO_FILE = {pipe: "a named pipe", folder: "a folder", device: "a device", listening: "a socket", empty: "0 bytes"}
NO_FILE |= {endless: "1099511627776 bytes", endless_kernel_file: "0 bytes"}


@pytest.fixture(params=NO_FILE, ids=lambda make: make.__name__)
def trap(request, tmp_path, monkeypatch):
    """(path of something that is no file, what a message has to say of it)."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "trap"
    request.param(path)
    return path, NO_FILE[request.param]


def said(expected, call, *arguments, **more):
    with pytest.raises(expected) as caught:
        call(*arguments, **more)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_images_and_masks(trap, mode):
    path, what = trap
    message = said(BadData, reading.decode, path, format="BMP", mode=mode)
    assert str(path) in message and what in message


@pytest.mark.parametrize("ending", [".png", ".tif", ".gif", ".jpg"])
def test_files_of_every_format(trap, tmp_path, ending):
    path, what = trap
    path = path.rename(tmp_path / f"a{ending}")
    calls = [reading.pixels, reading.size] + [reading.pages] * (ending == ".tif")
    for call in calls:
        message = said(BadData, call, path)
        assert str(path) in message and what in message


@pytest.mark.parametrize("ending", [".png", ".tif", ".gif", ".jpg", ".bmp"])
def test_a_damaged_file_and_one_of_another_format(tmp_path, ending):
    path, other = tmp_path / f"a{ending}", "PNG" if ending == ".bmp" else "BMP"
    Image.fromarray(np.arange(4800, dtype=np.uint8).reshape(60, 80)).save(path)
    assert reading.size(path) == reading.pixels(path).shape[:2] == (60, 80)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    assert str(path) in said(BadData, reading.pixels, path)
    Image.fromarray(np.zeros((6, 8), np.uint8)).save(path, format=other)
    assert str(path) in said(BadData, reading.pixels, path)


def test_a_header_that_promises_too_much_is_refused_unread(tmp_path):
    import tifffile

    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((8, 8, 5), np.uint8), photometric="minisblack", planarconfig="contig")
    with tifffile.TiffFile(path, mode="r+b") as file:
        for tag in ("ImageWidth", "ImageLength"):
            file.pages[0].tags[tag].overwrite(50_000)
    assert "claims 50000 x 50000 pixels" in said(BadData, reading.pixels, path)


def test_a_table(trap, tmp_path):
    path, what = trap
    path.rename(tmp_path / "Grade.csv")
    call = dict(rng=np.random.default_rng(0), root=str(tmp_path), resize=1.0, crop=0, folds=2, fold=0, split="images")
    message = said(Refused, glas.load, **call)
    assert "Grade.csv cannot be read" in message and what in message


def test_a_list_of_ids(trap):
    path, what = trap
    message = said(Refused, given.check, ids=[""], file=str(path))
    assert str(path) in message and (what in message)


def test_weights_to_look_through(trap):
    path, what = trap
    look = Predictor(None, lambda: torch.nn.Linear(1, 1), {}, (0, "phantom", 0), 1, {})
    message = said(Refused, look._other, str(path))
    assert str(path) in message and what in message


def test_a_checkpoint_that_is_no_file_is_a_lost_one(trap, tmp_path):
    path, _ = trap
    ledger = Ledger(tmp_path, {}, [])
    (tmp_path / "checkpoint").mkdir()
    path.rename(tmp_path / "checkpoint" / "cycle_000.safetensors")
    assert ledger.load_weights(0, "digest") is None


def test_a_link_to_a_file_is_that_file(tmp_path):
    pixels = np.arange(48, dtype=np.uint8).reshape(6, 8)
    Image.fromarray(pixels).save(tmp_path / "real.bmp")
    (tmp_path / "link.bmp").symlink_to(tmp_path / "real.bmp")
    assert np.array_equal(reading.decode(tmp_path / "link.bmp", "BMP", "L"), pixels)
    (tmp_path / "ids").write_text("train_1\ntrain_2\n")
    (tmp_path / "list").symlink_to(tmp_path / "ids")
    assert given.wanted([], str(tmp_path / "list")) == ["train_1", "train_2"]
    save_file({"weight": torch.ones(1, 1), "bias": torch.zeros(1)}, tmp_path / "w")
    (tmp_path / "weights").symlink_to(tmp_path / "w")
    look = Predictor(None, lambda: torch.nn.Linear(1, 1), {}, (0, "phantom", 0), 1, {})
    assert look._other(str(tmp_path / "weights")).weight.item() == 1
