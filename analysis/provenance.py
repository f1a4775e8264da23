"""Where each label came from: what a run asked for, when, and how every other score would have ranked it."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.plots import COLOURS, MARKERS
from experiments.errors import Refused
from experiments.randomness import generator
from experiments.records.ledger import read
from experiments.records.table import text

OWN = ["id", "group", "picked", "score"]  # the columns that every table of a query has
DRAWS = 500  # random batches that a query is compared with


def pools(folder):
    """One row for each query and image that was in its pool: cycle, id, group, picked, score, scores of others.

    `picked` is the place in the query, 0 the first, NaN if the image was not asked for. `score` is NaN where the
    heuristic selects without scores; that of random is its draw. Raises Refused if the run asked for nothing.
    """
    files = sorted(Path(folder).glob("queries/cycle_[0-9]*.csv"))
    if not files:
        raise Refused(f"{folder} holds no queries/cycle_000.csv: the run asked for nothing, or an old version made it.")
    frames = []
    for file in files:
        words = pd.read_csv(file, dtype=str, keep_default_na=False)  # an id may be 007, or NA
        words["id"], words["group"] = words["id"].map(text), words["group"].map(text)
        numbers = words.set_index(["id", "group"]).replace("", "nan").astype(float)
        frames.append(numbers.assign(cycle=int(file.stem.removeprefix("cycle_"))).reset_index())
    return pd.concat(frames, ignore_index=True)


def choose(results):
    """The folder of the first run in `results`, its subfolders included, that asked for images, best with scores.

    Best is a run that kept the scores of other heuristics; one of random has none. Raises Refused if none asked.
    """
    folders = sorted({path.parent.parent for path in Path(results).rglob("queries/cycle_[0-9]*.csv")})
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
    return [query["id"] for query in read(folder)[0]["queries"]]


def redundancy(pool, ids, features, seed=0):
    """How alike the images of each query are: a DataFrame with a row for each cycle, beside random batches.

    `similarity` is the mean cosine over the pairs of a query (1 = the same direction), `expected`, `low` and `high`
    the mean and the central 95 % of DRAWS random batches of its size from its pool. A query of one has no pairs.
    """
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    position = {id: i for i, id in enumerate(ids)}
    rows = []
    for cycle, one in pool.groupby("cycle"):
        members = np.array([position[id] for id in one["id"]])
        query = members[one["picked"].notna()]
        if len(query) < 2:
            continue
        rng = generator(seed, "redundancy", int(cycle))
        drawn = [mean_cosine(unit[rng.choice(members, len(query), replace=False)]) for _ in range(DRAWS)]
        low, high = np.quantile(drawn, [0.025, 0.975])
        row = {"cycle": cycle, "images": len(query), "similarity": mean_cosine(unit[query])}
        rows.append(row | {"expected": np.mean(drawn), "low": low, "high": high})
    return pd.DataFrame(rows)


def mean_cosine(unit):
    """Mean cosine over all pairs of different rows of `unit` (n, D), which have length 1."""
    count = len(unit)
    return float(((unit.sum(0) ** 2).sum() - count) / (count * (count - 1)))


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
    """A Figure of redundancy(): each query's mean cosine (mark) over the range of random batches (bar)."""
    figure = Figure(figsize=(7, 3.4), dpi=110, layout="constrained")
    axis = figure.add_subplot()
    spread = (table["expected"] - table["low"], table["high"] - table["expected"])
    axis.errorbar(table["cycle"], table["expected"], spread, fmt="_", color="0.4", linewidth=5, markersize=16,
                  alpha=0.5, label="95 % of random batches, and their mean")  # fmt: skip
    axis.plot(table["cycle"], table["similarity"], "D", color=COLOURS[1], markeredgecolor="black", label="the query")
    axis.set(xlabel="cycle", ylabel="mean pairwise cosine")
    axis.set_xticks(table["cycle"])
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
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
