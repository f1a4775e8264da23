"""A query's folder as annotation tools are given it, and the masks that they give back.

A format is a file in formats/: `write(request, out)` fills the folder `out` and returns a line on what to do
with it; `read(request, place)` yields a `Drawn` for each mask that is there, which returned.py makes, checks and keeps.
"""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.acquisition.pictures import mask_colour
from experiments.annotate import answers
from experiments.annotate.page import REASONS
from experiments.annotate.untrusted import read_json
from experiments.errors import BadData, Refused, hint, shown
from experiments.errors.process import stop_if_asked
from experiments.records.files import write
from experiments.records.progress import say
from experiments.store import IGNORE
from experiments.store.reading import MAX_IMAGE, regular


class Drawn(NamedTuple):
    """A mask that came back: `path` names it in messages and by its stem, `words` may have its id and sha256.

    `mask(image)` gives class numbers (H, W) for that entry of the manifest, or None where nothing was drawn; it raises
    BadData. `about` may have seconds and annotator; `reviewed`: a person said that it is done.
    """

    path: Path
    mask: Callable
    words: dict = {}
    about: dict = {}
    reviewed: bool = False


@dataclass
class Request:
    """What the manifest of a query says."""

    folder: Path
    asked: dict
    classes: list = field(init=False)
    images: list = field(init=False)

    def __post_init__(self):
        self.classes = [self.asked["classes"][str(n)] for n in range(len(self.asked["classes"]) - 1)]
        self.images = self.asked["images"]

    @property
    def blank(self):
        """The value of pixels on which nothing is drawn: class 0 if it is background, else IGNORE."""
        return 0 if "background" in self.classes[0].lower() else IGNORE

    @property
    def labels(self):
        """{name: value} of what is drawn in a tool."""
        known = {name: value for value, name in enumerate(self.classes)} | {self.asked["classes"]["255"]: IGNORE}
        return {name: value for name, value in known.items() if value != self.blank}

    def canvas(self, image):
        """A mask (H, W) uint8 on which nothing is drawn."""
        return np.full((image["height"], image["width"]), self.blank, np.uint8)

    def say_blank(self):
        say(f"Where nothing is drawn counts as {self.classes[0] if self.blank == 0 else 'not looked at (255)'}.")

    def value(self, label, path):
        """The value of a label that came back. Raises BadData."""
        label = label if isinstance(label, str) else repr(label)
        if label in self.labels:
            return self.labels[label]
        if label in self.classes:
            return self.classes.index(label)
        known = ", ".join(self.labels)
        raise BadData(
            f"{path} has the label {shown(label)}: known are {known}; it stays where it is.{hint(label, self.labels)}"
        )

    def colour(self, value):
        """(red, green, blue) of a label; black is left to what nobody drew."""
        return mask_colour(len(self.classes) if value == 0 else value)

    def why(self, image):
        """Why an image was asked for, for people."""
        said = [] if image.get("rank") is None else [f"rank {image['rank'] + 1} by {self.asked['heuristic']}"]
        said += [] if image.get("score") is None else [f"score {image['score']:.4g}"]
        said += [reason for kind, reason in REASONS.items() if image.get(kind)]
        said += [f"{key} {image[key]}" for key in ("group", "nearest") if image.get(key)]
        return ", ".join(said) or f"asked for by {self.asked['heuristic']}"

    def reasons(self, image):
        """{name: number or text} of the same, for programs."""
        return {key: image[key] for key in ("score", "rank", "nearest", "group") if image.get(key) is not None}

    def first(self, image):
        """The model's mask (H, W) uint8 of class numbers, None without one. Raises Refused."""
        if "prediction" not in image:
            return None
        return answers.checked(self.folder / image["prediction"], image, len(self.classes))

    def first_labels(self, image):
        """Yield (name, value, where (H, W) bool) of what the model drew, blank left out."""
        mask = self.first(image)
        if mask is not None:
            yield from ((name, n, mask == n) for name, n in self.labels.items() if (mask == n).any())

    def copy_images(self, out):
        """Copy all images into a folder. Raises Refused for one that is not as it was asked for."""
        out.mkdir(parents=True)
        for image in self.images:
            stop_if_asked()
            path, anew = self.folder / image["image"], "remove manifest.json, and the run's command writes it anew"
            try:
                data = regular(path, MAX_IMAGE).read_bytes()
            except OSError as error:
                raise Refused(f"{path} cannot be read ({error}): {anew}.") from error
            if sha256(data).hexdigest() != image["sha256"]:
                raise Refused(f"{path} is not the image that was asked for: {anew}.")
            write(out / path.name, data)


def open_request(folder):
    """The Request in the folder of a query. Raises Refused where its manifest is none."""
    folder = Path(folder)
    path = folder / "manifest.json"
    if not path.exists():
        raise Refused(f"{folder} holds no manifest.json: name a query's folder, as results/bald_0/queries/cycle_000.")
    try:
        asked = read_json(path)
        fine = plausible(folder.resolve(), asked)
    except (KeyError, TypeError, AttributeError, ValueError, BadData):
        fine = False
    if not fine:
        raise Refused(f"{path} is not as the run wrote it: remove it, and the run's command writes it anew.")
    return Request(folder, asked)


def plausible(root, asked):
    """Whether all that is used of a manifest has its kind, and no file of it lies elsewhere; or what Python raises."""
    classes, images = asked["classes"], asked["images"]
    words = [asked["heuristic"], asked["run"], *classes.values()]
    words += [image[key] for image in images for key in ("id", "name", "image", "sha256")]
    sizes = [image[key] for image in images for key in ("height", "width")]
    ranks = [image.get("rank") or 0 for image in images]
    scores = [image.get("score") or 0 for image in images]
    parts = [image[part] for image in images for part in ("image", "prediction", "uncertainty") if part in image]
    return (
        classes.keys() == {*map(str, range(len(classes) - 1)), "255"}
        and len(set(classes.values())) == len(classes)
        and len(images) > 0
        and all(isinstance(word, str) for word in words)
        and all(type(size) is int and 0 < size < 2**20 for size in sizes)
        and all(type(rank) is int for rank in ranks)
        and all(isinstance(score, int | float) for score in scores)
        and all(image["name"] == Path(image["name"]).name for image in images)
        and all((root / part).resolve().is_relative_to(root) for part in parts)
    )


def written(request, out, fill):
    """Have `fill(request, folder)` write a new folder, whole or not at all; what it says. Raises Refused."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise Refused(f"{out} is there already: remove it, or choose another folder by -o.")
    part = out.with_name(f"{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        said = fill(request, part)
        os.replace(part, out)  # onto nothing, or onto an empty folder
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return said


def sized(path, image, height, width):
    """Raise BadData unless a mask has its image's size."""
    if (height, width) != (image["height"], image["width"]):
        size = f"{image['width']} x {image['height']}"
        raise BadData(f"{path} is {shown(width)} x {shown(height)}, its image {size}: draw it at the image's own size.")
