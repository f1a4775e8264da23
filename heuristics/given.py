"""An initial set by name: image ids in the setting, one a line in a file, or in the column id of a CSV."""

import csv
from difflib import get_close_matches

from sacred import Ingredient

from experiments.errors import Refused
from experiments.store.reading import read_text

ingredient = Ingredient("given")
NEEDS_MODEL = False


@ingredient.config
def settings():
    ids = [""]  # e.g. ['train_1', 'train_4']
    file = ""  # instead of ids: a text file with an id on each line, or a CSV with a column id


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
        near = get_close_matches(unknown[0], list(position), cutoff=0.0)
        raise Refused(f"given names {unknown[0]!r}, which is no training image: the nearest are {', '.join(near)}.")
    if len(set(named)) != len(named) or len(named) != n:
        raise Refused(f"given names {len(set(named))} different images and start is {n}: make them agree.")
    return [position[id] for id in named]


def wanted(ids, file):
    if not file:
        return [id for id in ids if id]
    try:
        if not str(file).lower().endswith(".csv"):
            return read_text(file).split()
        rows = csv.DictReader(read_text(file, "utf-8-sig").splitlines())
        if "id" not in (rows.fieldnames or ()):
            found = ", ".join(rows.fieldnames or ())
            raise Refused(f"given.file={file} has no column id: its first line names {found or 'nothing'}.")
        return [row["id"].strip() for row in rows if (row["id"] or "").strip()]
    except (OSError, ValueError, csv.Error) as error:
        raise Refused(f"given.file={file} cannot be read ({error}).") from error
