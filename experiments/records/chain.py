"""The lines of a ledger as a hash chain: each ends in the sha256 of every byte of the file before it.

So a line that was edited, lost, doubled or moved is found, and its number said. Lines from before there were hashes,
which only the head of a file can have, are taken as they are; the first hash covers them too.
"""

import json
import os
import re
import stat
import sys
from hashlib import sha256

import numpy as np

from experiments.errors import Refused
from experiments.errors.process import unusable

LARGEST, LONGEST = 2**30, 2**26  # bytes of a ledger and of one of its lines
SEAL = re.compile(rb', "sha256": "([0-9a-f]{64})"\}\n')
SEAL_LENGTH = len(', "sha256": ""}\n') + 64
MUST = {  # what an event has, and of which type
    "start": {"settings": dict, "data": list, "queries": list, "classes": list, "test": list},
    "evaluated": {"images": int, "pixels": int, "pool": int, "metrics": dict, "per_image": dict, "weights": str},
    "queried": {"queries": list},
    "resumed": {"made": dict},
    "answered": {"masks": dict},
    "joined": {"images": list, "fingerprint": str},
    "audited": {"images": int, "ids": list, "metrics": dict, "per_image": dict},
    "repeated": {"images": int, "ids": list, "metrics": dict, "per_image": dict, "by": list},
}
ASIDE = ("resumed", "answered", "joined", "audited", "repeated")  # may stand after any other event
MAY = {
    "headline": str,
    "masks": dict,
    "made": dict,
    "memory": dict,
    "held_out": list,
    "calibration": dict,
    "weights": str,
    "repeats": list,
    "again": dict,
}


class Chain:
    """The events of the file `path`, [] if there is none, and the hash that its next line goes on from.

    `unsealed` counts the lines without a hash. A last line without its end is still being written and left out. What
    `kept(event)` gives of each event is held. Raises Refused, with the line's number, where anything is not as it was
    written.
    """

    def __init__(self, path, kept=lambda event: event):
        self.path, self.kept, self.events = path, kept, []
        self.unsealed, self._steps, self._digest = 0, 0, sha256()
        for number, line in enumerate(_lines(path), 1):
            try:
                self._take(line)
            except RecursionError:
                raise damaged(path, number, "it is nested too deeply") from None
            except ValueError as error:
                raise damaged(path, number, str(error)) from error

    def seal(self, event):
        """The line that an event becomes as the next one; it counts once `add` is called. Raises ValueError."""
        text = json.dumps(event, sort_keys=True, allow_nan=False)
        check_shape(json.loads(text))
        check_order(event, self._steps)
        digest = self._digest.copy()
        digest.update(text[:-1].encode())
        line = f'{text[:-1]}, "sha256": "{digest.hexdigest()}"}}'
        if len(line) >= LONGEST:
            raise Refused(f"{self.path} takes no line of {len(line)} bytes, only up to {LONGEST}: test fewer images.")
        return line

    def add(self, line):
        """The event of this line, which `seal` made and which is on the disk now."""
        return self._take(line.encode() + b"\n")

    def _take(self, line):
        event, seal = _parsed(line), SEAL.fullmatch(line[-SEAL_LENGTH:])
        if seal:
            self._digest.update(line[:-SEAL_LENGTH])
            if self._digest.hexdigest() != seal[1].decode():
                raise ValueError("it, or a line before it, was edited, lost, doubled or moved")
            self._digest.update(seal[0])
            del event["sha256"]
        else:
            if {"sha256", "masks"} & event.keys() or self.unsealed < len(self.events):
                raise ValueError("it was edited or put in: it does not end in the hash that was written")
            self._digest.update(line)
            self.unsealed += 1
        check_shape(event)
        check_order(event, self._steps)
        self._steps += event["event"] not in ASIDE
        self.events.append(self.kept(event))
        return self.events[-1]


def damaged(path, number, reason):
    """The Refused that names a line of a ledger and what is wrong with it."""
    return Refused(f"{path} is damaged in line {number} ({reason}): restore it from a copy, or move the folder away.")


def _lines(path):
    """The whole lines of a regular file of bounded size."""
    try:
        with open(path, "rb", opener=lambda *how: os.open(how[0], how[1] | os.O_NONBLOCK)) as file:  # never wait
            about = os.fstat(file.fileno())
            if not stat.S_ISREG(about.st_mode) or about.st_size > LARGEST:
                raise Refused(f"{path} is no file of at most {LARGEST} bytes: restore it, or move the folder away.")
            number = 0
            while (line := file.readline(LONGEST + 1)).endswith(b"\n"):
                number += 1
                yield line
            if len(line) > LONGEST:
                raise damaged(path, number + 1, f"it is longer than {LONGEST} bytes")
    except FileNotFoundError:
        return
    except OSError as error:
        raise unusable(path, error, "read", ", or set results_dir=...") from error


def _parsed(line):
    """The JSON object of a line; its keys, which all lines repeat, are in memory once."""

    def refuse(name):
        raise ValueError(f"{name} is no JSON")

    def named(pairs):
        return {sys.intern(name): value for name, value in pairs}

    try:
        event = json.loads(line.decode(), parse_constant=refuse, object_pairs_hook=named)
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"it is no JSON: {error.msg} at character {error.pos}") from None
    if not isinstance(event, dict):
        raise ValueError("it is no JSON object")
    return event


def check_shape(event):
    """Raise ValueError if an event lacks something or holds something of another type."""
    kind = event.get("event")
    if not isinstance(kind, str) or kind not in MUST:
        raise ValueError(f"{str(kind)[:40]!r} is no event that this version knows")
    for name, type_ in ({"cycle": int} | MUST[kind] | {k: v for k, v in MAY.items() if k in event}).items():
        if type(event.get(name)) is not type_ or (type_ is int and not 0 <= event[name] < 2**63):
            raise ValueError(f"its {name} is {'no ' + type_.__name__ if name in event else 'missing'}")
    for section in [*event.get("settings", {}).values(), *event.get("made", {}).values()]:
        if isinstance(section, dict) and any(isinstance(value, dict) for value in section.values()):
            raise ValueError("its settings are nested too deeply")
    for query in event.get("queries", []):
        if not isinstance(query, dict) or not isinstance(query.get("id"), str):
            raise ValueError("a query names no image")
        if type(query.get("score", "")) not in (int, float, type(None)):
            raise ValueError("the score of a query is no number")
    if not all(isinstance(id, str) for id in event.get("repeats", [])):
        raise ValueError("a repeat names no image")
    if kind == "answered" and not all(map(is_answer, [*event["masks"].values(), *event.get("again", {}).values()])):
        raise ValueError("a mask that was answered has no sha256")
    if kind == "joined" and not all(isinstance(each, dict) and is_answer([each]) for each in event["images"]):
        raise ValueError("an image that joined has no sha256")
    if kind == "joined" and not all(isinstance(each.get("id"), str) for each in event["images"]):
        raise ValueError("an image that joined has no id")
    if kind == "start" and "images" in event and not is_named(event["images"]):
        raise ValueError("its images are no lists of ids")
    metrics, tables = event.get("metrics", {}), event.get("per_image", {})
    if any(type(value) not in (int, float, type(None)) for value in metrics.values()):
        raise ValueError("its metrics are no numbers")
    if "test.dice" in metrics and "dice" not in tables:
        raise ValueError("its Dice of each image is missing")
    try:
        for table in tables.values():
            np.asarray(table, dtype=np.float64)
    except (ValueError, TypeError):
        raise ValueError("its metrics of each image are no table") from None


def is_answer(versions):
    """Whether these are masks that people drew of an image, each with the hash that it is kept under."""
    if not isinstance(versions, list) or not all(isinstance(version, dict) for version in versions):
        return False
    hashes = [version.get("sha256") for version in versions]
    return bool(hashes) and all(isinstance(text, str) and re.fullmatch("[0-9a-f]{64}", text) for text in hashes)


def is_named(images):
    """Whether these are the ids of the images that train, validate and test."""
    parts = [images.get(part) if isinstance(images, dict) else None for part in ("train", "val", "test")]
    return all(isinstance(ids, list) and all(isinstance(id, str) for id in ids) for ids in parts)


def check_order(event, done):
    """Raise ValueError unless `event` may follow `done` others: start, then evaluated and queried in turn."""
    kind, cycle = (("queried", "evaluated")[done % 2], (done - 1) // 2) if done else ("start", 0)
    if (event["event"], event["cycle"]) != (kind, cycle) and not (done and event["event"] in ASIDE):
        raise ValueError(f"{event['event']} of cycle {event['cycle']} stands where {kind} of cycle {cycle} should")
