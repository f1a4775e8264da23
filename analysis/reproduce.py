"""What runs were made from and with, told by their ledgers: command lines, settings, data, versions, devices."""

import json
import shlex
import subprocess
import tomllib
from importlib.metadata import version
from pathlib import Path

from sacred.utils import iterate_flattened

import active
from analysis.runs import shown
from experiments import components
from experiments.records.ledger import CEILING

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "baal", "sacred", "numpy", "scipy", "pandas", "monai", "scikit-image")
SAID = ("dataset", "heuristic", "run")  # settings that are named even where they are the default


def command(events):
    """`python active.py with ...` for the events of one ledger; where data and results lie is left to the reader.

    Named is what differs from the defaults of the code at hand, so the line is right for this version.
    """
    settings = complete(events)
    usual, program = defaults(settings), "active.py"
    if all(settings[key] == value for key, value in CEILING.items() if key != "start"):
        program, settings = "active.py full", {k: v for k, v in settings.items() if k not in CEILING}
    said = {key: settings[key] for key in SAID}
    changed = {k: v for k, v in flat(settings).items() if k not in SAID and (k not in usual or usual[k] != v)}
    return f"python {program} with " + shlex.join(f"{k}={literal(v)}" for k, v in (said | changed).items())


def complete(events):
    """The settings as the run had them, `cycles` too, which may grow and so is not among the ledger's."""
    return events[0]["settings"] | {"cycles": sum(e["event"] == "evaluated" for e in events) - 1}


def defaults(settings):
    """{dotted name: default} given the components and the run; a component that is gone has none."""
    usual = components.defaults(active.ex, {key: settings[key] for key in SAID})
    sections = {ingredient.path: ingredient for ingredient in active.ex.always}
    for entry in components.FOLDERS:
        if settings[entry] in components.names(entry):
            sections[settings[entry]] = components.load(entry, settings[entry]).ingredient
    return flat(usual | {path: components.defaults(part) for path, part in sections.items()})


def flat(settings):
    """{dotted name: value}, without sections that have no settings."""
    return {key: value for key, value in iterate_flattened(settings) if value != {}}


def literal(value):
    """A value as Sacred's command line reads it back: a Python literal, or a word that is none."""
    if isinstance(value, str):
        word = value.isidentifier() and value not in ("True", "False", "None")
        return value if word else json.dumps(value, ensure_ascii=False)
    return repr(value)


def settings(books):
    """(methods, {name: values by method} of settings that differ between runs, {name: value} of all others)."""
    runs_of = {}
    for events in books:
        texts = {key: str(value) for key, value in flat(complete(events) | shown(events[0]["settings"])).items()}
        runs_of.setdefault(texts["label"], []).append(texts)
    differing, common = {}, {}
    for name in dict.fromkeys(name for own in runs_of.values() for texts in own for name in texts):
        values = [list(dict.fromkeys(texts.get(name, "–") for texts in own)) for own in runs_of.values()]
        if len({value for some in values for value in some}) > 1:
            differing[name] = [", ".join(some) for some in values]
        else:
            common[name] = values[0][0]
    return list(runs_of), differing, common


def fingerprints(books):
    """{(dataset, split, sha256): number of runs} of the images that were used."""
    found = {}
    for start in (events[0] for events in books):
        for split, fingerprint in zip(("train", "val", "test"), start["data"], strict=False):
            if fingerprint:
                key = (start["settings"]["dataset"], split, fingerprint)
                found[key] = found.get(key, 0) + 1
    return found


def made(books):
    """[({what: text} of versions, device, threads and sources, [runs that began so])], most runs first.

    A run whose ledger does not say it, as older ones do not, is under an empty dict.
    """
    found = {}
    for events in books:
        found.setdefault(tuple(_made(events[0]).items()), []).append(_name(events))
    return sorted(((dict(what), names) for what, names in found.items()), key=lambda one: -len(one[1]))


def resumed(books):
    """A line for each time that a run went on with other versions, sources, threads or another device."""
    lines = []
    for events in books:
        before = _made(events[0])
        for event in events:
            if event["event"] == "resumed":
                now = _made(event)
                changed = [f"{k} {before.get(k, 'unknown')} → {now.get(k, 'unknown')}" for k in before | now
                           if before.get(k) != now.get(k)]  # fmt: skip
                lines.append(f"{_name(events)}, from cycle {event['cycle']}: {', '.join(changed) or 'the same again'}")
                before = now
    return lines


def _name(events):
    settings = events[0]["settings"]
    return f"{settings['label']} {settings['run']}"


def _made(event):
    """{what: text} of an event's `made`, sources as the head of their hash; {} where there is none."""
    said = event.get("made")
    if not isinstance(said, dict):
        return {}
    versions = said.get("versions") if isinstance(said.get("versions"), dict) else {}
    rest = {key: said[key] for key in ("device", "instructions", "threads", "precision") if key in said}
    sources = {"sources": str(said["sources"])[:12]} if "sources" in said else {}
    return {str(key): str(value) for key, value in (versions | rest | sources).items()}


def made_with():
    """{package: version} of what made this page."""
    own = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    if (ROOT / ".git").exists():
        line = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
        try:
            said = subprocess.run(line, capture_output=True, text=True, check=True, timeout=10)
            own += f", commit {said.stdout.strip()}"
        except (OSError, subprocess.SubprocessError):
            pass  # git is not installed, or has no commit here
    return {"AskMask": own} | {name: version(name) for name in PACKAGES}
