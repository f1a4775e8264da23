"""Labelled images judged by models that never saw them: K folds, each source's images in one of them.

Cross-fitting as confident learning asks for (Northcutt et al. 2021, https://arxiv.org/abs/1911.00068): for each fold
the run's model is trained anew, from its first weights and by its settings, on the labelled images of all others.
"""

import io
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
import torch
from sklearn.model_selection import GroupKFold

from experiments.acquisition import prediction
from experiments.acquisition.prediction import predict, winner
from experiments.annotate import answers
from experiments.components import configure, load
from experiments.errors import Refused
from experiments.network.inference import Network
from experiments.network.ready import build, members_of
from experiments.predict.opened import channels_of, splits_of
from experiments.records import ledger
from experiments.records.compare import digest_masks
from experiments.records.files import write
from experiments.records.provenance import hash_sources
from experiments.store import Store, refuse_ignored_foreground
from experiments.store.reading import MAX_WEIGHTS, regular
from experiments.suspects.quality import quality, self_confidence
from experiments.training import augment, operations, solve, trainer, weights  # noqa: F401  configured together

PARTS = ("predicted", "doubt")  # arrays of an image beside its quality


class Labelled(NamedTuple):
    """The labelled images of a run, and what trains its model on them; nothing of its pool is there."""

    folder: Path
    events: Sequence
    settings: dict
    classes: Sequence
    channels: int
    crop: int
    place: tuple  # (seed, dataset), the root of all randomness
    train: Store  # of the labelled images alone, masks opened
    val: Store | None
    device: Any

    @property
    def data(self):
        """The settings of the run's dataset."""
        return self.settings.get(self.settings["dataset"], {})

    def key(self, folds):
        """sha256 of all that the scores in so many folds depend on."""
        model = load("model", self.settings["model"])
        said = [self.settings, self.train.ids, self.train.fingerprint, digest_masks(self.train, range(len(self.train)))]
        said += [
            self.val and self.val.fingerprint,
            folds,
            hash_sources([model], start=("experiments/suspects/crossfit.py",)),
        ]
        return sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def open_labelled(folder, root="", device="auto", threads=0):
    """The Labelled images of a run's folder, its dataset in `root`. Raises Refused where something is missing."""
    folder = Path(folder)
    events = ledger.read(folder)
    tested = [event for event in events if event["event"] == "evaluated"]
    if not tested:
        raise Refused(f"{folder} holds no run that was trained: name the folder of a run, as results/bald_3.")
    settings = events[0]["settings"]
    last = tested[-1]["cycle"]
    asked = [events[0], *(event for event in events if event["event"] == "queried" and event["cycle"] < last)]
    ids = [query["id"] for event in asked for query in event["queries"]]
    run = Labelled(folder, events, settings, events[0]["classes"], channels_of(events[0]), 0, (), None, None, None)
    splits = splits_of(run, root)
    items = {item.id: item for item in splits.train.items}
    missing = [id for id in ids if id not in items]
    if missing:
        raise Refused(f"{missing[0]} is not among the images there: say where the run's are with --data.")
    device = trainer.prepare(device=device, threads=threads, deterministic=settings["trainer"]["deterministic"])
    for part in (trainer, augment, prediction):
        configure(part, settings)
    train = Store(replace(splits.train, items=[items[id] for id in ids]), device, classes=splits.classes)
    position = {id: index for index, id in enumerate(ids)}
    for id, digest in answers.in_force(events).items():
        if id in position:
            train.drawn[position[id]] = partial(answers.read, folder, digest, train.sizes[position[id]])
    train.label(range(len(train)))
    val = splits.val and Store(splits.val, device, classes=splits.classes)
    if val:
        val.label(range(len(val)))
    refuse_ignored_foreground([train, *([val] if val else [])], settings["dataset"])
    crop = 0 if weights.whole(load("model", settings["model"])) else splits.crop
    return run._replace(
        classes=splits.classes, crop=crop, place=(settings["seed"], splits.name), train=train, val=val, device=device
    )


def folds_of(items, count, rng):
    """[positions of each fold]: the images of one source, or of none each for itself, together; sizes alike.

    Raises Refused where there are fewer than two sources.
    """
    names = [item.source or f"image {item.id}" for item in items]
    distinct = sorted(set(names))
    if len(distinct) < 2:
        raise Refused(
            f"All {len(items)} labelled images are of one source: a model that never saw it cannot be trained."
        )
    number = dict(zip(distinct, rng.permutation(len(distinct)).tolist(), strict=True))
    parts = GroupKFold(min(count, len(distinct))).split(names, groups=[number[name] for name in names])
    return [held.tolist() for _, held in parts]


class Judge:
    """Trains a run's model for one fold after the other."""

    def __init__(self, run):
        self.run, self.file = run, load("model", run.settings["model"])
        configure(self.file, run.settings)
        members = run.settings.get("members", 1)
        with torch.random.fork_rng(devices=[]):
            self.model, self.first = build(self.file, run.channels, len(run.classes), run.place, run.device, members)

    def judge(self, fold, held, advance):
        """What models that never saw the `held` images say of their masks, by position.

        {position: (quality, predicted mask (H, W) uint8, disbelief (H, W) uint8, 255 where the mask's class is
        impossible)}.
        """
        self.fit(fold, sorted(set(range(len(self.run.train))) - set(held)), advance)
        network, train, found = Network(self.model), self.run.train, {}
        for members, images in train.batches(held):
            p = predict(network, images, [train.ids[i] for i in members], means_alone=True).mean
            masks = torch.stack([train.mask(i) for i in members]).to(p.device)
            confidence = self_confidence(p, masks)
            scores = quality(confidence.cpu(), masks.cpu()).tolist()  # float64, which not every device has
            predicted = winner(p).to(torch.uint8).cpu().numpy()
            doubt = ((1 - confidence) * 255).round().to(torch.uint8).cpu().numpy()
            found |= {i: (scores[k], predicted[k], doubt[k]) for k, i in enumerate(members)}
            advance(masks.numel())
        return found

    def fit(self, fold, known, advance):
        """Train on the images at these positions, from the first weights, as a cycle without its strategy does."""
        run, place = self.run, (*self.run.place, "suspects", fold)
        trainer.reset_weights(self.model, self.first, 0)
        for number, model in enumerate(members_of(self.model)):
            images = model, run.train, known, run.val, (*place, "member", number) if number else place
            if hasattr(model, "solved"):
                solve.fit(*images, advance=advance)
            else:
                trainer.fit(*images, crop=run.crop, whole=weights.whole(self.file), advance=advance)


def keep(path, key, found):
    """Write what a fold gave into a file."""
    arrays = {f"{name}_{i}": array for i, (_, *both) in found.items() for name, array in zip(PARTS, both, strict=True)}
    scores = {"positions": list(found), "quality": [score for score, *_ in found.values()]}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, key=key, **scores, **arrays)
    write(path, buffer.getvalue())


def kept(path, key):
    """What `keep` wrote under this key, None where there is none or the file is damaged."""
    try:
        with np.load(io.BytesIO(regular(path, MAX_WEIGHTS).read_bytes()), allow_pickle=False) as file:
            if str(file["key"]) != key:
                return None
            scores = zip(file["positions"].tolist(), file["quality"].tolist(), strict=True)
            return {i: (score, *(file[f"{name}_{i}"] for name in PARTS)) for i, score in scores}
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        return None
