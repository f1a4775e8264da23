"""The runs of a study as tasks of a Ray cluster, on one machine or many.

Moritz et al. 2018, https://arxiv.org/abs/1712.05889.

Nothing is uploaded: every machine has the project, its packages, the data and the results at the same paths, as on
shared storage. Each run has a process of its own, and goes on from its ledger where its machine was lost.
"""

import json
import os
import signal
import subprocess
import sys
from select import select
from time import monotonic

from experiments.components import ROOT
from experiments.errors import Refused
from experiments.records import cluster
from experiments.records.progress import say
from experiments.study.forked import POLL
from experiments.study.workers import LOST

LOOK = 2.0  # seconds between two looks at the size of the cluster
_slot = {}  # in a worker of Ray: the process beside it that forks its runs


class Tasks:
    """Where the runs of a study take place: each a Ray task, in a process forked beside its worker."""

    def __init__(self, given, study):
        cluster.check(given.ray, f"--ray {given.ray}")
        if any(study.get("ray", [""])):
            raise Refused("--ray shares out the runs of a study, ray= the images of a run: leave one of them out.")
        self.address, self.jobs, self.per_device = given.ray, given.jobs, given.per_device
        self.device = str(study.get("device", ["auto"])[0])
        self.cpus = max(1, *(int(n) for n in study.get("threads", [1])), 1)
        self.going, self.looked, self.most, self.remote = {}, -LOOK, 0, None

    def join(self, components):
        """Start the cluster or connect to it, once; workers import these. Raises Refused where none answers."""
        if self.remote:
            return
        self.components = sorted(components)
        self.own = cluster.join(self.address, f"--ray {self.address}", self.jobs * self.cpus)
        import ray

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


def task(components, folder, words, log, environment):
    """(exit code, CPU seconds) of a run, in a worker of Ray on whichever machine."""
    cluster.put(environment)
    slot = _slot.get("process")
    if slot is None or slot.poll() is not None:
        line, pipe = [sys.executable, "-m", "experiments.study.slot", json.dumps(components)], subprocess.PIPE
        with open(log, "ab") as file:
            slot = subprocess.Popen(line, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=file, start_new_session=True)
        _slot["process"] = slot
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
