"""The steps of a run, each leaving its event in the ledger, or taking it from there when it was done before."""

import gc
import io
import math
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from experiments import annotate
from experiments.acquisition import needs, querying, showing, trial
from experiments.components import PRESETS, load, written
from experiments.errors import Refused
from experiments.evaluation import evaluation, metrics
from experiments.network import checkpoint
from experiments.network.device import check_compiling, memory_explained
from experiments.network.ready import build
from experiments.randomness import generator
from experiments.records import ledger
from experiments.records.chain import ASIDE
from experiments.records.compare import digest_masks, refuse_other_making, refuse_other_masks, refuse_other_origin
from experiments.records.files import write
from experiments.records.ledger import CEILING, Ledger, is_finished
from experiments.records.progress import Progress, plan, say
from experiments.records.provenance import made_with
from experiments.store import IGNORE, Splits, Store, cache, refuse_ignored_foreground, remarks
from experiments.training import first_cycle, trainer, weights


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
    splits = find_images(config, components)
    evaluation.check_test(splits.test, config["dataset"])
    needs.check(config, components, splits)
    trial.check(config, components, splits)
    size, start = len(splits.train), config["start"]
    if isinstance(start, int) and start > size:
        raise Refused(f"start={start} is more than the {size} images that {config['dataset']} has to learn from.")
    config = resolve_counts(config, components, splits.train)
    if 0 < config["pool_size"] < config["query"]:
        looked, asked = config["pool_size"], config["query"]
        raise Refused(f"pool_size={looked} images cannot fill a query of {asked}: make it at least as large.")
    ledger.check(folder_of(config), config, usual, lambda: made_with(config, components.values(), device_of(config)))


def find_images(config, components):
    """The Splits of this run's dataset, described; nothing is decoded. Raises Refused when files are missing."""
    splits = components["dataset"].load(rng=generator(config["seed"], config["dataset"], "split"))
    splits = splits.described(components["dataset"])
    return splits._replace(crop=0) if weights.whole(components["model"]) else splits


def resolve_counts(config, components, train):
    """The settings with shares of the training images as numbers of images."""
    size, start = len(train), 0 if getattr(components["initial"], "EMPTY", False) else config["start"]
    if getattr(components["initial"], "ANNOTATED", False):
        start = sum(item.mask is not None for item in train.items)
    return {**config, "start": count(start, size), **{k: count(config[k], size) for k in ("query", "pool_size")}}


def folder_of(config):
    return Path(config["results_dir"]) / f"{config['label']}_{config['run']}"


def begun(config, command):
    """The settings in the ledger of the run that this command goes on with, {} if it begins one."""
    events = ledger.read(folder_of({**config, **CEILING} if command == "full" else config))
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
    print_summary(config, run, components, splits, test, classes, made)
    for line in remarks.remarks(dict(zip(splits._fields, stores, strict=False)), splits.classes):
        say(line)
    fingerprints = [store and store.fingerprint for store in stores]
    masks = {name: store and digest_masks(store, range(len(store))) for name, store in (("val", val), ("test", test))}
    with (
        Ledger(folder, config, fingerprints, usual, train.ids, masks=masks, made=made) as ledger,
        Progress(plan(config, splits.crop, *stores, ledger.events)) as bar,
        memory_explained(lambda: bar.stage or "building the model, training"),
    ):
        if ledger.events:
            go_on(ledger, config, made, masks, {"val": val, "test": test})
        model, first = build(model_file, splits.channels, classes, place, device, config["members"])
        keep_in(config["cache_dir"], model, device)
        origin = checkpoint.origin(model)
        if ledger.events:
            refuse_other_origin(ledger.folder, ledger.events[0], origin)
        active = ActiveLearningDataset(range(size))
        gc.freeze()  # what was imported is no garbage: looking for some takes a tenth of the time
        try:
            yield State(
                config, run, components, place, splits, *stores, active, classes, model, first, origin, ledger, bar
            )
        finally:
            gc.unfreeze()


def go_on(ledger, config, made, masks, stores):
    """Refuse other masks or another making than those of the run so far, and record the latter where it is allowed."""
    began = next((e["masks"] for e in ledger.events if e["event"] in ("start", "resumed") and "masks" in e), None)
    for name, store in stores.items():
        if store:
            refuse_other_masks(ledger.folder, store, range(len(store)), began and began[name])
    if not is_finished(ledger.events, config["cycles"]):
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


def print_summary(config, run, components, splits, test, classes, made):
    """Say what is about to be done and on what, and what an answer that looks at nothing would score."""
    threads = f"{made['threads']} thread" + "s" * (made["threads"] != 1)
    say(f"On {made['device']}, {threads}, {made['precision']}.")
    sizes = ", ".join(f"{len(split)} {name}" for name, split in zip(splits._fields, splits[:3], strict=False) if split)
    queries = f"{config['cycles']} cycles of {config['query']}" if config["cycles"] else "no queries"
    say(f"{sizes} images; {config['label']} run {config['run']} starts with {config['start']}, {queries}.")
    if (PRESETS / f"{config['dataset']}.yaml").exists() and config["dataset"] not in run.meta_info["named_configs"]:
        say(f"This is a small budget; the published one is `with {config['dataset']}`.")
    if weights.whole(components["model"]):
        left = "no augmentation" if needs.solved(components["model"]) else "of augment only flip and rotate"
        say(f"{config['model']} keeps features of whole images: no crops, and {left}.")
    if getattr(components["heuristic"], "JOINT", False):
        say(f"{config['heuristic']} trains the model too: its first Dice is not paired with others'.")
    if test:
        constant = evaluation.constant_answer(test, classes, measure=splits.headline)
        run.info["constant_dice"] = constant
        if constant is None:
            what = f"None of the {len(test)} test images has a pixel of a foreground class"
            say(f"{what}: Dice and IoU cannot be measured, only accuracy and calibration.")
        else:
            word = metrics.HEADLINES[splits.headline]
            say(f"Calling every test pixel foreground would give {word} {constant:.3f}.")


def initial(state):
    """Choose the first images, the same for every heuristic and batch of one run number; returns their queries."""
    event = state.ledger.find("start")
    if event is None:
        check_pool(state, 0)
        name = state.config["initial"]

        def untrained():
            raise Refused(f"initial={name} looks at the model, and before its first training there is nothing to see.")

        pool = querying.pool_of(state, range(len(state.train)), 0, model=untrained)
        queries, _ = querying.ask(
            state.components["initial"], load("batch", "top"), pool, state.config["start"], state.at("initial")
        )
        named = {
            "classes": state.splits.classes,
            "channels": state.splits.channels,
            "test": state.test.ids if state.test else [],
            "constant_dice": state.run.info.get("constant_dice"),
            "headline": f"test.{state.splits.headline}",
            **state.origin,
        }
        event = state.ledger.append("start", queries=queries, **named)
    return event["queries"]


def check_pool(state, cycle):
    """Let the heuristic refuse, before a training that its query follows, what the annotated images do not allow."""
    check = getattr(state.components["heuristic"], "check_pool", None)
    if check and cycle < state.config["cycles"]:
        check(pool=querying.pool_of(state, [], cycle))


def label(state, queries, cycle):
    """Open the masks that were asked for, and again those that people have drawn anew since.

    Raises BadData, labelling none, if one of them cannot be used, and AwaitingLabels if people are still to draw some.
    """
    chosen = positions(state, queries)
    again = annotate.settle(state, queries, chosen, cycle, lambda: can_show(state, cycle - 1))
    state.train.label([*chosen, *again])
    refuse_ignored_foreground([s for s in (state.train, state.val, state.test) if s], state.config["dataset"])
    pool = np.flatnonzero(~state.active.labelled)
    if chosen:  # given no index, baal labels every image
        state.active.label(np.searchsorted(pool, chosen).tolist())
    if state.asked:
        showing.draw_answer(state, state.asked)
        state.asked = None


def positions(state, queries):
    """Positions in `train` of what these queries ask for."""
    number = {id: index for index, id in enumerate(state.train.ids)}
    return [number[query["id"]] for query in queries]


def train_and_test(state, cycle):
    """Train on what is labelled and test; logs the metrics, returns the test images' headline or None.

    Raises BadData where a mask that this cycle was the first to see is another one than its event in the ledger says.
    """
    event = state.ledger.find("evaluated", cycle)
    asked = state.ledger.find("queried", cycle - 1) if cycle else state.ledger.find("start")
    opened = positions(state, asked["queries"])
    if event:
        refuse_other_masks(state.ledger.folder, state.train, opened, event.get("masks"))
    if event is None:
        check_pool(state, cycle)
        gc.collect()  # else safetensors' and matplotlib's circles hold many cycles' weights and pictures
        began = perf_counter()
        masks = digest_masks(state.train, opened)
        key = "" if cycle else first_cycle.key_of(state, masks)
        seconds, taken = 0.0, first_cycle.take(state, key)
        if taken:
            state.progress.start(f"cycle 0/{state.config['cycles']}, as a run that began alike had it")
        else:
            seconds, seen = weights.fit(state, cycle)
            began = perf_counter()
            taken = measured(state, cycle, seen) | {"masks": masks}, checkpoint.pack(state.model, state.learner)
        values, saved = taken
        digest = state.ledger.save_weights(cycle, saved, state.config["checkpoint"])
        event = state.ledger.append("evaluated", cycle, **values, weights=digest)
        state.ledger.drop_weights(cycle, state.config["checkpoint"])
        first_cycle.leave(state, key, values, saved, digest)
        state.ledger.time(cycle, train=seconds, evaluate=perf_counter() - began)
    return publish(state, cycle, event)


def measured(state, cycle, seen):
    """What the ledger says of a trained cycle: budget, metrics, values of each image; `seen` by validation."""
    state.progress.start(f"cycle {cycle}/{state.config['cycles']}, testing")
    scalars, arrays, calibration = {}, {}, {}
    if state.test:
        volumes = getattr(state.components["dataset"], "VOLUMES", False)
        scalars, arrays, calibration = evaluation.evaluate(
            state.model, state.test, state.at(cycle), state.classes, volumes=volumes, advance=state.progress.advance
        )
    epoch = seen.pop("epoch", None)  # no measurement: apart from the metrics, which one axis shows together
    solved = {"solved": seen.pop("solved")} if "solved" in seen else {}
    labelled = state.active.get_indices_for_active_step()
    return {
        "images": len(labelled),
        **cost((state.train.mask(i) for i in labelled), state.train.foreground.start),
        "pool": int(state.active.n_unlabelled),
        "metrics": {f"test.{k}": v for k, v in scalars.items()} | {f"val.{k}": v for k, v in seen.items()},
        "held_out": [state.train.ids[i] for i in weights.held_out(state)],
        "per_image": arrays,
        "calibration": calibration,
        "epoch": epoch,
        **solved,
    }


def cost(masks, first):
    """What labelling these masks (H, W) took: pixels, pixels of the foreground, length of boundaries in pixel edges.

    `first` is the first class that is foreground.
    """
    costs = [(m.numel(), ((m >= first) & (m != IGNORE)).sum().item(), metrics.boundary(m)) for m in masks]
    sums = map(sum, zip((0, 0, 0), *costs, strict=True))
    return dict(zip(("pixels", "foreground", "boundary"), sums, strict=True))


def query(state, cycle):
    """Ask for the next images; returns their queries."""
    event = state.ledger.find("queried", cycle)
    if event is None:
        stage = f"cycle {cycle}/{state.config['cycles']}, scoring the pool"

        def trained():
            if state.trained_cycle != cycle:
                weights.restore(state, cycle)
                state.progress.start(stage)
            return state.model

        began = perf_counter()
        state.progress.start(stage)
        if weights.learns(state):
            trained()
        before = state.ledger.find("queried", cycle - 1)
        pool = querying.pool_of(
            state,
            querying.candidates(state, cycle),
            cycle,
            model=trained,
            memory=deepcopy(before.get("memory", {})) if before else {},
            learner=state.learner and state.learner.eval(),
            advance=state.progress.advance,
        )
        n, way = state.config["query"], querying.reduction(state.config)
        heuristic, batch = state.components["heuristic"], state.components["batch"]
        queries, scores = querying.ask(heuristic, batch, pool, n, (*state.at(cycle), "query"), way)
        write(state.ledger.folder / "queries" / f"cycle_{cycle:03d}.csv", querying.table(pool, queries, scores))
        event = state.ledger.append("queried", cycle, queries=queries, memory=pool.memory)
        state.ledger.time(cycle, query=perf_counter() - began)
    state.asked = showing.draw_query(state, cycle, event["queries"], lambda: can_show(state, cycle))
    return event["queries"]


def can_show(state, cycle):
    """Bring a cycle's weights into the model for its pictures; False if they are gone and a later cycle is tested."""
    if state.trained_cycle != cycle:
        digest = state.ledger.find("evaluated", cycle)["weights"]
        if state.ledger.find("evaluated", cycle + 1) and state.ledger.load_weights(cycle, digest) is None:
            return False
        weights.restore(state, cycle)
    return True


def publish(state, cycle, event):
    """Write the arrays, log the metrics at step = labelled images, print the cycle's line; returns the headline."""
    for name, value in event["metrics"].items():
        state.run.log_scalar(name, value, event["images"])
    state.run.info["labelled_images"] = event["images"]
    state.ledger.write_arrays()
    headline = state.ledger.headline
    score = event["metrics"].get(headline)
    result = "no foreground in the test images" if state.test else "no test images"
    if score is not None:
        word = metrics.HEADLINES[headline.removeprefix("test.")]
        result = f"test {word} {score:.3f}"
        state.progress.result = f", {word} {score:.3f}"
        curve = [
            e["metrics"][headline] for e in state.ledger.events if e["event"] == "evaluated" and e["cycle"] <= cycle
        ]
        state.run.info |= {"headline": headline, "best": round(max(curve), 3), "last": round(score, 3)}
    done = f"cycle {cycle}/{state.config['cycles']}: {event['images']} images labelled, {result}"
    state.progress.line(done + state.progress.estimate())
    return score


def conclude(state):
    """Hand the arrays to the observers and say where the result lies."""
    if not state.active.n_unlabelled and state.config["cycles"]:
        state.progress.line("Every image of the pool is labelled: the run ends here.")
    for line in remarks.unlabelled_classes(state.train, state.splits.classes):
        state.progress.line(line)
    paths = state.ledger.write_arrays()
    for path in paths:
        state.run.add_artifact(str(path), path.name)
    curve = state.ledger.folder.with_name(state.ledger.folder.name + ".npy")
    if curve in paths and state.config["cycles"]:
        state.run.add_artifact(str(draw_curve(state)), "learning_curve.png")
    state.run.info["queries"] = [e for e in state.ledger.events if e["event"] == "queried"]
    state.progress.close()
    print(curve if curve in paths else state.ledger.folder, flush=True)  # without a clock, for scripts


def draw_curve(state):
    """Draw the headline against labelled images as learning_curve.png, as analysis/ draws many; returns its path."""
    from analysis import plots, runs  # pandas and matplotlib take a second to import

    png = io.BytesIO()
    frame = runs.load(state.ledger.folder)
    constant = state.run.info["constant_dice"]
    plots.curves(frame, metric=state.ledger.headline, constant=constant).savefig(png, dpi=100)
    path = state.ledger.folder / "learning_curve.png"
    write(path, png.getvalue())
    return path


def count(share, size):
    """An int as it is, a fraction of `size` rounded up, never more than `size`."""
    return min(size, math.ceil(share * size) if isinstance(share, float) else share)
