"""An initial set by name: image ids in the setting, or one a line in a file."""

from pathlib import Path

from sacred import Ingredient

from experiments.errors import Refused

ingredient = Ingredient("given")
NEEDS_MODEL = False


@ingredient.config
def settings():
    ids = [""]  # e.g. ['train_1', 'train_4']
    file = ""  # instead of ids: a text file with an id on each line


@ingredient.capture
def select(pool, n, rng, ids, file):
    """Their n positions in that order. Raises Refused if they are not n different images of the training set."""
    try:
        wanted = Path(file).read_text("utf-8").split() if file else [id for id in ids if id]
    except (OSError, UnicodeDecodeError) as error:
        raise Refused(f"given.file={file} cannot be read ({error}).") from error
    position = {id: i for i, id in enumerate(pool.ids)}
    unknown = [id for id in wanted if id not in position]
    if unknown:
        raise Refused(f"given names {unknown[0]!r}, which is no training image: {pool.ids[0]} is one.")
    if len(set(wanted)) != len(wanted) or len(wanted) != n:
        raise Refused(
            f"given must name start={n} different images, and names {len(set(wanted))}: set one or the other."
        )
    return [position[id] for id in wanted]
