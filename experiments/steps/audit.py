"""Audit: a share of each query drawn at random from the pool, on which the model is measured before it learns from it.

A simple random sample that no strategy chose, so that its mean Dice is an unbiased estimate of the model's on the pool
as it was when it was asked of, where there is no test set too: the i.i.d. estimate that active testing begins from
(Kossen et al. 2021, https://arxiv.org/abs/2103.05331).
"""

from math import sqrt

import numpy as np

from experiments.components.randomness import key, uniform
from experiments.errors import Refused
from experiments.evaluation import evaluation, metrics


def size(share, query):
    """How many images of a query of this size are drawn for the audit: one at least is left to the strategy."""
    return max(0, min(round(share * query), query - 1))


def check(config, train):
    """Raise Refused unless the audit of a query is at least one image, and the images can be measured as asked."""
    share, query = config["audit"], config["query"]
    if not share or not config["cycles"]:
        return
    if not size(share, query):
        raise Refused(f"audit={share} of a query of {query} is no image: make query larger, or leave audit out.")
    evaluation.check_test(train, config["dataset"])


def draw(state, cycle, candidates):
    """Those of the `candidates`, positions in `train`, that this cycle's query asks for at random."""
    count = size(state.config["audit"], min(state.config["query"], len(candidates)))
    draws = uniform(key(*state.at(cycle), "audit"), [state.train.ids[i] for i in candidates])
    return [candidates[i] for i in np.argsort(draws)[:count]]


def queries(ids):
    """What the ledger says of these images, drawn at random: as querying.ask of what a strategy picks."""
    return [{"id": id, "region": None, "score": None, "rank": None, "passes": 0, "audit": True} for id in ids]


def measure(state, cycle, indices):
    """The event of the weights of this cycle, which are in the model, on these images, whose masks are open."""
    event = state.ledger.find("audited", cycle)
    if event is None:
        values = evaluation.dice(state.model, state.train, indices, state.at(cycle), state.classes)
        each = [metrics.over_images(row[None], state.train.foreground).item() for row in values]
        event = state.ledger.append(
            "audited",
            cycle,
            images=state.ledger.find("evaluated", cycle)["images"],
            ids=[state.train.ids[i] for i in indices],
            metrics=estimate(each),
            per_image={"dice": evaluation.plain(values)},
        )
    return event


def estimate(each):
    """{"audit.dice": the mean of these images' Dice, and of two or more "audit.low" and "audit.high"}.

    These are the limits of its 95 % t interval inside 0 to 1, the pool's finite size not made use of. Of few images it
    is too narrow, for Dice is skewed: of four it held the pool's mean in 85, 82 and 93 % of 1,000 draws from pools of
    28, 20 and 12 ISIC images, and the draws' mean was right to .004 (tests/test_audit.py).
    """
    from scipy import stats  # takes a second

    mean = float(np.mean(each))
    if len(each) < 2:
        return {"audit.dice": mean}
    half = float(stats.t.isf(0.025, len(each) - 1)) * float(np.std(each, ddof=1)) / sqrt(len(each))
    return {"audit.dice": mean, "audit.low": max(0.0, mean - half), "audit.high": min(1.0, mean + half)}
