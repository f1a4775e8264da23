"""Repeats: masks of earlier queries asked for again at random, for the agreement within and between annotators.

The first mask stays the one that is trained on, so repeats change no weight and no other query. Agreement is the Dice
of both masks, as of manual segmentations drawn twice (Zou et al. 2004,
https://doi.org/10.1016/S1076-6332(03)00671-8); what either left undrawn (IGNORE) counts nowhere.
"""

import numpy as np
import torch

from experiments.annotate import answers
from experiments.components.randomness import key, uniform
from experiments.errors import Refused
from experiments.evaluation import evaluation, metrics
from experiments.store import IGNORE

DATASET = "dataset"  # who drew a mask that no person drew: it repeats itself


def size(share, query):
    """How many masks are asked for again beside a query of this size."""
    return round(share * query)


def check(config):
    """Raise Refused unless the repeats of a query are at least one mask."""
    share, query = config["repeat"], config["query"]
    if share and config["cycles"] and not size(share, query):
        raise Refused(f"repeat={share} of a query of {query} is no mask: make query larger, or leave repeat out.")


def draw(state, cycle):
    """Ids that this cycle's query asks for again: at random, each once in a run, of those that earlier queries brought.

    Where people draw, of theirs alone.
    """
    count = size(state.config["repeat"], state.config["query"])
    before = [e for e in state.ledger.events if e["event"] == "queried" and e["cycle"] < cycle]
    known = {id for event in before for id in event.get("repeats", ())}
    ids = [query["id"] for event in before for query in event["queries"] if query["id"] not in known]
    if any(item.mask is None for item in state.train.split.items):
        drawn = answers.in_force(state.ledger.events)
        ids = [id for id in ids if id in drawn]
    if count and not ids:
        state.progress.line(f"repeat={state.config['repeat']}: no earlier query brought a mask to ask for again.")
    draws = uniform(key(*state.at(cycle), "repeat"), ids)
    return [ids[i] for i in np.argsort(draws)[:count]]


def queries(state, cycle):
    """What the query of a cycle asks for again, as its queries are written; [] of no query."""
    event = state.ledger.find("queried", cycle)
    ids = event.get("repeats", []) if event else []
    return [{"id": id, "region": None, "score": None, "rank": None, "passes": 0, "repeat": True} for id in ids]


def measure(state, cycle):
    """The event of what this cycle's query asked for again, all masks being there; None where it asked for nothing."""
    event, ids = state.ledger.find("repeated", cycle), [query["id"] for query in queries(state, cycle)]
    if event is None and ids:
        number = {id: index for index, id in enumerate(state.train.ids)}
        first, second = answers.versions(state.ledger.events), answers.repeats(state.ledger.events)
        pairs = [masks(state, number[id], second.get(id)) for id in ids]
        values = torch.stack([agreement(*pair, state.classes) for pair in pairs])
        by = [between(first.get(id), second.get(id)) for id in ids]
        event = state.ledger.append(
            "repeated",
            cycle,
            images=state.ledger.find("evaluated", cycle)["images"],
            ids=ids,
            by=by,
            metrics=means(values, by, state.train.foreground),
            per_image={"dice": evaluation.plain(values)},
        )
    return event


def masks(state, index, version):
    """The mask (H, W) that an image is trained with, and the one that came when it was asked for again."""
    first = state.train.mask(index).cpu()
    if version is None:  # the dataset has one mask
        return first, first
    size = state.train.sizes[index]
    return first, torch.from_numpy(answers.read(state.ledger.folder, version["sha256"], size))


def agreement(first, second, classes):
    """(classes,) float64: Dice of two masks (H, W) where both are drawn, NaN where no pixel is."""
    both = (first != IGNORE) & (second != IGNORE)
    if not both.any():
        return torch.full((classes,), torch.nan, dtype=torch.float64)
    return metrics.dice(metrics.counts(second[None], torch.where(both, first, IGNORE)[None], classes))[0]


def between(first, second):
    """Who drew both versions of a mask: "within" one annotator, "between" two, DATASET, or "" where it is not known."""
    if second is None:
        return DATASET
    names = [(version or {}).get("annotator", "") for version in (first, second)]
    return "" if not all(names) else "within" if names[0] == names[1] else "between"


def means(values, by, foreground):
    """{"repeat.dice": mean over images of their Dice (images, classes), "repeat.within", "repeat.between" of some}."""
    each = [None if row.isnan().all() else metrics.over_images(row[None], foreground).item() for row in values]
    kinds = {"repeat.dice": {*by}, "repeat.within": {"within"}, "repeat.between": {"between"}}
    found = {
        name: [value for value, kind in zip(each, by, strict=True) if value is not None and kind in wanted]
        for name, wanted in kinds.items()
    }
    return {name: float(np.mean(kept)) for name, kept in found.items() if kept}


def line(event, classes, foreground):
    """What a person is told of a `repeated` event."""
    found, by = event["metrics"], event["by"]
    of = f"{len(by)} mask{'s' * (len(by) != 1)} asked for again"
    if not found:
        return f"{of}: both times nothing was drawn in common."
    table = np.array(event["per_image"]["dice"], np.float64)[:, foreground]
    each = [f"{name} {np.nanmean(row):.3f}" for name, row in zip(classes[foreground], table.T, strict=True)
            if not np.isnan(row).all()]  # fmt: skip
    said = f"{found['repeat.dice']:.3f}" + (f" ({', '.join(each)})" if len(each) > 1 else "")
    for kind, words in (("within", "within an annotator"), ("between", "between annotators")):
        if f"repeat.{kind}" in found:
            said += f", {words} {found[f'repeat.{kind}']:.3f} of {by.count(kind)}"
    unknown = "; answers.csv does not say who drew them" if "" in by else ""
    same = "; the dataset has one mask of each, which agrees with itself" if DATASET in by else ""
    return f"{of}: Dice with the first {said}{unknown}{same}"
