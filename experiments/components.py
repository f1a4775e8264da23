"""Choose components by name: `with heuristic=bald` brings in heuristics/bald.py.

The folder is the registry: a component is one module with an `ingredient` of the file's own name. Sacred fixes
the ingredients before it reads the configuration, so `SelectiveExperiment` reads it first, attaches exactly the
named components' ingredients, and refuses every setting that none of them knows.
"""

import logging
import os
import signal
import sys
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from threading import Thread
from time import sleep

from sacred import SETTINGS, Experiment
from sacred.config.config_files import load_config_file
from sacred.dependencies import Source, get_digest
from sacred.utils import apply_backspaces_and_linefeeds, convert_to_nested_dict, recursive_update

from experiments.commandline import drop_unwritable_output, refusal, signals_noted
from experiments.errors import Refused, Terminated

# what Sacred logs and our own lines say better, or the user has asked for with runs_dir=""
UNSAID = {"Aborted after %s!", "Failed after %s!", "No observers have been added to this run"}
SETTINGS.CAPTURE_MODE = "sys"  # capturing file descriptors would hide the terminal from the progress bar
ROOT = Path(__file__).resolve().parent.parent
PRESETS = ROOT / "experiments" / "presets"
FOLDERS = {
    "heuristic": "heuristics",
    "initial": "heuristics",
    "batch": "heuristics.batches",
    "dataset": "data",
    "model": "models",
}


def names(entry):
    """What `entry` may be set to, sorted: the public modules of its folder.

    For `initial` those that need no model, for `heuristic` not those that stand for no images, EMPTY.
    """
    found = iter_modules([str(ROOT.joinpath(*FOLDERS[entry].split(".")))])
    files = sorted(m.name for m in found if not m.name.startswith("_") and not m.ispkg)
    if entry == "initial":
        return [name for name in files if not getattr(_module(entry, name), "NEEDS_MODEL", True)]
    if entry == "heuristic":
        return [name for name in files if not getattr(_module(entry, name), "EMPTY", False)]
    return files


def load(entry, name):
    """Import the component called `name`, or refuse and say which names would have worked."""
    known = names(entry)
    if name in known:
        return _module(entry, name)
    published = {alias: n for n in known for alias in getattr(_module(entry, n), "PUBLISHED_AS", ())}
    if name in published:
        right = published[name]
        raise Refused(f"The published {entry} {name!r} is called {right} here: use {entry}={right}.")
    raise Refused(f"There is no {entry} {name!r}, only {', '.join(known)}.{_hint(name, known)}")


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


class SelectiveExperiment(Experiment):
    """An experiment in which only the named components take part; `components` maps each entry, and
    each setting of a component that names another, to its module.

    `fractions` names the int settings that may also be a share (0, 1] of something. `check(config, components,
    command)` may refuse before anything is written. `observe(config, url, command)` gives a run's observers, `url`
    being `mongo_url` with the password that goes no further than there.
    """

    def __init__(
        self,
        *args,
        fractions=(),
        check=lambda config, components, command: None,
        observe=lambda config, url, command: [],
        **kwargs,
    ):
        super().__init__(*args, base_dir=str(ROOT), **kwargs)
        self.mainfile = Source.create(str(ROOT / "active.py"))  # Sacred looks at who calls the line above
        self.always, self.fractions = list(self.ingredients), set(fractions)
        self.check, self.observe = check, observe
        self.components = {}
        self.logger, self.captured_out_filter = _quiet_logger(), apply_backspaces_and_linefeeds
        for file in sorted(PRESETS.glob("*.yaml")):
            self.add_named_config(file.stem, str(file))

    def run_commandline(self, argv=None):
        drop_unwritable_output()
        with signals_noted(self._give_up):
            return super().run_commandline(argv)

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
        """As Sacred's; from a command line (`options`) errors of the user are one line and an exit code."""
        if options and options.get("--mongo_db"):
            config_updates = {"mongo_url": _url(options["--mongo_db"]), **(config_updates or {})}
        options = options and {**options, "--mongo_db": None, "UPDATE": []}  # kept in meta.config_updates, masked
        try:
            return super().run(command_name, config_updates, named_configs, info, meta_info, options)
        except (Exception, KeyboardInterrupt) as error:
            told = _told(error)
            if told is None or options is None or options.get("--debug") or options.get("--pdb"):
                raise
            line, code = told
            print(line, file=sys.stderr, flush=True)
            raise SystemExit(code) from None

    def _create_run(self, command_name=None, config_updates=None, named_configs=(), *rest):
        updates = convert_to_nested_dict(config_updates or {})
        asked = {}
        for name in named_configs:
            recursive_update(asked, convert_to_nested_dict(self._preset(name)))
        recursive_update(asked, updates)
        self._choose(asked)
        url = asked.get("mongo_url", "")
        if url:
            updates["mongo_url"] = _without_password(url)
        run = super()._create_run(command_name, updates, named_configs, *rest)
        self.check(run.config, self.components, run.meta_info["command"])
        run.observers += self.observe(run.config, url, run.meta_info["command"])
        return run

    def _preset(self, name):
        if name in self.named_configs:
            return load_config_file(str(PRESETS / f"{name}.yaml"))
        if Path(name).is_file():
            return load_config_file(name)
        known = list(self.named_configs)
        entry = next((e for e in FOLDERS if e != "initial" and name in names(e)), None)
        hint = f" Did you mean {entry}={name}?" if entry else _hint(name, known)
        raise Refused(f"There is no preset {name!r}, only {', '.join(known)}.{hint}")

    def _choose(self, asked):
        """Attach the components that `asked` names; the model is imported last, for it needs torch."""
        own = defaults(self)
        top = {key: value for key, value in asked.items() if not isinstance(value, dict)}
        sections = {i.path: i for i in self.always}
        for key, value in top.items():
            self._check(key, value, own, [*own, *sections])
        chosen = defaults(self, fixed=top)
        for entry in FOLDERS:
            if chosen[entry] not in names(entry):
                load(entry, chosen[entry])
        taking_part = self._named(chosen, asked)
        for section in sorted(asked.keys() - top.keys(), key=lambda s: s == chosen["model"]):
            if section not in sections:
                sections[section] = self._section(section, taking_part, [*own, *sections]).ingredient
            known = defaults(sections[section])
            for key, value in asked[section].items():
                path = f"{section}.{key}"
                self._check(path, value, {f"{section}.{k}": v for k, v in known.items()}, None)
        self.components = {entry: load(*part) for entry, part in taking_part.items()}
        attached = [component.ingredient for component in self.components.values()]
        self.ingredients = list(dict.fromkeys([*self.always, *attached]))

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
        raise Refused(f"There is no setting {section} here.{_hint(section, near)}")

    def _check(self, path, value, known, near):
        if path not in known:
            raise Refused(f"There is no setting {path} here.{_hint(path, near or known)}")
        default = known[path]
        if path in self.fractions and type(value) is float and 0 < value <= 1:
            return
        if _mistyped(default, value):
            share = " or a fraction of the pool between 0 and 1" if path in self.fractions else ""
            raise Refused(f"{path} takes {type(default).__name__}{share}, not {value!r}.")


def _module(entry, name):
    return import_module(f"{FOLDERS[entry]}.{name}")


def _hint(wrong, known):
    close = get_close_matches(str(wrong), known, n=1)
    return f" Did you mean {close[0]}?" if close else ""


def _mistyped(default, value):
    if isinstance(default, list):
        return not isinstance(value, list) or any(_mistyped(default[0], v) for v in value if default)
    if type(default) is float:
        return type(value) not in (int, float)
    return type(value) is not type(default)


def _url(option):
    """The mongo_url that Sacred's `-m` means: DATABASE, HOST:PORT or HOST:PORT:DATABASE."""
    host, _, database = option.rpartition(":")
    if "://" in option:
        return option
    if database.isdigit():
        host, database = option, "sacred"
    return f"mongodb://{host or '127.0.0.1:27017'}/{database}"


def _without_password(url):
    before, at, host = url.rpartition("@")
    scheme, slashes, user = before.rpartition("//")
    return f"{scheme}{slashes}{user.partition(':')[0]}:***@{host}" if at else url


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
