"""An initial set by name: image ids in the setting, or one a line in a file."""

from sacred import Ingredient

from experiments.errors import Refused
from experiments.store.reading import read_text

ingredient = Ingredient("given")
NEEDS_MODEL = False


@ingredient.config
def settings():
    ids = [""]  # e.g. ['train_1', 'train_4']
    file = ""  # instead of ids: a text file with an id on each line


@ingredient.capture
def check(ids, file):
    if not wanted(ids, file):
        raise Refused("given names no image: set given.ids=['train_1','train_4'] or given.file=... and start to match.")


@ingredient.capture
def select(pool, n, rng, ids, file):
    """Their n positions in that order. Raises Refused if they are not n different images of the training set."""
    named, position = wanted(ids, file), {id: i for i, id in enumerate(pool.ids)}
    unknown = [id for id in named if id not in position]
    if unknown:
        raise Refused(f"given names {unknown[0]!r}, which is no training image: {pool.ids[0]} is one.")
    if len(set(named)) != len(named) or len(named) != n:
        raise Refused(f"given names {len(set(named))} different images and start is {n}: make them agree.")
    return [position[id] for id in named]


def wanted(ids, file):
    try:
        return read_text(file).split() if file else [id for id in ids if id]
    except (OSError, ValueError) as error:
        raise Refused(f"given.file={file} cannot be read ({error}).") from error
