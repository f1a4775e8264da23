"""Sacred's record of each start of a run, kept beside its ledger: results/<label>_<run>/sacred/<uid>.json.

What MongoDB shall hold of the start and the ledger does not say: settings, host, times, status, output, artifacts
(paths relative to the results folder). The database is made from both (experiments/records/mongo.py), now or later.
"""

import fcntl
import json
import os
import sys
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from threading import RLock
from uuid import uuid4

from sacred.observers import MongoObserver
from sacred.utils import SacredInterrupt
from tqdm import tqdm

from experiments.records.files import write
from experiments.records.ledger import read

LARGEST = 2**18  # characters of the output, or of one entry of `info`, that a record keeps: MongoDB takes 16 MB in all

TOO_LARGE = f"left out: more than {LARGEST} characters"


def safely(event):
    """An observer's method that says what went wrong, once, where Sacred would never call the observer again."""

    @wraps(event)
    def safe(self, **what):
        try:
            with self.turn:
                return event(self, **what)
        except SacredInterrupt:
            raise
        except Exception as error:
            if not self.said:
                say(f"Sacred's record {self.path} cannot be written ({type(error).__name__}): the run goes on.")
            self.said = True

    return safe


class Record(MongoObserver):
    """Sacred's MongoObserver, that fills a file instead of a database."""

    def __init__(self, folder):
        self.folder, self.path, self.said = Path(folder), Path(folder) / "sacred", False
        self.run_entry = self.overwrite = None
        self.priority = 30  # before the files, which would hand their number to the database
        self.turn = RLock()  # heartbeats come from a thread of their own

    def __eq__(self, other):
        return self is other

    started_event = safely(MongoObserver.started_event)
    heartbeat_event = safely(MongoObserver.heartbeat_event)
    completed_event = safely(MongoObserver.completed_event)
    interrupted_event = safely(MongoObserver.interrupted_event)
    failed_event = safely(MongoObserver.failed_event)

    @safely
    def artifact_event(self, name, filename, metadata=None, content_type=None):
        path = os.path.relpath(filename, self.folder.parent)
        self.run_entry["artifacts"].append({"name": name, "path": path})
        self.save()

    @safely
    def log_metrics(self, metrics_by_name, info):
        """Note when each step was measured; the values are the ledger's."""
        for metric in metrics_by_name.values():
            for step, time in zip(metric["steps"], metric["timestamps"], strict=True):
                self.run_entry["measured"].setdefault(str(step), str(time))

    @safely
    def resource_event(self, filename):
        """Nothing: the ledger has the data's fingerprints."""

    def save_sources(self, ex_info):
        return ex_info["sources"]

    def insert(self):
        self.path.mkdir(parents=True, exist_ok=True)
        uid = f"{self.run_entry['start_time']:%Y%m%d-%H%M%S}-{uuid4().hex[:12]}"
        self.run_entry["measured"] = {}
        self.path /= f"{uid}.json"
        self.alive = lock(self.path)
        self.save()

    def save(self):
        entry = {key: value for key, value in self.run_entry.items() if key != "_id"}
        info = {key: value if len(json.dumps(value)) < LARGEST else TOO_LARGE for key, value in entry["info"].items()}
        entry |= {"captured_out": shortened(entry["captured_out"]), "info": info}
        if "fail_trace" in entry:
            entry["fail_trace"] = [shortened(text) for text in entry["fail_trace"]]
        save(self.path, entry)

    def final_save(self, attempts):
        self.save()
        release(self.path, self.alive)


def shortened(text):
    """Its head and tail, with a line between that says how much is missing."""
    half, missing = LARGEST // 2, len(text) - LARGEST
    return text if missing <= 0 else f"{text[:half]}\n... {missing} characters left out ...\n{text[-half:]}"


@contextmanager
def keep_output(run):
    """What a run that fails has printed last: Sacred takes it over from those that end well only."""
    try:
        yield
    except BaseException:
        run._get_captured_output()
        raise


def records(folder):
    """The record files in a results folder or a run's, oldest first."""
    return sorted(Path(folder).rglob("sacred/*.json"), key=lambda path: path.name)


def mark_interrupted(path):
    """Mark the record of a run that was killed as INTERRUPTED; every step of the ledger belongs to it."""
    alive = json.loads(path.read_bytes())["status"] == "RUNNING" and lock(path)
    if alive:
        record = json.loads(path.read_bytes())  # it may have ended in between
        if record["status"] == "RUNNING":
            last = record["heartbeat"] or record["start_time"]
            for event in measured(path):
                record["measured"].setdefault(str(event["images"]), last)
            save(path, record | {"status": "INTERRUPTED", "stop_time": last})
        release(path, alive)


def measured(path):
    """The evaluations in the ledger that a record lies beside."""
    return [event for event in read(path.parents[1]) if event["event"] == "evaluated"]


def save(path, record):
    write(path, json.dumps(record, default=str, sort_keys=True, indent=1).encode())


def lock(path):
    """The open lock file of a record, None while another process holds it."""
    file = open(path.with_suffix(".lock"), "w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    return file


def release(path, file):
    path.with_suffix(".lock").unlink(missing_ok=True)
    file.close()


def say(line):
    """Print a line above the progress bar."""
    tqdm.write(line)
    sys.stdout.flush()
