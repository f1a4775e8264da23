"""The command line of Sacred, with an answer of one line to whatever its parser would misread."""

import ast
import logging
import shlex
from difflib import get_close_matches
from pathlib import Path

from experiments.errors import Refused, hint, listed

USELESS = {"--queue", "--priority", "--id", "--sql", "--s3", "--tiny_db"}  # of Sacred's flags: nothing here heeds them


def literal(text):
    """A typed value: a Python literal, or else the text itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def check(argv, commands, flags, settings, presets):
    """Raise Refused, saying what to type, for words that are no command, flag, preset or setting=value in its place.

    `flags` {name: whether a value follows it}, `settings` and `presets` are the names that there are.
    """
    program, words = Path(argv[0]).name, positional(argv[1:], flags, settings)
    if "with" not in words:
        refuse_without_with(program, words, commands, presets)
        return
    before, after = words[: words.index("with")], words[words.index("with") + 1 :]
    for word in before:
        refuse_command(word, commands)
    if len(before) > 1:
        raise Refused(f"One command at a time: {before[0]} or {before[1]}.")
    if not after:
        raise Refused(f"Nothing stands after with: type settings, as `python {program} with heuristic=bald run=3`.")
    if "with" in after:
        raise Refused("with stands once, before all presets and settings.")
    for word, following in zip(after, [*after[1:], "="], strict=True):
        if word.startswith("=") or word in settings and following.startswith("="):
            raise Refused("No blanks around =: type the setting, = and the value as one word, as heuristic=bald.")
        if word.endswith("=") and "=" not in following:
            raise Refused(f"No blanks around =: type {word}{following}, or {word}'' for an empty text.")
    refuse_groups([word.partition("=")[0].strip() for word in after if "=" in word])


def refuse_without_with(program, words, commands, presets):
    if words[:1] == ["help"]:
        for word in words[1:]:
            refuse_command(word, commands)
        return
    nearly = [word for word in words if word not in commands and get_close_matches(word.lower(), ["with"], cutoff=0.6)]
    if nearly or any("=" in word or word in presets or Path(word).suffix in (".yaml", ".json") for word in words):
        asked = "Did you mean with" if nearly else "Did you forget with"
        known = [word for word in words[:1] if word in commands]
        rest = ["..." if "://" in word else word for word in words if word not in [*nearly, *known]]
        raise Refused(f"{asked}? Type `{shlex.join(['python', program, *known, 'with'])} {shlex.join(rest) or '...'}`.")
    for word in words:
        refuse_command(word, commands)
    if len(words) > 1:
        raise Refused(f"One command at a time: {words[0]} or {words[1]}.")


def refuse_command(word, commands):
    if word not in commands:
        name = word if word.isprintable() else repr(word)
        raise Refused(f"There is no command {name}.{hint(word, commands)} There are {listed(commands)}.")


def refuse_groups(paths):
    """A setting is a value or a group of settings, not both."""
    for path in paths:
        whole = next((other for other in paths if path.startswith(f"{other}.")), None)
        if whole:
            raise Refused(f"{whole}=... and {path}=... cannot both be: {whole} is one setting or a group of them.")


def positional(words, flags, settings):
    """The words that are no flags and no flags' values."""
    found, words = [], iter(words)
    for word in words:
        if not word.startswith("-") or word == "-":
            found.append(word)
            continue
        name, equals, _ = word.partition("=")
        if not name.startswith("--"):
            name, equals = word[:2], len(word) > 2
        known = [flag for flag in flags if flag == name] or [flag for flag in flags if flag.startswith(name)]
        if len(known) != 1 or (name.startswith("--") and len(name) < 3):
            refuse_flag(word, next(words, ""), flags, settings)
        if flags[known[0]] and not equals and next(words, None) is None:
            raise Refused(f"{word} takes a value.")
    return found


def refuse_flag(word, following, flags, settings):
    name, _, value = word.partition("=")
    setting = name.lstrip("-")
    if setting in settings:
        value = value or following
        value = "..." if "://" in value or not value else shlex.quote(value)
        raise Refused(f"There is no flag {name}: settings stand after with, type `with {setting}={value}`.")
    raise Refused(f"There is no flag {name} here.{hint(name, flags)} -h lists them; settings stand after with.")


def check_flags(options):
    """Raise Refused for values of flags that Sacred would stumble over."""
    beat, level, capture = (options.get(name) for name in ("--beat-interval", "--loglevel", "--capture"))
    if beat is not None and not (isinstance(literal(beat), int | float) and 0 < literal(beat) < 1e6):
        raise Refused(f"--beat-interval takes seconds above 0, not {beat!r}.")
    if level is not None and not level.isdigit() and level not in logging.getLevelNamesMapping():
        raise Refused(f"--loglevel takes a number or DEBUG, INFO, WARNING, ERROR, CRITICAL, not {level!r}.")
    if capture is not None and capture not in ("no", "sys", "fd"):
        raise Refused(f"--capture is one of no, sys, fd, not {capture!r}.")
