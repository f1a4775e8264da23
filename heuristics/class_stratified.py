"""ClaSP PE: class-stratified scheduled power predictive entropy, a share of the query in equal parts for each class.

Lueth et al. 2026, https://arxiv.org/abs/2601.13677, for nnU-Net's 3-D patches; here a query is a whole image. As in
the authors' code an image is scored for a foreground class by its mean of entropy x probability of the class, the share
is .66, rounded down, and Gumbel noise of scale 1 / beta is added to the logarithms of the scores. What is left of the
query goes by plain entropy, noised alike. Over the T queries of a run beta grows as published, 100 ^ (t / (T - 1)), so
that a run that `cycles` extends later has asked with less noise than one that was planned as long. By probability a
rare class is found soon only if the model does not suspect it everywhere (tests/test_embeddings.py prints both).
"""

import numpy as np
import torch
from sacred import Ingredient

from experiments.acquisition.prediction import entropy, winner
from experiments.acquisition.ranking import ranking
from experiments.components.randomness import uniform
from experiments.components.settings import Range
from heuristics.badge import gathered
from heuristics.batches.power import log_scores

ingredient = Ingredient("class_stratified")


@ingredient.config
def settings():
    membership = "probability"  # a pixel counts for each class with its probability, or "prediction": for the likeliest
    share = 0.66  # of the query that goes to the foreground classes
    beta = 1.0  # of the run's first query: the larger, the less noise
    last_beta = 100.0  # of its last query; beta grows exponentially between them


ALLOWED = {
    "membership": ("probability", "prediction"),
    "share": Range(least=0, most=1),
    "beta": Range(above=0),
    "last_beta": Range(above=0),
}


@ingredient.capture
def select(pool, n, rng, membership, share, beta, last_beta):
    """n positions: each class and the whole give their best in turns."""
    order, scores = gathered(pool, lambda prediction: class_entropies(prediction, membership))
    ids, beta = [pool.ids[i] for i in order], faded(beta, last_beta, pool.cycle, pool.cycles)
    salts = rng.integers(2**63, size=scores.shape[1]).tolist()
    columns = zip(scores.double().cpu().numpy().T, salts, strict=True)
    rankings = [ranking(noised(column, ids, beta, salt), ids, rng) for column, salt in columns]
    return order[in_turns(rankings, shared_out(n, share, len(rankings) - 1, rng))]


def class_entropies(prediction, membership):
    """(B, C): mean over the pixels of entropy x membership in each foreground class and, last, of entropy alone."""
    u = entropy(prediction.mean).where(prediction.valid, 0)[:, None]
    sums = torch.cat([u * MEMBERSHIP[membership](prediction.mean)[:, prediction.first :], u], 1).sum((2, 3))
    return sums / prediction.valid.sum((1, 2))[:, None]


MEMBERSHIP = {
    "probability": lambda p: p,
    "prediction": lambda p: torch.zeros_like(p).scatter_(1, winner(p)[:, None], 1),
}


def faded(first, last, cycle, cycles):
    """The beta of the query `cycle` of 0 to `cycles` - 1: first (last / first) ** (cycle / (cycles - 1))."""
    return first * (last / first) ** min(1, cycle / max(1, cycles - 1))


def noised(scores, ids, beta, salt):
    """Logarithms of scores (N,) with Gumbel noise of scale 1 / beta, keyed by image id."""
    return log_scores(scores) - np.log(-np.log(uniform(salt, ids) + 2.0**-65)) / beta


def shared_out(n, share, classes, rng):
    """[number for each class, number for the whole]; what the classes do not divide goes to drawn ones."""
    stratified = int(n * share)
    quotas = np.full(classes, stratified // classes)
    quotas[rng.permutation(classes)[: stratified % classes]] += 1
    return [*quotas.tolist(), n - stratified]


def in_turns(rankings, quotas):
    """Positions: each ranking in turn gives its best that is not taken yet, until it has given its quota."""
    queues, picked = [iter(ranking) for ranking in rankings], {}
    for turn in range(max(quotas)):
        for queue, quota in zip(queues, quotas, strict=True):
            if turn < quota:
                picked[next(i for i in queue if i not in picked)] = None
    return list(picked)
