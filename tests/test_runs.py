"""One tidy frame, equal to the ledger, from a folder and from a real MongoDB; published baselines' arrays; refusals."""

import json
import os
import re
import shutil

import numpy as np
import pandas as pd
import pytest
from conftest import events, join_heartbeat

from analysis.runs import COSTS, SETTINGS, load, minutes
from analysis.statistics import __main__ as statistics_command
from experiments.errors import Refused
from experiments.records.cells import harmless, meant


def copy(folder, to, label="bald", run=0):
    """Copy one run's folder and array from one results folder into another."""
    to.mkdir(parents=True, exist_ok=True)
    shutil.copytree(folder / f"{label}_{run}", to / f"{label}_{run}")
    shutil.copy(folder / f"{label}_{run}.npy", to)


def edit(path, change):
    """Rewrite every event of a ledger by `change(event)`, without hashes as earlier versions wrote them."""
    found = [json.loads(line) for line in path.read_text().splitlines()]
    for event in found:
        for name in ("sha256", "masks"):
            event.pop(name, None)
        change(event)
    path.write_text("".join(json.dumps(event, sort_keys=True) + "\n" for event in found))


def test_frame_is_the_ledger_and_the_arrays(longer):
    frame = load(longer)
    start, *rest = events(longer)
    evaluated = [e for e in rest if e["event"] == "evaluated"]
    assert frame["cycle"].tolist() == [0, 1, 2]
    assert frame[SETTINGS].drop_duplicates().to_dict("records") == [{k: start["settings"][k] for k in SETTINGS}]
    assert frame["test.dice"].tolist() == np.load(longer / "bald_0.npy").tolist()
    assert frame[["images", "pixels"]].to_numpy().tolist() == np.load(longer / "bald_0" / "budget.npy").tolist()
    assert set(frame["headline"]) == {"test.dice"} == {start["headline"]}
    assert frame["boundary"].tolist() == [e["boundary"] for e in evaluated]
    metrics = frame.drop(columns=[*SETTINGS, "headline", "cycle", *COSTS])
    assert metrics.to_dict("records") == [e["metrics"] for e in evaluated]
    assert frame.columns.tolist() == [*SETTINGS, "headline", "cycle", *COSTS, *sorted(evaluated[0]["metrics"])]


def test_values_of_each_image_and_class(longer):
    frame = load(longer, per_image=True)
    start, dice = events(longer)[0], np.load(longer / "bald_0" / "dice.npy")
    assert len(frame) == dice.size
    cube = frame.set_index(["cycle", "image", "class"])
    for cycle, image, name in np.ndindex(dice.shape):
        row = cube.loc[(cycle, start["test"][image], start["classes"][name])]
        assert row["dice"] == dice[cycle, image, name]
    last = [e for e in events(longer) if e["event"] == "evaluated"][-1]["per_image"]
    of_last = frame[frame["cycle"] == 2]
    for name, values in last.items():
        assert of_last[name].tolist() == np.ravel(values).tolist()
    foreground = frame[frame["class"] != start["classes"][0]]
    assert foreground.groupby("cycle")["dice"].mean().tolist() == pytest.approx(load(longer)["test.dice"].tolist())


def test_cells_of_a_study_the_ceiling_and_sacreds_copies(undisturbed, smoke, tmp_path):
    run = smoke(to="study/one", heuristic="random", cycles=0, runs_dir=str(tmp_path / "study" / "one" / "runs"))
    join_heartbeat(run)
    copy(undisturbed, tmp_path / "study" / "two")
    assert list((tmp_path / "study").rglob("runs/1/random_0.npy"))
    frame = load(tmp_path / "study")
    assert frame.groupby("label")["cycle"].count().to_dict() == {"bald": 2, "random": 1}
    # the ceiling is a run like the others, by its label
    copy(undisturbed, tmp_path / "all")
    (tmp_path / "all" / "bald_0").rename(tmp_path / "all" / "full_0")
    (tmp_path / "all" / "bald_0.npy").rename(tmp_path / "all" / "full_0.npy")
    edit(tmp_path / "all" / "full_0" / "ledger.jsonl", lambda e: "settings" in e and e["settings"].update(label="full"))
    ceiling = load(tmp_path / "all")
    assert set(ceiling["label"]) == set(ceiling["heuristic"]) == {"full"}


def shorten(folder, evaluations):
    """Cut a run's ledger and arrays as it was after so many evaluations."""
    path = folder / "ledger.jsonl"
    lines = path.read_text().splitlines(True)
    ends = [k for k, line in enumerate(lines, 1) if json.loads(line)["event"] == "evaluated"]
    path.write_text("".join(lines[: ends[evaluations - 1]]))
    for name in (folder.with_name(f"{folder.name}.npy"), folder / "budget.npy", folder / "dice.npy"):
        np.save(name, np.load(name)[:evaluations])


def mark(folder, **changes):
    """Change the record that Sacred keeps of a run's start."""
    [path] = folder.glob("sacred/*.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_unfinished_runs_are_left_out_with_a_line(undisturbed, longer, tmp_path, capsys):
    copy(undisturbed, tmp_path)
    copy(longer, tmp_path / "more")
    shorten(tmp_path / "more" / "bald_0", 2)
    mark(tmp_path / "more" / "bald_0", status="RUNNING")
    assert len(load(tmp_path)) == 2
    assert capsys.readouterr().out == "run 0 of bald is going on (4 of 6 images): left out.\n"
    mark(tmp_path / "more" / "bald_0", status="INTERRUPTED")
    assert len(load(tmp_path, per_image=True)) == len(load(undisturbed, per_image=True))
    assert "run 0 of bald was stopped (4 of 6 images): left out." in capsys.readouterr().out
    # without a record of the start only a query that nothing follows tells
    shutil.rmtree(tmp_path / "more" / "bald_0" / "sacred")
    assert len(load(tmp_path)) == 4
    ledger = tmp_path / "more" / "bald_0" / "ledger.jsonl"
    asked = [line for line in (longer / "bald_0" / "ledger.jsonl").read_text().splitlines(True) if '"queried"' in line]
    ledger.write_text(ledger.read_text() + asked[-1])
    assert len(load(tmp_path)) == 2
    (tmp_path / "random_0").mkdir()
    (tmp_path / "random_0" / "ledger.jsonl").write_text("")
    capsys.readouterr()
    load(tmp_path)
    assert capsys.readouterr().out.splitlines() == [
        "run 0 of bald is going on (4 images so far): left out.",
        f"{tmp_path / 'random_0'} holds a run that has not begun: left out.",
    ]
    with pytest.raises(Refused, match="no finished run here. run 0 of bald is going on"):
        load(tmp_path / "more")


def test_between_a_line_of_the_ledger_and_its_arrays_a_run_goes_on(longer, tmp_path, capsys):
    copy(longer, tmp_path)
    for name in ("bald_0.npy", "bald_0/budget.npy", "bald_0/dice.npy"):
        np.save(tmp_path / name, np.load(tmp_path / name)[:-1])
    with pytest.raises(Refused, match="is going on"):
        load(tmp_path)


def test_a_pool_without_images_ends_a_run(longer, tmp_path):
    copy(longer, tmp_path)
    shorten(tmp_path / "bald_0", 2)
    mark(tmp_path / "bald_0", status="INTERRUPTED")
    edit(tmp_path / "bald_0" / "ledger.jsonl", lambda e: "pool" in e and e.update(pool=0))
    assert load(tmp_path)["images"].tolist() == [2, 4]


def test_links_are_followed_once(undisturbed, longer, tmp_path):
    copy(longer, tmp_path / "elsewhere")
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "bald_7").symlink_to(tmp_path / "elsewhere" / "bald_0")
    (tmp_path / "results" / "round").symlink_to(tmp_path / "results")
    (tmp_path / "results" / "again").symlink_to(tmp_path / "elsewhere")
    pd.testing.assert_frame_equal(load(tmp_path / "results"), load(longer))


def test_without_test_images(longer, tmp_path):
    copy(longer, tmp_path)
    (tmp_path / "bald_0.npy").unlink()
    (tmp_path / "bald_0" / "dice.npy").unlink()

    def forget(event):
        event["metrics"] = {k: v for k, v in event.get("metrics", {}).items() if k.startswith("val.")}

    edit(tmp_path / "bald_0" / "ledger.jsonl", forget)
    frame = load(tmp_path)
    assert frame["images"].tolist() == [2, 4, 6] and "test.dice" not in frame and "val.loss" in frame


@pytest.mark.parametrize("name", ["bald_0.npy", "bald_0/budget.npy", "bald_0/dice.npy"])
def test_array_and_ledger_disagree(longer, tmp_path, name):
    copy(longer, tmp_path)
    array = np.load(tmp_path / name)
    np.save(tmp_path / name, array[:1])
    with pytest.raises(Refused, match="is not what its ledger says"):
        load(tmp_path)
    array.flat[-1] += 1
    np.save(tmp_path / name, array)
    with pytest.raises(Refused, match="is not what its ledger says"):
        load(tmp_path)
    (tmp_path / name).write_bytes(b"\x93NUMPY")
    with pytest.raises(Refused, match="is damaged"):
        load(tmp_path)


@pytest.mark.parametrize("array", [np.array([{}], dtype=object), np.float64(1), np.array(["a"])])
def test_what_is_no_array_of_numbers_is_not_opened(tmp_path, array):
    np.save(tmp_path / "bald_0.npy", array, allow_pickle=True)
    with pytest.raises(Refused, match="is damaged"):
        load(tmp_path, published=True, start=4, query=2)


@pytest.mark.parametrize("head", [b"{'descr': '<f8', (", b"[" * 5000, b"\xff" * 40, b"{'shape': (2,)}", b""])
def test_a_damaged_head_is_one_line(tmp_path, head):
    (tmp_path / "bald_0.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head)
    with pytest.raises(Refused, match="bald_0.npy is damaged") as refused:
        load(tmp_path, published=True, start=4, query=2)
    assert "\n" not in str(refused.value)


def test_a_head_that_promises_too_much_takes_no_memory(tmp_path):
    with open(tmp_path / "bald_0.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": (10**13,)})
    with pytest.raises(Refused, match="another length than its head says"):
        load(tmp_path, published=True, start=4, query=2)


START = '{"event": "start", "cycle": 0, "settings": {}}\n'


@pytest.mark.parametrize(
    "ledger, said",
    [
        ("[1]\n", "is damaged"),
        ("[" * 100_000 + "\n", "is damaged"),
        ("\xff\n", "is damaged"),
        ('{"event": "evaluated", "cycle": 0}\n', "is damaged in line 1"),
        (START, "is damaged in line 1 .its data is missing"),
        (START.replace("0", "1e400"), "is damaged in line 1"),
    ],
)
def test_a_damaged_ledger_is_one_line_and_spares_the_others(undisturbed, tmp_path, capsys, ledger, said):
    copy(undisturbed, tmp_path)
    (tmp_path / "x_0").mkdir()
    (tmp_path / "x_0" / "ledger.jsonl").write_text(ledger, encoding="latin-1")
    assert len(load(tmp_path)) == 2
    [line] = capsys.readouterr().out.splitlines()
    assert re.search(said, line) and str(tmp_path / "x_0") in line and line.endswith("left out.")


@pytest.mark.parametrize(
    "change",
    [
        lambda e: e.pop("images", None),
        lambda e: "images" in e and e.update(images="many"),
        lambda e: "images" in e and e.update(images=10**400),
        lambda e: "metrics" in e and e["metrics"].update({"test.dice": "good"}),
        lambda e: "per_image" in e and e["per_image"].update(dice=[[1, 2, 3]]),
        lambda e: "queries" in e and [q.pop("id") for q in e["queries"]],
        lambda e: "settings" in e and e["settings"].update(run=-1),
        lambda e: "settings" in e and e["settings"].update(trainer={"a": {"b": 1}}),
        lambda e: e["event"] == "evaluated" and e.update(cycle=5),
    ],
)
def test_events_that_no_run_writes_are_not_believed(longer, tmp_path, change):
    copy(longer, tmp_path)
    edit(tmp_path / "bald_0" / "ledger.jsonl", change)
    with pytest.raises(Refused, match="ledger.jsonl") as refused:
        load(tmp_path)
    assert "\n" not in str(refused.value)


def test_pipes_and_names_that_steer_a_terminal(undisturbed, tmp_path, capsys):
    copy(undisturbed, tmp_path)
    (tmp_path / "pipe_0").mkdir()
    os.mkfifo(tmp_path / "pipe_0" / "ledger.jsonl")
    copy(undisturbed, tmp_path / "other")
    edit(tmp_path / "other" / "bald_0" / "ledger.jsonl",
         lambda e: "settings" in e and e["settings"].update(label="\x1b[2J\ud800"))  # fmt: skip
    mark(tmp_path / "other" / "bald_0", status="RUNNING", config={"cycles": 9})
    assert len(load(tmp_path)) == 2
    assert capsys.readouterr().out.splitlines() == [
        "run 0 of ?[2J? is going on (4 of 16 images): left out.",
        f"{tmp_path / 'pipe_0' / 'ledger.jsonl'} is no file of at most 256 MiB: move it away - left out.",
    ]


def test_arrays_without_a_run_are_read_only_when_asked_for(undisturbed, tmp_path, capsys):
    copy(undisturbed, tmp_path)
    np.save(tmp_path / "mc_0.npy", np.zeros(3))
    assert set(load(tmp_path)["label"]) == {"bald"}
    [line] = capsys.readouterr().out.splitlines()
    assert line.startswith(str(tmp_path / "mc_0.npy")) and line.endswith("left out.")
    with pytest.raises(Refused, match="give `start` and `query`"):
        load(tmp_path, published=True)
    both = load(tmp_path, published=True, start=6, query=3)
    assert both.loc[both["label"] == "mc", "images"].tolist() == [6, 9, 12]


def test_published_baselines(tmp_path, capsys):
    rng = np.random.default_rng(0)
    curves = {f"{name}_{run}": rng.random(16) for name in ("mc", "rand") for run in range(5)}
    for name, curve in curves.items():
        np.save(tmp_path / (f"results{name}.npy" if name.startswith("mc") else f"{name}.npy"), curve)
    frame = load(tmp_path, published=True, start=4, query=2)
    assert len(frame) == 160
    for (label, run), group in frame.groupby(["label", "run"]):
        assert group["test.dice"].tolist() == curves[f"{label}_{run}"].tolist()
        assert group["images"].tolist() == list(range(4, 35, 2)) and set(group["heuristic"]) == {label}
    assert load(tmp_path, published=True, start=8, query=1)["images"].max() == 23
    statistics_command.main([str(tmp_path), "--baseline", "rand", "--published", "4", "2"])
    assert capsys.readouterr().out.splitlines()[3].split()[:3] == ["unknown", "rand", "5"]
    np.save(tmp_path / "mc_9.npy", np.zeros((2, 2)))
    assert len(load(tmp_path, published=True, start=4, query=2)) == 160
    assert "no learning curve" in capsys.readouterr().out


def test_csv(tmp_path):
    path = tmp_path / "toy.csv"
    path.write_text("method,seed,round,n_labelled,miou\nA,0,0,8,.5\n")
    assert load(path).to_dict("records") == [
        {"dataset": "toy", "label": "A", "run": 0, "cycle": 0, "images": 8, "miou": 0.5}
    ]


@pytest.mark.parametrize(
    "text, said",
    [
        ("method,seed,round,n_labelled,run,miou\nA,0,0,8,1,.5\n", "has a column run"),
        ("method,seed,round,n_labelled,miou\nA,0,0,8,.5\nA,,1,9,.5\n", "line 3 has no seed"),
        ("method,seed,round,n_labelled,miou\n,0,0,8,.5\n", "line 2 has no method"),
        ("method,seed,round,n_labelled,miou\nA,0,0,inf,.5\n", "line 2 has no n_labelled"),
        ('method,seed,round,n_labelled,miou\n"A,0,0,8,.5\n', "cannot be read as CSV"),
    ],
)
def test_a_damaged_csv_is_one_line(tmp_path, text, said):
    (tmp_path / "toy.csv").write_text(text)
    with pytest.raises(Refused, match=said) as refused:
        load(tmp_path / "toy.csv")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("cell, safe", [
    ("=1+1", "'=1+1"), ("@x", "'@x"), ("\t=x", "'\t=x"), ("\r", "'\r"), ("+cmd|' /C calc'!A0", "'+cmd|' /C calc'!A0"),
    ("-1e-3", "-1e-3"), ("-a", "'-a"), ("a=b", "a=b"), ("", ""), (-1.5, -1.5), (None, None), ("'=x", "''=x"),
])  # fmt: skip
def test_cells_that_a_spreadsheet_would_run(cell, safe):
    assert harmless(cell) == safe
    assert not isinstance(cell, str) or meant(safe) == cell


def test_nothing_to_load(tmp_path):
    with pytest.raises(Refused, match="no evaluated run"):
        load(tmp_path)
    with pytest.raises(Refused, match="is not a folder"):
        load(tmp_path / "absent")
    with pytest.raises(Refused, match="from a results folder"):
        load("mongodb://127.0.0.1:1", per_image=True)


@pytest.mark.parametrize("url", ["mongodb://me:secret@127.0.0.1:1/x", "mongodb://me:secret@127.0.0.1:x/y"])
def test_a_password_is_not_said(url, capfd):
    with pytest.raises(Refused) as refusal:
        load(url)
    shown = "".join(capfd.readouterr()) + str(refusal.value) + repr(refusal.value.__cause__)
    assert "MongoDB" in shown and "secret" not in shown


def test_mongo_gives_the_same_frame(mongo, smoke, tmp_path):
    url = f"mongodb://127.0.0.1:{mongo}/frames"
    for settings in ({"cycles": 0}, {"cycles": 1}, {"heuristic": "random"}):  # the second extends the first
        join_heartbeat(smoke(mongo_url=url, **settings))
    local, stored = load(tmp_path / "results"), load(url)
    assert stored[["foreground", "boundary"]].isna().all(axis=None) and len(stored) == 4
    pd.testing.assert_frame_equal(
        stored.drop(columns=["foreground", "boundary"]), local.drop(columns=["foreground", "boundary"])
    )


def test_of_several_records_the_most_complete_newest_counts(mongo, smoke):
    from pymongo import MongoClient

    url = f"mongodb://127.0.0.1:{mongo}/records"
    join_heartbeat(smoke(mongo_url=url))
    whole = load(url)
    with MongoClient("127.0.0.1", mongo) as client:
        database = client["records"]
        [record], metrics = list(database["runs"].find()), list(database["metrics"].find())

        def repeat(id, change, evaluations, **config):
            copy = record | {"_id": id, "artifacts": [], "config": record["config"] | config, "askmask": {"uid": id}}
            database["runs"].insert_one(copy)
            for metric in metrics:
                values = [change(value) for value in metric["values"]][:evaluations]
                kept = {"values": values, "steps": metric["steps"][:evaluations]}
                database["metrics"].insert_one(
                    {k: v for k, v in (metric | kept).items() if k != "_id"} | {"run_id": id}
                )

        repeat(101, lambda value: value + 1, 1)  # newer but less of it
        assert load(url).equals(whole)
        repeat(102, lambda value: value + 2, 2)  # as complete and newer, killed before its arrays were stored
        newest = load(url)
        assert newest["test.dice"].tolist() == (whole["test.dice"] + 2).tolist() and newest["pixels"].isna().all()
        repeat(103, lambda value: value, 1, label="other")
        repeat(104, lambda value: value, 1, run=1)
        assert load(url).groupby(["label", "run"])["cycle"].count().to_dict() == {
            ("bald", 0): 2,
            ("bald", 1): 1,
            ("other", 0): 1,
        }
        database["runs"].delete_many({"_id": {"$gt": 100}})
        database["metrics"].update_one({"name": "test.dice"}, {"$set": {"values.0": 0.123}})
    with pytest.raises(Refused, match="metrics of bald_0"):
        load(url)


def test_the_ceiling_in_mongo(mongo, experiment, phantom_root, tmp_path):
    from conftest import settings

    url = f"mongodb://127.0.0.1:{mongo}/ceiling"
    updates = settings(phantom_root, tmp_path / "results", mongo_url=url)
    join_heartbeat(experiment.run("full", config_updates=updates, named_configs=["smoke"]))
    local, stored = load(tmp_path / "results"), load(url)
    assert stored["label"].tolist() == ["full"]
    pd.testing.assert_frame_equal(
        stored.drop(columns=["foreground", "boundary"]), local.drop(columns=["foreground", "boundary"])
    )


def test_minutes_are_those_that_people_stated():
    """All versions of a mask took time; one without a time leaves all that follows unknown."""
    tested = {"event": "evaluated"}
    drawn = [{"event": "answered", "masks": {"a": [{"seconds": "60"}, {"seconds": "30"}], "b": [{"seconds": "90"}]}}]
    assert minutes([tested, *drawn, tested, tested])[1:] == [3, 3] and np.isnan(minutes([tested])[0])
    for said in ({}, {"seconds": "=1+1"}, {"seconds": "-5"}, {"seconds": "inf"}):
        found = minutes([*drawn, tested, {"event": "answered", "masks": {"c": [said]}}, tested])
        assert found[0] == 3 and np.isnan(found[1])
