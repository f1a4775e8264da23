"""One shard of a run's pool, computed in another process from the run's settings, its weights and the images' ids.

The dataset is opened there anew, on a disk that both see; masks are not among what is opened.
"""

import json
import os
import socket
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load

from experiments.acquisition import prediction, querying, shards
from experiments.components import configure
from experiments.components.randomness import generator
from experiments.errors import Refused
from experiments.network import checkpoint
from experiments.network.ready import build
from experiments.network.remembered import keep_in
from experiments.records.provenance import made_with
from experiments.steps.begin import encoder_of
from experiments.store import Split, Splits, Store
from experiments.training import trainer


@dataclass
class Opened:
    """Of a run's State what a Pool is made from."""

    config: dict
    components: dict
    place: tuple
    splits: Splits
    items: dict  # by id
    device: torch.device
    model: torch.nn.Module
    encoder: Any
    train: Store | None = None
    val, active = None, SimpleNamespace(get_indices_for_active_step=list)  # no image that has a mask is here

    def at(self, cycle):
        return (*self.place, cycle)


def asked_of(state):
    """All that another process has to know of a run beside weights and images, as JSON text."""
    components = {entry: module.__name__ for entry, module in state.components.items()}
    device = state.train.device
    made = made_with(state.config, state.components.values(), device)
    asked = {"folder": os.getcwd(), "config": state.config, "components": components, "device": device.type}
    return json.dumps(asked | {"made": made})


@lru_cache(1)
def opened(asked):
    """The Opened run of what `asked_of` gave. Raises Refused where this process would make other numbers."""
    asked = json.loads(asked)
    config, made = asked["config"], asked["made"]
    os.chdir(asked["folder"])
    components = {entry: import_module(name) for entry, name in asked["components"].items()}
    for module in (*components.values(), prediction, trainer):
        configure(module, config)
    device = trainer.prepare(device=asked["device"], threads=made["threads"])
    own = made_with(config, components.values(), device)
    other = [key for key in made if own.get(key) != made[key]]
    if other and config["resume"] != "anyway":
        raise Refused(
            f"{socket.gethostname()} would compute with other {' and '.join(other)} than this machine: "
            "make them alike, leave out ray=..., or set resume=anyway."
        )
    dataset = components["dataset"]
    splits = dataset.load(rng=generator(config["seed"], config["dataset"], "split")).described(dataset)
    items = {item.id: item._replace(mask=None) for split in splits[:3] if split for item in split.items}
    place = config["seed"], splits.name
    encoder = encoder_of(config, components, splits, place, device)
    model, _ = build(components["model"], splits.channels, len(splits.classes), place, device, config["members"])
    keep_in(config["cache_dir"], model, device)
    return Opened(config, components, place, splits, items, device, model, encoder)


def compute(asked, weights, work, cycle, ids, sums):
    """The Answer of the images `ids` to `work`, by the model with these `weights` (bytes), in this process.

    `sums` are the images' check sums where they were asked for. Raises Refused for other images or another machine.
    """
    run = opened(asked)
    gone = [id for id in ids if id not in run.items]
    if gone:
        raise Refused(f"{socket.gethostname()} has no image {gone[0]}: all machines read the same folder.")
    how = run.splits.train
    split = Split([run.items[id] for id in ids], how.read_image, how.read_mask)
    run.train = Store(split, run.device, classes=run.splits.classes)
    for id, one, other in zip(ids, sums, run.train.sums, strict=True):
        if one != other:
            raise Refused(f"{socket.gethostname()} reads another image {id}: all machines read the same folder.")
    checkpoint.load(run.model, load(weights))
    return shards.answer(querying.pool_of(run, range(len(ids)), cycle, model=lambda: run.model), work)
