"""No initial set, a cold start: the first query is made before anything was labelled or trained.

As MD-SAM-AL begins (https://github.com/Aileen0402/MD-SAM-AL). It takes a heuristic that needs no trained model, as
`random`, or a model that can predict before its first training. Cycle 0 tests the untrained model with 0 images.
"""

from sacred import Ingredient

ingredient = Ingredient("none")
NEEDS_MODEL = False
EMPTY = True


@ingredient.capture
def select(pool, n, rng):
    return []
