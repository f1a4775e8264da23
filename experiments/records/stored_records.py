"""The records in a results folder, results/<label>_<run>/sacred/<uid>.json: found, read as data only, marked, added to.

A results folder may come from a stranger: sizes are bounded, shapes are checked, links lead nowhere.
"""

import json
from pathlib import Path

from experiments.errors import Refused
from experiments.records.files import hold, release, write
from experiments.records.ledger import evaluations, read

LARGEST_RECORD = 2**24  # bytes: what MongoDB takes
SHAPE = {
    "status": str,
    "start_time": str,
    "captured_out": str,
    "config": dict,
    "experiment": dict,
    "info": dict,
    "measured": dict,
    "meta": dict,
    "artifacts": list,
}


def records(folder):
    """The record files in a results folder or a run's, oldest first."""
    return sorted(Path(folder).rglob("sacred/*.json"), key=lambda path: path.name)


def read_record(path):
    """The record in this file; Refused if it is none."""
    return read_object(path, SHAPE)


def read_object(path, shape):
    """The JSON object in a file, in which the keys of `shape` have values of these types; Refused if it is none."""
    try:
        if path.resolve() != path.parents[1].resolve() / path.parent.name / path.name or not path.is_file():
            raise ValueError("a link or no plain file")
        if path.stat().st_size > LARGEST_RECORD:
            raise ValueError(f"more than {LARGEST_RECORD} bytes")
        found = json.loads(path.read_bytes())
        if not isinstance(found, dict):
            raise ValueError("no JSON object")
        wrong = [key for key, kind in shape.items() if not isinstance(found.get(key), kind)]
        if wrong:
            raise ValueError(f"its {wrong[0]} is missing or not what a run writes")
    except FileNotFoundError:
        raise Refused(f"{path} is gone.") from None
    except (ValueError, RuntimeError) as error:  # the latter for JSON without a bottom and links in a circle
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise Refused(f"{path} is no record of a run ({reason}): restore it from a copy, or remove it.") from error
    return found


def save(path, record):
    write(path, json.dumps(record, default=str, sort_keys=True, indent=1).encode())


def mark_if_killed(path):
    """Mark the record of a run that was killed as INTERRUPTED; every step of the ledger belongs to it."""
    lock = path.with_suffix(".lock")
    held = hold(lock)
    if held:
        try:
            path.with_name(path.name + ".part").unlink(missing_ok=True)
            record = read_record(path) if path.exists() else {"status": "never begun"}
            if record["status"] == "RUNNING":
                last = record.get("heartbeat") or record["start_time"]
                for event in measured(path):
                    record["measured"].setdefault(str(event["images"]), last)
                save(path, record | {"status": "INTERRUPTED", "stop_time": last})
                if isinstance(record["config"].get("runs_dir"), str) and record["config"]["runs_dir"]:
                    mark_killed_files(record["config"]["runs_dir"])
        finally:
            release(lock, held)


def mark_killed(folder):
    """Mark what killed runs have left in a results folder; what cannot be marked stays for `sync` to name."""
    for lock in Path(folder).rglob("sacred/*.lock"):
        try:
            mark_if_killed(lock.with_suffix(".json"))
        except (OSError, Refused):
            continue


def measured(path):
    """The evaluations in the ledger that a record lies beside, with what its query's audit and repeats found later."""
    return evaluations(read(path.parents[1]))


def completed(folder):
    """The newest record of a run's folder that tells of its end and of every evaluation in the ledger, or None."""
    for path in reversed(records(folder)):
        try:
            record, images = read_record(path), {str(event["images"]) for event in measured(path)}
        except (OSError, Refused):
            continue
        if record["status"] == "COMPLETED" and images <= record["measured"].keys():
            return path
    return None


def mark_killed_files(folder):
    """Mark the runs in a `runs_dir` whose process is gone as INTERRUPTED; what cannot be marked is left."""
    for lock in Path(folder).glob("*/lock"):
        try:
            held = hold(lock)
        except OSError:
            continue
        if held:
            run = lock.with_name("run.json")
            try:
                for part in lock.parent.glob("*.part"):
                    part.unlink()
                record = read_object(run, {"status": str, "start_time": str})
                if record["status"] == "RUNNING":
                    end = record.get("heartbeat") or record["start_time"]
                    record |= {"status": "INTERRUPTED", "stop_time": end}
                    write(run, json.dumps(record, sort_keys=True, indent=2).encode())
                release(lock, held)
            except (OSError, Refused):
                held.close()
