"""Every component with its description, paper and settings: `python -m experiments.catalogue [--json | --markdown]`."""

import argparse
import inspect
import json
import re
from textwrap import indent

from experiments.command_line.process import one_line_errors
from experiments.components import FOLDERS, defaults, load, names
from experiments.errors import Refused


def catalogue():
    """{entry: [{name, description, authors, paper, settings: {name: {default, why}}}]}, "" for what is not stated."""
    return {entry: [describe(entry, name) for name in names(entry)] for entry in FOLDERS}


def describe(entry, name):
    try:
        module = load(entry, name)
    except Refused as error:
        return {"name": name, "description": str(error), "authors": "", "paper": "", "settings": {}}
    text = inspect.getdoc(module) or ""
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


def show(entries):
    for entry, components in entries.items():
        print(f"{entry}=")
        for component in components:
            print(f"  {component['name']:18}{component['description']}")
            if component["paper"]:
                print(f"{'':20}{component['paper']}")
            for key, setting in component["settings"].items():
                line = f"{component['name']}.{key}={setting['default']!r}"
                print(indent(f"{line:34}{setting['why']}".rstrip(), " " * 20))
        print()


def markdown(entries):
    """The README's table of strategies: which setting takes each, what it does, where it comes from."""
    rows = {}
    for entry in ("heuristic", "batch", "initial"):
        for component in entries[entry]:
            rows.setdefault(component["name"], (component, []))[1].append(entry)
    lines = ["| name | setting | what it does | source |", "|---|---|---|---|"]
    for name, (component, takes) in rows.items():
        label = component["authors"] or component["paper"].rpartition("/")[2]
        source = f"[{label}]({component['paper']})" if component["paper"] else ""
        lines.append(f"| `{name}` | {', '.join(takes)} | {component['description']} | {source} |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="for machines")
    parser.add_argument("--markdown", action="store_true", help="the README's table of strategies")
    asked = parser.parse_args()
    with one_line_errors():
        entries = catalogue()
        if asked.json:
            print(json.dumps(entries, indent=1))
        elif asked.markdown:
            print(markdown(entries))
        else:
            show(entries)
