"""The components that docs/extending.md prints run as they are printed, in a copy of the project."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments.components import ROOT

PAGE = (ROOT / "docs/extending.md").read_text()
FILES = re.findall(r"`((?:heuristics|data|models)/\w+\.py)`[^`]*(?:`[^`\n]+`[^`]*)*?```python\n(.*?)```", PAGE, re.S)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of the project with the printed files in it, and a dataset for the printed loader."""
    copy = tmp_path_factory.mktemp("project")
    for folder in ("experiments", "heuristics", "data", "models", "analysis"):
        sources = [path for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".yaml")]
        for path in sources:
            place = copy / path.relative_to(ROOT)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, place)
    shutil.copy(ROOT / "active.py", copy)
    for name, text in FILES:
        (copy / name).write_text(text)
    draw_blobs(copy / "data" / "Blobs")
    return copy


def draw_blobs(root, n=12, side=72):
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:side, :side]
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for number in range(n):
        y, x = rng.integers(20, side - 20, 2)
        blob = (rows - y) ** 2 + (columns - x) ** 2 < 15**2
        image = (rng.integers(0, 80, (side, side, 3)) + 150 * blob[..., None]).astype(np.uint8)
        Image.fromarray(image).save(root / "images" / f"{number}.png")
        Image.fromarray((255 * blob).astype(np.uint8)).save(root / "masks" / f"{number}.png")


def run(project, *words):
    line = [sys.executable, "active.py", *words]
    return subprocess.run(line, cwd=project, capture_output=True, text=True, timeout=300)


def test_all_three_kinds_are_printed():
    assert [Path(name).parent.name for name, _ in FILES] == ["heuristics", "data", "models"]
    for _, text in FILES:
        lines = [line for line in text.splitlines() if line]
        assert len(lines) <= 24 and max(map(len, lines)) <= 120


def test_they_run_together(project):
    chosen = ["heuristic=mine", "dataset=blobs", "model=tiny", "tiny.width=4", "trainer.epochs=8"]
    done = run(project, "with", *chosen, "start=2", "query=1", "cycles=1", "mc_iters=2", "threads=1", "runs_dir=")
    assert done.returncode == 0, done.stderr
    curve = np.load(project / "results" / "mine_0.npy")
    assert curve.shape == (2,) and curve[-1] > 0.5  # a bright disc is learnt at once


def test_what_they_say_of_a_missing_folder_is_one_line(project):
    done = run(project, "with", "dataset=blobs", "blobs.root=elsewhere")
    assert done.returncode == 1
    assert done.stderr.strip() == ("elsewhere/images holds 0 PNG files: put at least 3 there, or set blobs.root=...")


def test_the_printed_files_are_clean(project):
    names = [name for name, _ in FILES]
    config = ["--config", str(ROOT / "pyproject.toml")]
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--no-cache", *config, *names],
        cwd=project,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
