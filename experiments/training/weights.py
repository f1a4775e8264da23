"""The weights of a cycle: trained, with what a learned strategy adds to it, or brought back from the ledger."""

from contextlib import contextmanager
from statistics import fmean
from time import perf_counter

import numpy as np

from experiments.acquisition import querying
from experiments.errors import Refused
from experiments.network import checkpoint
from experiments.network.ready import members_of
from experiments.store import IGNORE
from experiments.training import learned, solve, trainer


def fit(state, cycle):
    """Train this cycle's weights into the model: (seconds, validation values)."""
    if cycle and continues_weights(state.config, state.components["heuristic"]) and state.trained_cycle != cycle - 1:
        restore(state, cycle - 1)
    began = perf_counter()
    labelled = taught(state, cycle)
    state.progress.start(f"cycle {cycle}/{state.config['cycles']}, training on {len(labelled)}")
    with pseudo_labelled(state, cycle) as pseudo:
        trainer.reset_weights(state.model, state.first_weights, cycle)
        strategy = strategy_of(state, cycle) if learns(state) else None
        state.learner = strategy and strategy.learner
        members = members_of(state.model) if labelled else []
        each = []
        for number, model in enumerate(members):
            place = (*state.at(cycle), "member", number) if number else state.at(cycle)
            images, advance = (model, state.train, labelled, state.val, place), state.progress.advance
            if hasattr(model, "solved"):
                each.append(solve.fit(*images, pseudo=pseudo.get("pseudo", ()), advance=advance))
                continue
            crops = {"crop": state.splits.crop, "whole": whole(state.components["model"])}
            each.append(trainer.fit(*images, **crops, advance=advance, strategy=strategy, **pseudo))
    state.trained_cycle = cycle
    return perf_counter() - began, mean_of(each)


def mean_of(each):
    """The means of what validation saw of each member of an ensemble; of one model what it saw, {} of none."""
    if len(each) < 2:
        return each[0] if each else {}
    solved = {"solved": [seen["solved"] for seen in each]} if "solved" in each[0] else {}
    return {name: fmean(seen[name] for seen in each) for name in each[0] if name not in ("epoch", "solved")} | solved


def whole(model_file):
    """Whether a model keeps features of the images that it sees: it trains on whole ones, mirrored and turned only."""
    return getattr(model_file, "WHOLE", False)


def learns(state):
    """Whether the heuristic is a learned strategy."""
    return hasattr(state.components["heuristic"], "prepare")


def strategy_of(state, cycle):
    """The learned strategy as a cycle's training begins."""
    heuristic, model_file = state.components["heuristic"], state.components["model"]
    layer = state.config.get(state.config["heuristic"], {}).get("layer")
    found = model_file.LAYERS[layer] if layer else []
    paths = [found] if isinstance(found, str) else found
    channels, place = state.splits.channels, state.at(cycle)
    learner = learned.prepare(heuristic, state.model, paths, channels, place, state.train.device)
    return learned.Strategy(heuristic, learner, paths, np.flatnonzero(~state.active.labelled), place)


def continues_weights(config, heuristic):
    """Whether training a cycle takes the weights of the one before."""
    return config["trainer"]["warm_start"] or hasattr(heuristic, "pseudo_labels")


@contextmanager
def pseudo_labelled(state, cycle):
    """In here `train` has the heuristic's pseudo labels, of the last cycle's weights, as masks of unlabelled images.

    Gives what trainer.fit must know of them; nothing without any.
    """
    heuristic, masked = state.components["heuristic"], []
    if not cycle or not hasattr(heuristic, "pseudo_labels"):
        yield {}
        return
    indices = querying.candidates(state, cycle - 1)
    pool = querying.pool_of(state, indices, cycle - 1, model=lambda: state.model, advance=state.progress.advance)
    try:
        for positions, masks in heuristic.pseudo_labels(pool=pool):
            for position, mask in zip(positions, masks, strict=True):
                if (mask != IGNORE).any():
                    masked.append(indices[position])
                    state.train.mask(indices[position]).copy_(mask)
        state.progress.line(
            f"cycle {cycle}/{state.config['cycles']}: {len(masked)} of {len(pool)} images pseudo-labelled"
        )
        yield {"pseudo": masked, "pseudo_crops": state.config[state.config["heuristic"]]["pseudo_crops"]}
    finally:
        for index in masked:
            state.train.mask(index).fill_(IGNORE)


def taught(state, cycle):
    """Positions in `train` that this cycle is trained on: all labelled images or, without replay, the newest query's.

    What the heuristic holds out is in neither.
    """
    held = held_out(state)
    labelled = [i for i in state.active.get_indices_for_active_step() if i not in held]
    if state.config["trainer"]["replay"]:
        return labelled
    newest = state.ledger.find("queried", cycle - 1) if cycle else state.ledger.find("start")
    ids = {query["id"] for query in newest["queries"]}
    return [i for i in labelled if state.train.ids[i] in ids]


def held_out(state):
    """Positions in `train` of labelled images that the heuristic keeps from training while it has a pool to ask of."""
    labelled = state.active.get_indices_for_active_step()
    hold_out = getattr(state.components["heuristic"], "hold_out", None)
    if not hold_out or not state.active.n_unlabelled:
        return []
    kept = set(hold_out([state.train.ids[i] for i in labelled]))
    return [i for i in labelled if state.train.ids[i] in kept]


def restore(state, cycle):
    """Bring back a cycle's weights: from its checkpoint or, where that is gone, by training them again."""
    weights = state.ledger.load_weights(cycle, state.ledger.find("evaluated", cycle)["weights"])
    if weights is not None:
        own, more = checkpoint.unpack(weights)
        checkpoint.load(state.model, own)
        if learns(state):
            state.learner = strategy_of(state, cycle).learner
            state.learner.load_state_dict(more)
        state.trained_cycle = cycle
    elif continues_weights(state.config, state.components["heuristic"]):
        raise Refused(
            f"The weights of cycle {cycle} in {state.ledger.folder} are gone: start again with another label."
        )
    else:
        fit(state, cycle)
