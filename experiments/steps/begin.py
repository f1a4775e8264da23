"""The beginning of a run: its dataset found, an earlier ledger gone on with or a new one opened, the model built."""

import gc
import math
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from experiments.acquisition import needs, trial
from experiments.components import written
from experiments.components.randomness import generator, key
from experiments.errors import Refused
from experiments.evaluation import evaluation, metrics
from experiments.network import checkpoint
from experiments.network.device import check_compiling, memory_explained
from experiments.network.ready import build
from experiments.records import cluster, ledger
from experiments.records.chain import ASIDE
from experiments.records.compare import digest_masks, refuse_other_making, refuse_other_masks, refuse_other_origin
from experiments.records.ledger import CEILING, Ledger, is_finished
from experiments.records.ledger import read as read_ledger
from experiments.records.progress import Progress, plan, say
from experiments.records.provenance import made_with
from experiments.steps import audit, joined, repeat, summary
from experiments.store import RAM, SEEN, Splits, Store, cache, refuse_ignored_foreground, remarks
from experiments.training import recompute, trainer, weights


@dataclass
class State:
    """What the steps of one run share."""

    config: dict
    run: Any  # Sacred's Run
    components: dict  # the chosen modules, by the setting that names each
    place: tuple  # (seed, dataset), the root of all randomness
    splits: Splits
    train: Store
    val: Store | None
    test: Store | None
    active: Any  # baal's ActiveLearningDataset of positions in `train`: who is labelled
    classes: int
    model: Any
    first_weights: dict  # the weights that every cycle starts from
    origin: dict  # where those that were not drawn come from
    ledger: Ledger
    progress: Progress
    trained_cycle: int | None = None  # the cycle whose trained weights are in the model
    learner: Any = None  # what a learned strategy trained beside them
    encoder: Any = None  # a pretrained network that remembers, whose features strategies compare
    asked: Any = None  # the last query as its pictures show it, until its masks are there

    def at(self, cycle):
        return (*self.place, cycle)


def check(config, components, usual):
    """Say which dataset it is and refuse what the dataset's files or an earlier run's results do not allow.

    `usual` are the defaults of all settings.
    """
    [about, *_] = written("dataset", config["dataset"])["__doc__"].split("\n")  # -OO leaves modules without theirs
    say(f"Dataset {config['dataset']}: {about}")
    metrics.headline(components["dataset"])
    if config["ray"]:
        cluster.check(config["ray"], f"ray={config['ray']}")
    SEEN.clear()  # of a run that was refused before, in this process: files may have changed since
    splits = find_images(config, components)
    evaluation.check_test(splits.test, config["dataset"])
    needs.check(config, components, splits)
    if not ledger.finished(folder_of(config), config["cycles"], config["stop_at"]):
        trial.check(config, components, splits)
    recompute.check(config, components["model"], splits)
    if config["stop_at"] and not splits.val:
        why = f"{config['dataset']} has none, and test images decide nothing"
        raise Refused(f"stop_at={config['stop_at']} asks validation images ({why}): leave it out.")
    size, start = len(splits.train), config["start"]
    if isinstance(start, int) and start > size:
        raise Refused(f"start={start} is more than the {size} images that {config['dataset']} has to learn from.")
    config = resolve_counts(config, components, splits.train)
    audit.check(config, splits.train)
    repeat.check(config)
    if 0 < config["pool_size"] < config["query"]:
        looked, asked = config["pool_size"], config["query"]
        raise Refused(f"pool_size={looked} images cannot fill a query of {asked}: make it at least as large.")
    ledger.check(folder_of(config), config, usual, lambda: made_with(config, components.values(), device_of(config)))


def find_images(config, components):
    """The Splits of this run's dataset, described; nothing is decoded. Raises Refused when files are missing."""
    splits = components["dataset"].load(rng=generator(config["seed"], config["dataset"], "split"))
    splits = splits.described(components["dataset"])
    splits = joined.dealt_as_before(splits, folder_of(config), read_ledger(folder_of(config)), config["cycles"])
    return splits._replace(crop=0) if weights.whole(components["model"]) else splits


def resolve_counts(config, components, train):
    """The settings with shares of the training images as numbers of images."""
    events = read_ledger(folder_of(config))
    items = train.items[: len(events[0].get("images", {}).get("train", train.items))] if events else train.items
    size, start = len(items), 0 if getattr(components["initial"], "EMPTY", False) else config["start"]
    if getattr(components["initial"], "ANNOTATED", False):
        grown = events and "images" in events[0]  # masks may have come since, too
        start = len(events[0]["queries"]) if grown else sum(item.mask is not None for item in items)
    return {**config, "start": count(start, size), **{k: count(config[k], size) for k in ("query", "pool_size")}}


def folder_of(config):
    return Path(config["results_dir"]) / f"{config['label']}_{config['run']}"


def begun(config, command):
    """The settings in the ledger of the run that this command goes on with, {} if it begins one."""
    events = read_ledger(folder_of({**config, **CEILING} if command == "full" else config))
    return events[0]["settings"] if events else {}


def device_of(config):
    """The torch.device of this run, set up for it."""
    return trainer.prepare(device=config["device"], threads=config["threads"])


@contextmanager
def prepare(config, run, components, usual):
    """Read the images, open the ledger, build the model: a State for the other steps."""
    from baal.active import ActiveLearningDataset  # takes seconds to import

    from experiments.network.remembered import keep_in  # defines a module, so it needs torch at once

    model_file = components["model"]
    device = device_of(config)
    made = made_with(config, components.values(), device)
    for part in ("trainer", "prediction"):
        if config[part]["compiled"]:
            check_compiling(f"{part}.compiled")
    splits = find_images(config, components)
    place = config["seed"], splits.name
    make_store = partial(Store, device=device, classes=splits.classes)
    with memory_explained(lambda: "reading the images"):
        stores = cache.read(splits, components["dataset"], config["cache_dir"], make_store)
    train, val, test = stores
    for annotated in filter(None, (val, test)):
        annotated.label(range(len(annotated)))
    refuse_ignored_foreground(list(filter(None, stores)), config["dataset"])
    trainer.check_validation(val)
    size, classes = len(train), len(splits.classes)
    config, folder = resolve_counts(config, components, splits.train), folder_of(config)
    new = joined.coming(read_ledger(folder), train)
    summary.say_plan(config, run, components, splits, test, classes, made)
    for line in remarks.remarks(dict(zip(splits._fields, stores, strict=False)), splits.classes):
        say(line)
    fingerprints = [store and store.fingerprint for store in stores]
    if new:
        fingerprints[0] = train.hash_images(range(new.start))
    names = joined.named(splits)
    masks = {name: store and digest_masks(store, range(len(store))) for name, store in (("val", val), ("test", test))}
    with (
        Ledger(folder, config, fingerprints, usual, train.ids, masks=masks, made=made, **names) as ledger,
        Progress(plan(config, splits.crop, *stores, ledger.events)) as bar,
        memory_explained(lambda: bar.stage or "building the model, training"),
        cluster.left(),
    ):
        if ledger.events:
            go_on(ledger, config, made, masks, {"val": val, "test": test}, new)
            joined.join(ledger, train)
        encoder = encoder_of(config, components, splits, place, device)
        model, first = build(model_file, splits.channels, classes, place, device, config["members"])
        keep_in(config["cache_dir"], model, device)
        origin = checkpoint.origin(model) | ({"encoder": encoder.pretrained} if encoder else {})
        if ledger.events:
            refuse_other_origin(ledger.folder, ledger.events[0], origin)
        active = ActiveLearningDataset(range(size))
        gc.freeze()  # what was imported is no garbage: looking for some takes a tenth of the time
        try:
            parts = config, run, components, place, splits, *stores, active, classes, model, first, origin, ledger, bar
            yield State(*parts, encoder=encoder)
        finally:
            gc.unfreeze()


def encoder_of(config, components, splits, place, device):
    """The pretrained network, as it remembers, that a run's `encoder` names; None where it names none."""
    if not config["encoder"]:
        return None
    import torch

    from experiments.network.remembered import keep_in, remember  # defines a module, so it needs torch at once

    torch.manual_seed(key(*place, "encoder") % 2**63)  # for what it has beside pretrained weights
    encoder = remember(components["encoder"], splits.channels, len(splits.classes), RAM // 4, deepest=True).to(device)
    keep_in(config["cache_dir"], encoder, device)
    return encoder


def go_on(ledger, config, made, masks, stores, new):
    """Refuse other masks or another making than those of the run so far, and record the latter where it is allowed."""
    began = next((e["masks"] for e in ledger.events if e["event"] in ("start", "resumed") and "masks" in e), None)
    for name, store in stores.items():
        if store:
            refuse_other_masks(ledger.folder, store, range(len(store)), began and began[name])
    if new or not is_finished(ledger.events, config["cycles"], config["stop_at"]):
        line = refuse_other_making(ledger.folder, ledger.events, made, config["resume"] == "anyway")
        if line:
            say(line)
            cycle = sum(e["event"] == "evaluated" for e in ledger.events)
            ledger.append("resumed", cycle, made=made, **({} if began else {"masks": masks}))
    if ledger.chain.unsealed:
        lines = f"the first {ledger.chain.unsealed} lines of {ledger.path} have no hashes"
        say(f"Written by an earlier version, {lines}: they are taken as they are.")
    done = sum(e["event"] not in ASIDE for e in ledger.events)
    say(f"Going on from {ledger.folder}, where {done} steps are done.")


def count(share, size):
    """An int as it is, a fraction of `size` rounded up, never more than `size`."""
    return min(size, math.ceil(share * size) if isinstance(share, float) else share)
