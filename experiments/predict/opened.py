"""A finished run opened again: its last weights in its model, and what its images look like to it."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from experiments.components import configure, load, written
from experiments.components.randomness import generator
from experiments.errors import Refused
from experiments.network import checkpoint
from experiments.network.ready import build
from experiments.records import ledger
from experiments.records.compare import refuse_other_origin


class Opened(NamedTuple):
    """What prediction needs of a run."""

    events: list  # of its ledger
    settings: dict
    model: Any  # with the weights of the last cycle
    layers: dict  # the model file's LAYERS, {} if it names none
    weights: str  # their sha256
    classes: list
    channels: int
    place: tuple  # (seed, dataset, cycle), from which the run's own test passes were drawn
    passes: int  # of the run's own evaluation, 0: one without dropout
    device: Any

    @property
    def data(self):
        """The settings of the run's dataset."""
        return self.settings.get(self.settings["dataset"], {})

    def labelled(self):
        """The ids of the images that the model learnt from."""
        start, *events = self.events
        asked = [start, *(e for e in events if e["event"] == "queried" and e["cycle"] < self.place[-1])]
        return [query["id"] for event in asked for query in event["queries"]]


def open_run(folder, device="auto", threads=0):
    """The Opened run of a folder such as results/bald_3. Raises Refused where it or its weights are missing."""
    from experiments.training import trainer  # needs torch at once

    folder = Path(folder)
    events = ledger.read(folder)
    evaluated = [event for event in events if event["event"] == "evaluated"]
    if not evaluated:
        what = "holds no trained model" if events else "holds no run (there is no ledger.jsonl)"
        raise Refused(f"{folder} {what}: name the folder of a run, as results/bald_3.")
    settings, last = events[0]["settings"], evaluated[-1]
    state = ledger.Ledger(folder, settings, []).load_weights(last["cycle"], last["weights"])
    if state is None:
        raise Refused(f"{folder} does not hold the weights of cycle {last['cycle']}: checkpoint=last keeps them.")
    module = load("model", settings["model"])
    classes, channels = events[0]["classes"], channels_of(events[0])
    device = trainer.prepare(device=device, threads=threads, deterministic=False)
    configure(module, settings)
    name = settings.get(settings["dataset"], {}).get("name") or settings["dataset"]
    with torch.random.fork_rng(devices=[]):
        place = settings["seed"], name  # what was drawn once and is frozen is drawn again
        model, _ = build(module, channels, len(classes), place, device, settings.get("members", 1))
    refuse_other_origin(folder, events[0], checkpoint.origin(model))
    checkpoint.load(model, checkpoint.unpack(state)[0])
    tested = settings["evaluation"]
    return Opened(
        events, settings, model.eval(), getattr(module, "LAYERS", {}), last["weights"], classes, channels,
        (settings["seed"], name, last["cycle"]), tested["passes"] if tested["dropout"] else 0, device,
    )  # fmt: skip


def channels_of(start):
    """The channels of a run's images, which older ledgers leave to the dataset's settings or its file."""
    dataset = start["settings"]["dataset"]
    own = start["settings"].get(dataset, {}).get("channels")
    return start.get("channels") or own or written("dataset", dataset).get("CHANNELS", 3)


def splits_of(run, root=""):
    """The described Splits of an Opened run's dataset in `root`, empty: where it lies by default. Raises Refused."""
    dataset = load("dataset", run.settings["dataset"])
    older = {dataset.ingredient.path: getattr(dataset, "BEFORE", {}) | run.data}
    rng = generator(run.settings["seed"], run.settings["dataset"], "split")
    place = {"root": root} if root else {}
    configure(dataset, run.settings | older)
    return dataset.load(rng=rng, **place).described(dataset)


def seen_size(size, data, scale=0.0):
    """(height, width) at which a model sees an image of `size`, by its dataset's settings or a `scale` of both sides.

    Raises Refused where the dataset scales each image by the width of its pixels, which no image of one's own tells.
    """
    if not scale and data.get("pixel"):
        raise Refused(f"The model saw pixels of {data['pixel']} um: set --scale to your pixels' width over that.")
    if not scale and ("height" in data or "width" in data):
        return tuple(data.get(side) or own for side, own in zip(("height", "width"), size, strict=True))
    factor = scale or data.get("resize", 1.0)
    return tuple(max(1, round(side * factor)) for side in size)


def scaled(image, size):
    """An image (H, W, channels) uint8 at another (height, width), antialiased where it is made smaller."""
    if image.shape[:2] == size:
        return image
    planes = (Image.fromarray(plane) for plane in np.moveaxis(image, -1, 0))
    return np.stack([np.array(plane.resize(size[::-1], Image.Resampling.BILINEAR)) for plane in planes], axis=-1)
