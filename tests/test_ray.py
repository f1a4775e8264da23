"""A study on a Ray cluster of two nodes, one of which dies midway: each run once, no number other. `make test-ray`."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, settings
from test_study import kept

pytest.importorskip("ray", reason="requirements-cluster.txt is not installed: make test-ray")

CLUSTER = """if True:
    import sys
    from ray.cluster_utils import Cluster
    own = dict(node_ip_address="127.0.0.1", num_cpus=1, num_gpus=0, object_store_memory=80 * 2**20)
    head = own | dict(include_dashboard=False, dashboard_host="127.0.0.1")
    cluster = Cluster(initialize_head=True, head_node_args=head)
    second = cluster.add_node(**own)
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
    from experiments.study.cluster import LOOPBACK

    own, pipe = os.environ | LOOPBACK | {"RAY_USAGE_STATS_ENABLED": "0"}, subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", CLUSTER], env=own, text=True, stdin=pipe, stdout=pipe) as process:
        address = process.stdout.readline().strip()

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


def outer_sockets():
    """{(local, remote)} of this machine's TCP sockets that Ray's processes or the study have beyond 127.0.0.1."""
    import psutil

    found = set()
    for process in psutil.process_iter(["cmdline"]):
        if any(word in " ".join(process.info["cmdline"] or []) for word in ("ray", "experiments.study")):
            try:
                for socket in process.net_connections("inet"):
                    ends = [end.ip for end in (socket.laddr, socket.raddr) if end]
                    if any(ip not in ("127.0.0.1", "::1", "::ffff:127.0.0.1") for ip in ends):
                        found.add((process.pid, *ends))
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                pass
    return found


def test_a_lost_node_changes_nothing(cluster, phantom_root, tmp_path):
    """12 runs on two nodes, one killed once a run has been tested: 12 results, those of a study without Ray."""
    address, kill, _ = cluster
    plain = study(phantom_root, tmp_path / "plain", "--jobs", "2")
    out, _ = plain.communicate()
    assert plain.returncode == 0, out
    started, outer, killed = study(phantom_root, tmp_path / "ray", "--ray", address), set(), False
    while started.poll() is None:
        outer |= outer_sockets()
        going = [path for path in (tmp_path / "ray").glob("*/ledger.jsonl") if "evaluated" in path.read_text()]
        if not killed and len(going) >= 4:
            kill()
            killed = True
        time.sleep(0.2)
    out = started.stdout.read()
    assert started.returncode == 0 and killed, out
    assert "12 of 12 runs done" in out
    assert len(list((tmp_path / "ray").glob("*.npy"))) == 12
    assert kept(tmp_path / "ray") == kept(tmp_path / "plain")
    assert not outer
    again = study(phantom_root, tmp_path / "ray", "--ray", address)
    assert "12 runs, 12 of them done." in again.communicate()[0] and again.returncode == 0


def test_a_cluster_of_its_own_ends_with_the_study(phantom_root, tmp_path):
    """A run that fails is named with its log and not tried again; no process and no folder of Ray's is left."""
    before = set(Path("/tmp").glob("askmask_ray_*"))
    started = study(
        phantom_root, tmp_path, "--ray", "local", "--jobs", "1", run=0, heuristic="random", **{"trainer.lr": 1e30}
    )
    out, _ = started.communicate()
    assert started.returncode == 1 and "random 0 failed: " in out and "study/random_0.log" in out
    assert set(Path("/tmp").glob("askmask_ray_*")) == before


def test_what_is_no_cluster_is_one_line(phantom_root, tmp_path):
    started = study(phantom_root, tmp_path, "--ray", "ray://127.0.0.1:1")
    out, _ = started.communicate()
    assert started.returncode == 1 and out.startswith("--ray ray://127.0.0.1:1") and out.count("\n") == 1
