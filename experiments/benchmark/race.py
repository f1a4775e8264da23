"""A race with balanced masks on a trained model: time beside baal's default, and what it misses of the best images."""

import sys

import numpy as np

from experiments.acquisition import selection
from experiments.acquisition.ranking import ranking
from experiments.benchmark import peers, timing, work
from experiments.benchmark.report import Row
from experiments.network.inference import Network
from experiments.training import augment, trainer

REFERENCE = 100  # passes
BAAL = 4  # images that baal scores in a round: its time grows with their number, a race must see its whole pool
NOTE = (
    "Race: {pool} drawn images, {query} looked for, a model trained for {epochs} epochs; timed on images of {size} x "
    "{size}, its picks compared on images of {side} x {side}. A miss is an image that all {passes} passes over the "
    "whole pool, with the same masks, put among the best {query} and the race did not. For comparison: how many of the "
    "best {query} of {reference} independent passes does one scoring by {passes} independent passes find?"
)


def run(options, device):
    """(rows, notes)."""
    k, query = options.passes, options.query
    plain, model = trained(options, device)
    network, stores = Network(model), {}
    for side in (options.size, options.side):
        stores[side] = work.store_of(work.draw(options.pool, side, side, seed=1), device)
    dropping = peers.always_dropping(plain).eval()
    large = stores[options.size]
    theirs = peers.tensors(large.image(i).cpu().numpy() for i in range(min(BAAL, options.pool)))

    def pool(trial, masks="balanced", passes=k, side=options.side):
        place = (*work.PLACE[:2], trial)
        return work.pool_of(stores[side], network, passes, place, batch=options.batch, masks=masks)

    def raced(trial, side=options.side):
        opened, rng = pool(trial, side=side), np.random.default_rng(0)
        picked = selection.run_race(work.BALD, opened, query, rng, "mean")[0]
        started = opened.passes.min()
        return picked, np.where(opened.passes > started, opened.passes + started, started).mean()

    def best(*args):
        opened = pool(*args)
        rng = np.random.default_rng(0)
        return ranking(selection.score(work.BALD, opened, rng), opened.ids, rng)

    times = timing.rounds(
        {
            "race": (lambda: raced(0, options.size), options.pool),
            "baal": (lambda: peers.baal_scores(dropping, theirs, k, device, **peers.MODES["baal"]), len(theirs)),
        },
        max(1, options.rounds // 4),
        device,
    )
    recalls, misses, made = [], [], []
    for trial in range(options.trials):
        picked, passes = raced(trial)
        order = best(trial)
        lost = [place + 1 for place, image in enumerate(order[:query]) if image not in picked]
        recalls.append(1 - len(lost) / query)
        made.append(passes)
        if lost:
            misses.append(f"trial {trial} missed the images of rank {', '.join(map(str, lost))}")
        print(f"race: trial {trial + 1} of {options.trials}, recall {recalls[-1]:.2f}", file=sys.stderr)
    right = set(best(-1, "independent", REFERENCE)[:query])
    few = [len(right & set(best(t, "independent")[:query])) / query for t in range(max(1, options.trials // 4))]
    rows = [
        timing.seconds("race with balanced masks: an image", times["race"]),
        timing.ratio("race with balanced masks faster than baal", times["baal"], times["race"], ">= 5"),
        Row("race: passes an image", float(np.mean(made)), "", min(made), max(made)),
        Row(f"race: recall of the best {query}", float(np.mean(recalls)), "", min(recalls), max(recalls),
            target=">= 0.97"),
        Row(f"for comparison: recall of {k} passes", float(np.mean(few)), "", min(few), max(few)),
    ]  # fmt: skip
    names = {name: getattr(options, name) for name in ("pool", "size", "side", "query", "passes", "epochs")}
    note = NOTE.format(**names, reference=REFERENCE)
    return rows, [note + " " + ("; ".join(misses) or "Nothing was missed") + "."]


def trained(options, device):
    """(plain model, the same for AskMask)."""
    store = work.store_of(work.draw(64, options.side, options.side, seed=2), device)
    plain, model = work.models(options.width, device)
    settings = {"epochs": options.epochs, "draws": 1, "batch": 8, "lr": 0.002, "loss": "ce", "precision": "float32"}
    with work.configured(augment.ingredient), work.configured(trainer.ingredient, **settings):
        trainer.fit(model, store, list(range(len(store))), None, work.PLACE, options.side)
    plain.load_state_dict(model.state_dict())
    return plain, model
