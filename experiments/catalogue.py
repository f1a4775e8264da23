"""Every component with its description, paper and settings: `python -m experiments.catalogue [--json]`."""

import argparse
import inspect
import json
import re
from textwrap import indent

from experiments.components import FOLDERS, defaults, load, names


def catalogue():
    """{entry: [{name, description, paper, settings: {name: {default, why}}}]}; paper is "" without a link."""
    return {entry: [describe(entry, name) for name in names(entry)] for entry in FOLDERS}


def describe(entry, name):
    module = load(entry, name)
    text = inspect.getdoc(module) or ""
    whys = {}
    for scope in module.ingredient.configurations:
        whys |= scope(fixed={}).docs
    settings = {key: {"default": value, "why": whys.get(key, "")} for key, value in defaults(module.ingredient).items()}
    links = re.findall(r"https?://[^\s,;)]+", text)
    return {
        "name": name,
        "description": text.partition("\n\n")[0].replace("\n", " "),
        "paper": links[0].rstrip(".") if links else "",
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


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="for machines")
    entries = catalogue()
    if parser.parse_args().json:
        print(json.dumps(entries, indent=1))
    else:
        show(entries)
