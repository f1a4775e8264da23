"""Two-stage strategy: one heuristic until a cycle, another from then on.

AL-MGS's "two-stage hybrid" (https://github.com/lkf-Labs/AL-MGS): entropy in cycles 0 to 2, then the hybrid of diversity
and entropy with hybrid.diverse=30 for queries of 20.
"""

from sacred import Ingredient

from experiments.acquisition import selection
from experiments.components import load
from experiments.components.settings import Range
from experiments.errors import Refused
from heuristics.batches import top
from heuristics.hybrid import must_score

ingredient = Ingredient("two_stage")
NAMES = {"first": "heuristic", "then": "heuristic"}


@ingredient.config
def settings():
    first = "entropy"  # any heuristic with a score
    then = "hybrid"  # any heuristic of one stage
    cycle = 3  # the first cycle of the second stage; the published one
    reduction = "mean"  # how a map becomes a score, in either stage: mean, max, q90, foreground ...


ALLOWED = {"cycle": Range(least=0)}


@ingredient.capture
def check(first, then):
    must_score("two_stage.first", first)
    must_not_be_staged("two_stage.then", then)


@ingredient.capture
def select(pool, n, rng, first, then, cycle, reduction):
    """n positions, best first."""
    now = load("heuristic", first if pool.cycle < cycle else then)
    return selection.select(now, top, pool, n, rng, reduction)[0]


def must_not_be_staged(setting, name):
    """Refuse a strategy of stages as the stage of another: they could go on naming each other."""
    if "then" in getattr(load("heuristic", name), "NAMES", {}):
        raise Refused(f"{setting}={name} has stages itself: name a heuristic of one stage, as hybrid.")
