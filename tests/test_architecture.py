"""The rooms of the house and the one direction of its imports, read from the files."""

import ast
from pathlib import Path

import pytest

from experiments.components import ROOT

# from the top down: a file imports from its own line or from lines below it, never from one above
ORDER = [
    ["experiments.study"],
    ["analysis"],
    ["active"],
    ["experiments.benchmark", "experiments.device", "experiments.predict", "experiments.suspects"],
    ["heuristics", "data", "models"],
    ["experiments.steps"],
    ["experiments.annotate"],
    ["experiments.training"],
    ["experiments.evaluation", "experiments.catalogue", "experiments.sync", "experiments.omniboard"],
    ["experiments.acquisition"],
    ["experiments.records", "experiments.store.cache"],
    ["experiments.store", "experiments.evaluation.metrics"],
    ["experiments.network"],
    ["experiments.components.experiment"],
    ["experiments.components"],
    ["experiments.components.settings", "experiments.components.words", "experiments.components.address"],
    ["experiments.errors", "experiments.components.randomness", "experiments.store.reading"],
]
LEVEL = {room: level for level, rooms in enumerate(ORDER) for room in rooms}
# experiments/ reaches these by name alone; a run's own curve is drawn by analysis, imported when it is drawn
BY_NAME = ("heuristics", "data", "models")
LATE = {("experiments.steps.results", "analysis.plots"), ("experiments.steps.results", "analysis.runs")}
FILES = sorted(
    path
    for place in ("active.py", "experiments", "heuristics", "data", "models", "analysis")
    for path in ([ROOT / place] if place.endswith(".py") else (ROOT / place).rglob("*.py"))
    if "notebooks" not in path.parts
)


def module_of(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path): path for path in FILES}


def imports(path):
    """The modules of this project that a file imports, at its top or late."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: say the whole name of what is imported"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (inner & MODULES.keys()) or {node.module}
    return found & MODULES.keys()


def room_of(module):
    """The line of ORDER that a module stands in: its own or its folder's."""
    return next((room for room in (module, *parents(module)) if room in LEVEL), None)


def parents(module):
    parts = module.split(".")
    return [".".join(parts[:n]) for n in range(len(parts) - 1, 0, -1)]


ARROWS = sorted(
    (module, other)
    for module, path in MODULES.items()
    for other in imports(path)
    if other not in (module, "experiments")  # whose __init__ says what to do in a Python without the packages
)


@pytest.mark.parametrize("module", [m for m in MODULES if m != "experiments"])
def test_every_file_has_its_place_in_the_order(module):
    assert room_of(module), f"{module} stands in no room of ORDER"


def test_no_arrow_runs_back_up():
    up = [
        f"{module} -> {other}"
        for module, other in ARROWS
        if module != "experiments" and LEVEL[room_of(module)] > LEVEL[room_of(other)] and (module, other) not in LATE
    ]
    assert not up


def test_experiments_reach_components_by_name_alone():
    found = [f"{a} -> {b}" for a, b in ARROWS if a.startswith("experiments") and b.startswith(BY_NAME)]
    assert not found


def test_there_is_no_circle():
    inner = {module: {b for a, b in ARROWS if a == module} for module in MODULES}
    done, way = set(), []

    def walk(module):
        assert module not in way, " -> ".join([*way[way.index(module) :], module])
        if module not in done:
            way.append(module)
            for other in sorted(inner[module]):
                if (module, other) not in LATE:
                    walk(other)
            way.pop()
            done.add(module)

    for module in sorted(MODULES):
        walk(module)


def test_what_is_imported_late_for_a_reason_still_is():
    assert set(ARROWS) >= LATE
    assert not any(line.startswith("from analysis") for line in MODULES["experiments.steps"].read_text().splitlines())


def test_the_root_of_experiments_can_be_taken_in_at_a_glance():
    entries = {path.name for path in (ROOT / "experiments").iterdir()} - {"presets", "__init__.py", "__pycache__"}
    assert len(entries) <= 18, sorted(entries)


def test_the_reader_sees_arrows():
    """So that the tests above cannot pass by seeing none."""
    assert ("experiments.steps.begin", "experiments.records.ledger") in ARROWS and len(ARROWS) > 200
    assert Path(MODULES["active"]).name == "active.py"
