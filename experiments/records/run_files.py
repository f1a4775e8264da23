"""Sacred's own record of a run in files, `runs_dir`: each replaced whole, none of them able to end a run."""

import json
import os
from contextlib import nullcontext
from pathlib import Path
from threading import RLock

from sacred.observers import FileStorageObserver
from sacred.serializer import flatten

from experiments.records.files import hold, release, write
from experiments.records.guarded import guarded
from experiments.records.stored_records import mark_killed_files


class RunFiles(FileStorageObserver):
    """Sacred's FileStorageObserver; `shown` are settings as they were in force, where the command changed them."""

    def __init__(self, folder, shown):
        folder = Path(folder)
        self.initialize(folder, folder / "_resources", folder / "_sources", None)
        self.place, self.shown, self.turn, self.lock = f"runs_dir={folder}", shown, RLock(), None
        self.begun = self.said = False
        self.measured = {}  # {metric: {"steps", "timestamps", "values": the texts of what was logged}}

    @guarded
    def started_event(self, ex_info, config, **more):
        mark_killed_files(self.basedir)
        number = super().started_event(ex_info=ex_info, config=config | self.shown, **more)
        self.begun = True
        return number

    def _make_run_dir(self, _id):
        super()._make_run_dir(_id)
        self.lock = hold(Path(self.dir) / "lock")

    def save_json(self, obj, filename):
        write(Path(self.dir) / filename, json.dumps(flatten(obj), sort_keys=True, indent=2).encode())

    heartbeat_event = guarded(FileStorageObserver.heartbeat_event)
    artifact_event = guarded(FileStorageObserver.artifact_event)
    resource_event = guarded(FileStorageObserver.resource_event)

    @guarded
    def log_metrics(self, metrics_by_name, info):
        """metrics.json as Sacred writes it, which would read and parse all of it each time, the longer the more."""
        for name, metric in metrics_by_name.items():
            held = self.measured.setdefault(name, {key: bytearray() for key in ("steps", "timestamps", "values")})
            times = [time.isoformat() for time in metric["timestamps"]]
            for key, values in {"steps": metric["steps"], "timestamps": times, "values": metric["values"]}.items():
                held[key] += (b", " if held[key] and values else b"") + json.dumps(flatten(values))[1:-1].encode()
        lines = (
            f"{json.dumps(name)}: {{" + ", ".join(f'"{key}": [{text.decode()}]' for key, text in held.items()) + "}"
            for name, held in sorted(self.measured.items())
        )
        write(Path(self.dir) / "metrics.json", ("{\n" + ",\n".join(lines) + "\n}").encode())

    @guarded
    def completed_event(self, **more):
        self._end(super().completed_event, more)

    @guarded
    def interrupted_event(self, **more):
        self._end(super().interrupted_event, more)

    @guarded
    def failed_event(self, **more):
        self._end(super().failed_event, more)

    def _end(self, event, more):
        with self.lock or nullcontext():
            event(**more)
            if self.lock:
                release(os.path.join(self.dir, "lock"), self.lock)
