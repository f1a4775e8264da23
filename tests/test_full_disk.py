"""A disk that fills while masks arrive, a real one of 8 MB: nothing is half-taken, and with room all goes on."""

import os
import subprocess
from contextlib import contextmanager

import numpy as np
import pytest
import tifffile
from conftest import asked, events
from PIL import Image

from experiments.annotate.__main__ import main as annotate
from experiments.errors import AwaitingLabels, Refused
from experiments.store.reading import pixels

pytestmark = pytest.mark.usefixtures("single_thread")


@pytest.fixture
def disk(tmp_path):
    """A file system of its own at tmp_path/results, of 8 MB."""
    place = tmp_path / "results"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", place], capture_output=True)
    if mounted.returncode:
        pytest.skip("no permission to mount a small disk")
    yield place
    subprocess.run(["umount", place], check=True)


@contextmanager
def room(disk, pages):
    """In here so many pages of the file system are left."""
    filler, page = disk / "filler", os.statvfs(disk).f_frsize
    with open(filler, "wb") as file:
        file.write(bytes((os.statvfs(disk).f_bavail - pages) * page))
    assert os.statvfs(disk).f_bavail == pages
    try:
        yield
    finally:
        filler.unlink()


def noisy(truth, name):
    """A mask of this image whose PNG takes pages, for noise packs badly."""
    mask = np.array(Image.open(truth / "truth" / f"{name}.png"))
    return np.random.default_rng(0).permutation(mask.ravel()).reshape(mask.shape)


def test_a_disk_that_fills_while_masks_arrive(lab, truth, disk, tmp_path, capsys):
    with pytest.raises(AwaitingLabels, match="4 of 4"):
        lab(query=4, cycles=1)
    place, names = asked(disk, "cycle_000")
    back, run = tmp_path / "back", disk / "entropy_0"
    back.mkdir()
    for name in names:
        tifffile.imwrite(back / f"{name}.tif", noisy(truth, name))
    # what a tool gave back comes into labels/
    with room(disk, 3), pytest.raises(Refused, match="cannot be written .No space left on device.: free the disk"):
        annotate([str(place), "--from", "napari", str(back)])
    arrived = [path.stem for path in (place / "labels").glob("*.png")]
    assert len(arrived) < 4 and not list(place.rglob("*.part"))
    assert all((pixels(place / "labels" / f"{name}.png") == noisy(truth, name)).all() for name in arrived)
    assert annotate([str(place), "--from", "napari", str(back)]) == 0
    assert {path.stem for path in (place / "labels").glob("*.png")} == set(names)
    # a copy of somebody's was cut short by a full disk: it waits, and is named
    cut, whole = place / "labels" / f"{names[0]}.png", (place / "labels" / f"{names[0]}.png").read_bytes()
    cut.write_bytes(whole[: len(whole) // 2])
    before = (run / "ledger.jsonl").read_bytes()
    # the run takes them
    with room(disk, 2), pytest.raises(Refused, match="masks/.* cannot be written .No space left on device"):
        lab(query=4, cycles=1)
    assert 0 < len(list((run / "masks").iterdir())) < 3  # kept, and counted once the ledger says so
    assert (run / "ledger.jsonl").read_bytes() == before and not list(run.rglob("*.part"))
    capsys.readouterr()
    with pytest.raises(AwaitingLabels, match="1 of 4"):
        lab(query=4, cycles=1)
    said = capsys.readouterr().out
    assert f"{names[0]}.png cannot be read" in said and "Taken: 3 masks." in said
    cut.write_bytes(whole)
    assert lab(query=4, cycles=1).status == "COMPLETED"
    masks = [event["masks"] for event in events(disk, "entropy") if event["event"] == "answered"]
    assert [sorted(found) for found in masks] == [sorted(names[1:]), [names[0]]]
    for name in names:
        (version,) = next(found[name] for found in masks if name in found)
        assert (pixels(run / "masks" / f"{version['sha256']}.png") == noisy(truth, name)).all()
