"""Where Sacred's record of a run goes: beside its ledger, from there to MongoDB, and as files into `runs_dir`."""

from pathlib import Path
from threading import Event, Thread
from time import monotonic

from sacred.observers import RunObserver

from experiments.errors.process import stop_asked
from experiments.records.guarded import say
from experiments.records.ledger import CEILING, finished
from experiments.records.run_files import RunFiles
from experiments.records.sacred_record import LaterNotes, Record
from experiments.records.stored_records import completed

ATTEMPT = 4  # seconds that one exchange with the database may take
PATIENCE = 9  # seconds that a run waits for it at its end: an exchange under way, and one more
HASTE = 1.5  # seconds, where a signal asks the run to stop
RETRY = 30  # seconds until a database that failed is asked again


def observers(config, url, command):
    """The observers of a run with this configuration; one that is finished and recorded gets no second record."""
    shown = {**CEILING, "heuristic": "full"} if command == "full" else {}
    config = config | shown
    folder = Path(config["results_dir"]) / f"{config['label']}_{config['run']}"
    database = [MongoSync(url, folder)] if url else []
    if finished(folder, config["cycles"], config["stop_at"]) and completed(folder):
        return [LaterNotes(folder), *database]
    files = [RunFiles(config["runs_dir"], shown)] if config["runs_dir"] else []
    if config["tensorboard_dir"]:
        from experiments.records.tensorboard import TensorBoard  # optional

        files.append(TensorBoard(config["tensorboard_dir"], folder))
    return [Record(folder, shown), *files, *database]


class MongoSync(RunObserver):
    """Stores the run in the database at each heartbeat, from a thread of its own: only the end of a run waits for it.

    First the run's own folder, then, once, whatever ended runs have left in the results folder.
    """

    priority = 0  # after the record is written

    def __init__(self, url, folder):
        self.url, self.folder = url, folder
        self.beat, self.done = Event(), Event()
        self.ended = self.said = False
        self.thread = None

    def started_event(self, **event):
        self.thread = Thread(target=self._work, daemon=True)
        self.thread.start()
        self.beat.set()

    def heartbeat_event(self, **event):
        self.beat.set()

    def completed_event(self, **event):
        if self.thread is None:  # the run could not be started
            return
        self.ended = True
        self.beat.set()
        began = monotonic()
        while self.thread.is_alive() and monotonic() < began + (HASTE if stop_asked() else PATIENCE):
            self.thread.join(0.1)
        if not self.done.is_set():
            self._say("MongoDB does not answer in time")
        self.said = True

    interrupted_event = failed_event = completed_event

    def _work(self):
        next_try, others = 0, True
        while not self.done.is_set():
            self.beat.wait()
            self.beat.clear()
            last = self.ended
            if last or monotonic() >= next_try:
                try:
                    self._synchronise(self.folder)
                    if last:
                        self.done.set()
                    others = others and not self._synchronise(self.folder.parent)
                except Exception as error:
                    from experiments.records.mongo import reason

                    self._say(reason(error))
                    next_try = monotonic() + RETRY
            if last:
                self.done.set()

    def _synchronise(self, folder):
        """Whether the folder was gone through before the next beat; a run of its own is stored while it goes on."""
        from experiments.records.mongo import compare, lost, opened, reason, upsert_run  # late: a run may need none

        own = folder == self.folder
        with opened(self.url, ATTEMPT) as database:
            found = compare(database, folder, thorough=not own)
        for path in [*found.outdated, *(found.going_on if own else ())]:
            if self.beat.is_set() and not own:
                return False
            try:
                with opened(self.url, ATTEMPT) as database:
                    upsert_run(database, path)
            except Exception as error:
                if own or lost(error):
                    raise
                self._say(f"{path}: {reason(error)}")
        return True

    def _say(self, what):
        if not self.said:
            say(f"{what}: the run goes on, `python -m experiments.sync {self.folder.parent}` stores it later.")
        self.said = True
