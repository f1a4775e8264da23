"""What a run was made with and from is in its ledger, and a run that goes on is the run that began."""

import json
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import events, ledger_bytes
from PIL import Image

from experiments.errors import BadData, Refused
from experiments.records import provenance
from experiments.records.compare import refuse_other_making, refuse_other_settings


@pytest.fixture
def copied(undisturbed, tmp_path):
    """A copy of the finished run in tmp_path/results, for `smoke` to go on with; its ledger file."""
    shutil.copytree(undisturbed, tmp_path / "results")
    return tmp_path / "results" / "bald_0" / "ledger.jsonl"


def age(file, change=lambda start: None):
    """Make a ledger one of before there were hashes, masks and versions in it."""
    lines = []
    for line in file.read_text().splitlines():
        event = json.loads(line)
        for name in ("sha256", "made", "masks"):
            event.pop(name, None)
        if event["event"] == "start":
            change(event["settings"])
        lines.append(json.dumps(event, sort_keys=True) + "\n")
    file.write_text("".join(lines))


# ---- versions, threads, device, precision, sources


def test_the_first_event_says_what_the_run_was_made_with(undisturbed):
    made = events(undisturbed)[0]["made"]
    assert made["versions"].keys() == {"python", "torch", "numpy", "baal", "kornia", "monai", "sacred"}
    assert made["versions"]["torch"] == torch.__version__ and made["versions"]["numpy"] == np.__version__
    assert (made["threads"], made["device"], made["precision"]) == (1, "cpu", "float32")
    assert re.fullmatch("[0-9a-f]{64}", made["sources"])


def test_the_sources_are_what_takes_part(tmp_path, monkeypatch):
    files = {
        "active.py": "from experiments import steps",
        "experiments/__init__.py": "",
        "experiments/steps.py": "def late():\n    import experiments.records.ledger\n    from analysis import plots",
        "experiments/records/ledger.py": "import os",
        "experiments/omniboard.py": "",
        "analysis/plots.py": "",
        "heuristics/mine.py": "from heuristics.theirs import score",
        "heuristics/theirs.py": "",
        "heuristics/other.py": "no Python",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(provenance, "ROOT", tmp_path)

    def sources():
        return provenance.hash_sources([SimpleNamespace(__file__=str(tmp_path / "heuristics/mine.py"))])

    before, matters = sources(), set()
    assert before == sources()
    for name, text in files.items():
        (tmp_path / name).write_text(text + "\n# another line")
        matters |= {name} if sources() != before else set()
        (tmp_path / name).write_text(text)
    assert matters == set(files) - {"experiments/omniboard.py", "analysis/plots.py", "heuristics/other.py"}


def test_the_sources_of_this_project_are_found():
    import active
    from heuristics import bald

    one, other = provenance.hash_sources([bald]), provenance.hash_sources([])
    assert one != other and active.__file__
    found = provenance.imported((provenance.ROOT / "active.py").read_bytes())
    assert {"loop.py", "trainer.py", "prediction.py"} <= {path.name for path in found}


def test_other_threads_are_refused_and_with_resume_anyway_recorded(smoke, copied, tmp_path, capsys):
    before = copied.read_bytes()
    with pytest.raises(Refused, match="threads 1 -> 2.*resume=anyway") as refused:
        smoke(cycles=2, threads=2, runs_dir=str(tmp_path / "runs"))
    assert "\n" not in str(refused.value) and not (tmp_path / "runs").exists()
    smoke(threads=2)  # nothing is left to do: the result is shown, whatever it is shown with
    assert copied.read_bytes() == before
    assert "On cpu, 2 threads, float32." in capsys.readouterr().out
    smoke(cycles=2, threads=2, resume="anyway")
    assert "threads 1 -> 2" in capsys.readouterr().out
    start, *_, resumed, queried, evaluated = events(tmp_path / "results")
    assert (resumed["event"], resumed["cycle"]) == ("resumed", 2)
    assert resumed["made"] == {**start["made"], "threads": 2} and "masks" not in resumed
    assert (queried["event"], queried["cycle"], evaluated["event"], evaluated["cycle"]) == (
        "queried", 1, "evaluated", 2)  # fmt: skip


def test_the_last_making_counts_and_differences_are_one_line():
    made = {"versions": {"torch": "2.12.0"}, "threads": 1, "sources": "a" * 64}
    begun = [{"event": "start", "made": made}, {"event": "evaluated"}]
    assert refuse_other_making("x", begun, made) == ""
    other = {"versions": {"torch": "2.13.0"}, "threads": 1, "sources": "b" * 64}
    with pytest.raises(Refused, match=r"sources aaaaaaaa -> bbbbbbbb, versions.torch 2.12.0 -> 2.13.0\)"):
        refuse_other_making("x", begun, other)
    assert "versions.torch" in refuse_other_making("x", begun, other, anyway=True)
    gone_on = [*begun, {"event": "resumed", "made": other}]
    assert refuse_other_making("x", gone_on, other) == ""
    with pytest.raises(Refused):
        refuse_other_making("x", gone_on, made)


def test_resume_is_same_or_anyway(smoke):
    with pytest.raises(Refused, match="resume cannot be 'yes'.*same, anyway"):
        smoke(resume="yes")


# ---- ledgers of earlier versions


def test_a_ledger_of_an_earlier_version_goes_on(smoke, longer, copied, phantom_root, tmp_path, capsys):
    age(copied)
    old = copied.read_bytes()
    with pytest.raises(Refused, match="did not record its versions.*resume=anyway"):
        smoke(cycles=2)
    smoke()  # it is finished: nothing is refused, nothing written
    assert copied.read_bytes() == old
    capsys.readouterr()
    smoke(cycles=2, resume="anyway")
    assert "the first 4 lines of" in (said := capsys.readouterr().out) and "have no hashes" in said
    assert copied.read_bytes().startswith(old)
    found, expected = events(tmp_path / "results"), events(longer)
    assert found[-1] == expected[-1] and found[4]["made"] == expected[0]["made"]
    for name in ("bald_0.npy", "bald_0/dice.npy", "bald_0/learning_curve.png", "bald_0/queries/cycle_001.png"):
        assert (tmp_path / "results" / name).read_bytes() == (longer / name).read_bytes()
    with pytest.raises(BadData, match="testA_2_anno.bmp"):  # from here on its masks are known
        smoke(cycles=2, root=blackened(phantom_root, tmp_path, "testA_2"))


def test_a_run_older_than_a_setting_goes_on_as_it_began(smoke, tmp_path, capsys):
    """`split=patients` is the default, and before there was such a setting all runs split by images."""
    smoke(**{"phantom.split": "images"})
    path = tmp_path / "results" / "bald_0" / "ledger.jsonl"
    age(path, lambda settings: settings["phantom"].pop("split"))
    capsys.readouterr()
    smoke(cycles=2, resume="anyway")
    assert "phantom.split was a setting: it goes on with images" in capsys.readouterr().out
    assert len(np.load(tmp_path / "results" / "bald_0.npy")) == 3
    with pytest.raises(Refused, match="phantom.split 'images' -> 'patients'"):
        smoke(cycles=2, resume="anyway", **{"phantom.split": "patients"})


def test_settings_that_came_later_count_as_their_defaults(smoke, copied):
    def forget(settings):
        del settings["trainer"]["patience"], settings["pool_size"], settings["bald"]

    age(copied, forget)
    smoke()
    with pytest.raises(Refused, match=r"another configuration \(pool_size 0 -> 8, trainer.patience 0 -> 3\)"):
        smoke(pool_size=8, **{"trainer.patience": 3})


def test_settings_that_are_gone_are_named(smoke, copied, capsys):
    age(copied, lambda settings: settings["bald"].update(old=3))
    with pytest.raises(Refused, match=r"do not exist any more \(bald.old=3\): resume=anyway") as refused:
        smoke()
    assert "\n" not in str(refused.value)
    smoke(resume="anyway")
    assert "bald.old=3" in capsys.readouterr().out


def test_another_component_is_named_rather_than_its_settings():
    was = {"heuristic": "bald", "bald": {"corrected": False}}
    now = {"heuristic": "entropy", "entropy": {"reduction": "mean"}}
    with pytest.raises(Refused, match=r"\(heuristic 'bald' -> 'entropy'\)"):
        refuse_other_settings("x", was, now, {**now, "heuristic": "bald"}, anyway=True)


def test_settings_of_speed_are_never_in_the_way(smoke, copied):
    before = copied.read_bytes()
    smoke(**{"prediction.batch": 3, "prediction.mc_chunk": 1, "evaluation.batch": 1})
    assert copied.read_bytes() == before
    with pytest.raises(Refused, match="trainer.batch 8 -> 3"):
        smoke(**{"trainer.batch": 3})


# ---- masks


def blackened(phantom_root, tmp_path, *names):
    """A copy of the images in which the masks of these are empty."""
    root = tmp_path / "Phantom"
    shutil.copytree(phantom_root, root, dirs_exist_ok=True)
    for name in names:
        path = root / "seed_0" / f"{name}_anno.bmp"
        Image.fromarray(np.zeros_like(np.asarray(Image.open(path)))).save(path)
    return root


def ids_of(phantom_root):
    """Ids of (the training, the validating) images."""
    from data import phantom
    from experiments.components.randomness import generator

    rng = generator(0, "phantom", "split")
    train, val, *_ = phantom.load(rng=rng, root=str(phantom_root), seed=0, crop=64, folds=5, fold=0)
    return train.ids, val.ids


@pytest.mark.parametrize("which", ["test", "validation", "first", "queried", "pool"])
def test_a_mask_that_was_replaced_is_refused_by_its_name(smoke, copied, phantom_root, tmp_path, which):
    start, _, queried, _ = events(tmp_path / "results")
    train, val = ids_of(phantom_root)
    asked = {query["id"] for event in (start, queried) for query in event["queries"]}
    name = {
        "test": "testA_3",
        "validation": val[-1],
        "first": start["queries"][1]["id"],
        "queried": queried["queries"][0]["id"],
        "pool": next(id for id in train if id not in asked),
    }[which]
    root, before = blackened(phantom_root, tmp_path, name), copied.read_bytes()
    if which == "pool":  # never opened, so nobody knows
        smoke(root=root)
    else:
        with pytest.raises(BadData, match=f"{name}_anno.bmp: the mask is not the one that") as refused:
            smoke(root=root)
        assert "\n" not in str(refused.value) and str(refused.value).count("_anno.bmp") == 1
    assert copied.read_bytes() == before


def test_a_mask_is_known_by_its_pixels_not_by_its_file(smoke, copied, phantom_root, tmp_path):
    root = blackened(phantom_root, tmp_path)
    for path in (root / "seed_0").glob("testA_*_anno.bmp"):
        image = Image.open(path)
        image.load()
        image.save(path, dpi=(99, 99))
        assert path.read_bytes() != (phantom_root / "seed_0" / path.name).read_bytes()
    smoke(root=root)
    assert ledger_bytes(tmp_path / "results") == copied.read_bytes()


def test_digests_are_small(undisturbed):
    start, first, _, second = events(undisturbed)
    assert {name: len(masks["each"]) for name, masks in start["masks"].items()} == {"val": 5, "test": 4}
    assert [len(event["masks"]["each"]) for event in (first, second)] == [2, 2]
    assert all(len(digest) == 8 for digest in start["masks"]["test"]["each"])
