"""A dataset as it is typed: its name, or a folder's path, with settings as glas.root=..."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from experiments.components import PATHS, allowed, defaults, load, names, settings
from experiments.components.randomness import generator
from experiments.components.words import literal
from experiments.errors import Refused, hint
from experiments.store import Splits


class Dataset(NamedTuple):
    """A dataset file's module with the settings that it is used with."""

    module: Any
    settings: dict

    @property
    def name(self):
        return self.module.ingredient.path

    @property
    def root(self):
        """Where its files lie, a Path; None if it has no setting called root."""
        return Path(self.settings["root"]) if self.settings.get("root") else None

    def load(self) -> Splits:
        """Its Splits, those of a run with seed=0, without images that have no mask yet. Raises Refused."""
        splits = self.module.load(rng=generator(0, self.name, "split"), **self.settings)
        masked = [item for item in splits.train.items if item.mask is not None]
        return splits._replace(train=replace(splits.train, items=masked))


def asked(name, words):
    """The Dataset of `name`, a path being dataset=folder with that root; raises Refused for words it does not know."""
    known = names("dataset")
    path = os.path.expanduser(name)
    is_path = name not in known and (os.sep in name or os.path.isdir(path))
    if is_path and not os.path.isdir(path):
        raise Refused(f"{name} is no folder: type one, or the name of a dataset.")
    if is_path and "folder" not in known:
        raise Refused(f"{name} needs the dataset folder, and data/folder.py is not there: type a dataset and its root.")
    module = load("dataset", "folder" if is_path else name)
    section, known, ranges = module.ingredient.path, defaults(module.ingredient), allowed(module.ingredient)
    found = known | ({"root": path} if is_path else {})
    for word in words:
        key, equals, value = word.partition("=")
        setting = key.removeprefix(f"{section}.")
        if not equals or setting == key or setting not in known:
            near = hint(f"{section}.{key.rpartition('.')[2]}", [f"{section}.{k}" for k in known])
            raise Refused(f"There is no setting {key} here.{near} Type it as {section}.{next(iter(known))}=...")
        value = os.path.expanduser(value) if setting.endswith(PATHS) else literal(value)
        settings.check(key, value, known[setting], ranges.get(setting))
        found[setting] = value
    return Dataset(module, found)
