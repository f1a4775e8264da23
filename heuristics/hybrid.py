"""Hybrid sampling: the most uncertain (`by`) of the most diverse (`diversity`) images.

Stage 2 of AL-MGS (https://github.com/lkf-Labs/AL-MGS), whose `hybrid` keeps the 120 best of simple diversity sampling
and queries the 20 of highest entropy among them. Both scores can be any heuristic's.
"""

from sacred import Ingredient

from experiments.acquisition import selection
from experiments.acquisition.ranking import ranking
from experiments.components import load
from experiments.components.settings import Range
from experiments.errors import Refused

ingredient = Ingredient("hybrid")
NAMES = {"diversity": "heuristic", "by": "heuristic"}


@ingredient.config
def settings():
    diversity = "simple_diversity"  # the score that sifts: any heuristic with one
    diverse = 0  # images that it keeps; 0: six times the query, as published
    by = "entropy"  # the score that chooses among them
    reduction = "mean"  # how a map becomes either score: mean, max, q90, foreground ...


ALLOWED = {"diverse": Range(least=0)}


@ingredient.capture
def check(diversity, by, reduction):
    must_score("hybrid.diversity", diversity)
    must_score("hybrid.by", by)
    selection.reducer(reduction)


@ingredient.capture
def select(pool, n, rng, diversity, diverse, by, reduction):
    """n positions, best first."""
    spread, wanted = (selection.score(load("heuristic", name), pool, rng, reduction) for name in (diversity, by))
    for name, scores in ((diversity, spread), (by, wanted)):
        selection.say_if_equal(name, scores)
    return sifted(spread, wanted, pool.ids, diverse or 6 * n, n, rng)


def sifted(spread, wanted, ids, keep, n, rng):
    """The n most wanted positions of the `keep` (at least n) with the most spread, best first."""
    kept = ranking(spread, ids, rng)[: max(keep, n)]
    return [kept[i] for i in ranking(wanted[kept], [ids[i] for i in kept], rng)[:n]]


def must_score(setting, name):
    """Refuse a heuristic that selects by itself where a score is needed."""
    if hasattr(load("heuristic", name), "select"):
        raise Refused(f"{setting}={name} selects its images itself and has no score: name one that scores, as entropy.")
