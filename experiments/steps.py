"""The steps of a run, each leaving its event in the ledger, or taking it from there when it was done before."""

import gc
import io
import math
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch

from experiments import evaluation, metrics
from experiments.acquisition import needs, querying, showing
from experiments.components import PRESETS, load
from experiments.errors import Refused
from experiments.network import checkpoint
from experiments.network.device import check_compiling, ran_out_of_memory
from experiments.randomness import generator, key
from experiments.records import ledger
from experiments.records.files import write
from experiments.records.ledger import Ledger
from experiments.records.progress import Progress, plan, say
from experiments.store import IGNORE, Store
from experiments.training import trainer, weights


@dataclass
class State:
    """What the steps of one run share."""

    config: dict
    run: Any  # Sacred's Run
    parts: dict  # the chosen component modules
    place: tuple  # (seed, dataset), the root of all randomness
    crop: int
    train: Store
    val: Store | None
    test: Store | None
    active: Any  # baal's ActiveLearningDataset of positions in `train`: who is labelled
    classes: int
    model: Any
    first: dict  # the weights that every cycle starts from
    ledger: Ledger
    bar: Progress
    holds: int | None = None  # the cycle whose trained weights are in the model
    learner: Any = None  # what a learned strategy trained beside them
    asked: Any = None  # the last query as its pictures show it, until its masks are there

    def at(self, cycle):
        return (*self.place, cycle)


def check(config, parts):
    """Say which dataset it is and refuse what the dataset's files or an earlier run's results do not allow."""
    say(f"Dataset {config['dataset']}: {parts['dataset'].__doc__.splitlines()[0]}")
    splits = find_images(config, parts)
    needs.check(config, parts, splits)
    config = resolve_counts(config, parts, len(splits.train))
    if 0 < config["pool_size"] < config["query"]:
        looked, asked = config["pool_size"], config["query"]
        raise Refused(f"pool_size={looked} images cannot fill a query of {asked}: make it at least as large.")
    ledger.check(folder_of(config), config)


def find_images(config, parts):
    """The Splits of this run's dataset; nothing is decoded. Raises Refused when files are missing."""
    return parts["dataset"].load(rng=generator(config["seed"], config["dataset"], "split"))


def resolve_counts(config, parts, size):
    """The settings with shares of the `size` training images as numbers of images."""
    start = 0 if getattr(parts["initial"], "EMPTY", False) else config["start"]
    return {**config, "start": count(start, size), **{k: count(config[k], size) for k in ("query", "pool_size")}}


def folder_of(config):
    return Path(config["results_dir"]) / f"{config['label']}_{config['run']}"


LOWER = {  # what takes less memory, by the word for what is done
    "training": "trainer.batch, the crop or the model's width",
    "testing": "evaluation.batch or the model's width",
    "scoring": "prediction.batch, prediction.mc_chunk, pool_size or the model's width",
    "reading": "the images' size (resize) or their number",
}


@contextmanager
def memory_explained(stage):
    """Raise Refused, naming the settings to lower, where memory runs out; `stage()` says what is being done."""
    try:
        yield
    except (RuntimeError, MemoryError, OSError) as error:
        if not ran_out_of_memory(error):
            raise
        doing = stage()
        lower = next((settings for word, settings in LOWER.items() if word in doing), LOWER["training"])
        fix = f"free some and the same command continues, or lower {lower} under another label=..."
        raise Refused(f"Memory ran out ({doing}): {fix}") from error


@contextmanager
def prepare(config, run, parts):
    """Read the images, open the ledger, build the model: a State for the other steps."""
    from baal.active import ActiveLearningDataset  # takes seconds to import

    place, data, model_file = (config["seed"], config["dataset"]), parts["dataset"], parts["model"]
    device = trainer.prepare(device=config["device"], threads=config["threads"])
    for part in ("trainer", "prediction"):
        if config[part]["compiled"]:
            check_compiling(f"{part}.compiled")
    splits = find_images(config, parts)
    with memory_explained(lambda: "reading the images"):
        stores = [split and Store(split, device) for split in splits[:3]]
    train, val, test = stores
    for annotated in filter(None, (val, test)):
        annotated.label(range(len(annotated)))
    size, classes = len(train), len(data.CLASSES)
    config, folder = resolve_counts(config, parts, size), folder_of(config)
    print_summary(config, run, parts, splits, test, classes)
    fingerprints = [store and store.fingerprint for store in stores]
    with (
        Ledger(folder, config, fingerprints) as ledger,
        Progress(plan(config, splits.crop, *stores, ledger.events)) as bar,
        memory_explained(lambda: bar.stage or "building the model, training"),
    ):
        if ledger.events:
            say(f"Going on from {folder}, where {len(ledger.events)} steps are done.")
        torch.manual_seed(key(*place, "weights") % 2**63)
        model = model_file.build(channels=data.CHANNELS, classes=classes)
        model, first = trainer.make_ready(model, model_file.MEAN, model_file.STD, device)
        active = ActiveLearningDataset(range(size))
        gc.freeze()  # what was imported is no garbage: looking for some takes a tenth of the time
        try:
            yield State(config, run, parts, place, splits.crop, *stores, active, classes, model, first, ledger, bar)
        finally:
            gc.unfreeze()


def print_summary(config, run, parts, splits, test, classes):
    """Say what is about to be done, and what an answer that looks at nothing would score."""
    sizes = ", ".join(f"{len(split)} {name}" for name, split in zip(splits._fields, splits[:3], strict=False) if split)
    queries = f"{config['cycles']} cycles of {config['query']}" if config["cycles"] else "no queries"
    say(f"{sizes} images; {config['label']} run {config['run']} starts with {config['start']}, {queries}.")
    if (PRESETS / f"{config['dataset']}.yaml").exists() and config["dataset"] not in run.meta_info["named_configs"]:
        say(f"This is a small budget; the published one is `with {config['dataset']}`.")
    if getattr(parts["heuristic"], "JOINT", False):
        say(f"{config['heuristic']} trains the model too: its first Dice is not paired with others'.")
    if test:
        constant = evaluation.constant_dice(test, classes)
        run.info["constant_dice"] = constant
        say(f"Calling every test pixel foreground would give Dice {constant:.3f}.")


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
            state.parts["initial"], load("batch", "top"), pool, state.config["start"], state.at("initial")
        )
        named = {
            "classes": state.parts["dataset"].CLASSES,
            "test": state.test.ids if state.test else [],
            "constant_dice": state.run.info.get("constant_dice"),
        }
        event = state.ledger.append("start", queries=queries, **named)
    return event["queries"]


def check_pool(state, cycle):
    """Let the heuristic refuse, before a training that its query follows, what the annotated images do not allow."""
    check = getattr(state.parts["heuristic"], "check_pool", None)
    if check and cycle < state.config["cycles"]:
        check(pool=querying.pool_of(state, [], cycle))


def label(state, queries):
    """Open the masks that were asked for. Raises BadData, labelling none, if one of them cannot be used."""
    number = {id: index for index, id in enumerate(state.train.ids)}
    chosen = [number[query["id"]] for query in queries]
    state.train.label(chosen)
    pool = np.flatnonzero(~state.active.labelled)
    if chosen:  # given no index, baal labels every image
        state.active.label(np.searchsorted(pool, chosen).tolist())
    if state.asked:
        showing.draw_answer(state, state.asked)
        state.asked = None


def train_and_test(state, cycle):
    """Train on what is labelled and test; logs the metrics, returns the test Dice or None."""
    event = state.ledger.find("evaluated", cycle)
    if event is None:
        check_pool(state, cycle)
        gc.collect()  # else safetensors' and matplotlib's circles hold many cycles' weights and pictures
        seconds, seen = weights.fit(state, cycle)
        began = perf_counter()
        state.bar.start(f"cycle {cycle}/{state.config['cycles']}, testing")
        scalars, arrays, calibration = {}, {}, {}
        if state.test:
            scalars, arrays, calibration = evaluation.evaluate(
                state.model, state.test, state.at(cycle), state.classes, advance=state.bar.advance
            )
        saved = checkpoint.pack(state.model, state.learner)
        digest = state.ledger.save_weights(cycle, saved, state.config["checkpoint"])
        epoch = seen.pop("epoch", None)  # no measurement: apart from the metrics, which one axis shows together
        labelled = state.active.get_indices_for_active_step()
        event = state.ledger.append(
            "evaluated",
            cycle,
            images=len(labelled),
            **cost(state.train.mask(i) for i in labelled),
            pool=int(state.active.n_unlabelled),
            metrics={f"test.{k}": v for k, v in scalars.items()} | {f"val.{k}": v for k, v in seen.items()},
            held_out=[state.train.ids[i] for i in weights.held_out(state)],
            per_image=arrays,
            calibration=calibration,
            epoch=epoch,
            weights=digest,
        )
        state.ledger.drop_weights(cycle, state.config["checkpoint"])
        state.ledger.time(cycle, train=seconds, evaluate=perf_counter() - began)
    return publish(state, cycle, event)


def cost(masks):
    """What labelling these masks (H, W) took: pixels, pixels of the foreground, length of boundaries in pixel edges."""
    costs = [(m.numel(), ((m > 0) & (m != IGNORE)).sum().item(), metrics.boundary(m)) for m in masks]
    sums = map(sum, zip((0, 0, 0), *costs, strict=True))
    return dict(zip(("pixels", "foreground", "boundary"), sums, strict=True))


def query(state, cycle):
    """Ask for the next images; returns their queries."""
    event = state.ledger.find("queried", cycle)
    if event is None:
        stage = f"cycle {cycle}/{state.config['cycles']}, scoring the pool"

        def trained():
            if state.holds != cycle:
                weights.restore(state, cycle)
                state.bar.start(stage)
            return state.model

        began = perf_counter()
        state.bar.start(stage)
        if weights.learns(state):
            trained()
        before = state.ledger.find("queried", cycle - 1)
        pool = querying.pool_of(
            state,
            querying.candidates(state, cycle),
            cycle,
            model=trained,
            memory=deepcopy(before["memory"]) if before else {},
            learner=state.learner and state.learner.eval(),
            advance=state.bar.advance,
        )
        n, way = state.config["query"], querying.reduction(state.config)
        heuristic, batch = state.parts["heuristic"], state.parts["batch"]
        queries, scores = querying.ask(heuristic, batch, pool, n, (*state.at(cycle), "query"), way)
        write(state.ledger.folder / "queries" / f"cycle_{cycle:03d}.csv", querying.table(pool, queries, scores))
        event = state.ledger.append("queried", cycle, queries=queries, memory=pool.memory)
        state.ledger.time(cycle, query=perf_counter() - began)
    state.asked = showing.draw_query(state, cycle, event["queries"], lambda: can_show(state, cycle))
    return event["queries"]


def can_show(state, cycle):
    """Bring a cycle's weights into the model for its pictures; False if they are gone and a later cycle is tested."""
    if state.holds != cycle:
        digest = state.ledger.find("evaluated", cycle)["weights"]
        if state.ledger.find("evaluated", cycle + 1) and state.ledger.load_weights(cycle, digest) is None:
            return False
        weights.restore(state, cycle)
    return True


def publish(state, cycle, event):
    """Write the arrays, log the metrics at step = labelled images, print the cycle's line; returns the test Dice."""
    for name, value in event["metrics"].items():
        state.run.log_scalar(name, value, event["images"])
    state.run.info["labelled_images"] = event["images"]
    state.ledger.write_arrays()
    dice = event["metrics"].get("test.dice")
    result = "no test images"
    if dice is not None:
        result = f"test Dice {dice:.3f}"
        state.bar.result = f", Dice {dice:.3f}"
    done = f"cycle {cycle}/{state.config['cycles']}: {event['images']} images labelled, {result}"
    state.bar.line(done + state.bar.estimate())
    return dice


def conclude(state):
    """Hand the arrays to the observers and say where the result lies."""
    if not state.active.n_unlabelled and state.config["cycles"]:
        state.bar.line("Every image of the pool is labelled: the run ends here.")
    paths = state.ledger.write_arrays()
    for path in paths:
        state.run.add_artifact(str(path), path.name)
    curve = state.ledger.folder.with_name(state.ledger.folder.name + ".npy")
    if curve in paths and state.config["cycles"]:
        state.run.add_artifact(str(draw_curve(state)), "learning_curve.png")
    state.run.info["queries"] = [e for e in state.ledger.events if e["event"] == "queried"]
    state.bar.close()
    print(curve if curve in paths else state.ledger.folder, flush=True)  # without a clock, for scripts


def draw_curve(state):
    """Draw test Dice against labelled images as learning_curve.png, as analysis/ draws many; returns its path."""
    from analysis import plots, runs  # pandas and matplotlib take a second to import

    png = io.BytesIO()
    frame = runs.load(state.ledger.folder)
    plots.curves(frame, constant=state.run.info["constant_dice"]).savefig(png, dpi=100)
    path = state.ledger.folder / "learning_curve.png"
    write(path, png.getvalue())
    return path


def count(share, size):
    """An int as it is, a fraction of `size` rounded up, never more than `size`."""
    return min(size, math.ceil(share * size) if isinstance(share, float) else share)
