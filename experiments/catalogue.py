"""Every component with its description, paper and settings: `python -m experiments.catalogue [bald ...] [--json]`."""

import argparse
import ast
import json
import re
import sys
from difflib import get_close_matches
from pathlib import Path

from experiments.components import FOLDERS, defaults, load, names
from experiments.errors import Refused
from experiments.errors.process import one_line_errors


def catalogue(asked=()):
    """{entry: [{name, description, authors, paper, settings: {name: {default, why}}}]}, "" for what is not stated.

    Of the components whose names are `asked` for, or of all. Raises Refused for a name that no component has.
    """
    known = {entry: names(entry) for entry in FOLDERS}
    every = sorted({name for some in known.values() for name in some})
    for name in asked:
        if name not in every:
            near = get_close_matches(name, every, n=1)
            raise Refused(f"There is no component {name!r}." + "".join(f" Did you mean {n}?" for n in near))
    chosen = {entry: [name for name in some if not asked or name in asked] for entry, some in known.items()}
    return {entry: [describe(entry, name) for name in some] for entry, some in chosen.items() if some}


def describe(entry, name):
    try:
        module = load(entry, name)
    except Refused as error:
        return {"name": name, "description": str(error), "authors": "", "paper": "", "settings": {}}
    text = documentation(module)
    whys = {}
    for scope in module.ingredient.configurations:
        whys |= scope(fixed={}).docs
    settings = {key: {"default": value, "why": whys.get(key, "")} for key, value in defaults(module.ingredient).items()}
    links = re.findall(r"https?://[^\s,;)]+", text)
    authors = re.findall(r"([A-Z][\w&\-. ]*? \d{4})(?: \([^)]*\))?,\s+" + re.escape(links[0]), text) if links else []
    return {
        "name": name,
        "description": text.partition("\n\n")[0].replace("\n", " "),
        "authors": authors[0] if authors else "",
        "paper": links[0].rstrip(".:") if links else "",
        "settings": settings,
    }


def documentation(module):
    """Its docstring, read from its file: `python -OO` keeps none in memory."""
    return ast.get_docstring(ast.parse(Path(module.__file__).read_text("utf-8"))) or ""


def show(entries):
    seen, width = {}, 2 + max(len(component["name"]) for components in entries.values() for component in components)
    for entry, components in entries.items():
        print(f"{entry}=")
        for component in components:
            name = component["name"]
            if name in seen:
                print(f"  {name:{width}}as {seen[name]}={name}")
                continue
            seen[name] = entry
            print(f"  {name:{width}}{component['description']}")
            if component["paper"]:
                print(f"  {'':{width}}{component['paper']}")
            settings = component["settings"].items()
            lines = {f"{name}.{key}={setting['default']!r}": setting["why"] for key, setting in settings}
            column = 2 + max(map(len, lines), default=0)
            for line, why in lines.items():
                print(f"  {'':{width}}{line:{column}}{why}".rstrip())
        print()


def markdown(entries):
    """The table of strategies in docs/components.md: which setting takes each, what it does, where it comes from."""
    rows = {}
    for entry in ("heuristic", "batch", "initial"):
        for component in entries.get(entry, ()):
            rows.setdefault(component["name"], (component, []))[1].append(entry)
    lines = ["| name | setting | what it does | source |", "|---|---|---|---|"]
    for name, (component, takes) in rows.items():
        label = component["authors"] or component["paper"].rpartition("/")[2]
        source = f"[{label}]({component['paper']})" if component["paper"] else ""
        lines.append(f"| `{name}` | {', '.join(takes)} | {component['description']} | {source} |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m experiments.catalogue", description="Every component, or those named, with paper and settings."
    )
    parser.add_argument("names", nargs="*", help="components, as bald or unet; none: all of them")
    parser.add_argument("--json", action="store_true", help="for machines")
    parser.add_argument("--markdown", action="store_true", help="the table of strategies in docs/components.md")
    asked = parser.parse_args()
    with one_line_errors():
        entries = catalogue(asked.names)
        if asked.json:
            print(json.dumps(entries, indent=1))
        elif asked.markdown:
            print(markdown(entries))
        else:
            show(entries)
        sys.stdout.flush()
