"""PHS, progressive hybrid sampling: uncertainty until a query is redundant with the labelled images, then the hybrid.

AL-MGS, https://github.com/lkf-Labs/AL-MGS. A query of the first stage is redundant when the mean of its images' cosine
similarities to their nearest labelled image is over a threshold, which follows the earlier queries by exponentially
weighted moving averages of mean and variance: mean + alpha x deviation. A redundant query is dropped and drawn again by
the second stage, which stays for good. For stage 1 the published description says entropy, the published configuration
adds stochastic batches: `progressive.batch=top` leaves them out. The state is saved with the query, for a resume.
"""

from math import sqrt

from sacred import Ingredient

from experiments.acquisition import selection
from experiments.components import load
from experiments.components.settings import Range
from heuristics.batches import top
from heuristics.hybrid import must_score
from heuristics.simple_diversity import cosine, nearest
from heuristics.two_stage import must_not_be_staged

ingredient = Ingredient("progressive")
NEEDS = ("features",)
NAMES = {"first": "heuristic", "batch": "batch", "then": "heuristic"}


@ingredient.config
def settings():
    first = "entropy"  # stage 1: any heuristic with a score
    batch = "stochastic"  # how stage 1 makes a query of it
    then = "hybrid"  # stage 2: any heuristic of one stage
    threshold = 0.9  # mean similarity over which the very first query is redundant
    alpha = 1.0  # deviations over the mean at which the threshold lies from then on
    gamma = 0.8  # share of the past in the moving averages
    layer = "decoder"  # whose output is compared: a name in the model's LAYERS
    grid = 8  # cells on each side that it is pooled to
    pooling = "max"  # or mean
    reduction = "mean"  # how a map becomes a score, in either stage: mean, max, q90, foreground ...


ALLOWED = {
    "threshold": Range(),
    "alpha": Range(),
    "gamma": Range(least=0, most=1),
    "grid": Range(least=1),
    "pooling": ("mean", "max"),
}


@ingredient.capture
def check(first, then):
    must_score("progressive.first", first)
    must_not_be_staged("progressive.then", then)


@ingredient.capture
def select(pool, n, rng, first, batch, then, threshold, alpha, gamma, layer, grid, pooling, reduction):
    """n positions, best first; pool.memory["progressive"] holds the threshold's state and whether it was passed."""
    state = pool.memory.get("progressive", {})
    if not state.get("switched"):
        picked, _ = selection.select(load("heuristic", first), load("batch", batch), pool, n, rng, reduction)
        rows, labelled = (images.features(layer, grid, pooling) for images in (pool, pool.labelled))
        if not len(labelled):
            return picked  # there is nothing yet that they could repeat
        state = follow(state, 1 - nearest(rows[picked], labelled, cosine), threshold, alpha, gamma)
        pool.memory["progressive"] = state
        if not state["switched"]:
            return picked
    return selection.select(load("heuristic", then), top, pool, n, rng, reduction)[0]


def follow(state, similarities, threshold, alpha, gamma):
    """The state after a query with these similarities (n,): switched, or with the threshold for the next query.

    {} is the state before the first query, which is tested against `threshold`.
    """
    mean, variance = similarities.mean().item(), similarities.var(correction=0).item()
    if mean > state.get("threshold", threshold):
        return {**state, "redundancy": mean, "switched": True}
    average = gamma * state.get("mean", mean) + (1 - gamma) * mean
    spread = gamma * state.get("variance", variance) + (1 - gamma) * variance
    limit = average + alpha * sqrt(spread)
    return {"redundancy": mean, "mean": average, "variance": spread, "threshold": limit, "switched": False}
