"""What Sacred keeps of a run, in files and in a real MongoDB through nine faults, and that no password is kept."""

import contextlib
import io
import json
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from copy import deepcopy
from datetime import datetime
from pathlib import Path

import gridfs
import numpy as np
import pytest
from conftest import ROOT, command, events, free_port, join_heartbeat, ledger_bytes, settings, start_mongod
from pymongo import MongoClient
from pymongo.errors import PyMongoError
from sacred.observers import FileStorageObserver

from experiments import sync
from experiments.components import address
from experiments.errors import Refused, Terminated
from experiments.records import mongo as projection
from experiments.records import observers
from experiments.records.run_files import RunFiles
from experiments.records.sacred_record import LARGEST
from experiments.steps import loop, results


def measured(results, label="bald"):
    """{metric: (steps, values)} as the ledger has them."""
    evaluated = [e for e in events(results, label) if e["event"] == "evaluated"]
    steps = [e["images"] for e in evaluated]
    return {name: (steps, [e["metrics"][name] for e in evaluated]) for name in evaluated[0]["metrics"]}


def local(results):
    """The records beside the ledgers, oldest first."""
    return [json.loads(path.read_bytes()) for path in sorted(Path(results).rglob("sacred/*.json"))]


def contains(folder, word):
    return [path for path in folder.rglob("*") if path.is_file() and word in path.read_bytes()]


@contextlib.contextmanager
def opened(url):
    with MongoClient(url) as client:
        yield client.get_default_database()


def dump(database):
    """Every document of the database."""
    names = sorted(database.list_collection_names())
    return {name: list(database[name].find().sort("_id")) for name in names}


def assert_stored(database, results, statuses=("COMPLETED",)):
    """The database holds each record of the results folder once, with the ledger's steps and the files' bytes."""
    kept = local(results)
    runs = list(database.runs.find().sort("start_time"))
    assert [run["status"] for run in runs] == [record["status"] for record in kept] == list(statuses)
    assert all(type(run["_id"]) is int for run in runs)
    for run, record in zip(runs, kept, strict=True):
        assert {**run["config"], "tags": ", ".join(run["config"]["tags"])} == record["config"]
        assert run["result"] == record["result"] and run["captured_out"] == record["captured_out"]
        metrics = list(database.metrics.find({"run_id": run["_id"]}))
        expected = measured(results)
        assert {m["name"]: (m["steps"], m["values"]) for m in metrics} == expected and len(metrics) == len(expected)
        assert all(len(m["timestamps"]) == len(m["steps"]) for m in metrics)
        listed = {(entry["name"], entry["id"]) for entry in run["info"]["metrics"]}
        assert listed == {(m["name"], str(m["_id"])) for m in metrics}
        assert [artifact["name"] for artifact in run["artifacts"]] == [a["name"] for a in record["artifacts"]]
        for artifact, made in zip(run["artifacts"], record["artifacts"], strict=True):
            content = gridfs.GridFS(database).get(artifact["file_id"]).read()
            assert content == (Path(results) / made["path"]).read_bytes()
    assert database.metrics.count_documents({}) == sum(len(run["info"]["metrics"]) for run in runs)
    stored = [file["_id"] for file in database["fs.files"].find()]
    assert sorted(stored) == sorted(chunk["files_id"] for chunk in database["fs.chunks"].find())


def assert_sync_stores(capsys, url, results):
    """Once stores everything, once more changes nothing."""
    assert sync.main(Path(results), url)
    with opened(url) as database:
        assert_stored(database, results)
        before = dump(database)
        capsys.readouterr()
        assert sync.main(Path(results), url)
        assert capsys.readouterr().out == "0 stored, 1 were already, 0 could not be.\n"
        assert dump(database) == before


def test_file_record(smoke, tmp_path):
    run = smoke(runs_dir=str(tmp_path / "runs"))
    join_heartbeat(run)
    folder = tmp_path / "runs" / "1"
    metrics = json.loads((folder / "metrics.json").read_text())
    expected = measured(tmp_path / "results")
    assert expected["test.dice"][0] == [2, 4]
    for name, (images, values) in expected.items():
        assert (metrics[name]["steps"], metrics[name]["values"]) == (images, values), name
    config = json.loads((folder / "config.json").read_text())
    assert (config["heuristic"], config["mc_iters"], config["unet"]["width"]) == ("bald", 2, 2)
    assert {"bald", "trainer", "phantom", "augment"} <= config.keys() and "entropy" not in config
    record = json.loads((folder / "run.json").read_text())
    assert record["status"] == "COMPLETED" and record["result"] == expected["test.dice"][1][-1]
    assert {"bald_0.npy", "query_000.png"} <= {path.name for path in folder.iterdir()}
    assert np.array_equal(np.load(folder / "bald_0.npy"), expected["test.dice"][1])


def test_metrics_in_files_are_those_of_sacred(tmp_path):
    """However many heartbeats they come in, a full disk between; nothing is parsed again."""
    logged, ours, theirs = [], RunFiles(tmp_path / "ours", {}), FileStorageObserver(tmp_path / "theirs")
    path = tmp_path / "metrics.json"
    ours.dir, ours.begun, theirs.dir = str(tmp_path), True, str(tmp_path)
    for beat in range(3):
        times = [datetime(2020, 1, 1 + beat, hour, microsecond=hour) for hour in range(2)]
        metric = {"steps": [beat, beat + 1], "values": [0.1 / 3, float("nan")], "timestamps": times}
        logged.append({"test.dice": metric} | ({'"é': deepcopy(metric)} if beat else {}))
    path.mkdir()
    ours.log_metrics(metrics_by_name=logged[0], info={})
    path.rmdir()
    for part in logged[1:]:
        ours.log_metrics(metrics_by_name=part, info={})
    found = json.loads(path.read_text())
    path.unlink()
    for part in logged:
        theirs.log_metrics(part, {})
    np.testing.assert_equal(found, json.loads(path.read_text()))


def test_info_is_plain(smoke, tmp_path):
    run = smoke(runs_dir=str(tmp_path / "runs"))
    join_heartbeat(run)
    path = tmp_path / "runs" / "1" / "info.json"
    info = json.loads(path.read_text())
    assert "py/" not in path.read_text()
    assert 0 < info["constant_dice"] < 1
    assert info["queries"] == [e for e in events(tmp_path / "results") if e["event"] == "queried"]


def test_password_stays_out_when_nobody_listens(smoke, tmp_path, capfd):
    url = "mongodb://user:pa55phrase@127.0.0.1:1/x"
    began = time.monotonic()
    run = smoke(runs_dir=str(tmp_path / "runs"), mongo_url=url, cycles=0)
    join_heartbeat(run)
    assert run.status == "COMPLETED" and len(events(tmp_path / "results")) == 2
    assert time.monotonic() - began < 40
    out, err = capfd.readouterr()
    assert "pa55phrase" not in out + err + run.captured_out
    assert len([line for line in (out + err).splitlines() if "MongoDB" in line]) == 1
    assert "Traceback" not in out + err
    assert run.config["mongo_url"] == "mongodb://user:***@127.0.0.1:1/x"
    assert contains(tmp_path, b"***") and contains(tmp_path, b"pa55phrase") == []


@pytest.mark.parametrize(
    "url", ["user:pa55phrase@127.0.0.1:1", "mongodb://user:pa55phrase@127.0.0.1:x/y", "mongodb://:pa55phrase@"]
)
def test_odd_urls_are_no_leak(smoke, tmp_path, capfd, url):
    run = smoke(runs_dir=str(tmp_path / "runs"), mongo_url=url, cycles=0)
    join_heartbeat(run)
    assert run.status == "COMPLETED"
    assert "pa55phrase" not in "".join(capfd.readouterr()) and contains(tmp_path, b"pa55phrase") == []


def test_mongo_record(mongo, smoke, patience, tmp_path):
    patience()
    url = f"mongodb://127.0.0.1:{mongo}/record"
    run = smoke(mongo_url=url, runs_dir=str(tmp_path / "runs"), tags="pilot, two words")
    join_heartbeat(run)
    with opened(url) as database:
        assert_stored(database, tmp_path / "results")
        [stored] = database.runs.find()
        artifacts = {artifact["name"]: artifact["file_id"] for artifact in stored["artifacts"]}
        curve = np.load(io.BytesIO(gridfs.GridFS(database).get(artifacts["bald_0.npy"]).read()))
        sources = {name: gridfs.GridFS(database).get(id).read() for name, id in stored["experiment"]["sources"]}
    assert (stored["_id"], stored["experiment"]["name"]) == (1, "bald_0")
    assert type(stored["result"]) is float and stored["result"] == run.result
    assert stored["config"]["tags"] == ["pilot", "two words"] and stored["config"]["unet"]["width"] == 2
    assert stored["info"]["constant_dice"] == run.info["constant_dice"]
    assert stored["start_time"] <= stored["heartbeat"] and "stop_time" in stored
    assert np.array_equal(curve, np.load(tmp_path / "results" / "bald_0.npy"))
    pictured = {"query_000.png", "answer_000.png", "learning_curve.png"}
    assert {"bald_0.npy", "dice.npy", "budget.npy", *pictured} == artifacts.keys()
    assert "active.py" in sources and all(text == (ROOT / name).read_bytes() for name, text in sources.items())
    assert (tmp_path / "runs" / run._id / "metrics.json").is_file()


def test_mongo_numbers_runs_and_defaults_to_sacred(mongo, smoke, patience, tmp_path):
    patience()
    smoke(mongo_url=f"mongodb://127.0.0.1:{mongo}", cycles=0, label="one")
    smoke(mongo_url=f"127.0.0.1:{mongo}", cycles=0, label="two")
    with opened(f"mongodb://127.0.0.1:{mongo}/sacred") as database:
        labels = {r["_id"]: (r["config"]["label"], r["status"]) for r in database.runs.find()}
    assert labels == {1: ("one", "COMPLETED"), 2: ("two", "COMPLETED")}


def test_command_line_keeps_no_password_and_knows_sacreds_option(
    experiment, phantom_root, mongo, patience, tmp_path, capfd
):
    handler = signal.getsignal(signal.SIGTERM)
    words = [f"{k}={v}" for k, v in settings(phantom_root, tmp_path / "results", cycles=0).items()]
    try:
        for option in ([], ["-m", f"127.0.0.1:{mongo}:option"]):
            url = [] if option else [f"mongo_url=mongodb://user:pa55phrase@127.0.0.1:{free_port()}/x"]
            label = f"label=with{len(option)}"
            if option:
                patience()
            experiment.run_commandline(["active.py", *option, "-c", "a note", "with", "smoke", *words, *url, label])
    finally:
        signal.signal(signal.SIGTERM, handler)
    with opened(f"mongodb://127.0.0.1:{mongo}/option") as database:
        kept = repr(dump(database))
        runs = {run["config"]["label"]: run["meta"]["comment"] for run in database.runs.find()}
    assert runs == {"with0": "a note", "with2": "a note"}  # the second run brings the first one along
    assert "***" in kept and "pa55phrase" not in kept + "".join(capfd.readouterr())
    assert contains(tmp_path, b"***") and contains(tmp_path, b"pa55phrase") == []


@pytest.fixture
def patience(monkeypatch):
    """patience(): the database has minutes to answer, for tests of what it then holds, on whatever machine."""

    def grant():
        for module, name in ((observers, "ATTEMPT"), (observers, "PATIENCE"), (projection, "ANSWER")):
            monkeypatch.setattr(module, name, 300)

    return grant


@pytest.fixture
def disturbed(smoke, tmp_path, undisturbed, capsys, monkeypatch):
    """disturbed(url, **do): a run to which do[step]() happens before that step; its lines about the database."""

    def run(url, **do):
        for step, action in do.items():
            home = next(module for module in (loop, results) if hasattr(module, step))
            inner = getattr(home, step)

            def outer(state, *more, action=action, inner=inner):
                action(state)
                return inner(state, *more)

            monkeypatch.setattr(home, step, outer)
        capsys.readouterr()
        ended = smoke(mongo_url=url)
        join_heartbeat(ended)
        assert ended.status == "COMPLETED" and ended.result == events(undisturbed)[-1]["metrics"]["test.dice"]
        assert ledger_bytes(tmp_path / "results") == ledger_bytes(undisturbed)
        assert (tmp_path / "results/bald_0.npy").read_bytes() == (undisturbed / "bald_0.npy").read_bytes()
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return [line for line in (out + err).splitlines() if "experiments.sync" in line]

    return run


class Relay:
    """Between a client and the server on 127.0.0.1: what arrives may be held up, cut off or left unanswered."""

    def __init__(self, port):
        self.port, self.asked, self.answered = port, lambda data: None, lambda data: None
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.own = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                client = self.listener.accept()[0]
                server = socket.create_connection(("127.0.0.1", self.port))
                for source, target, judge in ((client, server, "asked"), (server, client, "answered")):
                    threading.Thread(target=self._pass, args=(source, target, judge), daemon=True).start()

    def _pass(self, source, target, judge):
        """`judge` may wait, or raise OSError to end the connection."""
        with contextlib.suppress(OSError):
            while data := source.recv(2**20):
                getattr(self, judge)(data)
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


@pytest.fixture
def relay(mongo):
    made = Relay(mongo)
    yield made
    made.listener.close()


def hang_up(data):
    raise OSError


def test_absent_at_start(disturbed, mongo, tmp_path, capsys):
    [line] = disturbed(f"mongodb://127.0.0.1:{free_port()}/absent")
    assert line.startswith("MongoDB does not answer") and f"{tmp_path / 'results'}`" in line
    [record] = local(tmp_path / "results")
    assert record["status"] == "COMPLETED"
    assert_sync_stores(capsys, f"mongodb://127.0.0.1:{mongo}/absent", tmp_path / "results")


@pytest.mark.parametrize("back", [False, True], ids=["never back", "back"])
def test_killed_mid_run(disturbed, patience, tmp_path, capsys, back):
    port, folder, servers = free_port(), tmp_path / "db", []
    url = f"mongodb://127.0.0.1:{port}/killed"
    folder.mkdir()

    def start(state):
        servers.append(start_mongod(folder, port))

    def kill(state):
        with opened(url) as database:
            while not database.runs.count_documents({}):  # until the run has reached the database
                time.sleep(0.05)
        servers[-1].kill()
        servers[-1].wait()

    def notice(state):
        state.run._emit_heartbeat()
        while not local(tmp_path / "results")[0]["captured_out"].count("experiments.sync"):
            time.sleep(0.05)
            state.run._emit_heartbeat()
        if back:
            start(state)
            patience()

    start(None)
    try:
        [line] = disturbed(url, query=kill, conclude=notice)
        assert line.startswith("MongoDB does not answer")
        if not back:
            with pytest.raises(PyMongoError) as error:
                sync.main(tmp_path / "results", url)
            assert projection.lost(error.value)
            start(None)
        with opened(url) as database:
            [run] = database.runs.find()
            assert run["status"] == ("COMPLETED" if back else "RUNNING")
        assert_sync_stores(capsys, url, tmp_path / "results")
    finally:
        servers[-1].kill()
        servers[-1].wait()


def test_flapping(disturbed, relay, mongo, tmp_path, capsys):
    seen = []

    def every_fourth(data):
        seen.append(len(data))
        if len(seen) % 4 == 0:
            raise OSError

    relay.answered = every_fourth
    [line] = disturbed(f"mongodb://127.0.0.1:{relay.own}/flapping")
    assert line.startswith("MongoDB does not answer") and len(seen) > 4
    assert_sync_stores(capsys, f"mongodb://127.0.0.1:{mongo}/flapping", tmp_path / "results")


def test_slow(disturbed, relay, mongo, tmp_path, capsys):
    relay.answered = lambda data: time.sleep(1)
    ended = []
    [line] = disturbed(f"mongodb://127.0.0.1:{relay.own}/slow", conclude=lambda state: ended.append(time.monotonic()))
    assert time.monotonic() - ended[0] < 30  # 10 are promised, on a machine with nothing else to do
    assert line.startswith("MongoDB does not answer")
    relay.answered = lambda data: None
    assert_sync_stores(capsys, f"mongodb://127.0.0.1:{mongo}/slow", tmp_path / "results")


@pytest.mark.parametrize("collection", ["runs", "metrics", "fs.chunks", "fs.files"])
def test_acknowledgement_lost(disturbed, relay, mongo, tmp_path, capsys, collection):
    """The server does what it is asked to write, the client never hears of it and cannot ask again in this run."""
    length = chr(len(collection) + 1) + 3 * "\0"
    words = [f"\2{do}\0{length}{collection}\0".encode() for do in ("insert", "update")]  # as BSON has it
    lost = []

    def asked(data):
        if any(word in data for word in words):
            lost.append(data)
        relay.answered = hang_up if lost else relay.answered

    relay.asked, name = asked, f"lost_{collection.replace('.', '_')}"
    [line] = disturbed(f"mongodb://127.0.0.1:{relay.own}/{name}")
    assert line.startswith("MongoDB does not answer") and lost
    assert_sync_stores(capsys, f"mongodb://127.0.0.1:{mongo}/{name}", tmp_path / "results")


def test_too_large(disturbed, mongo, tmp_path, capsys):
    def swell(state):
        state.run.info["huge"] = "x" * 17_000_000  # MongoDB takes 16 MB
        print("first" + "y" * 2 * LARGEST + "last")

    url = f"mongodb://127.0.0.1:{mongo}/large"
    disturbed(url, conclude=swell)
    assert_sync_stores(capsys, url, tmp_path / "results")
    with opened(url) as database:
        [run] = database.runs.find()
    assert len(run["captured_out"]) < 1.1 * LARGEST and "characters left out" in run["captured_out"]
    assert "firsty" in run["captured_out"] and "ylast" in run["captured_out"]
    assert run["info"]["huge"].startswith("left out") and run["status"] == "COMPLETED"


def test_a_document_that_cannot_be_stored_keeps_no_other_out(smoke, mongo, tmp_path, capsys):
    smoke(cycles=0, label="odd"), smoke(cycles=0)
    [path] = (tmp_path / "results/odd_0/sacred").glob("*.json")
    record = json.loads(path.read_bytes())
    path.write_text(json.dumps(record | {"info": {"number": 2**70}}))
    capsys.readouterr()
    url = f"mongodb://127.0.0.1:{mongo}/odd"
    assert not sync.main(tmp_path / "results", url)
    out, err = capsys.readouterr()
    assert out.splitlines()[-1] == "1 stored, 0 were already, 1 could not be."
    assert err.startswith(f"{path}: MongoDB cannot hold a record") and len(err.splitlines()) == 1
    with opened(url) as database:
        assert [run["config"]["label"] for run in database.runs.find()] == ["bald"]


def test_authentication(disturbed, tmp_path, capsys):
    port, folder = free_port(), tmp_path / "db"
    folder.mkdir()
    server = start_mongod(folder, port, "--auth")
    try:
        with MongoClient("127.0.0.1", port) as client:  # who comes from this machine may make the first user
            client.admin.command("createUser", "user", pwd="pa55phrase", roles=["root"])
        [line] = disturbed(f"mongodb://user:wrongpa55phrase@127.0.0.1:{port}/auth?authSource=admin")
        assert line.startswith("MongoDB refuses the login")
        results = tmp_path / "results"
        with pytest.raises(Refused, match="set --mongo_url"):
            sync.main(results, "")
        assert_sync_stores(capsys, f"mongodb://user:pa55phrase@127.0.0.1:{port}/auth?authSource=admin", results)
        with opened(f"mongodb://user:pa55phrase@127.0.0.1:{port}/auth?authSource=admin") as database:
            assert "***" in repr(dump(database)) and "pa55phrase" not in repr(dump(database))
    finally:
        server.kill()
        server.wait()
    assert contains(results, b"***") and contains(results, b"pa55phrase") == []


def test_failed_and_interrupted_runs_keep_what_they_said(smoke, disturbed, mongo, patience, tmp_path, monkeypatch):
    patience()
    url = f"mongodb://127.0.0.1:{mongo}/stopped"
    for error in (RuntimeError("boom"), Terminated("Terminated: the same command continues.")):
        with monkeypatch.context() as patch, pytest.raises(type(error)):
            patch.setattr(loop, "query", lambda state, cycle, error=error: raise_(error))
            smoke(mongo_url=url)
    disturbed(url)
    with opened(url) as database:
        failed, stopped, ended = database.runs.find().sort("start_time")
        metrics = {m["run_id"]: m["steps"] for m in database.metrics.find({"name": "test.dice"})}
    assert [run["status"] for run in (failed, stopped, ended)] == ["FAILED", "INTERRUPTED", "COMPLETED"]
    assert all("cycle 0/1: 2 images labelled" in run["captured_out"] for run in (failed, stopped, ended))
    assert "boom" in failed["fail_trace"][-1] and "Going on from" in ended["captured_out"]
    assert metrics == {failed["_id"]: [2], stopped["_id"]: [2], ended["_id"]: [2, 4]}


@pytest.mark.parametrize(
    "option, url",
    [
        ("study", "mongodb://127.0.0.1:27017/study"),
        ("host:5", "mongodb://host:5/sacred"),
        ("host:5:study", "mongodb://host:5/study"),
        ("mongodb://user:pa55phrase@host/study", "mongodb://user:pa55phrase@host/study"),
    ],
)
def test_sacreds_option_as_an_address(option, url):
    assert address.of_option(option) == url


def raise_(error):
    raise error


def test_killed_run_is_interrupted_once_the_command_is_repeated(smoke, phantom_root, longer, mongo, patience, tmp_path):
    patience()
    url = f"mongodb://127.0.0.1:{mongo}/kill"
    process = command("smoke", cwd=tmp_path, **settings(phantom_root, "results", cycles=2, mongo_url=url))
    ledger = tmp_path / "results/bald_0/ledger.jsonl"
    with opened(url) as database:
        while not (ledger.exists() and b"evaluated" in ledger.read_bytes()):
            time.sleep(0.01)
            assert process.poll() is None, process.communicate()
        process.kill()
        process.communicate()
        steps = [e["images"] for e in events(tmp_path / "results") if e["event"] == "evaluated"]
        assert process.returncode == -signal.SIGKILL and len(steps) < 3
        assert [record["status"] for record in local(tmp_path / "results")] == ["RUNNING"]
        assert [run["status"] for run in database.runs.find()] in ([], ["RUNNING"])
        smoke(cycles=2, mongo_url=url)
        killed, ended = database.runs.find().sort("start_time")
        assert (killed["status"], ended["status"]) == ("INTERRUPTED", "COMPLETED")
        metrics = {m["run_id"]: m["steps"] for m in database.metrics.find({"name": "test.dice"})}
        assert metrics == {killed["_id"]: steps, ended["_id"]: [2, 4, 6]}
    assert ledger_bytes(tmp_path / "results") == ledger_bytes(longer)
    assert list(tmp_path.rglob("*.lock")) == []


def test_a_finished_run_is_recorded_once_but_stored(smoke, mongo, patience, tmp_path):
    patience()
    smoke(cycles=0, label="first"), smoke(cycles=0)
    url = f"mongodb://127.0.0.1:{mongo}/finished"
    for _ in range(2):
        smoke(cycles=0, mongo_url=url)
        with opened(url) as database:
            labels = sorted(run["config"]["label"] for run in database.runs.find())
            assert labels == ["bald", "first"] and len(local(tmp_path / "results")) == 2


def test_sync_from_a_terminal(undisturbed, mongo):
    [path] = undisturbed.rglob("sacred/*.json")
    before = path.read_bytes()

    def ask(*words):
        return subprocess.run(
            [sys.executable, "-m", "experiments.sync", *map(str, words)], cwd=ROOT, capture_output=True, text=True
        )

    done = ask(undisturbed, "--mongo_url", f"127.0.0.1:{mongo}/terminal")
    assert (done.returncode, done.stderr) == (0, "")
    run, summary = done.stdout.splitlines()
    assert run.startswith(f"{undisturbed / 'bald_0'} of 20") and run.endswith(": run 1")
    assert summary == "1 stored, 0 were already, 0 could not be."
    refused = [
        (ask(undisturbed, "--mongo_url", f"user:pa55phrase@127.0.0.1:{free_port()}"), "MongoDB does not answer"),
        (ask(undisturbed, "--mongo_url", "mongodb://user:pa55phrase@127.0.0.1:x/y"), "mongo_url is no address"),
        (ask(undisturbed), "set --mongo_url"),
        (ask(undisturbed / "nowhere"), "holds no record"),
    ]
    for done, said in refused:
        assert done.returncode == 1 and said in done.stderr and len(done.stderr.splitlines()) == 1
        assert "pa55phrase" not in done.stdout + done.stderr
    assert path.read_bytes() == before


def test_records_reach_no_other_files(smoke, mongo, tmp_path):
    smoke(cycles=0)
    (tmp_path / "private").write_text("mine")
    [path] = (tmp_path / "results").rglob("sacred/*.json")
    record = json.loads(path.read_bytes())
    record["artifacts"] = [{"name": "stolen", "path": "../private"}, {"name": "too", "path": str(tmp_path / "private")}]
    record["experiment"]["sources"] = [["../" * 20 + "etc/passwd", ""], ["active.py", "changed since"]]
    path.write_text(json.dumps(record))
    url = f"mongodb://127.0.0.1:{mongo}/reach"
    assert sync.main(tmp_path / "results", url)
    with opened(url) as database:
        [run] = database.runs.find()
        assert run["artifacts"] == run["experiment"]["sources"] == [] and not database["fs.files"].count_documents({})


def test_event_files(smoke, tmp_path):
    from PIL import Image
    from tensorboardX.proto.event_pb2 import Event

    smoke(tensorboard_dir=str(tmp_path / "events"))
    found = {}
    for path in (tmp_path / "events" / "bald_0").iterdir():
        data = path.read_bytes()
        while (
            data
        ):  # length, its checksum, the event, its checksum: https://www.tensorflow.org/tutorials/load_data/tfrecord
            size = struct.unpack("<Q", data[:8])[0]
            event, data = Event.FromString(data[12 : 12 + size]), data[16 + size :]
            for value in event.summary.value:
                found.setdefault(value.tag, {})[event.step] = value
    for name, (images, values) in measured(tmp_path / "results").items():
        logged = found.pop(name.replace(".", "/"))
        assert list(logged) == images
        assert [logged[step].simple_value for step in images] == np.float32(values).tolist(), name
    [(step, value)] = found.pop("query").items()
    picture = Image.open(io.BytesIO(value.image.encoded_image_string))
    original = Image.open(tmp_path / "results/bald_0/queries/cycle_000.png").convert("RGB")
    assert step == 2 and np.array_equal(picture, original) and found == {}


def test_event_files_need_their_package(smoke, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(Refused, match="pip install tensorboardX=="):
        smoke(tensorboard_dir=str(tmp_path / "events"))
    assert not (tmp_path / "results").exists()
