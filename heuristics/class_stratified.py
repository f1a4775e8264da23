"""ClaSP PE: a share of the query goes in equal parts to the foreground classes, by power-noised predictive entropy.

Lueth et al. 2026, https://arxiv.org/abs/2601.13677, for nnU-Net's 3-D patches; here a query is a whole image. As in
the authors' code an image is scored for a class by its mean of entropy x probability of the class, the share is .66,
and Gumbel noise of scale 1 / beta is added to the logarithms of the scores. What is left of the query goes by plain
entropy, noised alike. The noise fades exponentially from query to query; how fast is a setting of ours. By probability
a rare class is found soon only if the model does not suspect it everywhere (tests/test_embeddings.py prints both).
"""

import numpy as np
import torch
from sacred import Ingredient

from experiments.acquisition.prediction import entropy, winner
from experiments.acquisition.ranking import ranking
from experiments.randomness import uniform
from experiments.settings import Range
from heuristics.badge import gathered
from heuristics.batches.power import log_scores

ingredient = Ingredient("class_stratified")


@ingredient.config
def settings():
    membership = "probability"  # a pixel counts for each class with its probability, or "prediction": for the likeliest
    share = 0.66  # of the query that goes to the foreground classes
    beta = 1.0  # of the first query: the larger, the less noise
    growth = 2.0  # beta is multiplied by it after every query; 1: the noise does not fade


ALLOWED = {
    "membership": ("probability", "prediction"),
    "share": Range(least=0, most=1),
    "beta": Range(above=0),
    "growth": Range(above=0),
}


@ingredient.capture
def select(pool, n, rng, membership, share, beta, growth):
    """n positions: each class and the whole give their best in turns."""
    order, scores = gathered(pool, lambda prediction: class_entropies(prediction, membership))
    ids, beta = [pool.ids[i] for i in order], beta * growth**pool.cycle
    salts = rng.integers(2**63, size=scores.shape[1]).tolist()
    columns = zip(scores.double().cpu().numpy().T, salts, strict=True)
    rankings = [ranking(noised(column, ids, beta, salt), ids) for column, salt in columns]
    return order[in_turns(rankings, shared_out(n, share, len(rankings) - 1, rng))]


def class_entropies(prediction, membership):
    """(B, C): mean over the pixels of entropy x membership in each foreground class and, last, of entropy alone."""
    u = entropy(prediction.mean).where(prediction.valid, 0)[:, None]
    sums = torch.cat([u * MEMBERSHIP[membership](prediction.mean)[:, 1:], u], 1).sum((2, 3))
    return sums / prediction.valid.sum((1, 2))[:, None]


MEMBERSHIP = {
    "probability": lambda p: p,
    "prediction": lambda p: torch.zeros_like(p).scatter_(1, winner(p)[:, None], 1),
}


def noised(scores, ids, beta, salt):
    """Logarithms of scores (N,) with Gumbel noise of scale 1 / beta, keyed by image id."""
    return log_scores(scores, ids) - np.log(-np.log(uniform(salt, ids) + 2.0**-65)) / beta


def shared_out(n, share, classes, rng):
    """[number for each class, number for the whole]; what the classes do not divide goes to drawn ones."""
    stratified = round(n * share)
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
