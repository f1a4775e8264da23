"""Balanced batches: the best images of every image-level group (GlaS: benign, malignant), in equal parts.

As the published GlaS baselines query.

The groups of the whole pool must be known before labelling: where the grade comes from the annotator, this
strategy looks at labels that nobody has paid for.
"""

from collections import Counter

from sacred import Ingredient

from experiments.acquisition.ranking import ranking
from experiments.errors import Refused

ingredient = Ingredient("balanced")
NEEDS = ("groups",)


@ingredient.capture
def pick(scores, pool, n, rng):
    """n positions, best first, n / groups of each group. Raises Refused if the dataset has no groups."""
    return share_out(scores, pool, n, rng)


def share_out(scores, pool, n, rng):
    """n positions, best first, n / groups of each group; a group that runs out is topped up from the rest.

    An n that the groups do not divide gives one more to the groups whose best images score highest. Raises
    Refused if the dataset has no groups.
    """
    if not any(pool.groups):
        raise Refused("batch=balanced needs image-level groups and this dataset has none: use batch=top.")
    order = ranking(scores, pool.ids, rng)
    groups = list(dict.fromkeys(pool.groups[i] for i in order))
    quota = Counter({group: n // len(groups) + (k < n % len(groups)) for k, group in enumerate(groups)})
    picked = []
    for i in order:
        if quota[pool.groups[i]] > 0:
            quota[pool.groups[i]] -= 1
            picked.append(i)
    rest = [i for i in order if i not in picked]
    chosen = {*picked, *rest[: n - len(picked)]}
    return [i for i in order if i in chosen]
