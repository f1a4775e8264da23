"""The steps of a cycle, an event each, written to the ledger, or taken from there when it was done before."""

import gc
from copy import deepcopy
from time import perf_counter

import numpy as np

from experiments import annotate
from experiments.acquisition import querying, showing
from experiments.components import load
from experiments.errors import Refused
from experiments.evaluation import evaluation, metrics
from experiments.network import checkpoint
from experiments.records.compare import digest_masks, refuse_other_masks
from experiments.records.files import write
from experiments.steps import audit, cluster, repeat, results
from experiments.store import IGNORE, refuse_ignored_foreground
from experiments.training import first_cycle, weights


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

    What was asked for the audit is measured on, repeats are compared. Raises BadData, labelling none, if one of the
    masks cannot be used, and AwaitingLabels if people are still to draw some.
    """
    chosen, repeats = positions(state, queries), repeat.queries(state, cycle - 1)
    again = annotate.settle(state, queries, repeats, cycle, lambda: can_show(state, cycle - 1))
    drawn = [index for index, query in zip(chosen, queries, strict=True) if query.get("audit")]
    if drawn and not state.ledger.find("audited", cycle - 1):
        can_show(state, cycle - 1)  # while the masks are those that its weights were trained on
    state.train.label([*chosen, *again])
    refuse_ignored_foreground([s for s in (state.train, state.val, state.test) if s], state.config["dataset"])
    if drawn:
        results.publish_audit(state, audit.measure(state, cycle - 1, drawn))
    if repeats:
        results.publish_repeats(state, repeat.measure(state, cycle - 1))
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
    return results.publish(state, cycle, event)


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
        candidates = querying.candidates(state, cycle)
        drawn = audit.draw(state, cycle, candidates)
        workers = cluster.Workers(state, cycle, trained) if state.config["ray"] else None
        pool = querying.pool_of(
            state,
            [index for index in candidates if index not in drawn],
            cycle,
            model=trained,
            memory=deepcopy(before.get("memory", {})) if before else {},
            learner=state.learner and state.learner.eval(),
            advance=state.progress.advance,
            elsewhere=workers,
        )
        n, way = state.config["query"] - len(drawn), querying.reduction(state.config)
        heuristic, batch = state.components["heuristic"], state.components["batch"]
        queries, scores = querying.ask(heuristic, batch, pool, n, (*state.at(cycle), "query"), way)
        if workers and not workers.asked:
            asks = f"heuristic={state.config['heuristic']} asks for no shards"
            state.progress.line(f"{asks}: ray={workers.address} had nothing to compute.")
        queries += audit.queries(state.train.ids[i] for i in drawn)
        known = [(state.train.ids[i], state.train.groups[i]) for i in drawn]
        table = querying.table(pool, queries, scores, known)
        write(state.ledger.folder / "queries" / f"cycle_{cycle:03d}.csv", table)
        repeats = repeat.draw(state, cycle)
        more = {"repeats": repeats} if repeats else {}
        event = state.ledger.append("queried", cycle, queries=queries, memory=pool.memory, **more)
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
