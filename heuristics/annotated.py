"""An initial set: every image that has a mask already, as where people have begun to label a folder."""

from sacred import Ingredient

from experiments.errors import Refused

ingredient = Ingredient("annotated")
NEEDS_MODEL = False
ANNOTATED = True  # start counts the training images that have a mask


@ingredient.config
def settings():
    pass


@ingredient.capture
def select(pool, n, rng):
    """All positions with a mask, in their order. Raises Refused if there is none."""
    found = [position for position, there in enumerate(pool.annotated) if there]
    if not found:
        raise Refused("annotated finds no mask beside those that validate or test: draw a few, or set initial=random.")
    return found
