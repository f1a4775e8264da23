"""From a heuristic to picked images: a map gives a score by its reduction, a score gives a selection by a batch."""

from functools import partial
from inspect import signature

import numpy as np

from experiments.components import defaults, load
from experiments.errors import Refused

REDUCTIONS = {
    "mean": lambda u, valid: u.where(valid, 0).sum((1, 2)) / valid.sum((1, 2)),
    "sum": lambda u, valid: u.where(valid, 0).sum((1, 2)),
    "max": lambda u, valid: u.where(valid, -float("inf")).amax((1, 2)),
}


def check(heuristic, batch, reduction):
    """Refuse before anything is trained what could not work after."""
    name, way = (module.__name__.rpartition(".")[2] for module in (heuristic, batch))
    if hasattr(heuristic, "select") and way != "top":
        raise Refused(f"heuristic={name} selects its images itself and would ignore batch={way}: use batch=top.")
    if reduction not in REDUCTIONS:
        raise Refused(f"{name}.reduction is one of {', '.join(REDUCTIONS)}, not {reduction!r}.")


def scorers(names):
    """{name: function from a Prediction to (B,) mean uncertainty} of these map heuristics with default settings."""
    found = {}
    for name in names:
        module = load("heuristic", name)
        if not hasattr(module, "uncertainty") or getattr(module, "NEEDS", ()):
            raise Refused(f"noted={name} is no map of the standard moments: its scores cannot be kept beside others'.")
        takes = signature(module.uncertainty).parameters
        settings = {key: value for key, value in defaults(module.ingredient).items() if key in takes}
        found[name] = partial(mean_uncertainty, partial(module.uncertainty, **settings))
    return found


def mean_uncertainty(uncertainty, prediction):
    return REDUCTIONS["mean"](uncertainty(prediction), prediction.valid)


def select(heuristic, batch, pool, n, rng, reduction="mean"):
    """(positions, best first; scores (N,) float64, or None from a heuristic that selects by itself).

    n larger than the pool takes the pool. Raises Refused naming the image when a score is not finite.
    """
    n = min(n, len(pool))
    if hasattr(heuristic, "select"):
        picked, scores = heuristic.select(pool=pool, n=n, rng=rng), None
    else:
        scores = score(heuristic, pool, rng, reduction)
        picked = batch.pick(scores=scores, pool=pool, n=n, rng=rng)
    picked = [int(position) for position in picked]
    if len(set(picked)) != n or not all(0 <= position < len(pool) for position in picked):
        raise Refused(f"{heuristic.__name__} picked {picked}, not {n} different positions below {len(pool)}.")
    return picked, scores


def score(heuristic, pool, rng, reduction="mean"):
    """(N,) float64, larger is more wanted."""
    if hasattr(heuristic, "score"):
        scores = np.asarray(heuristic.score(pool=pool, rng=rng), dtype=np.float64)
    else:
        scores = np.empty(len(pool))
        pending = []  # read back only after the last batch was launched
        for positions, prediction in pool.predictions():
            reduced = REDUCTIONS[reduction](heuristic.uncertainty(prediction), prediction.valid)
            pending.append((positions, reduced))
        for positions, reduced in pending:
            scores[positions] = reduced.cpu().numpy()
    for position in np.flatnonzero(~np.isfinite(scores)):
        raise Refused(f"{heuristic.__name__} scores image {pool.ids[position]} as {scores[position]}: not a number.")
    return scores
