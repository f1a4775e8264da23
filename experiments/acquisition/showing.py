"""What the two pictures of a query show: as it was asked, and again with the true masks once they are there."""

from dataclasses import dataclass
from typing import Any

import torch

from experiments.acquisition import querying, selection
from experiments.acquisition.prediction import winner
from experiments.evaluation import metrics
from experiments.records.files import write

SHOWN = 8  # images of a query in its pictures


@dataclass
class Asked:
    """The last query of a run, until its masks are there."""

    cycle: int
    indices: list  # positions in `train` of the SHOWN first
    titles: list
    heading: str
    predicted: Any = None  # [(H, W) uint8 classes], by the model that asked; None if its weights are gone
    maps: Any = None  # [(H, W) uncertainties or None]


def draw_query(state, cycle, queries, trained):
    """Draw what was asked for as queries/cycle_<n>.png and an artifact; returns it as Asked.

    `trained()` brings the cycle's weights into the model and says whether it could; called only where a picture is
    missing, for a picture of a resumed run is that of an undisturbed one.
    """
    number = {id: index for index, id in enumerate(state.train.ids)}
    indices = [number[query["id"]] for query in queries[:SHOWN]]
    seen = len(querying.candidates(state, cycle)) - sum("audit" in query for query in queries)
    asked = Asked(cycle, indices, titles(state, queries[:SHOWN], indices, seen), heading(state, cycle, queries))
    query, answer = path_of(state, cycle), path_of(state, cycle, "_answer")
    if not (query.exists() and answer.exists()):
        if trained():
            asked.predicted, asked.maps = look(state, cycle, indices)
        else:
            asked.heading += "\nThe weights of this cycle are gone: no prediction can be shown."
    if not query.exists():
        write(query, drawn(state, asked))
    state.run.add_artifact(str(query), f"query_{cycle:03d}.png")
    return asked


def draw_answer(state, asked):
    """Draw a query whose masks are there as queries/cycle_<n>_answer.png and an artifact, with each image's Dice."""
    path = path_of(state, asked.cycle, "_answer")
    if not path.exists():
        true = [state.train.mask(i).cpu() for i in asked.indices]
        if asked.predicted is not None:
            found = zip(asked.titles, asked.predicted, true, strict=True)
            asked.titles = [
                f"{title}\nDice of the prediction {dice(*masks, state.train):.3f}" for title, *masks in found
            ]
        write(path, drawn(state, asked, [mask.numpy() for mask in true]))
    state.run.add_artifact(str(path), f"answer_{asked.cycle:03d}.png")


def path_of(state, cycle, what=""):
    return state.ledger.folder / "queries" / f"cycle_{cycle:03d}{what}.png"


def look(state, cycle, indices):
    """(masks (H, W) uint8, uncertainty maps (H, W) or None) of these images of `train`, by the scoring passes."""
    heuristic = state.components["heuristic"]
    pool = querying.pool_of(state, indices, cycle, model=lambda: state.model)
    masks, maps = [None] * len(indices), [None] * len(indices)
    for positions, prediction in pool.predictions(selection.source(heuristic)):
        classes = winner(prediction.mean).to(torch.uint8).cpu()
        uncertain = heuristic.uncertainty(prediction).cpu() if hasattr(heuristic, "uncertainty") else None
        for k, position in enumerate(positions):
            masks[position] = classes[k]
            maps[position] = None if uncertain is None else uncertain[k].numpy()
    return masks, maps


def dice(predicted, true, store):
    """Mean Dice over the foreground classes of one mask (H, W), as of a test image."""
    counts = metrics.counts(predicted[None], true[None], len(store.classes))
    return metrics.over_images(metrics.dice(counts), store.foreground).item()


def heading(state, cycle, queries):
    config = state.config
    batch = "" if config["batch"] == "top" else f" with batch={config['batch']}"
    first = f"the first {SHOWN} of " if len(queries) > SHOWN else ""
    return f"{config['heuristic']}{batch}, run {config['run']}, cycle {cycle}: {first}{len(queries)} images asked for"


def titles(state, queries, indices, pool):
    """Each query's place, id, score with its name and unit, rank among the `pool` scored images and group."""
    found = []
    for place, (query, index) in enumerate(zip(queries, indices, strict=True), 1):
        lines, group = [f"{place}. {shortened(query['id'])}"], shortened(state.train.groups[index])
        if query["score"] is not None:
            lines.append(f"{measure(state, score=query['score'])}")
            group = f"rank {query['rank'] + 1} of {pool}" + (f", {group}" if group else "")
        if query.get("audit"):
            lines.append("at random, for the audit")
        found.append("\n".join(filter(None, [*lines, group])))
    return found


def measure(state, score=None):
    """What the heuristic's map shows and its unit; or its score with them."""
    name, heuristic = state.config["heuristic"], state.components["heuristic"]
    unit = getattr(heuristic, "UNIT", "")
    if score is None:
        return f"{name}, {unit}" if unit else name
    way = f"{querying.reduction(state.config)} " if hasattr(heuristic, "uncertainty") else ""
    return f"{way}{name} {score:.3g} {unit}".rstrip()


def shortened(text, most=34):
    """The head and the tail of a text that is wider than its column."""
    return text if len(text) <= most else f"{text[: most // 2]}…{text[-most // 2 + 1 :]}"


def drawn(state, asked, true=None):
    """PNG bytes."""
    from experiments.acquisition import pictures  # matplotlib takes a second to import

    images = [state.train.image(i).cpu().numpy() for i in asked.indices]
    predicted = asked.predicted and [mask.numpy() for mask in asked.predicted]
    maps = asked.maps or [None] * len(images)
    heading = asked.heading + ("" if true is None else ", with the masks that came")
    return pictures.queries(images, maps, asked.titles, predicted, true, heading, measure(state))
