"""Choose components by name: `with heuristic=bald` brings in heuristics/bald.py.

The folder is the registry: a component is one module with an `ingredient` of the file's own name, which is read or
imported only where it is asked for.
"""

import ast
import traceback
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

from sacred import Ingredient

from experiments.components import settings
from experiments.errors import Refused, hint, listed, shown

ROOT = Path(__file__).resolve().parents[2]
PRESETS = ROOT / "experiments" / "presets"
FOLDERS = {
    "heuristic": "heuristics",
    "initial": "heuristics",
    "batch": "heuristics.batches",
    "dataset": "data",
    "model": "models",
}


# what a component's file promises: constants that it sets, functions of which it has one
PROMISES = {
    "heuristic": ((), ("uncertainty", "score", "select")),
    "initial": ((), ("score", "select")),
    "batch": ((), ("pick",)),
    "dataset": (("CLASSES", "CHANNELS", "IGNORE"), ("load",)),
    "model": (("MEAN", "STD"), ("build",)),
}
PATHS = ("_dir", "root", "weights", "file")  # how the names of settings end that name a file or a folder


def names(entry):
    """What `entry` may be set to, sorted: the public modules of its folder; none of them is imported.

    For `initial` those that need no model, for `heuristic` not those that stand for no images, EMPTY.
    """
    found = iter_modules([str(ROOT.joinpath(*FOLDERS[entry].split(".")))])
    files = sorted(m.name for m in found if not m.name.startswith("_") and not m.ispkg)
    if entry == "initial":
        return [name for name in files if not written(entry, name).get("NEEDS_MODEL", True)]
    if entry == "heuristic":
        return [name for name in files if not written(entry, name).get("EMPTY", False)]
    return files


def file_of(entry, name):
    return ROOT.joinpath(*FOLDERS[entry].split("."), f"{name}.py")


def written(entry, name):
    """{constant: literal} that a component's file sets, and its "__doc__"; {} where importing it would fail as well.

    The file is read, not run, so that a broken one is in nobody's way.
    """
    path = file_of(entry, name)
    try:
        return _literals(path, path.stat().st_mtime_ns)
    except (OSError, SyntaxError, ValueError, RecursionError):
        return {}


@cache
def _literals(path, changed):
    tree = ast.parse(path.read_bytes())
    found = {"__doc__": ast.get_docstring(tree) or ""}
    for node in tree.body:
        if isinstance(node, ast.Assign):
            parts = [(node.targets[0], node.value)]
            if isinstance(node.targets[0], ast.Tuple) and isinstance(node.value, ast.Tuple):
                parts = zip(node.targets[0].elts, node.value.elts, strict=False)
            for target, value in parts:
                with suppress(ValueError):
                    found |= {target.id: ast.literal_eval(value)} if isinstance(target, ast.Name) else {}
    return found


def load(entry, name):
    """Import the component called `name`.

    Raises Refused with the names that would have worked, or with file, line and reason where its file is broken.
    """
    known = names(entry)
    unreadable = str(name).isidentifier() and file_of(entry, name).is_file() and not written(entry, name)
    if name in known or unreadable:
        return _module(entry, name)
    published = {alias: n for n in known for alias in written(entry, n).get("PUBLISHED_AS", ())}
    if name in published:
        right = published[name]
        raise Refused(f"The published {entry} {name!r} is called {right} here: use {entry}={right}.")
    raise Refused(f"There is no {entry} {shown(name)}.{hint(name, known)} There are {listed(known)}.")


def _module(entry, name):
    try:
        module = import_module(f"{FOLDERS[entry]}.{name}")
    except (Exception, SystemExit) as error:
        raise broken(error, entry, name) from error
    file = file_of(entry, name).relative_to(ROOT)
    constants, functions = PROMISES[entry]
    part = getattr(module, "ingredient", None)
    if not isinstance(part, Ingredient) or part.path != name:
        called = f"calls its ingredient {part.path!r}" if isinstance(part, Ingredient) else "has no ingredient"
        raise Refused(f'{file} {called}: write ingredient = Ingredient("{name}"), as the file is called.')
    for constant in constants:
        if not hasattr(module, constant):
            raise Refused(f"{file} does not set {constant}: CONTRIBUTING.md says what a file of {entry}s promises.")
    if not any(callable(getattr(module, function, None)) for function in functions):
        raise Refused(f"{file} has no function {' or '.join(functions)}: a {entry} is made of one (CONTRIBUTING.md).")
    return module


def broken(error, entry, name):
    """Refused with the place in the component's file, or in one that it imports, where `error` came from."""
    file, line = file_of(entry, name), None
    if isinstance(error, SyntaxError) and error.filename:
        file, line = Path(error.filename), error.lineno
    else:
        homes = {ROOT / folder.partition(".")[0] for folder in FOLDERS.values()}
        for frame in traceback.extract_tb(error.__traceback__):
            if homes & set(Path(frame.filename).parents):
                file, line = Path(frame.filename), frame.lineno
    file = file.relative_to(ROOT) if file.is_relative_to(ROOT) else file
    place = f"{file}, line {line}" if line else f"{file}"
    said = getattr(error, "msg", "") if isinstance(error, SyntaxError) else " ".join(str(error).split())
    return Refused(f"{place}: {type(error).__name__}: {said[:200]}. Mend the file, or use another {entry}.")


def source_files():
    """Every Python file and preset of this project, sorted."""
    folders = ("experiments", "heuristics", "models", "analysis")
    commands = [path.parent for path in (ROOT / "data").glob("*/__init__.py")]  # the other folders there are raw data
    found = [ROOT / "active.py", *(ROOT / "data").glob("*.py"), *PRESETS.glob("*.yaml")]
    found += [path for folder in commands for path in folder.glob("*.py")]
    found += [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    return sorted(path for path in found if path.is_file())


def defaults(ingredient, fixed=None):
    """The settings of an ingredient or experiment as Sacred would set them, with `fixed` ones given."""
    settings = {}
    for scope in ingredient.configurations:
        settings.update(scope(fixed=fixed, preset=settings))
    return settings


def allowed(ingredient):
    """What the file of an ingredient allows its settings to be: the constant ALLOWED beside its config scope."""
    found = {}
    for scope in ingredient.configurations:
        found |= scope._func.__globals__.get("ALLOWED", {})
    return found


def configure(module, settings):
    """Give a file's captured functions its settings as Sacred does for a run: defaults for what is not there.

    Those of the components that its settings name, too. Raises Refused for a setting of another type or range.
    """
    recorded, known = settings.get(module.ingredient.path, {}), defaults(module.ingredient)
    check_settings(module, **{name: value for name, value in recorded.items() if name in known})
    for function in module.ingredient.captured_functions:
        function.config = known | recorded
    for key, entry in getattr(module, "NAMES", {}).items():
        configure(load(entry, (known | recorded)[key]), settings)


def check_settings(module, **values):
    """Raise Refused if one of these values of a component's settings has another type or range than declared."""
    known, ranges = defaults(module.ingredient), allowed(module.ingredient)
    for key, value in values.items():
        settings.check(f"{module.ingredient.path}.{key}", value, known[key], ranges.get(key))
