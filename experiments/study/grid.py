"""The grid of a study: what `heuristic=random,bald run=0-9` or a YAML file says, as the runs that it asks for.

Paired by run number; one cell is one run. Settings that every strategy shares, such as the dataset, give each of their
values a comparison of its own; settings of a strategy itself, such as its batch, give it another label.
"""

import re
from dataclasses import dataclass
from hashlib import sha256
from itertools import product
from pathlib import Path

import yaml

import active
from experiments.components import FOLDERS, allowed, defaults, load, names, settings
from experiments.components.words import literal, refuse_groups
from experiments.errors import Refused, hint, listed, shown

RANGE = re.compile(r"(\d+)-(\d+)")
MOST_CELLS = 100_000
OWN = ("with", "each", "until", "most", "step", "margin", "baseline", "minutes")  # what a study file says besides


@dataclass(frozen=True)
class Cell:
    """One run: the words that active.py takes, where its results lie, and what it is called."""

    words: tuple
    results: Path
    label: str
    run: int
    cycles: int
    stop_at: float = 0.0
    settings: dict | None = None  # all of them, as the run has them; left out where nobody asks
    usual: dict | None = None  # the same where nothing is asked for, by which an older ledger is read

    @property
    def folder(self):
        return self.results / f"{self.label}_{self.run}"

    @property
    def name(self):
        """How people speak of it."""
        return f"{self.label} {self.run}"


def read(words):
    """The study that these words and the YAML files among them say: {setting: list of values}, `with`, and OWN's.

    Raises Refused for words that are no preset, no file and no setting=value.
    """
    study = {"with": [[]]}
    for word in words:
        path, equals, text = word.partition("=")
        if equals and path:
            study[path] = values_of(path, text)
        elif Path(word).suffix.lower() in (".yaml", ".yml", ".json"):
            study |= from_file(word)
        else:
            study["with"] = [some + [name] for some in study["with"] for name in word.split(",")]
    refuse_groups([path for path in study if path not in OWN])
    return study


def from_file(path):
    """What a study file says."""
    said = flat(settings.read(path))
    found = {path: values_of(path, value) for path, value in said.items() if path not in OWN}
    found |= {key: value for key, value in said.items() if key in OWN and key not in ("with", "each")}
    if "with" in said:
        groups = said["with"] if isinstance(said["with"], list) else str(said["with"]).split(",")
        found["with"] = [group if isinstance(group, list) else [str(group)] for group in groups]
    if "each" in said:
        parts = said["each"]
        if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
            raise Refused(f"{path}: each is a list of groups of settings, `each: [{{heuristic: random}}, ...]`.")
        if any("run" in part for part in parts):
            raise Refused(f"{path}: run is the same for all of each, as runs are paired: set it beside each.")
        found["each"] = [{key: values_of(key, value) for key, value in flat(part).items()} for part in parts]
    return found


def flat(said, prefix=""):
    """{dotted name: value} of settings that may be written in sections."""
    found = {}
    for key, value in said.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


def values_of(path, given):
    """The values that a setting shall have one after another: of `a,b`, of `0-9,12` where it is a whole number.

    Commas are part of a text that is neither one of some choices nor a component's name, as in folder.values.
    """
    default, choices = declared(path)
    if isinstance(given, list):
        nested = isinstance(default, list) and not any(isinstance(value, list) for value in given)
        return [given] if nested else [part for value in given for part in values_of(path, value)]
    if not isinstance(given, str) or isinstance(default, list):
        return [literal(given) if isinstance(given, str) else given]
    parts = [part.strip() for part in given.split(",")]
    if isinstance(default, int) and not isinstance(default, bool):
        found = []
        for part in parts:
            ends = RANGE.fullmatch(part)
            first, last = map(int, ends.groups()) if ends else (0, -1)
            if last - first >= MOST_CELLS:
                raise Refused(f"{path}={given} are more than {MOST_CELLS} values.")
            found += range(first, last + 1) if ends else [literal(part)]
        if ("" in parts) or not found:
            raise Refused(f"{path}={given} holds no value: type {path}=0-9 or {path}=0,1,2.")
        return found
    if choices or isinstance(default, float | bool) or (isinstance(default, str) and of_strategy(path)):
        return [literal(part) for part in parts]
    return [literal(given)]


def declared(path):
    """(default, whether its values are words of a list) of a setting; of an unknown one (None, False)."""
    section, _, key = path.rpartition(".")
    if not section:
        named = path in FOLDERS or path in active.ex.optional
        return defaults(active.ex).get(path), named or isinstance(allowed(active.ex).get(path), tuple)
    own = next((part for part in active.ex.always if part.path == section), None)
    module = next((load(entry, section) for entry in FOLDERS if own is None and section in names(entry)), None)
    if own is None and module is None:
        return None, False
    part = own or module.ingredient
    named = key in getattr(module, "NAMES", {})
    return defaults(part).get(key), named or isinstance(allowed(part).get(key), tuple)


def written(study):
    """The study as the text that is stored and hashed: the same for the same study, however it was typed."""
    said = {key: value for key, value in sorted(study.items()) if value != [[]]}
    return yaml.safe_dump(said, sort_keys=True, default_flow_style=None, allow_unicode=True, width=100)


def digest(study):
    """The sha256 of the study as it is written, which stands in each run's ledger."""
    return sha256(written(study).encode()).hexdigest()


def cells(study, results, more=()):
    """The Cells of a study below the folder `results`, run by run; every one is checked as its run would be.

    `more` are words that each run gets and that are no part of the study. Raises Refused, naming the words, where a
    cell cannot be run as asked, or two would share a folder.
    """
    combined = combinations(study)
    whole = [(presets, own, active.ex.taking_part(presets, own)) for presets, own in combined]
    used = {name for *_, part in whole for name in part}
    found = {}
    for presets, own, part in whole:
        kept = {path: value for path, value in own.items() if not elsewhere(path, part, used)}
        found.setdefault(repr((presets, sorted(kept.items(), key=str))), (presets, kept))
    paths = {path for _, own in found.values() for path in own}
    varied = {path for path in paths if len({repr(own.get(path)) for _, own in found.values()}) > 1}
    several = len({tuple(presets) for presets, _ in found.values()}) > 1
    runs, made, known = study.get("run", [0]), [], {}
    for presets, own in found.values():
        shown = [path for path in sorted(own) if path in varied]
        strategy = [path for path in shown if of_strategy(path) and path != "heuristic"]
        if strategy and "heuristic" in own and "label" not in own:
            own = own | {"label": ",".join([own["heuristic"], *(word(path, own[path]) for path in strategy)])}
        place = [word(path, own[path]).replace("/", "_") for path in shown if not of_strategy(path)]
        place = ([",".join(presets)] if several and presets else []) + place
        folder = Path(results, *([",".join(place)] if place else []))
        for cell in of_runs(presets, own, folder, runs, more):
            other = known.setdefault(cell.folder, cell)
            if other is not cell:
                raise Refused(f"Two runs would write {cell.folder}: give their groups own labels, `label: ...`.")
            made.append(cell)
    return made


def of_runs(presets, own, folder, runs, more):
    """The Cells of one combination of settings: checked once, for only run and seed differ."""
    words = [*presets, *(word(path, value) for path, value in own.items())]
    try:
        config = active.ex.settled(presets, own | {"run": runs[0], "results_dir": str(folder)})
    except Refused as error:
        raise Refused(f"{' '.join(words)} run={runs[0]}: {error}") from error
    usual = active.ex.usual()
    for run in runs:
        settings.check("run", run, 0, active.ALLOWED["run"])
        now = config | {"run": run} | ({} if "seed" in own else {"seed": run})
        line = (*words, f"run={run}", word("results_dir", str(folder)), *more)
        yield Cell(line, folder, config["label"], run, config["cycles"], config["stop_at"], now, usual)


def combinations(study):
    """[(presets, {setting: value})], one for each comparison of the grid but its run numbers."""
    found = []
    for part in study.get("each", [{}]):
        grid = {path: values for path, values in (study | part).items() if path not in (*OWN, "run")}
        for presets in study["with"]:
            for values in product(*grid.values()):
                found.append((presets, dict(zip(grid, values, strict=True))))
                if len(found) * len(study.get("run", [0])) > MOST_CELLS:
                    raise Refused(f"These are more than {MOST_CELLS} runs.")
    return found


def elsewhere(path, part, used):
    """Whether a setting belongs to a component that takes part in other cells only."""
    section = path.rpartition(".")[0]
    return section in used and section not in part


def of_strategy(path):
    """Whether a setting is the strategy's own, so that its values are methods to compare."""
    section, _, key = path.rpartition(".")
    name = section or key
    return name in ("heuristic", "batch", "label") or name in names("heuristic") + names("batch")


def word(path, value):
    """`setting=value` as active.py's command line reads it back."""
    text = value if isinstance(value, str) and literal(value) == value else repr(value)
    return f"{path}={text}"


def check_own(study):
    """Raise Refused for what a study file says of the study itself and cannot mean."""
    kinds = {"until": str, "most": int, "step": int, "margin": (int, float), "minutes": (int, float), "baseline": str}
    for key, kind in kinds.items():
        if key in study and (not isinstance(study[key], kind) or isinstance(study[key], bool)):
            raise Refused(f"{key} of the study cannot be {shown(study[key])}.")
    if study.get("until", "decided") != "decided":
        raise Refused(f"until={shown(study['until'])} is not known.{hint(study['until'], ['decided'])}")
    if min(study.get("most", 3), study.get("step", 1)) < 1 or min(study.get("margin", 0), study.get("minutes", 0)) < 0:
        raise Refused(f"{listed(['most', 'step'])} are at least 1, margin and minutes at least 0.")
