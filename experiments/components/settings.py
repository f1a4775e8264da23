"""Settings: read from a YAML or JSON file as data alone, and held to the type and the range that are declared."""

import json
import re
from dataclasses import dataclass
from math import inf, isfinite
from pathlib import Path

import yaml

from experiments.errors import Refused, hint, listed, shown

LARGEST = 2**20  # bytes of a settings file
DEEPEST = 6  # levels of one: sections, settings, lists
LARGEST_INT = 2**31 - 1  # where a Range names no other limit: more fits no counter of numpy's or torch's


@dataclass(frozen=True)
class Range:
    """The finite numbers from `least`, or above `above`, to `most`, or below `below`.

    `zero` says what 0 stands for where it is allowed besides; `note` ends a refusal.
    """

    least: float = -inf
    above: float = -inf
    most: float = inf
    below: float = inf
    zero: str = ""
    note: str = ""

    def __contains__(self, value):
        if self.zero and value == 0:
            return True
        sound = isfinite(value) if isinstance(value, float) else not self.overflows(value)
        return sound and self.least <= value <= self.most and self.above < value < self.below

    def overflows(self, value):
        """Whether an int is larger than what can be counted, and no limit of its own says so."""
        return isinstance(value, int) and abs(value) > LARGEST_INT and min(self.most, self.below) == inf

    def __str__(self):
        words = {"at least": self.least, "above": self.above, "at most": self.most, "below": self.below}
        said = [f"{word} {bound}" for word, bound in words.items() if isfinite(bound)]
        zero = f", or 0 for {self.zero}" if self.zero else ""
        return (" and ".join(said) or "a finite number") + zero


def check(path, value, default, allowed=None, share=False):
    """Raise Refused unless `value` has the type of the setting's default and lies in what is `allowed`.

    That is a Range, or a collection of values, for each element of a list; None allows every finite number and every
    text. With `share` an int setting may also be a float above 0 and at most 1.
    """
    if share and type(value) is float and 0 < value <= 1:
        return
    if mistyped(default, value):
        more = " or a fraction of the pool between 0 and 1" if share else ""
        raise Refused(f"{path} takes {type(default).__name__}{more}, not {shown(value)}.")
    for each in value if isinstance(value, list) else [value]:
        if type(each) in (int, float) and isinstance(allowed or Range(), Range):
            numbers = allowed or Range()
            if each not in numbers:
                limit = f"at most {LARGEST_INT}" if numbers.overflows(each) and each > 0 else numbers
                note = f": {numbers.note}" if numbers.note else ""
                raise Refused(f"{path} must be {limit}, not {shown(each)}{note}.")
        elif allowed and each not in allowed:
            raise Refused(f"{path} cannot be {shown(each)}.{hint(each, allowed)} It is one of {listed(allowed)}.")


def mistyped(default, value):
    if isinstance(default, list):
        return not isinstance(value, list) or any(mistyped(default[0], v) for v in value if default)
    if type(default) is float:
        return type(value) not in (int, float)
    return type(value) is not type(default)


def read(path):
    """The settings in a file as a dict. Raises Refused naming the file and the place for all that is no plain data."""
    path = Path(path)
    if path.suffix.lower() not in (".yaml", ".yml", ".json"):
        raise Refused(f"{path} is no settings file: these end in .yaml, .yml or .json.")
    if not path.is_file():
        raise Refused(f"{path} is no file.")
    try:
        with open(path, "rb") as file:
            data = file.read(LARGEST + 1)
    except OSError as error:
        raise Refused(f"{path} cannot be read ({error.strerror}).") from error
    if len(data) > LARGEST:
        raise Refused(f"{path} is larger than {LARGEST} bytes: that is no settings file.")
    try:
        return parse(data.decode("utf-8-sig"), path.suffix.lower() == ".json")
    except UnicodeDecodeError as error:
        raise Refused(f"{path}, {place(data, error.start)}: this is no UTF-8 text.") from error
    except json.JSONDecodeError as error:
        raise Refused(f"{path}, line {error.lineno}, column {error.colno}: {error.msg}.") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}"
        raise Refused(f"{path}, {where}: {' '.join(str(error.problem).split())}.") from error
    except yaml.reader.ReaderError as error:
        text = data.decode("utf-8-sig")
        raise Refused(f"{path}, {place(text, error.position)}: a character that no text has.") from error
    except ValueError as error:
        raise Refused(f"{path}: {error}.") from error


def place(text, position):
    before = text[:position]
    line_end = b"\n" if isinstance(text, bytes) else "\n"
    return f"line {before.count(line_end) + 1}, column {position - before.rfind(line_end)}"


def parse(text, strict_json=False):
    """The dict of settings in a text. JSON is read as such, and as YAML to see depth and keys given twice."""
    try:
        plain = json.loads(text) if strict_json else None
    except RecursionError:
        plain = None  # the other reader says where
    loader = PlainLoader(text.replace("\t", " ") if strict_json else text)
    try:
        settings = loader.get_single_data()
    finally:
        loader.dispose()
    if not isinstance(settings, dict):
        found = "nothing" if settings is None else f"a {type(settings).__name__}"
        start = yaml.Mark("", 0, 0, 0, None, None)
        raise yaml.MarkedYAMLError(problem=f"{found} where `setting: value` is expected", problem_mark=start)
    return plain if strict_json else settings


class PlainLoader(yaml.SafeLoader):
    """YAML as plain data: no aliases, which can grow without end, no key twice, no depth to drown in."""

    depth = 0

    def compose_node(self, parent, index):
        event = self.peek_event()
        self.depth += 1
        if isinstance(event, yaml.AliasEvent):
            raise yaml.MarkedYAMLError(problem="an alias (*): write the value out", problem_mark=event.start_mark)
        if self.depth > DEEPEST:
            raise yaml.MarkedYAMLError(problem="this is nested too deep", problem_mark=event.start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:str":
                raise yaml.MarkedYAMLError(problem="a key that is no setting's name", problem_mark=key.start_mark)
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"{key.value} is set twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_object(self, node, deep=False):
        try:
            return super().construct_object(node, deep)
        except (ValueError, OverflowError) as error:
            raise yaml.MarkedYAMLError(problem=str(error), problem_mark=node.start_mark) from error


# YAML 1.1 takes 1e-3 for text, for want of a dot
PlainLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)
