"""What is asked for: from the pool to the queries in the ledger, with their table of scores."""

import csv
import io

import numpy as np

from experiments.acquisition import selection
from experiments.acquisition.pool import open_pool
from experiments.components.randomness import generator, key, uniform
from experiments.records.cells import harmless


def ask(heuristic, batch, pool, n, place, reduction="mean"):
    """(queries as JSON values, best first: id, region (None = whole image), score, rank and passes; all scores)."""
    picked, scores = selection.select(heuristic, batch, pool, n, generator(*place), reduction)
    queries = [
        {
            "id": pool.ids[i],
            "region": None,
            "score": None if scores is None else float(scores[i]),
            "rank": None if scores is None else int((scores > scores[i]).sum()),
            "passes": int(pool.passes[i]),
        }
        for i in picked
    ]
    return queries, scores


def pool_of(state, indices, cycle, **more):
    """These training images as a heuristic may see them, beside the labelled and the validation images."""
    return open_pool(
        state.train,
        indices,
        state.at(cycle),
        state.config["mc_iters"],
        layers=getattr(state.components["model"], "LAYERS", {}),
        needs=[need for part in state.components.values() for need in getattr(part, "NEEDS", ())],
        labelled=state.active.get_indices_for_active_step(),
        val=state.val,
        classes=state.splits.classes,
        cycles=state.config["cycles"],
        annotated=[state.train.split.items[i].mask is not None for i in indices],
        frame=lambda: state.model,
        encoder=state.encoder,
        scorers=selection.scorers(state.config["noted"]),
        **more,
    )


def candidates(state, cycle):
    """Positions in `train` of the unlabelled images that this cycle looks at: all, or `pool_size` drawn ones."""
    unlabelled = np.flatnonzero(~state.active.labelled)
    size = state.config["pool_size"]
    if 0 < size < len(unlabelled):
        draws = uniform(key(*state.at(cycle), "pool_size"), [state.train.ids[i] for i in unlabelled])
        unlabelled = np.sort(unlabelled[np.argsort(draws)[:size]])
    return unlabelled.tolist()


def reduction(config):
    """How this run's heuristic turns a map into a score."""
    return config.get(config["heuristic"], {}).get("reduction", "mean")


def table(pool, queries, scores, drawn=()):
    """CSV bytes, a line for each image of the pool: id, group, place in the query, score and the noted scores.

    `drawn` [(id, group)] are those that were asked for at random; behind the pool's, they have no scores.
    """
    places = {query["id"]: place for place, query in enumerate(queries)}
    noted, blank = pool.noted(), [""] * len(drawn)
    ids = [*pool.ids, *(id for id, _ in drawn)]
    groups = [*pool.groups, *(group for _, group in drawn)]
    rows = {
        "id": map(harmless, ids),
        "group": map(harmless, groups),
        "picked": [places.get(id, "") for id in ids],
        "score": [""] * len(ids) if scores is None else scores.tolist() + blank,
        **{name: values.tolist() + blank for name, values in noted.items()},
    }
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(rows)
    writer.writerows(zip(*rows.values(), strict=True))
    return text.getvalue().encode()
