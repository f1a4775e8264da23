"""A Ray cluster that a command joins, or starts on 127.0.0.1 for as long as it lasts.

Moritz et al. 2018, https://arxiv.org/abs/1712.05889.

A cluster of one's own is kept by a process beside the command, `python -m experiments.records.cluster`: once its input
ends, however the command has ended, it takes the cluster down in order. Killed with their parent, two agents of Ray's
would live on for a minute, trying to report that to a server which is gone.
"""

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from select import select

from experiments.components import ROOT
from experiments.errors import Refused
from experiments.errors.process import stop_if_asked
from experiments.records.progress import say

POLL = 0.1  # seconds between two looks at signals
STARTS = 3  # tries of a cluster of one's own: Ray gives up on agents that a busy machine starts in over 15 seconds
PATIENCE = 15  # seconds that a cluster may take to end
STORE = 80 * 2**20  # bytes of Ray's object store, the least that it takes
LOOPBACK = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # else this machine's outer address is taken for 127.0.0.1
    "HTTP_PROXY": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9",  # else it asks which cloud it is in
    "HTTPS_PROXY": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9",
    "NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost",
}  # fmt: skip
QUIET = {"RAY_USAGE_STATS_ENABLED": "0"}  # else Ray reports its use to its makers
_own = {}  # the process that keeps a cluster of this command's own


def check(address, typed):
    """Raise Refused, in the words that were typed, without Ray or for an address of which it joins no cluster."""
    if find_spec("ray") is None:
        raise Refused(f"{typed} needs Ray: pip install -r requirements-cluster.txt")
    if address.startswith("ray://"):
        raise Refused(f"{typed}: type the command on a machine of the cluster, with {typed.removesuffix(address)}auto.")


def join(address, typed, cpus=0, store=STORE):
    """Join the cluster at this address, once, or start one of `cpus` CPUs (0: all): the environment before that.

    The environment is {variable: value or None} of what Ray was told to stay on 127.0.0.1 by, {} elsewhere; workers
    have inherited that. Raises Refused where no cluster answers.
    """
    near = address == "local" or address.startswith(("127.0.0.1:", "localhost:"))
    outer = {name: os.environ.get(name) for name in LOOPBACK} if near else {}
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        os.environ.update(QUIET | (LOOPBACK if near else {}))
        if address == "local" and "RAY_AUTH_TOKEN" not in os.environ:  # nobody else on this machine is let in
            os.environ.update({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)})
        import ray

        if not ray.is_initialized():
            say(f"Ray: {'starting a cluster on 127.0.0.1' if address == 'local' else address}.")
            at = start(cpus, store) if address == "local" else address
            where = {"_node_ip_address": "127.0.0.1"} if near else {}
            ray.init(at, log_to_driver=False, logging_level="ERROR", **where)
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        fix = "start one, or leave that to the word local" if address != "local" else "try again, or leave it out"
        raise Refused(f"{typed}: no cluster answers ({reason}): {fix}.") from error
    finally:
        for number, handler in handlers.items():  # Ray puts its own in their place
            signal.signal(number, handler)
        put(outer)
    return outer


def start(cpus, store):
    """The address of a cluster of this command's own. Raises RuntimeError with the reason where none starts."""
    line, pipe = [sys.executable, "-m", "experiments.records.cluster", str(cpus), str(store)], subprocess.PIPE
    for _ in range(STARTS):
        keeper = _own["keeper"] = subprocess.Popen(line, cwd=ROOT, stdin=pipe, stdout=pipe, start_new_session=True)
        while not select([keeper.stdout], [], [], POLL)[0]:
            stop_if_asked()
        said = json.loads(keeper.stdout.readline() or '{"reason": "the process that keeps it has ended"}')
        if "address" in said:
            return said["address"]
        leave()
    raise RuntimeError(said["reason"])


def keep(cpus, store, answer):
    """Start a cluster on 127.0.0.1, print its address to `answer` as JSON, and end it once the input has ended."""
    import ray

    folder = tempfile.mkdtemp(prefix="askmask_ray_", dir="/tmp")  # a short path, as of a socket
    own = {"num_cpus": cpus} if cpus else {}
    own |= {"_temp_dir": folder, "object_store_memory": store, "include_dashboard": False}
    own |= {"dashboard_host": "127.0.0.1", "_node_ip_address": "127.0.0.1"}
    own |= {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        try:
            said = {"address": ray.init("local", **own).address_info["gcs_address"]}
        except Exception as error:
            said = {"reason": (str(error).strip() or type(error).__name__).splitlines()[0]}
        print(json.dumps(said), file=answer, flush=True)
        if "address" in said:
            sys.stdin.read()
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def leave():
    """Leave the cluster that was joined; one of this command's own ends."""
    if "ray" in sys.modules:
        sys.modules["ray"].shutdown()
    if "keeper" in _own:
        keeper = _own.pop("keeper")
        keeper.stdin.close()
        keeper.stdout.close()
        with suppress(subprocess.TimeoutExpired):
            keeper.wait(PATIENCE)
        keeper.kill()  # where it still starts what nobody waits for any more
        keeper.wait()


@contextmanager
def left():
    """Around a command: whatever ends it, the cluster is left."""
    try:
        yield
    finally:
        leave()


def put(environment):
    """Set these variables, or take away those that are None."""
    for name, value in environment.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


if __name__ == "__main__":
    own = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what Ray prints is no answer
    keep(int(sys.argv[1]), int(sys.argv[2]), own)
