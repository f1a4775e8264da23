"""Records of runs, kept, killed, noted, handed in by strangers, and stored in a real MongoDB by several at once."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, ledger_bytes, settings
from pymongo import MongoClient

from experiments import sync
from experiments.records import mongo as projection
from experiments.records.files import hold, release, replace, write
from experiments.records.sacred_record import with_notes
from experiments.records.stored_records import completed, mark_killed, records


@contextmanager
def opened(port, name):
    with MongoClient("127.0.0.1", port) as client:
        yield client[name]


def edit(path, **values):
    path.write_text(json.dumps(json.loads(path.read_bytes()) | values))


def record_of(results, label="bald"):
    [path] = (Path(results) / f"{label}_0" / "sacred").glob("*.json")
    return path


def statuses(results):
    return [json.loads(path.read_bytes())["status"] for path in records(results)]


def dump(database):
    names = sorted(set(database.list_collection_names()))
    return {name: sorted(database[name].find(), key=lambda d: str(d["_id"])) for name in names}


@pytest.fixture
def several(undisturbed, tmp_path):
    """several(n): results with n copies of one finished run under labels of their own, and their record files."""

    def make(n):
        for i in range(n):
            folder = tmp_path / "results" / f"copy{i}_0"
            shutil.copytree(undisturbed / "bald_0", folder)
            [path] = (folder / "sacred").glob("*.json")
            edit(path, artifacts=[{"name": "dice.npy", "path": f"copy{i}_0/dice.npy"}])
            path.rename(path.with_name(f"{path.stem[:-1]}{i}.json"))
        return tmp_path / "results", [record_of(tmp_path / "results", f"copy{i}") for i in range(n)]

    return make


KILLED = """if True:
    import os, signal, sys
    from datetime import datetime
    from pathlib import Path
    from experiments.records.run_files import RunFiles
    from experiments.records.sacred_record import Record
    info = {"name": "askmask", "sources": [], "base_dir": ".", "dependencies": [], "repositories": []}
    config = {"tags": "", "mongo_url": "", "runs_dir": sys.argv[2]}
    observers = Record(Path(sys.argv[1]) / "killed_0", {}), RunFiles(sys.argv[2], {})
    for observer in observers:
        event = {"ex_info": info, "command": "main", "host_info": {}, "meta_info": {}, "_id": None}
        observer.started_event(config=config, start_time=datetime(2026, 1, 1), **event)
    for folder in (Path(sys.argv[1]) / "killed_0/sacred", Path(sys.argv[2]) / "1"):
        for file in list(folder.glob("*.json")):
            file.with_name(file.name + ".part").write_text("half")
    print("begun", flush=True)
    if sys.argv[3] == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    input()"""


def begin(tmp_path, how):
    """A process with a run's real observers in tmp_path/results and tmp_path/runs, killed or still going on."""
    words = [sys.executable, "-W", "ignore", "-c", KILLED, tmp_path / "results", tmp_path / "runs", how]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    process = subprocess.Popen([str(word) for word in words], cwd=ROOT, **pipes)
    assert process.stdout.readline() == b"begun\n"
    if how == "killed":
        assert process.wait(30) == -signal.SIGKILL
    return process


@pytest.mark.parametrize("by", ["the next run", "sync"])
def test_a_killed_run_does_not_stay_running(smoke, mongo, tmp_path, by):
    begin(tmp_path, "killed").communicate()
    assert statuses(tmp_path / "results") == ["RUNNING"]
    if by == "sync":
        assert sync.main(tmp_path / "results", f"mongodb://127.0.0.1:{mongo}/killed_sync")
        assert statuses(tmp_path / "results") == ["INTERRUPTED"]
    else:
        smoke(cycles=0, label="other", runs_dir=str(tmp_path / "runs"))
        assert statuses(tmp_path / "results") == ["INTERRUPTED", "COMPLETED"]
    run = json.loads((tmp_path / "runs/1/run.json").read_bytes())
    assert run["status"] == "INTERRUPTED" and run["stop_time"] == "2026-01-01T00:00:00"
    left = [*(tmp_path / "results/killed_0").rglob("*"), *(tmp_path / "runs/1").rglob("*")]
    assert [path.name for path in left if path.suffix in (".lock", ".part") or path.name == "lock"] == []


def test_a_live_run_is_left_alone_and_not_stored_as_dead(smoke, mongo, tmp_path, capsys):
    process = begin(tmp_path, "going on")
    url = f"mongodb://127.0.0.1:{mongo}/live"
    try:
        smoke(cycles=0, mongo_url=url, runs_dir=str(tmp_path / "runs"))
        capsys.readouterr()
        assert sync.main(tmp_path / "results", url)
        assert "1 still going on" in capsys.readouterr().out
        assert sorted(statuses(tmp_path / "results")) == ["COMPLETED", "RUNNING"]
        assert json.loads((tmp_path / "runs/1/run.json").read_bytes())["status"] == "RUNNING"
        assert len([*(tmp_path / "results").rglob("sacred/*.part"), *(tmp_path / "runs/1").glob("*.part")]) == 3
        with opened(mongo, "live") as database:
            assert [run["config"]["label"] for run in database.runs.find()] == ["bald"]
    finally:
        process.kill()
        process.communicate()
    assert sync.main(tmp_path / "results", url)
    with opened(mongo, "live") as database:
        assert sorted(run["status"] for run in database.runs.find()) == ["COMPLETED", "INTERRUPTED"]


def test_a_run_killed_behind_its_last_event_is_completed_by_the_same_command(smoke, undisturbed, mongo, tmp_path):
    results = tmp_path / "results"
    shutil.copytree(undisturbed, results)
    path = record_of(results)
    killed = {k: v for k, v in json.loads(path.read_bytes()).items() if k not in ("stop_time", "result")}
    path.write_text(json.dumps(killed | {"status": "RUNNING", "artifacts": [], "result": None}))
    for name in ("bald_0.npy", "bald_0/learning_curve.png"):
        (results / name).unlink()
    url = f"mongodb://127.0.0.1:{mongo}/finished_killed"
    for _ in range(2):  # a third start would find nothing to do either
        run = smoke(runs_dir=str(tmp_path / "runs"), mongo_url=url)
    assert sorted(statuses(results)) == ["COMPLETED", "INTERRUPTED"] and completed(results / "bald_0")
    assert json.loads((tmp_path / "runs/1/run.json").read_bytes())["status"] == "COMPLETED"
    assert (results / "bald_0.npy").read_bytes() == (undisturbed / "bald_0.npy").read_bytes()
    assert (results / "bald_0/learning_curve.png").exists() and ledger_bytes(results) == ledger_bytes(undisturbed)
    assert sync.main(results, url)
    with opened(mongo, "finished_killed") as database:
        found = {document["status"]: document for document in database.runs.find()}
        steps = database.metrics.find_one({"run_id": found["COMPLETED"]["_id"], "name": "test.dice"})["steps"]
    assert found.keys() == {"COMPLETED", "INTERRUPTED"} and steps == [2, 4]
    assert found["COMPLETED"]["result"] == run.result == np.load(results / "bald_0.npy")[-1]


def test_a_note_and_tags_for_a_finished_run_are_kept(experiment, undisturbed, phantom_root, mongo, tmp_path, capsys):
    shutil.copytree(undisturbed, tmp_path / "results")
    updates = settings(phantom_root, tmp_path / "results", mongo_url=f"mongodb://127.0.0.1:{mongo}/noted")
    for note, tags in (("a note", "pilot, glas"), ("another", "glas, late"), ("a note", "")):
        words = [f"{key}={value}" for key, value in updates.items()] + [f"tags={tags}"]
        capsys.readouterr()
        experiment.run_commandline(["active.py", "-c", note, "with", "smoke", *words])
        assert ("is finished: the note and tags are added" in capsys.readouterr().out) == bool(tags)
    record = json.loads(record_of(tmp_path / "results").read_bytes())
    assert (record["meta"]["comment"], record["config"]["tags"]) == ("a note\nanother", "pilot, glas, late")
    assert sync.main(tmp_path / "results", updates["mongo_url"])
    with opened(mongo, "noted") as database:
        [run] = database.runs.find()
    assert (run["meta"]["comment"], run["config"]["tags"]) == ("a note\nanother", ["pilot", "glas", "late"])


def test_nothing_new_to_note_changes_nothing():
    record = {"config": {"tags": "b,a"}, "meta": {"comment": "x"}}
    assert with_notes(record, "", "") == with_notes(record, "x", "a, b") == record
    assert with_notes({"config": {}, "meta": {}}, "x", "a")["config"]["tags"] == "a"


def test_full_is_shown_as_full_with_every_source_of_the_project(experiment, phantom_root, mongo, tmp_path):
    updates = settings(phantom_root, tmp_path / "results", heuristic="entropy", runs_dir=str(tmp_path / "runs"))
    experiment.run("full", config_updates=updates | {"trainer.epochs": 1, "trainer.draws": 1}, named_configs=["smoke"])
    assert sync.main(tmp_path / "results", f"mongodb://127.0.0.1:{mongo}/full")
    with opened(mongo, "full") as database:
        [run] = database.runs.find()
    kept = json.loads((tmp_path / "runs/1/config.json").read_bytes())
    for config in (run["config"], kept):
        assert (config["heuristic"], config["label"], config["cycles"], config["start"]) == ("full", "full", 0, 1.0)
    assert (run["experiment"]["name"], run["experiment"]["mainfile"]) == ("full_0", "active.py")
    line = ["git", "ls-files", "active.py", "experiments", "heuristics", "data", "models", "analysis"]
    tracked = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode == 0:
        expected = {name for name in tracked.stdout.split() if name.endswith((".py", ".yaml"))}
        assert expected <= {name for name, _ in run["experiment"]["sources"]} and len(expected) > 100
        assert len(run["experiment"]["repositories"]) == 1


def bad_records(path):
    """{name: what a file among the records may be instead of one}"""
    record = json.loads(path.read_bytes())

    def sparse(to):
        with open(to, "wb") as file:
            file.truncate(2**33)

    def text(content):
        return lambda to: to.write_text(content)

    return {
        "truncated": text(path.read_text()[:200]),
        "list": text("[1, 2]"),
        "deep": text("[" * 100_000),
        "deep object": text('{"status":' + '{"a":' * 100_000),
        "number": text('{"status": 1}'),
        "no config": text(json.dumps(record | {"config": None})),
        "artifacts": text(json.dumps(record | {"artifacts": [1]})),
        "times": text(json.dumps(record | {"start_time": "noon"})),
        "sources": text(json.dumps(record | {"experiment": {"sources": [["a"]]}})),
        "huge number": text(path.read_text().rstrip("\n}") + ', "zero": 1' + 5000 * "0" + "}"),
        "large": sparse,
        "pipe": os.mkfifo,
        "link": lambda to: to.symlink_to("/etc/passwd"),
        "circle": lambda to: to.symlink_to(to.name),
        "folder": Path.mkdir,
        "binary": lambda to: to.write_bytes(b"\xff\x00" * 100),
    }


def test_bad_records_are_named_and_stop_no_other(several, mongo, capsys):
    results, paths = several(2)
    bad = {}
    for name, make in bad_records(paths[0]).items():
        bad[name] = paths[0].with_name(f"20200101-000000-{name.replace(' ', '')}.json")
        make(bad[name])
    capsys.readouterr()
    assert not sync.main(results, f"mongodb://127.0.0.1:{mongo}/bad")
    out, err = capsys.readouterr()
    assert out.splitlines()[-1] == f"2 stored, 0 were already, {len(bad)} could not be."
    assert len(err.splitlines()) == len(bad) and "Traceback" not in err
    for name, path in bad.items():
        assert sum(str(path) in line for line in err.splitlines()) == 1, name
    with opened(mongo, "bad") as database:
        assert sorted(run["askmask"]["uid"] for run in database.runs.find()) == sorted(path.stem for path in paths)


def test_what_a_record_names_cannot_lead_out_of_the_results(several, mongo, tmp_path):
    results, [path] = several(1)
    private = tmp_path / "private"
    private.write_text("mine")
    folder = results / "copy0_0"
    (folder / "link").symlink_to(private)
    (folder / "linked").symlink_to(tmp_path)
    os.mkfifo(folder / "pipe")
    places = [
        "../private",
        str(private),
        "copy0_0/link",
        "copy0_0/linked/private",
        "copy0_0/pipe",
        "copy0_0/\0",
        "copy0_0",
    ]
    made = [{"name": f"a{i}", "path": place} for i, place in enumerate(places)]
    names = ["..\\..\\x", "../x", "/etc/x", "..", "", "x" * 300, "a\0b"]
    made += [{"name": name, "path": "copy0_0/dice.npy"} for name in names]
    edit(path, artifacts=[*made, {"name": "good", "path": "copy0_0/dice.npy"}])
    edit(path, **{"_id": 77, "askmask.uid": "other", "omniboard": {"notes": "theirs"}})
    assert sync.main(results, f"mongodb://127.0.0.1:{mongo}/out")
    with opened(mongo, "out") as database:
        [run] = database.runs.find()
        stored = {file["filename"] for file in database["fs.files"].find()}
    assert (
        [artifact["name"] for artifact in run["artifacts"]] == ["good"] and run["_id"] == 1 and "omniboard" not in run
    )
    assert len([name for name in stored if name.startswith("artifact:")]) == 1


def test_locks_and_half_files_are_not_written_through_links(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "x.json.part").symlink_to(victim)
    write(tmp_path / "x.json", b"new")
    assert (tmp_path / "x.json").read_bytes() == b"new"
    (tmp_path / "results/a_0/sacred").mkdir(parents=True)
    (tmp_path / "results/a_0/sacred/x.lock").symlink_to(victim)
    mark_killed(tmp_path / "results")
    assert victim.read_text() == "mine"


def test_a_lock_is_free_once_released(tmp_path):
    first = hold(tmp_path / "x.lock")
    assert first and hold(tmp_path / "x.lock") is None
    release(tmp_path / "x.lock", first)
    assert not (tmp_path / "x.lock").exists()
    again = hold(tmp_path / "x.lock")
    again.close()  # as a process does that is killed
    left = hold(tmp_path / "x.lock")
    assert left
    left.close()


def test_four_at_once_store_each_run_once(several, mongo, capsys):
    results, paths = several(3)
    for round in range(3):
        ended, gate = [], threading.Barrier(4)

        def store(name=f"four{round}", gate=gate, ended=ended):
            gate.wait()
            ended.append(sync.main(results, f"mongodb://127.0.0.1:{mongo}/{name}"))

        threads = [threading.Thread(target=store) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert ended == [True] * 4, capsys.readouterr()
        with opened(mongo, f"four{round}") as database:
            assert sorted(run["_id"] for run in database.runs.find()) == [1, 2, 3]
            assert projection.incomplete(database, list(database.runs.find())) == set()
            chunks = [(chunk["files_id"], chunk["n"]) for chunk in database["fs.chunks"].find()]
            assert len(chunks) == len(set(chunks)) == database["fs.files"].count_documents({})


def test_an_unfinished_upload_of_another_is_not_taken_away(mongo):
    """Its chunks are there, its entry is not yet: both write the same."""
    with opened(mongo, "upload") as database:
        [id] = projection.upload(database, [("a.png", b"content")])
        chunk = database["fs.chunks"].find_one({"files_id": id})
        database["fs.files"].delete_one({"_id": id})
        assert projection.upload(database, [("a.png", b"content"), ("none", None), ("empty", b"")])[:2] == [id, None]
        assert database["fs.chunks"].find_one({"files_id": id}) == chunk


@pytest.mark.parametrize("lost", ["metrics", "fs.chunks", "fs.files", "runs"])
def test_what_is_lost_in_the_database_is_made_anew_but_deleted_runs_stay_deleted(several, mongo, capsys, lost):
    results, paths = several(2)
    name = f"again_{lost.replace('.', '_')}"
    url = f"mongodb://127.0.0.1:{mongo}/{name}"
    assert sync.main(results, url)
    with opened(mongo, name) as database:
        before = {key: len(found) for key, found in dump(database).items()}
        run = database.runs.find_one({"askmask.uid": paths[1].stem})
        files = {"files_id": run["artifacts"][0]["file_id"]}
        which = {"metrics": {"run_id": run["_id"], "name": "test.dice"}, "fs.chunks": files}
        which |= {"fs.files": {"_id": files["files_id"]}, "runs": {"_id": run["_id"]}}
        assert database[lost].delete_one(which[lost]).deleted_count == 1
        capsys.readouterr()
        assert sync.main(results, url)
        out = capsys.readouterr().out
        if lost == "runs":
            assert "0 stored, 1 were already" in out and "1 deleted there by someone: --restore" in out
            assert database.runs.count_documents({}) == 1
            assert sync.main(results, url, restore=True)
        else:
            assert "1 stored, 1 were already" in out
        assert {key: len(found) for key, found in dump(database).items()} == before
        assert projection.incomplete(database, list(database.runs.find())) == set()
        capsys.readouterr()
        assert sync.main(results, url) and capsys.readouterr().out.startswith("0 stored, 2 were already")


def test_what_several_processes_write_at_once_is_whole_and_ends_none(tmp_path):
    """Of two that take turns in the steps of a replacement, neither finds its half file taken away."""
    path, halves = tmp_path / "study.yaml", []

    def parts(data, more=()):
        yield data[:5]
        halves.append(len(list(tmp_path.glob("*.part"))))
        for other in more:
            write(path, other, shared=True)  # the other begins and ends while this one is at work
        yield data[5:]

    replace(path, parts(b"the first one", [b"the second"]), shared=True)
    assert path.read_bytes() == b"the first one" and halves == [1] and list(tmp_path.iterdir()) == [path]
