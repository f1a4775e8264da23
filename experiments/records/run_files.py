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
    log_metrics = guarded(FileStorageObserver.log_metrics)
    artifact_event = guarded(FileStorageObserver.artifact_event)
    resource_event = guarded(FileStorageObserver.resource_event)

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
