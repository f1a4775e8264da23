"""The ledger of a run: an append-only, fsynced JSON-lines file from which everything else is made.

One folder a run, `<results_dir>/<label>_<run>/`. A line is an event: `start` (settings, data, initial queries),
then per cycle `evaluated` (metrics, weights) and `queried` (what to label next), and between them `resumed` where other
versions or another device went on, `answered` where people drew masks, `joined` where images came, `audited` where the
model was measured on images drawn at random, `repeated` where masks were drawn twice. There is no clock, host or path
in it, so two runs compare byte for byte; seconds go to timing.jsonl. Each line ends in a hash of all before it
(chain.py). Running the same command again replays the events and goes on after the last one.
"""

import fcntl
import io
import json
import os
from pathlib import Path

import numpy as np

from experiments.errors import Refused
from experiments.errors.process import unusable
from experiments.network.checkpoint import hash_weights, refuse_not_finite
from experiments.records.chain import Chain
from experiments.records.compare import (
    recorded,
    refuse_other_ids,
    refuse_other_images,
    refuse_other_making,
    refuse_other_settings,
)
from experiments.records.files import append_line, write
from experiments.store.reading import MAX_WEIGHTS, regular

CEILING = {"label": "full", "initial": "first", "start": 1.0, "cycles": 0}  # what the command `full` changes


class Ledger:
    """Open with `with Ledger(folder, settings, data) as ledger`; a second process on the same folder is refused.

    `usual` are the defaults of the settings, `ids` those of the training images, `more` JSON values that the first
    line has beside settings and data. Raises Refused where the folder holds another run, or a damaged one.
    """

    def __init__(self, folder, settings, data, usual=None, ids=None, **more):
        self.folder, self.settings, self.usual, self.ids = Path(folder), settings, usual or {}, ids
        self.path = self.folder / "ledger.jsonl"
        self.header = {"settings": recorded(settings), "data": data, **more}

    def __enter__(self):
        try:
            for name in ("checkpoint", "queries"):
                (self.folder / name).mkdir(parents=True, exist_ok=True)
            self._lock = open(self.folder / "lock", "w")
        except OSError as error:
            raise unusable(self.folder, error, "written", ", or set results_dir=...") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise Refused(f"{self.folder} is being written by another run: wait or set label=...") from None
        try:
            self.chain = Chain(self.path, looked_at_again)
            if self.events:
                anyway = self.settings.get("resume") == "anyway"
                line = refuse_other_settings(self.folder, self.events[0]["settings"], self.settings, self.usual, anyway)
                was = fingerprints(self.events)
                refuse_other_images(self.folder, was, self.header["data"])
                if self.ids is not None:
                    refuse_other_ids(self.path, self.events, self.ids)
                if line:
                    print(line, flush=True)
            self._tidy()
        except BaseException:
            self._lock.close()
            raise
        return self

    def __exit__(self, *error):
        self._lock.close()

    def _tidy(self):
        """Remove what a crash left: the half of a last line, files half written, checkpoints whose turn was over."""
        cut_torn_line(self.path)
        cut_torn_line(self.folder / "timing.jsonl")
        for place in (self.folder, self.folder / "checkpoint", self.folder / "queries"):
            for part in place.glob("*.part"):
                part.unlink()
        self._curve.with_name(self._curve.name + ".part").unlink(missing_ok=True)
        evaluated = [e for e in self.events if e["event"] == "evaluated"]
        if evaluated:
            self.drop_weights(evaluated[-1]["cycle"], self.settings.get("checkpoint"))

    @property
    def events(self):
        """All events so far, oldest first, as far as a run looks at them again."""
        return self.chain.events

    @property
    def _curve(self):
        return self.folder.with_name(self.folder.name + ".npy")

    def find(self, event, cycle=0):
        """The event of that kind and cycle, or None."""
        return next((e for e in self.events if e["event"] == event and e["cycle"] == cycle), None)

    @property
    def headline(self):
        """The metric that judges this run; a ledger that does not say so is of a dataset judged by Dice."""
        return self.events[0].get("headline", "test.dice")

    def append(self, event, cycle=0, **values):
        """Write one event for good before returning it, as far as a run looks at it again."""
        event = {"event": event, "cycle": cycle, **values} | ({} if self.events else self.header)
        line = self.chain.seal(event)
        append_line(self.path, line)
        return self.chain.add(line)

    def time(self, cycle, **seconds):
        """Note how long parts of a cycle took; apart from the ledger, for seconds never repeat."""
        append_line(self.folder / "timing.jsonl", json.dumps({"cycle": cycle, **seconds}))

    def save_weights(self, cycle, state, keep):
        """Write checkpoint/cycle_<n>.safetensors unless `keep` is none. Returns the weights' sha256."""
        from safetensors.torch import save

        state = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
        refuse_not_finite(state, f"The weights of cycle {cycle}", "lower trainer.lr")
        digest = hash_weights(state)
        if keep != "none":
            write(self._weights(cycle), save(state, {"sha256": digest}))
        return digest

    def drop_weights(self, cycle, keep):
        """Where `keep` is last, remove those of all other cycles: only now that this one's event is written."""
        for old in (self.folder / "checkpoint").glob("cycle_*.safetensors"):
            if keep == "last" and old != self._weights(cycle):
                old.unlink()

    def load_weights(self, cycle, digest):
        """The saved state of a cycle, or None if it is missing or not what the ledger recorded."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            state = load_file(regular(self._weights(cycle), MAX_WEIGHTS))
        except (OSError, SafetensorError):
            return None
        if hash_weights(state) != digest:
            return None
        what = f"The weights in {self._weights(cycle)}"
        refuse_not_finite(state, what, "lower trainer.lr and start anew with label=...")
        return state

    def write_arrays(self):
        """Make <label>_<run>.npy, dice.npy and budget.npy from the evaluated events; returns the paths."""
        evaluated = [e for e in self.events if e["event"] == "evaluated"]
        budget = [[e["images"], e["pixels"]] for e in evaluated]
        curve = [e["metrics"].get(self.headline) for e in evaluated]
        arrays = {self.folder / "budget.npy": np.array(budget)}
        if curve[-1] is not None:
            dice = [e["per_image"]["dice"] for e in evaluated]
            try:
                arrays[self.folder / "dice.npy"] = np.array(dice, np.float64)
            except ValueError as error:
                raise Refused(
                    f"{self.path} is damaged (the test images are not always as many): restore it."
                ) from error
            arrays[self._curve] = np.array(curve, np.float64)
        for path, array in arrays.items():
            buffer = io.BytesIO()
            np.save(buffer, array, allow_pickle=False)
            write(path, buffer.getvalue())
        return list(arrays)

    def _weights(self, cycle):
        return self.folder / "checkpoint" / f"cycle_{cycle:03d}.safetensors"


def looked_at_again(event):
    """What a run holds of an event for all its cycles: of test images their Dice alone, (images, classes)."""
    if event["event"] != "evaluated":
        return event
    tables = {name: np.array(table, np.float64) for name, table in event["per_image"].items() if name == "dice"}
    return {name: value for name, value in event.items() if name != "calibration"} | {"per_image": tables}


def check(folder, settings, usual, made_with):
    """Raise Refused if `folder` holds a damaged run, one of other settings, or an unfinished one made otherwise.

    `made_with` is a function, for what it gives takes seconds and is looked at only where a run goes on.
    """
    events, anyway = read(folder), settings["resume"] == "anyway"
    if events:
        refuse_other_settings(folder, events[0]["settings"], settings, usual, anyway)
        if not is_finished(events, settings["cycles"], settings.get("stop_at", 0)):
            refuse_other_making(folder, events, made_with(), anyway)


def fingerprints(events):
    """Those of the train, val and test images of a run, with what joined since it began."""
    later = [event["fingerprint"] for event in events if event["event"] == "joined"]
    return [*later[-1:], *events[0]["data"][len(later[-1:]) :]]


def read(folder):
    """All events of a run's folder, [] if there is none; a last line without its end is still being written.

    Raises Refused, naming file and line, where the ledger is damaged.
    """
    return Chain(Path(folder) / "ledger.jsonl").events


def evaluations(events):
    """The evaluated events, each with the metrics that the audit and the repeats of the query after it brought."""
    later = {}
    for event in events:
        if event["event"] in ("audited", "repeated"):
            later[event["cycle"]] = later.get(event["cycle"], {}) | event["metrics"]
    found = [event for event in events if event["event"] == "evaluated"]
    return [event | {"metrics": event["metrics"] | later.get(event["cycle"], {})} for event in found]


def cut_torn_line(path):
    """Remove the half of a line that a crash left at the end of the file."""
    if path.exists():
        data = path.read_bytes()
        if not data.endswith(b"\n"):
            os.truncate(path, data.rfind(b"\n") + 1)


def finished(folder, cycles, stop_at=0.0):
    """Whether the run in `folder` has nothing left to do for this many cycles, or this validation headline."""
    return is_finished(read(folder), cycles, stop_at)


def is_finished(events, cycles, stop_at=0.0):
    """Whether the run of these events has nothing left to do for this many cycles, or this validation headline."""
    done = [e for e in events if e["event"] == "evaluated"]
    joined = any(e["event"] == "joined" for e in events[events.index(done[-1]) :]) if done else False
    return bool(done) and (len(done) > cycles or (done[-1]["pool"] == 0 and not joined) or reached(events, stop_at))


def validation_headline(events):
    """The metric of the validation images that corresponds to the one of the test images which judges the run."""
    return events[0].get("headline", "test.dice").replace("test.", "val.", 1)


def reached(events, stop_at, cycle=None):
    """Whether validation images had at least `stop_at`, 0 for never, in a cycle, by default in the last tested one."""
    done = [e for e in events if e["event"] == "evaluated" and cycle in (None, e["cycle"])]
    value = done[-1]["metrics"].get(validation_headline(events)) if stop_at and done else None
    return value is not None and value >= stop_at
