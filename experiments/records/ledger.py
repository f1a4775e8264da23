"""The durable record of a run: an append-only, fsynced JSON-lines file from which everything else is made.

One folder a run, `<results_dir>/<label>_<run>/`. A line is an event: `start` (settings, data, initial queries),
then per cycle `evaluated` (metrics, weights) and `queried` (what to label next). There is no clock, host or path
in it, so two runs compare byte for byte; seconds go to timing.jsonl. Running the same command again replays the
events and goes on after the last one.
"""

import fcntl
import io
import json
import os
from pathlib import Path

import numpy as np

from experiments.errors import Refused
from experiments.network.checkpoint import hash_weights
from experiments.reading import MAX_WEIGHTS, regular
from experiments.records.files import append_line, write

# settings that a continued run may change: where things lie and run, not what is computed
FREE = {"results_dir", "runs_dir", "mongo_url", "tensorboard_dir", "tags", "device", "cycles", "root", "checkpoint"}
FREE |= {"noted"}
CEILING = {"label": "full", "initial": "first", "start": 1.0, "cycles": 0}  # what the command `full` changes


class Ledger:
    """Open with `with Ledger(folder, settings, data) as ledger`; a second process on the same folder is refused."""

    def __init__(self, folder, settings, data):
        self.folder, self.header = Path(folder), {"settings": comparable(settings), "data": data}

    def __enter__(self):
        for name in ("checkpoint", "queries"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self._lock = open(self.folder / "lock", "w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise Refused(f"{self.folder} is being written by another run: wait or set label=...") from None
        try:
            cut_torn_line(self.folder / "ledger.jsonl")
            self.events = read(self.folder)
            if self.events:
                start = self.events[0]
                refuse_other(self.folder, {key: start[key] for key in self.header}, self.header)
        except BaseException:
            self._lock.close()
            raise
        return self

    def __exit__(self, *error):
        self._lock.close()

    def find(self, event, cycle=0):
        """The event of that kind and cycle, or None."""
        return next((e for e in self.events if e["event"] == event and e["cycle"] == cycle), None)

    @property
    def headline(self):
        """The metric that judges this run; a ledger that does not say so is of a dataset judged by Dice."""
        return self.events[0].get("headline", "test.dice")

    def append(self, event, cycle=0, **values):
        """Write one event for good before returning it, as it will read back."""
        line = json.dumps({"event": event, "cycle": cycle, **values}, sort_keys=True, allow_nan=False)
        if not self.events:
            line = json.dumps({**json.loads(line), **self.header}, sort_keys=True, allow_nan=False)
        append_line(self.folder / "ledger.jsonl", line)
        self.events.append(json.loads(line))
        return self.events[-1]

    def time(self, cycle, **seconds):
        """Note how long parts of a cycle took; apart from the ledger, for seconds never repeat."""
        append_line(self.folder / "timing.jsonl", json.dumps({"cycle": cycle, **seconds}))

    def save_weights(self, cycle, state, keep):
        """Write checkpoint/cycle_<n>.safetensors unless `keep` is none. Returns the weights' sha256."""
        from safetensors.torch import save

        state = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
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
        return state if hash_weights(state) == digest else None

    def write_arrays(self):
        """Make <label>_<run>.npy, dice.npy and budget.npy from the evaluated events; returns the paths."""
        evaluated = [e for e in self.events if e["event"] == "evaluated"]
        arrays = {self.folder / "budget.npy": np.array([[e["images"], e["pixels"]] for e in evaluated])}
        if self.headline in evaluated[-1]["metrics"]:
            curve = np.array([e["metrics"][self.headline] for e in evaluated], dtype=np.float64)
            arrays[self.folder.with_name(self.folder.name + ".npy")] = curve
            arrays[self.folder / "dice.npy"] = np.array([e["per_image"]["dice"] for e in evaluated], dtype=np.float64)
        for path, array in arrays.items():
            buffer = io.BytesIO()
            np.save(buffer, array, allow_pickle=False)
            write(path, buffer.getvalue())
        return list(arrays)

    def _weights(self, cycle):
        return self.folder / "checkpoint" / f"cycle_{cycle:03d}.safetensors"


def check(folder, settings):
    """Raise Refused if `folder` holds a run of other settings than these."""
    events = read(folder)
    if events:
        refuse_other(folder, {"settings": events[0]["settings"]}, {"settings": comparable(settings)})


def refuse_other(folder, *headers):
    """Raise Refused, naming the differences, if two headers {settings, data} differ."""
    was, now = (dict(_flat({**h, **h["settings"], "settings": {}})) for h in headers)
    changed = sorted(k for k in was.keys() | now.keys() if was.get(k) != now.get(k))
    if changed:
        shown = ", ".join(f"{k} {was.get(k)!r} -> {now.get(k)!r}" for k in changed[:4])
        more = f" and {len(changed) - 4} more" if len(changed) > 4 else ""
        raise Refused(
            f"{folder} holds a run of another configuration ({shown}{more}): "
            "set label=... or results_dir=..., or repeat the old settings."
        )


def read(folder):
    """All events of a run's folder, [] if there is none; a last line without its end is still being written."""
    path = Path(folder) / "ledger.jsonl"
    try:
        events = [json.loads(line) for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
        if not all(isinstance(event, dict) and {"event", "cycle"} <= event.keys() for event in events):
            raise ValueError("a line is no event")
        return events
    except FileNotFoundError:
        return []
    except ValueError as error:
        raise Refused(f"{path} is damaged ({error}): restore it from a copy, or move the folder away.") from error


def cut_torn_line(path):
    """Remove the half of a line that a crash left at the end of the file."""
    if path.exists():
        data = path.read_bytes()
        if not data.endswith(b"\n"):
            os.truncate(path, data.rfind(b"\n") + 1)


def finished(folder, cycles):
    """Whether the run in `folder` has nothing left to do for this many cycles."""
    done = [e for e in read(folder) if e["event"] == "evaluated"]
    return bool(done) and (len(done) > cycles or done[-1]["pool"] == 0)


def comparable(settings):
    """The settings that decide the results, sections included, without the FREE ones."""
    kept = {key: value for key, value in settings.items() if key not in FREE}
    return {key: comparable(value) if isinstance(value, dict) else value for key, value in kept.items()}


def _flat(settings, prefix=""):
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
