"""Where Sacred's record of a run goes: beside its ledger, as files into `runs_dir`, from there to MongoDB."""

from pathlib import Path
from threading import Event, Thread
from time import monotonic

from sacred.observers import FileStorageObserver, RunObserver

from experiments.records.ledger import CEILING, finished
from experiments.records.sacred_record import Record, say

ATTEMPT = 4  # seconds that one exchange with the database may take
PATIENCE = 9  # seconds that a run waits for it at its end: an exchange under way, and one more
REST = 30  # seconds until a database that failed is asked again


def observers(config, url, command):
    """The observers of a run with this configuration; one that is already finished is not recorded again."""
    config = {**config, **CEILING} if command == "full" else config
    folder = Path(config["results_dir"]) / f"{config['label']}_{config['run']}"
    level = [MongoSync(url, folder)] if url else []
    if finished(folder, config["cycles"]):
        return level
    files = [FileStorageObserver(config["runs_dir"])] if config["runs_dir"] else []
    if config["tensorboard_dir"]:
        from experiments.records.tensorboard import TensorBoard  # optional

        files.append(TensorBoard(config["tensorboard_dir"], folder))
    return [Record(folder), *files, *level]


class MongoSync(RunObserver):
    """Brings the database level at each heartbeat, from a thread of its own: only the end of a run waits for it.

    First the run's own folder, then, once, whatever an earlier run left in the results folder.
    """

    priority = 0  # after the record is written

    def __init__(self, url, folder):
        self.url, self.folder = url, folder
        self.beat, self.done = Event(), Event()
        self.ended = self.said = False

    def started_event(self, **event):
        self.thread = Thread(target=self._work, daemon=True)
        self.thread.start()
        self.beat.set()

    def heartbeat_event(self, **event):
        self.beat.set()

    def completed_event(self, **event):
        self.ended = True
        self.beat.set()
        self.thread.join(PATIENCE)
        if not self.done.is_set():
            self._say("MongoDB does not answer in time")
        self.said = True

    interrupted_event = failed_event = completed_event

    def _work(self):
        rested, others = 0, True
        while not self.done.is_set():
            self.beat.wait()
            self.beat.clear()
            last = self.ended
            if last or monotonic() >= rested:
                try:
                    self._synchronise(self.folder)
                    if last:
                        self.done.set()
                    others = others and not self._synchronise(self.folder.parent)
                except Exception as error:
                    from experiments.records.mongo import reason

                    self._say(reason(error))
                    rested = monotonic() + REST
            if last:
                self.done.set()

    def _synchronise(self, folder):
        """Whether the folder was gone through before the next beat."""
        from experiments.records.mongo import opened, outdated, upsert_run  # late, for a run without a database

        with opened(self.url, ATTEMPT) as database:
            paths = outdated(database, folder)
        for path in paths:
            if self.beat.is_set() and folder != self.folder:
                return False
            with opened(self.url, ATTEMPT) as database:
                upsert_run(database, path)
        return True

    def _say(self, what):
        if not self.said:
            results = self.folder.parent
            say(f"{what}: the run goes on, `python -m experiments.sync {results}` brings the database level later.")
        self.said = True
