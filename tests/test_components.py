"""A component's file that is broken is said with its line, before training, and disturbs nobody else's run."""

import contextlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, command, ledger_bytes, own_file, settings

from experiments import catalogue
from experiments.acquisition import trial
from experiments.components import FOLDERS, file_of, load, names, written
from experiments.errors import Refused

HEURISTIC = """from sacred import Ingredient

ingredient = Ingredient("zz_broken")


@ingredient.capture
def uncertainty(prediction):
    return {}
"""
MODEL = """import torch
from sacred import Ingredient

ingredient = Ingredient("zz_broken")
MEAN, STD = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
LAYERS = {{"decoder": "{layer}"}}


@ingredient.capture
def build(channels, classes):
    return {model}
"""
NET = """import torch
from sacred import Ingredient
from torch.nn import functional as F

ingredient = Ingredient("zz_broken")
MEAN, STD = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.head = torch.nn.Conv2d(3, 2, 1)
        self.{more}

    def forward(self, x):
        y = self.head(x)
        return {forward}


@ingredient.capture
def build(channels, classes):
    return Net()
"""


def net(forward, more="eval()"):
    return NET.format(forward=forward, more=more)


DATASET = """import numpy as np
from data.phantom import CHANNELS, IGNORE
from experiments.store import Item, Split, Splits
from sacred import Ingredient

ingredient = Ingredient("zz_broken")
CLASSES = ("background", "gland")


@ingredient.capture
def load(rng):
    items = [Item("a", "a", "a"), Item("b", "b", "b")]
    split = Split(items, lambda path: {image}, lambda path: {mask})
    return Splits(split, split, None, 0)
"""
IMAGE, MASK = "np.zeros((64, 64, 3), np.uint8)", "np.zeros((64, 64), np.uint8)"
BROKEN = [
    ("heuristic", "def f(:\n", ["zz_broken.py, line 1", "SyntaxError"]),
    ("heuristic", "\nimport nowhere_to_be_found\n", ["zz_broken.py, line 2", "ModuleNotFoundError"]),
    ("heuristic", "import sys\nsys.exit(3)\n", ["zz_broken.py, line 2", "SystemExit"]),
    ("heuristic", "x = 1\n", ["zz_broken.py has no ingredient", 'Ingredient("zz_broken")']),
    ("heuristic", HEURISTIC.replace("zz_broken", "other"), ["calls its ingredient 'other'", 'Ingredient("zz_broken")']),
    ("heuristic", HEURISTIC.replace("uncertainty", "map"), ["zz_broken.py has no function uncertainty or score or"]),
    ("batch", HEURISTIC, ["heuristics/batches/zz_broken.py has no function pick"]),
    ("dataset", DATASET.replace("CLASSES", "NAMES"), ["data/zz_broken.py does not set CLASSES"]),
    (
        "model",
        MODEL.replace("MEAN, STD", "A, B").format(layer="x", model="None"),
        ["models/zz_broken.py does not set MEAN"],
    ),
]
WRONG = [
    ("heuristic", HEURISTIC.format("prediction.mean"), ["zz_broken.py", "(2, 2, 16, 17)", "(2, 16, 17)"]),
    ("heuristic", HEURISTIC.format("prediction.mean.sum((1, 2, 3))"), ["zz_broken.py", "(2,)"]),
    ("heuristic", HEURISTIC.format("prediction.mean[:, 0] / 0"), ["zz_broken.py", "finite"]),
    ("heuristic", HEURISTIC.format("prediction.mean[:, 0].numpy()"), ["zz_broken.py", "ndarray"]),
    ("heuristic", HEURISTIC.format("prediction.nothing"), ["zz_broken.py, line 8", "AttributeError"]),
    (
        "model",
        MODEL.format(model="torch.nn.Conv2d(channels, 5, 1)", layer=""),
        ["models/zz_broken.py", "(1, 5, 128, 112)"],
    ),
    ("model", MODEL.format(model="torch.nn.Conv2d(channels, classes, 3)", layer=""), ["(1, 2, 126, 110)"]),
    ("model", net("[(1.0, y), y] if self.training else y"), ["models/zz_broken.py", "not of (weight, logits)"]),
    ("model", net("[(1.0, y), (0.4, y[..., 1:])] if self.training else y"), ["(2, 2, 64, 63)"]),
    ("model", net("y / 0"), ["logits that are not finite"]),
    ("model", net("F.dropout(y)"), ["draws random numbers when it is not training"]),
    ("model", net("y.detach()", "requires_grad_(False)"), ["no parameter that is trained"]),
    ("model", net("y", "mean = (0.5, 0.5)"), ["MEAN has 2 values for 3 channels"]),
    ("model", net("y"), ["heuristic=bald compares stochastic passes", "model=zz_broken has no dropout"]),
    ("model", MODEL.format(model="torch.nn.Conv2d(1, classes, 1)", layer=""), ["models/zz_broken.py", "RuntimeError"]),
    ("model", MODEL.format(model="torch.nn.Conv2d(channels, 2, 1)", layer="ups.4"), ["LAYERS['decoder'] names ups.4"]),
    (
        "dataset",
        DATASET.format(image="np.zeros((64, 64), np.uint8)", mask=MASK),
        ["data/zz_broken.py", "(64, 64) uint8"],
    ),
    ("dataset", DATASET.format(image="np.zeros((64, 64, 3))", mask=MASK), ["read_image", "float64"]),
    ("dataset", DATASET.format(image=IMAGE, mask="np.zeros((64, 64), bool)"), ["read_mask", "bool"]),
    ("dataset", DATASET.format(image=IMAGE, mask="np.zeros((64, 32), np.uint8)"), ["mask of a is (64, 32)"]),
]


def component(entry, text):
    """A file zz_broken.py in the folder of this entry, gone afterwards."""
    return own_file(file_of(entry, "zz_broken"), text)


@pytest.fixture
def refusal(experiment, tmp_path, phantom_root):
    """refusal(**settings): the one line with which a tiny run of them is refused, leaving nothing."""

    def run(**updates):
        tiny = settings(phantom_root, tmp_path / "results", **updates)
        if "dataset" in updates:
            del tiny["phantom.root"]
        return refused_line(experiment.run, config_updates=tiny, named_configs=["smoke"])

    yield run
    assert not (tmp_path / "results").exists()


def refused_line(run, **updates):
    with pytest.raises(Refused) as refused:
        run(**updates)
    line = str(refused.value)
    assert "\n" not in line and len(line) < 400
    return line


@pytest.mark.parametrize("entry, text, said", BROKEN)
def test_a_broken_file_is_said_with_its_place(refusal, entry, text, said):
    with component(entry, text):
        line = refusal(**{entry: "zz_broken"})
        assert all(word in line for word in said), line
        assert "zz_broken" in names(entry)


@pytest.mark.parametrize("entry, text, said", WRONG)
def test_a_component_is_tried_before_training(refusal, entry, text, said):
    with component(entry, text):
        line = refusal(**{entry: "zz_broken"})
    assert all(word in line for word in said), line


def test_broken_strangers_disturb_nobody(experiment, capsys):
    with contextlib.ExitStack() as stack:
        for entry in ("heuristic", "batch", "dataset", "model"):
            stack.enter_context(component(entry, "def f(:\n"))
        run = experiment.run("print_config", {"heuristic": "entropy", "initial": "kmeans"}, ["smoke"])
        with pytest.raises(Refused, match="heuristics/zz_broken.py, line 1: SyntaxError"):
            experiment.run("print_config", {"initial": "zz_broken"})
        assert run.config["heuristic"] == "entropy" and "zz_broken" not in names("initial")
        with pytest.raises(Refused, match="heuristic=vote_variance"):
            experiment.run("print_config", {"heuristic": "mc"})
        listed = {entry: {c["name"]: c["description"] for c in part} for entry, part in catalogue.catalogue().items()}
    for entry in ("heuristic", "batch", "dataset", "model"):
        assert "zz_broken.py, line 1: SyntaxError" in listed[entry]["zz_broken"] and len(listed[entry]) > 1


@pytest.mark.parametrize("entry", FOLDERS)
def test_what_is_read_of_a_file_is_what_it_sets(entry):
    for name in names(entry):
        module = load(entry, name)
        for constant in ("NEEDS_MODEL", "EMPTY", "PUBLISHED_AS", "__doc__"):
            read, there = written(entry, name).get(constant), getattr(module, constant, None)
            assert read == there or constant == "__doc__" and read.split() == there.split(), f"{name}: {constant}"


def test_windows_that_fit_no_image_and_too_many_first_images(refusal):
    line = refusal(**{"phantom.crop": 4000})
    assert "phantom.crop=4000 is more than twice the longest side of a training image, 144: choose at most 288" in line
    assert "start=17 is more than the 16 images that phantom has" in refusal(start=17)


def test_a_trial_leaves_no_trace(experiment, phantom_root):
    """Nor does it open a training mask: tests/test_command_line.py watches that."""
    import torch

    run = experiment.run("print_config", settings(phantom_root, "nowhere"), ["smoke"])
    dataset = experiment.components["dataset"]
    splits = dataset.load(rng=np.random.default_rng(0)).described(dataset)
    before = torch.get_rng_state()
    trial.check(run.config, experiment.components, splits)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("flag", ["-O", "-OO"])
def test_an_optimised_python_gives_the_same(flag, phantom_root, undisturbed, tmp_path):
    words = [f"{key}={value}" for key, value in settings(phantom_root, "results").items()]
    line = [sys.executable, flag, str(ROOT / "active.py"), "with", "smoke", *words]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert "Dataset phantom: Phantom: colon glands" in done.stdout
    assert (tmp_path / "results" / "bald_0.npy").read_bytes() == (undisturbed / "bald_0.npy").read_bytes()
    assert ledger_bytes(tmp_path / "results") == ledger_bytes(undisturbed)


@pytest.mark.parametrize(
    "words",
    [["active.py", "with", "smoke"], *(["-m", f"experiments.{name}"] for name in ("catalogue", "sync", "omniboard")),
     ["-m", "experiments.benchmark"], *(["-m", f"analysis.{name}"] for name in ("report", "plots", "statistics"))],
    ids=" ".join,
)  # fmt: skip
def test_a_python_without_the_packages_says_what_to_do(words):
    done = subprocess.run([sys.executable, "-S", *words], cwd=ROOT, capture_output=True, text=True, env=bare())
    [line] = (done.stdout + done.stderr).splitlines()
    assert done.returncode == 1
    assert line.startswith("AskMask's packages are not in this Python") and ". .venv/bin/activate" in line


def bare():
    """An environment in which Python finds its own library alone (-S: no site-packages)."""
    return {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}


def test_a_saved_configuration_makes_the_run_again(experiment, phantom_root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    updates = settings(phantom_root, "results", cycles=0) | {"heuristic": "entropy", "initial": "kmeans", "seed": 5}
    experiment.run("save_config", updates, ["smoke"])
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["seed"] == 5 and saved["kmeans"]["layer"] == "bottleneck" and "bald" not in saved
    experiment.run(config_updates=updates, named_configs=["smoke"])
    process = command("config.json", cwd=tmp_path, results_dir="again")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert ledger_bytes(tmp_path / "again", "entropy") == ledger_bytes(tmp_path / "results", "entropy")
