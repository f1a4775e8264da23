"""The runs of a study as tasks of a Ray cluster, on one machine or many.

Moritz et al. 2018, https://arxiv.org/abs/1712.05889.

Nothing is uploaded: every machine has the project, its packages, the data and the results at the same paths, as on
shared storage. Each run has a process of its own, and goes on from its ledger where its machine was lost.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from select import select
from time import monotonic

from experiments.components import ROOT
from experiments.errors import Refused
from experiments.records.files import hold
from experiments.records.progress import say
from experiments.study.forked import POLL
from experiments.study.workers import LOST

LOOK = 2.0  # seconds between two looks at the size of the cluster
STORE = 80 * 2**20  # bytes of Ray's object store, the least that it takes: runs send an exit code each
LOOPBACK = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # else this machine's outer address is taken for 127.0.0.1
    "HTTP_PROXY": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9",  # else it asks which cloud it is in
    "HTTPS_PROXY": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9",
    "NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost",
}  # fmt: skip


class Tasks:
    """Where the runs of a study take place: each a Ray task, in a process forked beside its worker."""

    def __init__(self, given, study):
        if find_spec("ray") is None:
            raise Refused("--ray needs Ray: pip install -r requirements-cluster.txt")
        if given.ray.startswith("ray://"):
            raise Refused(f"--ray {given.ray}: type the command on a machine of the cluster, with --ray auto.")
        self.address, self.jobs, self.per_device = given.ray, given.jobs, given.per_device
        self.device = str(study.get("device", ["auto"])[0])
        self.cpus = max(1, *(int(n) for n in study.get("threads", [1])), 1)
        self.going, self.looked, self.most, self.own = {}, -LOOK, 0, {}

    def join(self, components):
        """Start the cluster or connect to it, once; workers import these. Raises Refused where none answers."""
        self.components = sorted(components)
        if "ray" in sys.modules:
            return
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # else Ray reports its use to its makers
        outer = {name: os.environ.get(name) for name in LOOPBACK}
        near = self.address == "local" or self.address.startswith(("127.0.0.1:", "localhost:"))
        if near:
            os.environ.update(LOOPBACK)
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            import ray

            where = {"_node_ip_address": "127.0.0.1"} if near else {}
            if self.address == "local":
                where |= {"_temp_dir": own_folder(), "object_store_memory": STORE, "include_dashboard": False}
                where |= {"dashboard_host": "127.0.0.1"} | ({"num_cpus": self.jobs * self.cpus} if self.jobs else {})
            say(f"Ray: {'starting a cluster on 127.0.0.1' if self.address == 'local' else self.address}.")
            ray.init(self.address, log_to_driver=False, logging_level="ERROR", **where)
        except Exception as error:  # a plain one where its own node has not started within 30 seconds
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise Refused(
                f"--ray {self.address}: no cluster answers ({reason}): start one, or type --ray local."
            ) from error
        finally:
            for number, handler in handlers.items():  # Ray puts its own in their place
                signal.signal(number, handler)
            if near:
                self.own = outer
                put(outer)
        has = ray.cluster_resources().get("GPU", 0)
        asks = self.device.startswith("cuda") or (self.device == "auto" and has > 0)
        self.gpus = 1 / self.per_device if asks else 0
        if not self.gpus:
            self.own["CUDA_VISIBLE_DEVICES"] = ""  # what has asked for no GPU sees none

        def begin(root, *asked):  # sent by value, as it is nested: no machine has to know the project before
            sys.path.insert(0, root)
            from experiments.study.cluster import task

            return task(*asked)

        # what is tried again is decided by the study
        self.remote = ray.remote(max_retries=0, num_cpus=self.cpus, num_gpus=self.gpus)(begin)
        if not self.room():
            say(f"No machine of the cluster has {self.cpus} CPUs and {self.gpus:g} GPUs yet: waiting for one.")

    def room(self):
        """Whether the cluster, as it now is, can take another run; --jobs asks an autoscaler for more."""
        import ray

        if monotonic() > self.looked + LOOK:
            has, self.looked = ray.cluster_resources(), monotonic()
            fits = int(has.get("CPU", 0) // self.cpus)
            self.most = self.jobs or max(1, min(fits, int(has.get("GPU", 0) / self.gpus)) if self.gpus else fits)
        return len(self.going) < self.most

    def begin(self, cell, log):
        asked = [os.getcwd(), list(cell.words), os.path.abspath(log.name)]
        answer = self.remote.remote(str(ROOT), self.components, *asked, self.own)
        self.going[answer] = log.name
        return answer

    def ended(self):
        import ray

        found = []
        for answer in ray.wait(list(self.going), num_returns=len(self.going), timeout=0)[0] if self.going else []:
            log = self.going.pop(answer)
            try:
                code, seconds = ray.get(answer)
            except (ray.exceptions.NodeDiedError, ray.exceptions.LocalRayletDiedError):
                code, seconds = LOST, 0.0
            except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError):
                code, seconds = -signal.SIGKILL, 0.0
            except ray.exceptions.TaskCancelledError:
                code, seconds = 130, 0.0
            except ray.exceptions.RayError as error:  # as on a machine without the project
                code, seconds = 1, 0.0
                with open(log, "a") as file:
                    file.write(f"{str(error).strip()}\n")
            found.append((answer, code, seconds))
        return found

    def stop(self, number):
        import ray

        for answer in self.going:
            ray.cancel(answer, force=number == signal.SIGKILL)


_own = {}  # the folder of a cluster that this process has started, and its lock; in a worker, its slot


def own_folder():
    """A new folder for a cluster of this process; those of clusters whose process was killed are removed."""
    for lock in Path("/tmp").glob("askmask_ray_*/held"):
        with suppress(OSError):  # another user's
            if held := hold(lock):
                shutil.rmtree(lock.parent, ignore_errors=True)
                held.close()
    _own["folder"] = tempfile.mkdtemp(prefix="askmask_ray_", dir="/tmp")  # a short path, as of a socket
    _own["held"] = hold(Path(_own["folder"], "held"))
    return _own["folder"]


@contextmanager
def left():
    """Around a command: whatever ends it, a cluster of its own ends, and one that it has joined is left."""
    try:
        yield
    finally:
        if "ray" in sys.modules:
            sys.modules["ray"].shutdown()
        if "folder" in _own:
            shutil.rmtree(_own.pop("folder"), ignore_errors=True)


def put(environment):
    """Set these variables, or take away those that are None."""
    for name, value in environment.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def task(components, folder, words, log, environment):
    """(exit code, CPU seconds) of a run, in a worker of Ray on whichever machine."""
    put(environment)
    slot = _own.get("slot")
    if slot is None or slot.poll() is not None:
        line, pipe = [sys.executable, "-m", "experiments.study.slot", json.dumps(components)], subprocess.PIPE
        with open(log, "ab") as file:
            slot = subprocess.Popen(line, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=file, start_new_session=True)
        _own["slot"] = slot
    device = {name: os.environ[name] for name in ("CUDA_VISIBLE_DEVICES",) if name in os.environ}
    try:
        slot.stdin.write(json.dumps([folder, words, log, device]).encode() + b"\n")
        slot.stdin.flush()
        while not select([slot.stdout], [], [], POLL)[0]:
            pass
        answer = slot.stdout.readline()
    except KeyboardInterrupt:  # of ray.cancel
        slot.stdin.close()
        slot.wait()
        raise
    return json.loads(answer) if answer else (slot.wait() or 1, 0.0)
