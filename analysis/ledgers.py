"""Which runs of a results folder count: those that are finished and whole; every other one gets a line that says why.

Curves, statistics, calibration, cost and the report all read runs through `finished`, so none shows what another
leaves out. Whatever lies in the folder is taken as data from a stranger: read with bounds, checked before it is used.
"""

import io
import json
import math
import os
from pathlib import Path
from tokenize import TokenError

import numpy as np

from experiments.errors import Refused
from experiments.records.ledger import CEILING, reached, read

SETTINGS = ["dataset", "heuristic", "batch", "initial", "model", "label", "run"]
LARGEST = 2**28  # bytes of a file that is opened
COUNTS = 2**53  # above any number of images or pixels
# what numpy raises of a damaged head, which it reads as Python's literals
UNREADABLE = (
    ValueError,
    EOFError,
    OSError,
    OverflowError,
    SyntaxError,
    TypeError,
    MemoryError,
    RecursionError,
    TokenError,
)


def silent(line):
    """For `say`, where the lines were said before."""


def aloud(line):
    """Print a line that may hold anything a stranger called a run."""
    print(printable(line), flush=True)


def printable(text):
    """`text` without what would steer a terminal or cannot be encoded."""
    return "".join(mark if mark.isprintable() or mark == "\n" else "?" for mark in text)


def finished(root, say=aloud):
    """{folder: events} of the runs below `root` that are finished and whole, sorted; links are followed.

    `say` is called with one line for each run that is left out: unfinished (fewer evaluations than the cycles that
    its newest start asked for, images being left in the pool), or damaged (a ledger or an array that cannot be read,
    is larger than LARGEST, or disagrees with the other).
    """
    books = {}
    for folder, names in walk(root, say):
        if "ledger.jsonl" not in names:
            continue
        try:
            events = events_of(folder)
            measured = agreed(folder, events)
        except Refused as refused:
            say(f"{str(refused).rstrip('.')} - left out.")
            continue
        left_out = unfinished(folder, events, measured)
        if left_out:
            say(f"{left_out}: left out.")
        else:
            books[folder] = events
    return books


def walk(root, say=silent):
    """Yield (folder, names of its files) of `root` and all below it, through links too, each place once."""
    seen = {os.path.realpath(root)}

    def unread(error):
        say(f"{error.filename} cannot be opened ({error.strerror}): left out.")

    for place, folders, names in os.walk(root, followlinks=True, onerror=unread):
        folders.sort(key=lambda name: (os.path.islink(os.path.join(place, name)), name))
        new = {name: os.path.realpath(os.path.join(place, name)) for name in folders}
        folders[:] = [name for name in folders if new[name] not in seen and not seen.add(new[name])]
        yield Path(place), sorted(names)


def events_of(folder):
    """All events of a run's ledger, checked to be what a run writes. Raises Refused naming the file and the line."""
    path = Path(folder) / "ledger.jsonl"
    if not path.exists():
        return []
    bounded(path)
    try:
        events = read(folder)
    except (OSError, RecursionError, ValueError) as error:
        raise Refused(f"{path} is damaged ({type(error).__name__}): restore it from a copy.") from error
    for number, event in enumerate(events, 1):
        try:
            _check(events[0], event, first=number == 1)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            said = f"no {error}" if isinstance(error, KeyError) else str(error).partition("\n")[0]
            raise Refused(f"{path}, line {number} is no event of a run ({said}): restore it from a copy.") from error
    evaluated = [event for event in events if event["event"] == "evaluated"]
    images = [event["images"] for event in evaluated]
    if [event["cycle"] for event in evaluated] != list(range(len(evaluated))) or sorted(set(images)) != images:
        raise Refused(f"{path} is damaged (evaluations are lost, doubled or swapped): restore it from a copy.")
    return events


def _check(start, event, first):
    """Raise where an event lacks what analysis reads of it."""
    kind = event["event"]
    if (kind == "start") != first:
        raise ValueError("'start' must be the first event, and only that")
    _need(_count(event["cycle"]), "cycle is no number of a cycle")
    if kind == "start":
        settings = event["settings"]
        _need(all(isinstance(settings[key], str) for key in SETTINGS[:-1]), "a component's name is no text")
        _need(_count(settings["run"]), "run is no number of a run")
        _need(isinstance(settings.get("evaluation", {}), dict), "evaluation is no section")
        sections = [section for section in settings.values() if isinstance(section, dict)]
        _need(not any(isinstance(v, dict) for section in sections for v in section.values()), "settings too deep")
        for key in ("classes", "test"):
            _need(all(isinstance(name, str) for name in event[key]), f"{key} are no names")
        _need(isinstance(event["data"], list), "data are no fingerprints")
        _need(event.get("constant_dice") is None or math.isfinite(event["constant_dice"]), "constant_dice")
    if kind == "evaluated":
        _need(all(_count(event[key]) for key in ("images", "pixels", "pool")), "a budget is no number")
        _need(all(v is None or math.isfinite(v) for v in event["metrics"].values()), "a metric is no number")
        for values in event["per_image"].values():
            shape = (len(start["test"]), len(start["classes"]))
            _need(np.array(values, float).shape == shape, "values of images that were not tested")
        for sums in event.get("calibration", {}).values():
            _need(np.array(sums, float).shape[1:] == (3,), "calibration is no table of three columns")
        for key in ("foreground", "boundary"):
            _need(event.get(key) is None or math.isfinite(event[key]), f"{key} is no number")
    if kind in ("audited", "repeated"):
        _need(all(math.isfinite(value) for value in event["metrics"].values()), "a metric is no number")
    if kind == "answered":
        drawn = [*event["masks"].values(), *event.get("again", {}).values()]
        _need(all(isinstance(version, dict) for versions in drawn for version in versions), "an answer is no mask")
    if kind in ("start", "queried"):
        for query in event["queries"]:
            _need(isinstance(query["id"], str), "an id is no text")
            numbers = [query[key] for key in ("score", "rank", "passes")]
            _need(all(value is None or math.isfinite(value) for value in numbers), "a score is no number")


def _need(holds, otherwise):
    if not holds:
        raise ValueError(otherwise)


def _count(value):
    return type(value) is int and 0 <= value < COUNTS


def agreed(folder, events):
    """How many evaluations the arrays of a run hold. Raises Refused where they are not what its ledger says."""
    evaluated = [event for event in events if event["event"] == "evaluated"]
    said = {
        curve_of(folder): [event["metrics"].get(events[0].get("headline", "test.dice")) for event in evaluated],
        folder / "budget.npy": [[event["images"], event["pixels"]] for event in evaluated],
        folder / "dice.npy": [event["per_image"].get("dice") for event in evaluated],
    }
    lengths = [len(evaluated)]
    for path, values in said.items():
        if not path.exists():
            continue
        array = array_of(bounded(path).read_bytes(), path)
        one_behind = len(array) == len(evaluated) - 1  # the moment between a line of the ledger and the arrays
        same = np.array_equal(array, np.array(values[: len(array)], float), equal_nan=True)
        if not same or not (one_behind or len(array) == len(evaluated)):
            raise Refused(f"{path} is not what its ledger says: the same command writes it anew.")
        lengths.append(len(array))
    return min(lengths)


def unfinished(folder, events, measured):
    """What is said of a run that has not yet all of its `measured` evaluations, "" of one that has."""
    if not events:
        return f"{folder} holds a run that has not begun"
    evaluated = [event for event in events if event["event"] == "evaluated"][:measured]
    settings, newest = events[0]["settings"], newest_start(folder)
    who = f"run {settings['run']} of {settings['label']}"
    doing = "was stopped" if newest.get("status") in ("INTERRUPTED", "FAILED") else "is going on"
    if not evaluated:
        return f"{who} {doing} (before its first test)"
    last, cycles = evaluated[-1], newest.get("cycles")
    if last["pool"] == 0 or newest.get("status") == "COMPLETED" and measured == _evaluations(events):
        return ""
    if cycles is None:  # no record of the start is kept here: only a query that nothing follows tells
        return f"{who} {doing} ({last['images']} images so far)" if events[-1]["event"] == "queried" else ""
    missing = cycles + 1 - measured
    if missing <= 0 or reached(events, newest["stop_at"], last["cycle"]):
        return ""
    query = settings.get("query") if _count(settings.get("query")) else 0
    planned = last["images"] + min(missing * query, last["pool"])
    return f"{who} {doing} ({last['images']} of {planned} images)"


def _evaluations(events):
    return sum(event["event"] == "evaluated" for event in events)


def newest_start(folder):
    """{status, cycles, stop_at} of a run's newest start, as Sacred's record beside its ledger says; {} without one."""
    for path in sorted(folder.glob("sacred/*.json"), reverse=True):
        try:
            record = json.loads(bounded(path).read_bytes())
            cycles = CEILING["cycles"] if record["meta"]["command"] == CEILING["label"] else record["config"]["cycles"]
            if _count(cycles):
                stop_at = record["config"].get("stop_at", 0.0)
                return {
                    "status": record["status"],
                    "cycles": cycles,
                    "stop_at": stop_at if isinstance(stop_at, float) else 0,
                }
        except (OSError, ValueError, LookupError, TypeError, RecursionError, Refused):
            continue
    return {}


def bare_arrays(root, pattern):
    """Paths of the arrays below `root` whose names match `pattern` and which belong to no run's folder."""
    for folder, names in walk(root):
        if {"ledger.jsonl", "run.json"} & set(names):  # a run's own arrays, and the copies that Sacred keeps
            continue
        for name in names:
            path = folder / name
            if pattern.fullmatch(name) and not (path.with_suffix("") / "ledger.jsonl").exists():
                yield path


def curve_of(folder):
    """Where a run's learning curve lies: beside its folder, or beside the one that a link leads to."""
    here = folder.with_name(f"{folder.name}.npy")
    there = folder.resolve()
    return here if here.exists() else there.with_name(f"{there.name}.npy")


def bounded(path):
    """`path`, if it is a file of a size that can be read. Raises Refused for pipes, devices and larger ones."""
    try:
        if path.is_file() and path.stat().st_size <= LARGEST:
            return path
    except OSError as error:
        raise Refused(f"{path} cannot be opened ({error.strerror}): mend its rights.") from error
    raise Refused(f"{path} is no file of at most {LARGEST // 2**20} MiB: move it away.")


def array_of(data, name):
    """The array in the bytes of an .npy file: numbers, as many as its head promises. Raises Refused for others."""
    file = io.BytesIO(data)
    try:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError("not the format 1.0 of .npy")
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        if dtype.kind not in "iuf" or not shape:
            raise ValueError("no array of numbers")
        if math.prod(shape) * dtype.itemsize != len(data) - file.tell() or min(shape) < 0:
            raise ValueError("another length than its head says")
        return np.load(io.BytesIO(data), allow_pickle=False)
    except UNREADABLE as error:
        said = str(error).partition("\n")[0]
        raise Refused(f"{name} is damaged ({said}): restore it, or run the same command again.") from error
