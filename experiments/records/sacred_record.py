"""Sacred's record of each start of a run, kept beside its ledger: results/<label>_<run>/sacred/<uid>.json.

What MongoDB shall hold of the start and the ledger does not say: settings, host, times, status, output, artifacts
(paths relative to the results folder). The database is made from both (experiments/records/mongo.py), now or later.
"""

import json
import os
from contextlib import contextmanager, nullcontext
from pathlib import Path
from threading import RLock
from uuid import uuid4

from sacred.observers import MongoObserver, RunObserver

from experiments.records.files import hold, release
from experiments.records.guarded import guarded, say
from experiments.records.stored_records import completed, mark_killed, read_record, save

LARGEST = 2**18  # characters of the output, or of one entry of `info`, that a record keeps: MongoDB takes 16 MB in all

TOO_LARGE = f"left out: more than {LARGEST} characters"


class Record(MongoObserver):
    """Sacred's MongoObserver, that fills a file instead of a database.

    `shown` are settings as they were in force, where the command changed them.
    """

    def __init__(self, folder, shown):
        self.folder, self.path, self.shown = Path(folder), Path(folder) / "sacred", shown
        self.place, self.said = f"Sacred's record {self.path}", False
        self.run_entry = self.overwrite = self.alive = None
        self.begun = False
        self.priority = 30  # before the files, which would hand their number to the database
        self.turn = RLock()

    def __eq__(self, other):
        return self is other

    def started_event(self, **event):
        self.folder.mkdir(parents=True, exist_ok=True)  # where this is refused there can be no run
        self.begun = True
        return self._start(**event)

    @guarded
    def _start(self, ex_info, config, **more):
        mark_killed(self.folder.parent)
        name = self.folder.name if ex_info["name"] == "askmask" else ex_info["name"]  # Sacred's `-n NAME`
        return super().started_event(ex_info=ex_info | {"name": name}, config=config | self.shown, **more)

    heartbeat_event = guarded(MongoObserver.heartbeat_event)
    completed_event = guarded(MongoObserver.completed_event)
    interrupted_event = guarded(MongoObserver.interrupted_event)
    failed_event = guarded(MongoObserver.failed_event)

    @guarded
    def artifact_event(self, name, filename, metadata=None, content_type=None):
        path = os.path.relpath(filename, self.folder.parent)
        self.run_entry["artifacts"].append({"name": name, "path": path})
        self.save()

    @guarded
    def log_metrics(self, metrics_by_name, info):
        """Note when each step was measured; the values are the ledger's."""
        for metric in metrics_by_name.values():
            for step, time in zip(metric["steps"], metric["timestamps"], strict=True):
                self.run_entry["measured"].setdefault(str(step), str(time))

    @guarded
    def resource_event(self, filename):
        """Nothing: the ledger has the data's fingerprints."""

    def save_sources(self, ex_info):
        return ex_info["sources"]

    def insert(self):
        self.path.mkdir(parents=True, exist_ok=True)
        uid = f"{self.run_entry['start_time']:%Y%m%d-%H%M%S}-{uuid4().hex[:12]}"
        self.run_entry["measured"] = {}
        self.path /= f"{uid}.json"
        self.alive = hold(self.path.with_suffix(".lock"))
        self.save()

    def save(self):
        entry = {key: value for key, value in self.run_entry.items() if key != "_id"}
        info = {key: value if len(json.dumps(value)) < LARGEST else TOO_LARGE for key, value in entry["info"].items()}
        entry |= {"captured_out": shortened(entry["captured_out"]), "info": info}
        if "fail_trace" in entry:
            entry["fail_trace"] = [shortened(text) for text in entry["fail_trace"]]
        save(self.path, entry)

    def final_save(self, attempts):
        with self.alive or nullcontext():  # where it cannot be saved, the lock stays: the next start marks the record
            self.save()
            if self.alive:
                release(self.path.with_suffix(".lock"), self.alive)


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


class LaterNotes(RunObserver):
    """For a run that was finished before: its record gets the note and the tags of this start."""

    priority = 30

    def __init__(self, folder):
        self.folder, self.place, self.turn = Path(folder), f"The note to {folder}", RLock()
        self.begun = self.said = False

    @guarded
    def started_event(self, config, meta_info, **more):
        mark_killed(self.folder.parent)
        path = completed(self.folder)
        lock = path.with_suffix(".lock")
        held = hold(lock)
        if held:
            try:
                record = read_record(path)
                noted = with_notes(record, meta_info.get("comment") or "", config["tags"])
                if noted != record:
                    save(path, noted)
                    say(f"{self.folder} is finished: the note and tags are added to its record.")
            finally:
                release(lock, held)


def with_notes(record, note, tags):
    """The record with a note below its own one and with more tags, each once."""
    known, new = (
        [word.strip() for word in text.split(",") if word.strip()] for text in (record["config"].get("tags", ""), tags)
    )
    more = [word for word in dict.fromkeys(new) if word not in known]
    if more:
        record = record | {"config": record["config"] | {"tags": ", ".join(known + more)}}
    old = record["meta"].get("comment") or ""
    if note and note not in old.split("\n"):
        record = record | {"meta": record["meta"] | {"comment": f"{old}\n{note}".strip()}}
    return record
