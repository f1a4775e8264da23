"""From a heuristic to picked images: a map gives a score by its reduction, a score gives a selection by a batch."""

import re
from functools import partial
from inspect import signature
from math import nan

import numpy as np
import torch
from tqdm import tqdm

from experiments.acquisition.prediction import in_foreground, winner
from experiments.acquisition.ranking import ranking
from experiments.components import defaults, load
from experiments.errors import Refused, hint

KNOWN = "mean, sum, max, q1 to q99 (a percentile), foreground, boundary, target"


def reducer(name):
    """The function that makes a map (B, H, W) and its Prediction one score an image (B,).

    Pixels that are not valid never count. "foreground" and "boundary" are means over the pixels that are predicted so
    (without a background all are foreground),
    0 in an image without any, or the least of a map that goes below 0. "target" is the mean over the predicted
    foreground and the pixels beside it, in an image without any over all pixels: Ma et al. 2024,
    https://arxiv.org/abs/2401.16298. Raises Refused for a name that is not KNOWN.
    """
    if name in WHERE:
        return lambda u, p: mean_where(u, p.valid & WHERE[name](p), p.valid)
    if name == "target":
        return lambda u, prediction: REDUCTIONS["mean"](u, target(prediction))
    if re.fullmatch("q[1-9][0-9]?", name):
        return lambda u, prediction: percentile(u, prediction.valid, int(name[1:]))
    if name not in REDUCTIONS:
        raise Refused(f"There is no reduction {name!r}.{hint(name, [*WHERE, *REDUCTIONS])} There are {KNOWN}.")
    return lambda u, prediction: REDUCTIONS[name](u, prediction.valid)


REDUCTIONS = {
    "mean": lambda u, valid: u.where(valid, 0).sum((1, 2)) / valid.sum((1, 2)),
    "sum": lambda u, valid: u.where(valid, 0).sum((1, 2)),
    "max": lambda u, valid: u.where(valid, -float("inf")).amax((1, 2)),
}
WHERE = {"foreground": in_foreground, "boundary": lambda prediction: boundary(winner(prediction.mean))}


def target(prediction):
    """(B, H, W) bool: the valid pixels in or beside the predicted foreground; all valid ones where there are none."""
    inside = prediction.valid & (in_foreground(prediction) | boundary(winner(prediction.mean)))
    return inside | (prediction.valid & ~inside.flatten(1).any(1)[:, None, None])


def mean_where(u, chosen, valid):
    mean = u.where(chosen, 0).sum((1, 2)) / chosen.sum((1, 2)).clamp_min(1)
    return mean.where(chosen.any(2).any(1), u.where(valid, 0).amin((1, 2)).clamp_max(0))


def percentile(u, valid, q):
    """The value that q % of an image's valid pixels do not exceed: (B,), NaN without a valid pixel."""
    pixels = [values[inside] for values, inside in zip(u, valid, strict=True)]
    return torch.stack([smallest(v, -(-q * len(v) // 100)) if len(v) else u.new_tensor(nan) for v in pixels])


def smallest(values, k):
    """The k-th smallest; sorted where results must repeat, as a GPU's kthvalue is then refused by torch."""
    repeat = torch.are_deterministic_algorithms_enabled()
    return values.sort().values[k - 1] if repeat else values.kthvalue(k).values


def boundary(labels):
    """Where labels (B, H, W) differ from one of their four neighbours."""
    edges = torch.zeros_like(labels, dtype=torch.bool)
    for axis in (1, 2):
        differs = labels.diff(dim=axis) != 0
        length = differs.shape[axis]
        edges.narrow(axis, 0, length).logical_or_(differs)
        edges.narrow(axis, 1, length).logical_or_(differs)
    return edges


def check(heuristic, batch, reduction, race=False):
    """Refuse before anything is trained what could not work after."""
    name, way = (module.__name__.rpartition(".")[2] for module in (heuristic, batch))
    if hasattr(heuristic, "select") and way != "top":
        raise Refused(f"heuristic={name} selects its images itself and would ignore batch={way}: use batch=top.")
    if race and (way != "top" or not hasattr(heuristic, "uncertainty")):
        raise Refused(
            f"prediction.race spares passes for the best images of a map: not for heuristic={name} batch={way}."
        )
    try:
        reducer(reduction)
    except Refused as error:
        raise Refused(f"{name}.reduction: {error}") from None


def scorers(names):
    """{name: function from a Prediction to (B,) mean uncertainty} of these map heuristics with default settings."""
    found = {}
    for name in names:
        module = load("heuristic", name)
        asks = set(getattr(module, "NEEDS", ())) - {"background"}  # which experiments/acquisition/needs.py looks after
        if not hasattr(module, "uncertainty") or asks or source(module):
            raise Refused(f"noted={name} is no map of the standard moments: its scores cannot be kept beside others'.")
        takes = signature(module.uncertainty).parameters
        settings = {key: value for key, value in defaults(module.ingredient).items() if key in takes}
        found[name] = partial(mean_uncertainty, partial(module.uncertainty, **settings))
    return found


def mean_uncertainty(uncertainty, prediction):
    return reducer("mean")(uncertainty(prediction), prediction)


def select(heuristic, batch, pool, n, rng, reduction="mean"):
    """(positions, best first; scores (N,) float64, or None from a heuristic that selects by itself).

    A pool with `race` is scored from a few passes and only what leads after them from all, see `run_race`.
    n larger than the pool takes the pool. Raises Refused naming the image when a score is not finite.
    """
    n = min(n, len(pool))
    if hasattr(heuristic, "select"):
        picked, scores = heuristic.select(pool=pool, n=n, rng=rng), None
    elif pool.race and hasattr(heuristic, "uncertainty"):
        picked, scores = run_race(heuristic, pool, n, rng, reduction)
    else:
        scores = score(heuristic, pool, rng, reduction)
        picked = batch.pick(scores=scores, pool=pool, n=n, rng=rng)
    if scores is not None and n < len(pool):
        say_if_equal(heuristic.__name__.rpartition(".")[2], scores)
    picked = [int(position) for position in picked]
    if len(set(picked)) != n or not all(0 <= position < len(pool) for position in picked):
        raise Refused(f"{heuristic.__name__} picked {picked}, not {n} different positions below {len(pool)}.")
    return picked, scores


def source(heuristic):
    """The predictions that a map heuristic looks at, as Pool.predictions names them; empty is the run's setting."""
    return getattr(heuristic, "SOURCE", "")


def score(heuristic, pool, rng, reduction="mean"):
    """(N,) float64, larger is more wanted."""
    if hasattr(heuristic, "score"):
        scores = np.asarray(heuristic.score(pool=pool, rng=rng), dtype=np.float64)
    else:
        scores = per_image(pool, of_map(heuristic, reduction), source(heuristic))
    refuse_what_is_no_number(heuristic, pool, scores)
    return scores


def of_map(heuristic, reduction):
    """The function that makes a Prediction of B images their scores (B,), of a heuristic that gives a map."""
    reduce = reducer(reduction)
    return lambda prediction: reduce(heuristic.uncertainty(prediction), prediction)


def refuse_what_is_no_number(heuristic, pool, scores):
    for position in np.flatnonzero(~np.isfinite(scores)):
        raise Refused(f"{heuristic.__name__} scores image {pool.ids[position]} as {scores[position]}: not a number.")


def say_if_equal(name, scores):
    """Print a line if all scores (N,), those of what has this name, are one number: the query is then a random one."""
    if len(scores) > 1 and (scores == scores[0]).all():
        tqdm.write(
            f"{name} scores every one of {len(scores)} images {scores[0]:.3g}: this query is a random one. "
            "Passes that cannot differ (prediction.dropout=False, mc_iters=1, a model without dropout) and reductions "
            "to a predicted foreground that is nowhere do this."
        )


def per_image(images, score, source="", among=(), **passes):
    """(N,) float64: what `score` makes of each image's Prediction, (B,) of a batch; 0 for images not `among` these."""
    return rows(images, score, source, among, **passes).cpu().numpy().astype(np.float64)


def rows(images, of, source="", among=(), **passes):
    """(N, ...) what `of` makes of each image's Prediction, (B, ...) of a batch; 0 for images not `among` these."""
    return images.gather(partial(rows_of, of=of, source=source, **passes), among)


def rows_of(images, of, source, **which):
    """What `rows` are, by this process."""
    found = None
    for positions, prediction in images.predictions(source, **which):
        values = of(prediction)
        if found is None:  # where the first batch lies; read back after the last one was launched
            found = values.new_zeros(len(images), *values.shape[1:])
        found[positions] = values
    return torch.zeros(0) if found is None else found


def run_race(heuristic, pool, n, rng, reduction):
    """(n positions, best first; scores (N,)): a quarter of the passes for all, all passes for a tenth of the pool.

    Of those that lead after the first quarter, 4 n or a tenth of the pool go on, whichever is more; they start anew,
    for nothing of the pool's predictions is kept. The scores of the others are those of the first quarter. Measured
    with BALD, 20 balanced passes, 200 drawn images and n = 10: 9 passes an image; of what all passes would have picked
    it found 1.00, .99 and 1.00 on three small trained models at 32 x 32, 8 trials each (with 3 n .99, .99 and .98),
    and .995 at 64 x 64 and width 16, 20 trials (one image lost, of rank 7).
    """
    value, where = of_map(heuristic, reduction), source(heuristic)
    scores = per_image(pool, value, where, passes=-(-pool.mc_iters // 4))
    leaders = ranking(scores, pool.ids, rng)[: max(4 * n, len(pool) // 10)]
    scores[leaders] = per_image(pool, value, where, among=leaders)[leaders]
    refuse_what_is_no_number(heuristic, pool, scores)
    order = ranking(scores[leaders], [pool.ids[i] for i in leaders], rng)
    return [leaders[i] for i in order[:n]], scores
