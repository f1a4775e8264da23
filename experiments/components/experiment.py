"""Sacred's experiment, with only the components that the command line names.

Sacred fixes the ingredients before it reads the configuration, so `SelectiveExperiment` reads it first, attaches
exactly the named components' ingredients, and refuses every setting that none of them knows.
"""

import logging
import os
import signal
import sys
from pathlib import Path
from threading import Lock, Thread
from time import sleep
from types import SimpleNamespace

from docopt import DocoptExit
from sacred import SETTINGS, Experiment, arg_parser, ingredient, initialize
from sacred.dependencies import Source, get_digest
from sacred.utils import apply_backspaces_and_linefeeds, convert_to_nested_dict, recursive_update

from experiments.components import (
    FOLDERS,
    PATHS,
    PRESETS,
    ROOT,
    allowed,
    defaults,
    load,
    names,
    settings,
    source_files,
    words,
    written,
)
from experiments.components.address import UNKNOWN, of_option, without_credentials
from experiments.errors import Refused, Terminated, hint, listed, shown
from experiments.errors.process import drop_unwritable_output, refusal, signals_noted

# what Sacred logs and our own lines say better, or the user has asked for with runs_dir=""
UNSAID = {"Aborted after %s!", "Failed after %s!", "No observers have been added to this run"}
SETTINGS.CAPTURE_MODE = "sys"  # capturing file descriptors would hide the terminal from the progress bar
# Sacred would run what stands in a file or a typed value: jsonpickle's, pickle's and YAML's objects
arg_parser._convert_value = words.literal
ingredient.load_config_file = initialize.load_config_file = settings.read


class SelectiveExperiment(Experiment):
    """An experiment in which only the named components take part; `components` maps each entry, and
    each setting of a component that names another, to its module.

    `fractions` names the int settings that may also be a share (0, 1] of something, `optional` {setting: entry} those
    that may name one more component, "" for none. `check(config, components, command)` may refuse before anything is
    written. `observe(config, url, command)` gives a run's observers, `url` being `mongo_url` with the password that
    goes no further than there. `begun(config, command)` are the settings in the ledger of a run that goes on, {} for a
    new one.
    """

    def __init__(
        self,
        *args,
        fractions=(),
        optional=None,
        check=lambda config, components, command: None,
        observe=lambda config, url, command: [],
        begun=lambda config, command: {},
        **kwargs,
    ):
        super().__init__(*args, base_dir=str(ROOT), **kwargs)
        self.mainfile = Source.create(str(ROOT / "active.py"))  # Sacred looks at who calls the line above
        self.always, self.fractions = list(self.ingredients), set(fractions)
        self.optional = optional or {}
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

    def settled(self, presets, updates):
        """All settings of a run with these presets and {dotted name: value}, checked as a run's are; none is begun."""
        return self._create_run("main", convert_to_nested_dict(updates), tuple(presets)).config

    def taking_part(self, presets, updates):
        """The names of the components that take part in a run with these presets and {dotted name: value}."""
        asked = {}
        for found in (*map(self._preset, presets), updates):
            recursive_update(asked, convert_to_nested_dict(found))
        top = {key: value for key, value in asked.items() if not isinstance(value, dict)}
        return {name for _, name in self._named(defaults(self, fixed=top), asked).values()}

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

        `preset_of` {setting or group of settings: preset} says what nobody typed. A preset's settings of what takes no
        part are taken out of `asked`.
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
        self._drop_unused(asked, {name for _, name in taking_part.values()}, chosen, preset_of)
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

    def _drop_unused(self, asked, taking_part, chosen, preset_of):
        for section, preset in preset_of.items():
            entries = [entry for entry in FOLDERS if section in names(entry)]
            if not isinstance(asked[section], dict) or section in taking_part or not entries:
                continue
            typed = [entry for entry in entries if entry in asked and entry not in preset_of]
            later = [entry for entry in entries if preset_of.get(entry, preset) != preset]
            if later == ["dataset"] and not typed and "dataset" in self._preset(preset):  # both say which images
                other = f"{preset_of['dataset']} sets dataset={chosen['dataset']} after {preset}"
                fix = f"name one of the two presets, or add dataset={section}"
                raise Refused(f"{other}, whose settings of {section} then take no part: {fix}.")
            entry = [*typed, *later, *entries][0]
            print(f"{entry}={chosen[entry]}, so what {preset} sets of {section} is left out.", flush=True)
            del asked[section]

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
        taking_part |= {key: (entry, chosen[key]) for key, entry in self.optional.items() if chosen[key]}
        models = [part for part in taking_part.values() if part[0] == "model"]
        named = [part for part in taking_part.values() if part[0] not in ("dataset", "model")]
        waiting = named + [part for part in models if "NAMES" in written(*part)]
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
