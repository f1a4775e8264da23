"""Strided sampling: every N / n-th image in file order, the baseline for frames of a video and slices of a volume.

Burmeister et al. 2022, https://arxiv.org/abs/2207.00845. The first query, or the initial set, begins with the first
image; each later one is shifted by the half, a quarter, three quarters ... of a stride, into the gaps of those before.
"""

from sacred import Ingredient

ingredient = Ingredient("strided")
NEEDS_MODEL = False


@ingredient.capture
def select(pool, n, rng):
    """n positions in the pool, in file order."""
    shift = halving(pool.cycle + 1 if len(pool.labelled) else 0)
    return [int((k + shift) * len(pool) / n) for k in range(n)]


def halving(k):
    """The k-th of 0, 1/2, 1/4, 3/4, 1/8, 5/8 ...: the binary digits of k mirrored at the point (van der Corput)."""
    return int(f"{k:b}"[::-1], 2) / 2 ** k.bit_length() if k else 0.0
