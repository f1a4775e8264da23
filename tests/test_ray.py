"""A study on a Ray cluster of two nodes, one of which dies midway: each run once, no number other. `make test-ray`."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from contextlib import suppress
from itertools import product
from pathlib import Path

import psutil
import pytest
from conftest import ROOT, settings
from test_study import kept

from experiments.study.grid import Cell

pytest.importorskip("ray", reason="requirements-cluster.txt is not installed: make test-ray")

CLUSTER = """if True:
    import socket, sys
    from ray.cluster_utils import Cluster
    AGENTS = "metrics_agent_port", "dashboard_agent_listen_port", "runtime_env_agent_port", "metrics_export_port"
    open_ = [[socket.create_server(("127.0.0.1", 0)) for _ in AGENTS] for _ in range(2)]
    ports = [dict(zip(AGENTS, (each.getsockname()[1] for each in node))) for node in open_]
    [each.close() for node in open_ for each in node]  # left to Ray, a busy machine's agents choose them too late
    own = dict(node_ip_address="127.0.0.1", num_cpus=1, num_gpus=0, object_store_memory=80 * 2**20)
    head = own | ports[0] | dict(include_dashboard=False, dashboard_host="127.0.0.1")
    cluster = Cluster(initialize_head=True, head_node_args=head)
    second = cluster.add_node(**own | ports[1])
    cluster.wait_for_nodes()
    print(cluster.address, flush=True)
    sys.stdin.readline()
    cluster.remove_node(second, allow_graceful=False)
    sys.stdin.readline()
    cluster.shutdown()
"""


@pytest.fixture
def cluster():
    """(address, a function that kills the second node, the process) of a cluster on 127.0.0.1."""
    from experiments.records.cluster import LOOPBACK, QUIET

    own, pipe = os.environ | LOOPBACK | QUIET, subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", CLUSTER], env=own, text=True, stdin=pipe, stdout=pipe) as process:
        address = process.stdout.readline().strip()
        assert address

        def kill():
            process.stdin.write("\n")
            process.stdin.flush()

        yield address, kill, process
        process.stdin.close()
        process.wait(60)


def study(root, results, *words, **updates):
    asked = settings(root, results) | {"dataset": "phantom", "heuristic": "random,bald", "run": "0-5"} | updates
    asked.pop("results_dir")
    line = [sys.executable, "-W", "ignore", "-m", "experiments.study", "smoke", "--results", str(results), *words]
    line += [f"{key}={value}" for key, value in asked.items()]
    pipe = subprocess.PIPE
    return subprocess.Popen(line, cwd=ROOT, text=True, stdout=pipe, stderr=subprocess.STDOUT)


@pytest.fixture(scope="module")
def serial(phantom_root, tmp_path_factory):
    """What twelve runs leave, one after the other and without Ray, each with a first cycle of its own."""
    results = tmp_path_factory.mktemp("serial")
    plain = study(phantom_root, results, "--jobs", "1", "--apart")
    out, _ = plain.communicate()
    assert plain.returncode == 0, out
    return kept(results)


def outer_sockets(processes):
    """{(process, addresses)} of the TCP and UDP sockets that these processes have beyond 127.0.0.1."""
    found = set()
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            for socket in process.net_connections("inet"):
                ends = [end.ip for end in (socket.laddr, socket.raddr) if end]
                if any(ip not in ("127.0.0.1", "::1", "::ffff:127.0.0.1") for ip in ends):
                    found.add((" ".join(process.cmdline())[-200:], *ends, socket.laddr.port, socket.status))
    return found


def tree(*numbers):
    """These processes and all that they have started."""
    found = []
    for number in numbers:
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(number)
            found += [process, *process.children(recursive=True)]
    return found


def evaluated(results):
    """How many runs have been tested at least once."""
    return sum("evaluated" in path.read_text() for path in results.glob("*/ledger.jsonl"))


def until_evaluated(started, results, number):
    """Wait for so many runs to have been tested; the processes of the study then."""
    while evaluated(results) < number:
        assert started.poll() is None, started.stdout.read()
        time.sleep(0.1)
    return tree(started.pid)


def test_a_lost_node_changes_nothing(cluster, serial, phantom_root, tmp_path, mongo):
    """12 runs on two nodes, one killed once runs have been tested, with a database: 12 results, those without Ray."""
    import pymongo

    address, kill, process = cluster
    url = f"mongodb://127.0.0.1:{mongo}/ray"
    started, outer, killed = study(phantom_root, tmp_path, "--ray", address, "--mongo", url), set(), False
    while started.poll() is None:
        outer |= outer_sockets(tree(started.pid, process.pid))
        if not killed and evaluated(tmp_path) >= 3:
            kill()
            killed = True
        time.sleep(0.2)
    out, _ = started.communicate()
    assert started.returncode == 0 and killed, out
    assert "12 of 12 runs done" in out
    assert len(list(tmp_path.glob("*.npy"))) == 12
    assert kept(tmp_path) == serial
    assert not outer
    with pymongo.MongoClient(url) as client:
        done = [run["config"] for run in client["ray"].runs.find({"status": "COMPLETED"})]
    assert sorted((run["heuristic"], run["run"]) for run in done) == sorted(product(("bald", "random"), range(6)))


def test_a_pool_is_scored_by_the_workers_that_are_left(cluster, phantom_root, tmp_path):
    """In shards on two nodes, one of which is killed meanwhile: the bits of one process."""
    address, kill, process = cluster
    logs = [tmp_path / "plain.log", tmp_path / "shards.log"]
    assert one_run(logs[0], settings(phantom_root, tmp_path / "plain", mc_iters=400)).wait() == 0, logs[0].read_text()
    started = one_run(logs[1], settings(phantom_root, tmp_path / "shards", mc_iters=400, ray=address))
    outer, killed = set(), False
    while started.poll() is None:
        outer |= outer_sockets(tree(started.pid, process.pid))
        busy = [each for each in tree(process.pid) if working(each)]
        if not killed and len(busy) == 2:
            kill()
            killed = True
        time.sleep(0.2)
    said = logs[1].read_text()
    assert started.returncode == 0 and killed, said
    assert "14 images in " in said and "a worker was lost, and shard " in said
    assert kept(tmp_path / "plain") == kept(tmp_path / "shards")
    assert not outer


def one_run(log, asked):
    """Start a run of active.py that prints to the file `log`."""
    line = [sys.executable, "-W", "ignore", "active.py", "with", "smoke", *(f"{k}={v}" for k, v in asked.items())]
    with open(log, "w") as out:
        return subprocess.Popen(line, cwd=ROOT, stdout=out, stderr=out)


def working(process):
    """Whether a worker of Ray has computed for some seconds."""
    with suppress(psutil.NoSuchProcess):
        return process.name().startswith("ray::begin") and process.cpu_times().user > 4
    return False


def test_a_study_that_is_stopped_or_killed_goes_on(serial, phantom_root, tmp_path):
    """Its own cluster ends with it, whatever ends it; the same command does what is missing."""
    before, words = set(Path("/tmp").glob("askmask_ray_*")), ("--ray", "local", "--jobs", "2")
    for number, code, runs in ((signal.SIGINT, 130, 1), (signal.SIGKILL, -9, 4)):
        started = study(phantom_root, tmp_path, *words)
        processes = until_evaluated(started, tmp_path, runs)
        assert any("raylet" in " ".join(process.cmdline()) for process in processes)
        outer = outer_sockets(processes)
        began = time.monotonic()
        started.send_signal(number)
        out, _ = started.communicate()
        assert started.returncode == code and time.monotonic() < began + 20, out
        assert not [process.name() for process in psutil.wait_procs(processes, 40)[1]]
        assert not outer
        assert set(Path("/tmp").glob("askmask_ray_*")) <= before
        assert number != signal.SIGINT or "Stopped: the same command continues." in out
    started = study(phantom_root, tmp_path, *words)
    out, _ = started.communicate()
    assert started.returncode == 0 and "12 of 12 runs done" in out, out
    assert kept(tmp_path) == serial


def test_a_run_that_fails_is_named_and_not_tried_again(phantom_root, tmp_path):
    """One whose loss is no number, and one that is refused as its ledger is damaged."""
    (tmp_path / "random_1").mkdir()
    (tmp_path / "random_1" / "ledger.jsonl").write_text("no ledger\n")
    words, nan = ("--ray", "local", "--jobs", "2"), {"trainer.lr": 1e30}
    started = study(phantom_root, tmp_path, *words, run="0-1", heuristic="random", **nan)
    out, _ = started.communicate()
    assert started.returncode == 1
    for number in (0, 1):
        log = tmp_path / "study" / f"random_{number}.log"
        assert f"random {number} failed: " in out and str(log) in out, out
        assert out.split(f"random {number} failed: ")[1].splitlines()[0].split(" - ")[0] in log.read_text()
    text = (tmp_path / "study" / "random_1.log").read_text()
    assert text.count("ledger.jsonl") == 1, text


def test_what_is_no_cluster_is_one_line(phantom_root, tmp_path):
    started = study(phantom_root, tmp_path, "--ray", "ray://127.0.0.1:1")
    out, _ = started.communicate()
    assert started.returncode == 1 and out.startswith("--ray ray://127.0.0.1:1") and out.count("\n") == 1


def test_a_run_that_loses_its_machine_again_and_again_is_named(tmp_path):
    """Where it is what ends the machines; a lost run is the next to begin."""
    from experiments.study.workers import LOSSES, LOST, Progress, work

    class Losing:
        began, going = [], []

        def room(self):
            return not self.going

        def begin(self, cell, log):
            self.began.append(cell.run)
            self.going.append(len(self.began))
            return self.going[0]

        def ended(self):
            return [(self.going.pop(), LOST, 0.0)] if self.going else []

    place, at = tmp_path / "study", Losing()
    cells = [Cell((), tmp_path, "random", run, 0) for run in (0, 1)]
    progress = work(Progress(cells), at, place)
    assert at.began == [0] * LOSSES + [1] * LOSSES
    assert [said for _, said, _ in progress.failed.values()] == [f"{LOSSES} machines were lost while it ran"] * 2


def test_what_the_documentation_types_is_ray_s_own():
    """Each command line of `ray` that stands there, as Ray's parser takes it."""
    from ray.scripts.scripts import cli

    found = re.findall(r"`(?:srun [^`]*?)?ray ([a-z-]+)([^`]*)`", (ROOT / "docs" / "studies.md").read_text())
    assert {name for name, _ in found} == {"get-auth-token", "start", "stop", "symmetric-run"}
    for name, words in found:
        cli.commands[name].make_context(name, shlex.split(words))
