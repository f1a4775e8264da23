"""Where each label came from: what a run asked for, when, and how every other score would have ranked it."""

from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.ledgers import bounded, events_of, walk
from analysis.plots import COLOURS, MARKERS
from experiments.components.randomness import generator
from experiments.errors import Refused
from experiments.records.cells import meant

OWN = ["id", "group", "picked", "score"]  # the columns that every table of a query has
DRAWS = 500  # random batches that a query is compared with
NEAR = 0.5  # correlation of two thumbnails from which on one shows what the other does; phantom: .5 parts its scenes


def pools(folder):
    """One row for each query and image that was in its pool: cycle, id, group, picked, score, scores of others.

    `picked` is the place in the query, 0 the first, NaN if the image was not asked for. `score` is NaN where the
    heuristic selects without scores; that of random is its draw. Raises Refused if the run asked for nothing, or a
    table is damaged.
    """
    files = sorted(Path(folder).glob("queries/cycle_[0-9]*.csv"))
    if not files:
        raise Refused(f"{folder} holds no queries/cycle_000.csv: the run asked for nothing, or an old version made it.")
    frames = []
    for file in files:
        try:
            words = pd.read_csv(bounded(file), dtype=str, keep_default_na=False)  # an id may be 007, or NA
            words[["id", "group"]] = words[["id", "group"]].map(meant)
            numbers = words.set_index(["id", "group"])[[name for name in words if name not in OWN[:2]]]
            numbers = numbers.replace("", "nan").astype(float).assign(cycle=int(file.stem.removeprefix("cycle_")))
            frames.append(numbers.reset_index()[[*OWN, *numbers.columns.difference(OWN, sort=False)]])
        except (OSError, ValueError, KeyError) as error:
            said = str(error).partition("\n")[0]
            raise Refused(f"{file} is damaged ({said}): restore it from a copy, or move it away.") from error
    return pd.concat(frames, ignore_index=True)


def choose(results):
    """The folder of the first run in `results`, its subfolders included, that asked for images, best with scores.

    Best is a run that kept the scores of other heuristics; one of random has none. Raises Refused if none asked.
    """
    places = (folder for folder, names in walk(Path(results)) if "ledger.jsonl" in names)
    folders = sorted(folder for folder in places if any(folder.glob("queries/cycle_[0-9]*.csv")))
    if not folders:
        raise Refused(f"{results} holds no run with queries: `python active.py with heuristic=bald run=0` makes one.")
    return next((folder for folder in folders if noted(pools(folder))), folders[0])


def noted(pool):
    """Names of the scores that were kept beside the heuristic's own."""
    scores = pool.columns.difference(["cycle", *OWN], sort=False)
    return [name for name in scores if pool[name].notna().any()]


def picks(pool):
    """The images that were asked for, best first: cycle, picked, id, group, of (the pool's size), rank of each score.

    Rank 1 is the image that this score wanted most of the pool at that time; equals share the better rank.
    """
    by_cycle = pool.groupby("cycle")
    ranks = by_cycle[["score", *noted(pool)]].rank(method="min", ascending=False).add_prefix("rank by ")
    table = pd.concat([pool[["cycle", "picked", "id", "group"]], ranks.astype("Int64")], axis=1)
    table.insert(4, "of", by_cycle["id"].transform("size"))
    table = table.dropna(subset="picked").astype({"picked": int})
    return table.sort_values(["cycle", "picked"], ignore_index=True)


def first_images(folder):
    """Ids of the images that the run began with."""
    events = events_of(folder)
    return [query["id"] for query in events[0]["queries"]] if events else []


def redundancy(pool, ids, features, thumbnails, seed=0):
    """How alike the images of each query are: a DataFrame with a row for each cycle, beside random batches.

    `similarity` is the mean cosine over the pairs of a query, of features (N, D) of which each is centred and scaled
    over all images: 1 is the same direction from the mean image, 0 none in common. `expected`, `low` and `high` are
    the mean and the central 95 % of DRAWS random batches of its size from its pool. `copies` counts the images of a
    query whose thumbnail (N, P) correlates above NEAR with that of another one of it, the mean thumbnail being taken
    off both, and `copies_expected` those of random batches; turned copies are not found. A query of one has no pairs.
    Raises Refused if a query names an image that is not in `ids`.
    """
    unit, small = _unit(_scaled(features)), _unit(thumbnails - thumbnails.mean(0), centred=True)
    position = known(ids, pool["id"])
    rows = []
    for cycle, one in pool.groupby("cycle"):
        members = np.array([position[id] for id in one["id"]])
        query = members[one["picked"].notna()]
        if len(query) < 2:
            continue
        rng = generator(seed, "redundancy", int(cycle))
        batches = [rng.choice(members, len(query), replace=False) for _ in range(DRAWS)]
        drawn = [mean_cosine(unit[batch]) for batch in batches]
        low, high = np.quantile(drawn, [0.025, 0.975])
        row = {"cycle": cycle, "images": len(query), "similarity": mean_cosine(unit[query])}
        row |= {"expected": np.mean(drawn), "low": low, "high": high, "copies": near_copies(small[query])}
        rows.append(row | {"copies_expected": np.mean([near_copies(small[batch]) for batch in batches])})
    return pd.DataFrame(rows)


def known(ids, asked):
    """{id: position} of `ids`. Raises Refused if one of `asked` is not among them."""
    position = {id: i for i, id in enumerate(ids)}
    missing = sorted(set(asked) - position.keys())
    if missing:
        raise Refused(f"The run asked for {missing[0]}, no training image of its dataset: restore its queries/.")
    return position


def mean_cosine(unit):
    """Mean cosine over all pairs of different rows of `unit` (n, D), which have length 1."""
    count = len(unit)
    return float(((unit.sum(0) ** 2).sum() - count) / (count * (count - 1)))


def near_copies(unit):
    """How many rows of `unit` (n, P), of length 1, have a cosine above NEAR with another row."""
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -1)
    return int((cosines.max(1) > NEAR).sum())


def _scaled(features):
    """Features (N, D), each with mean 0 and, unless it is the same everywhere, variance 1."""
    spread = features.std(0)
    return (features - features.mean(0)) / np.where(spread > 0, spread, 1)


def _unit(rows, centred=False):
    """Rows (N, D) divided by their length, each less its own mean if `centred`; rows of zeros stay so."""
    rows = rows - rows.mean(1, keepdims=True) if centred else rows
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(length > 0, length, 1)


def score_figure(pool):
    """A Figure of the scores of each cycle's pool: box and whiskers (5 to 95 %), a mark for each image asked for."""
    cycles = sorted(pool["cycle"].unique())
    figure = Figure(figsize=(7, 3.8), dpi=110, layout="constrained")
    axis = figure.add_subplot()
    axis.boxplot([pool.loc[pool["cycle"] == cycle, "score"] for cycle in cycles], positions=cycles, widths=0.5,
                 whis=(5, 95), showfliers=False, medianprops={"color": "black"})  # fmt: skip
    asked = pool[pool["picked"].notna()]
    axis.plot(asked["cycle"], asked["score"], "D", color=COLOURS[1], markeredgecolor="black", label="asked for")
    axis.set(xlabel="cycle", ylabel="score")
    axis.legend(frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    return figure


def redundancy_figure(table):
    """A Figure of redundancy(): each query's mean cosine and its near-copies, over those of random batches."""
    figure = Figure(figsize=(7, 4.6), dpi=110, layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(5, 3))
    spread = (table["expected"] - table["low"], table["high"] - table["expected"])
    above.errorbar(table["cycle"], table["expected"], spread, fmt="_", color="0.4", linewidth=5, markersize=16,
                   alpha=0.5, label="95 % of random batches, and their mean")  # fmt: skip
    above.plot(table["cycle"], table["similarity"], "D", color=COLOURS[1], markeredgecolor="black", label="the query")
    above.axhline(0, color="0.6", linewidth=0.8, linestyle=":")
    above.set(ylabel="mean cosine of pairs\n(centred features)")
    bars = below.bar(table["cycle"], table["copies"], 0.4, color=COLOURS[1], edgecolor="black")
    below.bar_label(
        bars, [f"{copies} of {n}" for copies, n in zip(table["copies"], table["images"], strict=True)], padding=5
    )
    below.plot(table["cycle"], table["copies_expected"], "_", color="0.4", markersize=16)
    below.set(xlabel="cycle", ylabel="near-copies", ylim=(0, max(2, table["copies"].max()) * 1.3))
    below.set_xticks(table["cycle"])
    figure.legend(*above.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    for axis in (above, below):
        axis.spines[["top", "right"]].set_visible(False)
    return figure


def map_figure(ids, features, started, pool):
    """A Figure of the first two principal components of features (N, D): when each image was asked for.

    Of the ranks of the features (Spearman's correlations), so that one image with huge values does not push all
    others into a point. Pearson 1901, https://doi.org/10.1080/14786440109462720
    """
    from scipy.stats import rankdata
    from sklearn.decomposition import PCA

    pca = PCA(2)
    place = pd.DataFrame(pca.fit_transform(rankdata(features, axis=0) / len(features)), index=ids)
    asked = pool[pool["picked"].notna()]
    known(ids, chain(started, pool["id"]))
    marked = [("the start", started)]
    marked += [(f"cycle {cycle}", one["id"].tolist()) for cycle, one in asked.groupby("cycle")]
    figure = Figure(figsize=(7.5, 5), dpi=110, layout="constrained")
    axis = figure.add_subplot()
    axis.scatter(place[0], place[1], s=14, color="0.7", label="never")
    for k, (when, chosen) in enumerate(marked):
        style = {"color": COLOURS[k % len(COLOURS)], "marker": MARKERS[k % len(MARKERS)], "edgecolors": "black"}
        axis.scatter(*place.loc[chosen].to_numpy().T, s=60, linewidths=0.6, **style, label=when)
        for x, y in place.loc[chosen].to_numpy():
            axis.annotate("s" if k == 0 else f"{k - 1}", (x, y), (5, 4), textcoords="offset points", fontsize=8)
    shares = pca.explained_variance_ratio_
    axis.set(xlabel=f"first component ({shares[0]:.0%} of the variance)", ylabel=f"second ({shares[1]:.0%})")
    axis.legend(title="asked for in", frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    axis.spines[["top", "right"]].set_visible(False)
    return figure
