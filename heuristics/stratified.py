"""Stratified random: an initial set with every image-level group in its own proportion, at random within each."""

from collections import Counter

from sacred import Ingredient

from experiments.acquisition.ranking import ranking
from experiments.errors import Refused
from heuristics.random import draws

ingredient = Ingredient("stratified")
NEEDS = ("groups",)
NEEDS_MODEL = False


@ingredient.capture
def select(pool, n, rng):
    """n positions; what rounding leaves over goes to the largest remainders. Raises Refused without groups."""
    if not any(pool.groups):
        raise Refused("stratified needs image-level groups and this dataset has none: use initial=random.")
    quota = proportional(Counter(pool.groups), n, rng)
    picked = []
    for i in ranking(draws(pool, rng), pool.ids, rng):
        if quota[pool.groups[i]] > 0:
            quota[pool.groups[i]] -= 1
            picked.append(i)
    return picked


def proportional(sizes, n, rng):
    """{group: number of n}, by largest remainders (Hamilton's method); between equal ones rng decides."""
    total = sum(sizes.values())
    exact = {group: n * size / total for group, size in sizes.items()}
    quota = {group: int(share) for group, share in exact.items()}
    names = list(exact)
    left = ranking([exact[group] - quota[group] for group in names], names, rng)
    for k in left[: n - sum(quota.values())]:
        quota[names[k]] += 1
    return quota
