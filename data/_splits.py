"""Images dealt into training, validation and test images by lists or by shares, those of one source on one side."""

import os
from collections import Counter, defaultdict
from pathlib import Path

from data._pairs import as_part, natural, told
from experiments.components.randomness import generator
from experiments.errors import Refused
from experiments.store.reading import read_text

NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}  # of folders
ENDINGS = ("annot", "_annotations", "_labels", "_masks")  # of the folder of masks beside train


def official(root, images, masks):
    """{part: (its images' folder, its masks')} where a root holds them apart in folders called train, val and test.

    These hold images/ and masks/ each, or lie in both of these, or the masks beside the images, or in trainannot and
    its like. {} where the images' folder has none of them, or there is no train.
    """
    within = [lambda name: (root / images / name, root / masks / name)]
    apart = [
        lambda name: (root / name / images, root / name / masks),
        *(lambda name, end=end: (root / name, root / f"{name}{end}") for end in ENDINGS),
        lambda name: (root / name, root / name),
    ]
    layouts = within if (root / images).is_dir() and images != "." else apart
    for places in layouts:
        found = {part: places(name) for part, names in NAMES.items() for name in names if places(name)[0].is_dir()}
        if "train" in found and (places is layouts[0] or found["train"][1].is_dir()):
            return found
    return {}


def read_list(root, file, items):
    """Positions in `items` that a list names, in its order: an id, or a path that ends in an image's, in each line."""
    path = root / os.path.expanduser(file)
    try:
        lines = [line.strip() for line in read_text(path, "utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise Refused(f"{path} cannot be read as a list of images ({error}).") from error
    if not lines:
        raise Refused(f"{path} lists no image.")
    known = defaultdict(list)
    for position, item in enumerate(items):
        file_name = as_part(item.image).paths[0]
        for title in {item.id, file_name.stem, file_name.name, "/".join(file_name.parts[-2:])}:
            known[title].append(position)
    positions = []
    for line in lines:
        words = line, line.split()[0]
        tries = [*words, *("/".join(Path(word).parts[-n:]) for n in (2, 1) for word in words)]
        named = next((known[title] for title in tries if title in known), None)
        if named is None:
            raise Refused(f"{path} names {line[:80]}, which is no image here (there are {items[0].id} ...).")
        if len({items[position].source for position in named}) > 1:
            raise Refused(f"{path} names {line[:80]}, which may be any of {len(named)} images: write more of its path.")
        positions += named
    if len(set(positions)) < len(positions):
        twice = next(position for position, count in Counter(positions).items() if count > 1)
        raise Refused(f"{path} names {items[twice].id} twice.")
    return positions


def deal(items, lists, shares, rng, name):
    """(train, val, test) lists of items. What no list names is drawn from the training images, whole sources."""
    owner = {}
    for part, positions in lists.items():
        for position in positions:
            if owner.setdefault(position, part) != part:
                raise Refused(f"{items[position].id} is in two lists, {owner[position]} and {part}.")
    for position, part in owner.items():
        if part != "train" and items[position].mask is None:
            raise Refused(f"{items[position].id} is in the list of {part} and has no mask: draw one, or leave it out.")
    parts = {part: lists.get(part, []) for part in ("train", "val", "test")}
    left = [position for position in range(len(items)) if position not in owner]
    if "train" not in lists:
        parts["train"] = left
    elif left:
        told(f"{len(left)} images are in no list and are left out.")
    open_ones = [position for position in parts["train"] if items[position].mask is None]  # whose masks people draw
    parts["train"] = [position for position in parts["train"] if items[position].mask is not None]
    whole = len(parts["train"])
    draws = {"test": generator(name, "test"), "val": rng}  # one test set for all runs
    for part in ("test", "val"):
        if part not in lists and shares[part]:
            parts[part], parts["train"] = draw(items, parts["train"], shares[part] * whole, draws[part], part)
    held = {items[position].source for part in ("val", "test") for position in parts[part]}
    apart = [position for position in open_ones if items[position].source in held]
    if apart:
        told(f"{len(apart)} images without a mask share a source with validation or test images and are left out.")
    parts["train"] = sorted({*parts["train"], *open_ones} - {*apart}) if open_ones else parts["train"]
    seen = {}
    for part, positions in parts.items():
        for position in positions:
            source = items[position].source
            if seen.setdefault(source, part) != part:
                raise Refused(
                    f"Images of {source} are in {seen[source]} and in {part}: lists and folders keep each source whole."
                )
    if not parts["train"]:
        raise Refused("No training images are left: give fewer to val and test.")
    return [[items[position] for position in parts[part]] for part in ("train", "val", "test")]


def draw(items, positions, wanted, rng, part, remedy=""):
    """(drawn, others) of these positions: whole sources until `wanted` images are reached, at least one source.

    Raises Refused, with the `remedy`, where there is but one source.
    """
    sources = sorted({items[position].source for position in positions}, key=lambda text: natural((text,)))
    if len(sources) < 2:
        raise Refused(
            f"{part} cannot be drawn, for the images left to learn from are all of one source, {sources[0]}: "
            + (remedy or f"set folder.{part}=0, folder.{part}_file=... or, to split a stack, folder.source='(.*)'.")
            if sources
            else f"{part} cannot be drawn: no training images are left."
        )
    sizes = Counter(items[position].source for position in positions)
    chosen, count = set(), 0
    for number in rng.permutation(len(sources))[:-1]:
        if chosen and count + sizes[sources[number]] / 2 > wanted:
            break
        chosen.add(sources[number])
        count += sizes[sources[number]]
    drawn = [position for position in positions if items[position].source in chosen]
    return drawn, [position for position in positions if items[position].source not in chosen]
