"""Strategies on a pool whose good answer is known, over 20 seeds; the table is shown at the end of the run.

Of 200 images 60 are exact copies: 12 hard images are there 6 times each, and 3 of these are labelled already. 116 are
an easy majority and 12 of a rare kind, as easy. Features and predictions tell the three kinds apart.
"""

import numpy as np
import pytest
from scipy.stats import wilcoxon
from test_diversity import generator, pool_of
from test_heuristics import attach  # noqa: F401  a fixture

from experiments.acquisition import selection
from experiments.components import load

SEEDS, QUERY = range(20), 8
DIVERSE = [
    "coreset",
    "kmeans",
    "simple_diversity",
    "hybrid",
    "progressive",
    "typiclust",
    "probcover",
    "badge",
]  # must avoid copies
BATCHES = {  # of entropy, with settings; must avoid copies
    "diverse": {"candidates": 6 * QUERY, "greedy": True},
    "diverse_groups": {},
}

KINDS = np.repeat([0, 1, 2], [116, 12, 12])  # of what images show: the majority, hard, rare
KNOWN = [*range(6), *range(116, 119)]  # what the labelled images show


def known_pool(seed):
    """(Pool, what each of its images shows (200,)): two that show the same are copies."""
    rng = generator(seed)
    looks = 2 * rng.standard_normal((3, 16))[KINDS] + rng.standard_normal((len(KINDS), 16))
    sure = np.where(KINDS == 1, rng.uniform(0.5, 0.7, len(KINDS)), rng.uniform(0.8, 0.98, len(KINDS)))
    p = np.where(np.arange(3) == KINDS[:, None], sure[:, None], (1 - sure[:, None]) / 2)
    shows = rng.permutation(np.repeat(np.arange(len(KINDS)), np.where(KINDS == 1, 6, 1)))
    return pool_of(looks[shows], looks[KNOWN], p[shows], p[KNOWN]), shows


def copies(shown):
    """How many of a query are copies of a labelled image or of another one in it."""
    return len(shown) - len({*shown} - {*KNOWN[6:]})


@pytest.fixture
def tried(attach):  # noqa: F811
    """tried(heuristic, batch, **settings of the batch): copies and rare images in each seed's query, (2, 20)."""

    def tried(heuristic, batch="top", **settings):
        heuristic, batch = load("heuristic", heuristic), load("batch", batch)
        reduction = attach(heuristic).get("reduction", "mean")
        attach(batch).update(settings)
        found = []
        for seed in SEEDS:
            pool, shows = known_pool(seed)
            picked, _ = selection.select(heuristic, batch, pool, QUERY, generator(seed), reduction)
            found.append((copies(shows[picked]), (KINDS[shows[picked]] == 2).sum()))
        return np.transpose(found)

    return tried


def test_copies_are_avoided(tried, table):
    """Fewer than by top-k entropy, by Wilcoxon's test over the seeds. Class-aware strategies: test_embeddings.py."""
    found = {name: tried(name) for name in ["entropy", "random", *DIVERSE]}
    found |= {f"entropy, {name}": tried("entropy", name, **settings) for name, settings in BATCHES.items()}
    lines = [f"Of a query of {QUERY}, {len(SEEDS)} seeds: mean (range)", f"{'':26}copies          rare images"]
    for name, counts in found.items():
        copied, rare = (f"{c.mean():.2f} ({c.min()} to {c.max()})" for c in counts)
        lines.append(f"  {name:24}{copied:16}{rare}")
    table(lines)
    assert found["entropy"][0].min() >= QUERY / 2  # the trap is one
    for name in [*DIVERSE, *(f"entropy, {batch}" for batch in BATCHES)]:
        assert wilcoxon(found["entropy"][0] - found[name][0], alternative="greater").pvalue < 0.001, name
    assert found["coreset"][0].max() == 0  # as long as there is anything else
