"""One tidy frame, equal to the ledger, from a folder and from a real MongoDB; published baselines' arrays; refusals."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from conftest import events, join_heartbeat

from analysis import statistics
from analysis.runs import COSTS, SETTINGS, load
from experiments.errors import Refused


def copy(folder, to, label="bald", run=0):
    """Copy one run's folder and array from one results folder into another."""
    to.mkdir(parents=True, exist_ok=True)
    shutil.copytree(folder / f"{label}_{run}", to / f"{label}_{run}")
    shutil.copy(folder / f"{label}_{run}.npy", to)


def edit(path, change):
    """Rewrite every event of a ledger by `change(event)`."""
    found = [json.loads(line) for line in path.read_text().splitlines()]
    for event in found:
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
    assert load(tmp_path / "all")["label"].unique().tolist() == ["full"]


def test_a_run_that_goes_on_meanwhile(longer, tmp_path):
    """Between a line of the ledger and the arrays made from it, the arrays count."""
    copy(longer, tmp_path)
    for name in ("bald_0.npy", "bald_0/budget.npy", "bald_0/dice.npy"):
        np.save(tmp_path / name, np.load(tmp_path / name)[:-1])
    assert load(tmp_path).equals(load(longer)[:2])
    (tmp_path / "random_0").mkdir()
    (tmp_path / "random_0" / "ledger.jsonl").write_text("")
    assert len(load(tmp_path)) == 2


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
        load(tmp_path)


def test_published_baselines(tmp_path, capsys):
    rng = np.random.default_rng(0)
    curves = {f"{name}_{run}": rng.random(16) for name in ("mc", "rand") for run in range(5)}
    for name, curve in curves.items():
        np.save(tmp_path / (f"results{name}.npy" if name.startswith("mc") else f"{name}.npy"), curve)
    frame = load(tmp_path)
    assert len(frame) == 160
    for (label, run), group in frame.groupby(["label", "run"]):
        assert group["test.dice"].tolist() == curves[f"{label}_{run}"].tolist()
        assert group["images"].tolist() == list(range(4, 35, 2)) and set(group["heuristic"]) == {label}
    assert load(tmp_path, start=8, query=1)["images"].max() == 23
    statistics.main([str(tmp_path), "--baseline", "rand"])
    assert capsys.readouterr().out.splitlines()[3].split()[:3] == ["unknown", "rand", "5"]
    np.save(tmp_path / "mc_9.npy", np.zeros((2, 2)))
    with pytest.raises(Refused, match="no learning curve"):
        load(tmp_path)


def test_csv(tmp_path):
    path = tmp_path / "toy.csv"
    path.write_text("method,seed,round,n_labelled,miou\nA,0,0,8,.5\n")
    assert load(path).to_dict("records") == [
        {"dataset": "toy", "label": "A", "run": 0, "cycle": 0, "images": 8, "miou": 0.5}
    ]


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
