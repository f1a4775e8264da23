"""Choose components by name: `with heuristic=bald` brings in heuristics/bald.py.

The folder is the registry: a component is one module with an `ingredient` of the file's own name. Sacred fixes
the ingredients before it reads the configuration, so `SelectiveExperiment` reads it first, attaches exactly the
named components' ingredients, and refuses every setting that none of them knows.
"""

import ast
import logging
import os
import signal
import sys
import traceback
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from threading import Lock, Thread
from time import sleep
from types import SimpleNamespace

from docopt import DocoptExit
from sacred import SETTINGS, Experiment, Ingredient, arg_parser, ingredient, initialize
from sacred.dependencies import Source, get_digest
from sacred.utils import apply_backspaces_and_linefeeds, convert_to_nested_dict, recursive_update

from experiments import settings
from experiments.command_line import words
from experiments.command_line.address import UNKNOWN, of_option, without_credentials
from experiments.command_line.process import drop_unwritable_output, refusal, signals_noted
from experiments.errors import Refused, Terminated, hint, listed, shown

# what Sacred logs and our own lines say better, or the user has asked for with runs_dir=""
UNSAID = {"Aborted after %s!", "Failed after %s!", "No observers have been added to this run"}
SETTINGS.CAPTURE_MODE = "sys"  # capturing file descriptors would hide the terminal from the progress bar
# Sacred would run what stands in a file or a typed value: jsonpickle's, pickle's and YAML's objects
arg_parser._convert_value = words.literal
ingredient.load_config_file = initialize.load_config_file = settings.read
ROOT = Path(__file__).resolve().parent.parent
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
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            with suppress(ValueError):
                found[node.targets[0].id] = ast.literal_eval(node.value)
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
    found = [ROOT / "active.py", *(ROOT / "data").glob("*.py"), *PRESETS.glob("*.yaml")]
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


def check_settings(module, **values):
    """Raise Refused if one of these values of a component's settings has another type or range than declared."""
    known, ranges = defaults(module.ingredient), allowed(module.ingredient)
    for key, value in values.items():
        settings.check(f"{module.ingredient.path}.{key}", value, known[key], ranges.get(key))


class SelectiveExperiment(Experiment):
    """An experiment in which only the named components take part; `components` maps each entry, and
    each setting of a component that names another, to its module.

    `fractions` names the int settings that may also be a share (0, 1] of something. `check(config, components,
    command)` may refuse before anything is written. `observe(config, url, command)` gives a run's observers, `url`
    being `mongo_url` with the password that goes no further than there. `begun(config, command)` are
    the settings in the ledger of a run that goes on, {} for a new one.
    """

    def __init__(
        self,
        *args,
        fractions=(),
        check=lambda config, components, command: None,
        observe=lambda config, url, command: [],
        begun=lambda config, command: {},
        **kwargs,
    ):
        super().__init__(*args, base_dir=str(ROOT), **kwargs)
        self.mainfile = Source.create(str(ROOT / "active.py"))  # Sacred looks at who calls the line above
        self.always, self.fractions = list(self.ingredients), set(fractions)
        self.check, self.observe, self.begun = check, observe, begun
        self.components = {}
        self.logger, self.captured_out_filter = _quiet_logger(), apply_backspaces_and_linefeeds
        self.all_cli_options = [flag for flag in self.all_cli_options if flag.get_flag() not in words.USELESS]
        self.going_on = Lock()

    def gather_named_configs(self):
        """The presets, for Sacred's command that prints them."""
        for name, file in presets().items():
            said = file.read_text("utf-8", "replace").partition("\n")[0]
            yield name, SimpleNamespace(__doc__=said.lstrip("# "))

    def run_commandline(self, argv=None):
        drop_unwritable_output()
        argv = sys.argv if argv is None else argv
        flags = {flag: bool(option.arg) for option in self.all_cli_options for flag in option.get_flags()}
        known = [*defaults(self), *(part.path for part in self.always)]
        try:
            words.check(argv, dict(self.gather_commands()), flags, known, presets())
            with signals_noted(self._give_up):
                return super().run_commandline(argv)
        except Refused as error:
            print(error, file=sys.stderr, flush=True)
            raise SystemExit(error.code) from None
        except DocoptExit:
            print("These words are no command line: -h says how one is made.", file=sys.stderr, flush=True)
            raise SystemExit(1) from None

    def _give_up(self, number):
        """End this process in the middle of a step that takes too long, after a last record of the run."""
        run, code = self.current_run, 130 if number == signal.SIGINT else Terminated.code
        if run and run.status == "RUNNING":
            ending = Thread(target=lambda: (run._emit_heartbeat(), run._emit_interrupted("INTERRUPTED")), daemon=True)
            ending.start()
            ending.join(2)
        elif run and run.status in ("COMPLETED", "INTERRUPTED", "FAILED"):  # its observers are at work on its end
            sleep(6)
            code = 0 if run.status == "COMPLETED" else code
        print("Stopped in the middle of a step: the same command continues.", file=sys.stderr, flush=True)
        os._exit(code)

    def get_experiment_info(self):
        """As Sacred's, with every source file of the project and the one repository that they are in."""
        info = super().get_experiment_info()
        repositories = {repository["url"]: repository for repository in info["repositories"]}
        sources = [(path.relative_to(ROOT).as_posix(), get_digest(path)) for path in source_files()]
        return info | {"sources": sources, "repositories": list(repositories.values())}

    def run(
        self,
        command_name=None,
        config_updates=None,
        named_configs=(),
        info=None,
        meta_info=None,
        options=None,
    ):
        """As Sacred's; from a command line (`options`) errors of the user are one line and an exit code.

        Raises Refused while another thread's run is going on: components and their settings belong to one run.
        """
        if not self.going_on.acquire(blocking=False):
            raise Refused("Another run is going on in this process: wait for its end, or start one in its own process.")
        try:
            return self._run(command_name, config_updates, named_configs, info, meta_info, options)
        finally:
            self.going_on.release()

    def _run(self, command_name, config_updates, named_configs, info, meta_info, options):
        try:
            words.check_flags(options or {})
            if options and options.get("--mongo_db"):
                config_updates = {"mongo_url": of_option(options["--mongo_db"]), **(config_updates or {})}
            options = options and {**options, "--mongo_db": None, "UPDATE": []}  # kept in meta.config_updates, masked
            return super().run(command_name, config_updates, named_configs, info, meta_info, options)
        except (Exception, KeyboardInterrupt) as error:
            told = _told(error)
            if told is None or options is None or options.get("--debug") or options.get("--pdb"):
                raise
            line, code = told
            print(line, file=sys.stderr, flush=True)
            raise SystemExit(code) from None

    def _create_run(self, command_name=None, config_updates=None, named_configs=(), *rest):
        asked, preset_of = {}, {}
        for name in named_configs:
            found = convert_to_nested_dict(self._preset(name))
            recursive_update(asked, found)
            preset_of |= dict.fromkeys(found, name)
        updates = convert_to_nested_dict(config_updates or {})
        recursive_update(asked, updates)
        self._choose(asked, {key: name for key, name in preset_of.items() if key not in updates})
        self._as_begun(asked, command_name)
        url = asked.get("mongo_url", "")
        if url:
            asked["mongo_url"] = without_credentials(url)
            if ":***@" in url or url == UNKNOWN:
                raise Refused("mongo_url has lost its password, as records keep none: type the whole address again.")
        # Sacred itself would take a file in the working directory for a preset of that name
        try:
            run = super()._create_run(command_name, _expanded(asked), (), *rest)
        except RuntimeError as error:
            if "--enforce_clean" not in str(rest) or "clean" not in str(error).lower():
                raise
            raise Refused("--enforce_clean: there are changes that are not committed, or no git to tell.") from error
        run.meta_info["named_configs"] = list(named_configs)
        run.meta_info["config_updates"] = {**updates, **({"mongo_url": asked["mongo_url"]} if url else {})}
        self.check(run.config, self.components, run.meta_info["command"])
        run.observers += self.observe(run.config, url, run.meta_info["command"])
        return run

    def usual(self):
        """The settings of all that takes part as they are where nothing is asked for: {name: value or section}.

        A setting that is younger than some ledgers and has another default than what they mean stands there as that.
        """
        sections = {ingredient.path: defaults(ingredient) for ingredient in self.ingredients}
        for part in self.components.values():
            sections[part.ingredient.path] |= getattr(part, "BEFORE", {})
        return defaults(self) | sections

    def _as_begun(self, asked, command):
        """Add to `asked` what younger settings mean in a run that an earlier version began, where none is typed."""
        top = {key: value for key, value in asked.items() if not isinstance(value, dict)}
        for part in self.components.values():
            section, before = part.ingredient.path, getattr(part, "BEFORE", {})
            younger = before.keys() - asked.get(section, {}).keys()
            begun = self.begun(defaults(self, fixed=top), command) if younger else {}
            for key in sorted(younger if begun else ()):
                if key not in begun.get(section, {}):
                    asked[section] = asked.get(section, {}) | {key: before[key]}
                    print(f"This run began before {section}.{key} was a setting: it goes on with {before[key]}.")

    def _preset(self, name):
        known, file = presets(), os.path.expanduser(name)
        if name in known or os.path.isfile(file) or os.path.exists(file) and Path(file).suffix:
            return settings.read(known.get(name, file))
        if name in defaults(self):
            raise Refused(f"{name} is a setting: type {name}=... as one word.")
        entry = next((e for e in FOLDERS if e != "initial" and name in names(e)), None)
        near = f" Did you mean {entry}={name}?" if entry else hint(name, known)
        if "://" in name:
            raise Refused("An address stands alone there: type mongo_url= before it.")
        raise Refused(f"There is no preset {shown(name)}.{near} There are {listed(known)}, and YAML or JSON files.")

    def _choose(self, asked, preset_of):
        """Attach the components that `asked` names; the model is imported last, for it needs torch.

        `preset_of` {setting or group of settings: preset} says what nobody typed. A preset's settings for what a typed
        word replaces are taken out of `asked`.
        """
        own, ranges = defaults(self), allowed(self)
        top = {key: value for key, value in asked.items() if not isinstance(value, dict)}
        sections = {i.path: i for i in self.always}
        for key, value in top.items():
            if key in sections or key not in own and any(key in names(entry) for entry in FOLDERS):
                raise Refused(f"{key} is a group of settings: set one of them, as {key}.name=value.")
            self._check(key, value, own, ranges, [*own, *sections])
        chosen = defaults(self, fixed=top)
        for entry in FOLDERS:
            if chosen[entry] not in names(entry):
                load(entry, chosen[entry])
        taking_part = self._named(chosen, asked)
        self._drop_replaced(asked, {name for _, name in taking_part.values()}, chosen, preset_of)
        for section in sorted(asked.keys() - top.keys(), key=lambda s: s == chosen["model"]):
            if section in own:
                raise Refused(f"{section} is one setting, no group of them: type {section}=...")
            if section not in sections:
                sections[section] = self._section(section, taking_part, [*own, *sections]).ingredient
            known, ranges = defaults(sections[section]), allowed(sections[section])
            for key, value in asked[section].items():
                self._check(
                    f"{section}.{key}",
                    value,
                    {f"{section}.{k}": v for k, v in known.items()},
                    {f"{section}.{k}": v for k, v in ranges.items()},
                )
            if not asked[section]:
                del asked[section]  # a component without settings, as save_config writes it
        self.components = {entry: load(*part) for entry, part in taking_part.items()}
        attached = [component.ingredient for component in self.components.values()]
        self.ingredients = list(dict.fromkeys([*self.always, *attached]))
        self._refuse_shared_names({*own, *(part.path for part in self.always)})

    def _drop_replaced(self, asked, taking_part, chosen, preset_of):
        for section, preset in preset_of.items():
            entries = [entry for entry in FOLDERS if section in names(entry)]
            if not isinstance(asked[section], dict) or section in taking_part or not entries:
                continue
            typed = [entry for entry in entries if entry in asked and entry not in preset_of]
            later = [entry for entry in entries if preset_of.get(entry, preset) != preset]
            if typed:
                said = f"{typed[0]}={chosen[typed[0]]} replaces {section}: what {preset} sets of it is left out."
                print(said, flush=True)
                del asked[section]
            elif later:
                other = f"{preset_of[later[0]]} sets {later[0]}={chosen[later[0]]} after {preset}"
                fix = f"name one of the two presets, or add {later[0]}={section}"
                raise Refused(f"{other}, whose settings of {section} then take no part: {fix}.")

    def _refuse_shared_names(self, own):
        files = {}
        for module in self.components.values():
            name, file = module.ingredient.path, Path(module.__file__).relative_to(ROOT)
            if name in own:
                raise Refused(f"{file} cannot be called so: {name} is a setting already. Rename it.")
            if files.setdefault(name, file) != file:
                raise Refused(f"{files[name]} and {file} would both be set by {name}.*: rename one of them.")

    def _named(self, chosen, asked):
        """{entry, or the setting that names it: (entry, name)}: a component's NAMES are settings that name another."""
        taking_part = {entry: (entry, chosen[entry]) for entry in FOLDERS}
        waiting = [part for entry, part in taking_part.items() if entry not in ("dataset", "model")]
        for entry, name in waiting:
            module = load(entry, name)
            given = asked.get(name, {})
            for key, other in getattr(module, "NAMES", {}).items():
                value = given.get(key, defaults(module.ingredient)[key])
                if f"{name}.{key}" not in taking_part:
                    load(other, value)
                    taking_part[f"{name}.{key}"] = (other, value)
                    waiting.append((other, value))
        return taking_part

    def _section(self, section, chosen, known):
        part = next((part for part in chosen.values() if part[1] == section), None)
        if part:
            return load(*part)
        unused = next((e for e in FOLDERS if section in names(e)), None)
        if unused:
            raise Refused(f"{section} takes no part in this run: set {unused}={section} or drop its settings.")
        near = [*known, *(name for _, name in chosen.values())]
        name = section if section.isprintable() and "://" not in section else shown(section)
        raise Refused(f"There is no setting {name} here.{hint(section, near)}")

    def _check(self, path, value, known, ranges, near=None):
        if path not in known:
            name = path if path.isprintable() and "://" not in path else shown(path)
            raise Refused(f"There is no setting {name} here.{hint(path, near or known)}")
        settings.check(path, value, known[path], ranges.get(path), path in self.fractions)


def presets():
    """{name: file} of what `with <name>` reads: experiments/presets/<name>.yaml."""
    return {file.stem: file for file in sorted(PRESETS.glob("*.yaml"))}


def _expanded(asked):
    """These settings with the ~ of every path written out."""

    def home(key, value):
        if isinstance(value, dict):
            return _expanded(value)
        return os.path.expanduser(value) if isinstance(value, str) and key.endswith(PATHS) else value

    return {key: home(key, value) for key, value in asked.items()}


class _Stderr(logging.StreamHandler):
    """Writes to what sys.stderr is when something is logged."""

    stream = property(lambda self: sys.stderr, lambda self, stream: None)


def _quiet_logger():
    """Sacred's log without what our own lines already say."""
    logger = logging.getLogger("askmask")
    handler = _Stderr()
    handler.addFilter(lambda record: record.msg not in UNSAID)
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    logger.handlers, logger.level, logger.propagate = [handler], logging.WARNING, False
    return logger


def _told(error):
    """(line, exit code) that a user is told of this error; None for one that is a fault of the program."""
    if isinstance(error, Terminated):
        return error, error.code
    if isinstance(error, KeyboardInterrupt):
        return "Interrupted: the same command continues.", 130
    refused = refusal(error)
    return refused and (refused, refused.code)
