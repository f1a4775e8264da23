"""A query's folder as annotation tools are given it, and how what they give back comes into its labels/.

A format is a file in formats/: `write(request, out)` fills the folder `out` and returns a line on what to do
with it; `read(request, place)` yields a `Drawn` for each mask that is there, which is made, checked and kept by `take`.
"""

import csv
import io
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.acquisition.pictures import mask_colour
from experiments.annotate import answers
from experiments.annotate.request import png
from experiments.annotate.untrusted import read_json
from experiments.errors import BadData, Refused, hint, listed, shown
from experiments.errors.process import stop_if_asked
from experiments.records.cells import harmless
from experiments.records.files import write
from experiments.records.progress import say
from experiments.store import IGNORE
from experiments.store.reading import MAX_IMAGE, pixels, read_text, regular


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


def take(request, drawn, unchanged=False):
    """Check all `Drawn` and put their masks into labels/; says what is taken and what not, True if something is not."""
    taken, known, empty, same, refused = [], [], [], [], []
    with suppress(FileExistsError):
        (request.folder / "labels").mkdir()
    for one in list(drawn):  # a file that is refused whole is so before anything is kept
        stop_if_asked()
        try:
            image = answers.image_of(one.path, request.images, one.words)
            mask = one.mask(image)
            if mask is not None:
                sized(one.path, image, *mask.shape)
        except BadData as error:
            refused.append(str(error))
            continue
        if mask is None:
            empty.append(image["name"])
        elif not (one.reviewed or unchanged) and equal(mask, request.first(image)):
            same.append(image["name"])
        else:
            (taken if keep(request, image, mask, one.about) else known).append(image["name"])
    for reason in refused[:20]:
        say(reason)
    if len(refused) > 20:
        say(f"So are {len(refused) - 20} more.")
    if empty:
        say(f"Nothing is drawn on {listed(empty)}: still awaited; a mask of nothing else goes into labels/ by hand.")
    if same:
        say(f"As the model drew them are {listed(same)}: left out as not looked at; --unchanged takes them too.")
    if known:
        say(f"There already: {listed(known)}.")
    more = "" if taken or known or empty or same or refused else ", for none was found: export the query's images"
    say(f"Taken: {len(taken)} mask{'s' * (len(taken) != 1)} into {request.folder / 'labels'}{more}.")
    return bool(refused)


def equal(mask, other):
    return other is not None and np.array_equal(mask, other)


def sized(path, image, height, width):
    """Raise BadData unless a mask has its image's size."""
    if (height, width) != (image["height"], image["width"]):
        size = f"{image['width']} x {image['height']}"
        raise BadData(f"{path} is {shown(width)} x {shown(height)}, its image {size}: draw it at the image's own size.")


def keep(request, image, mask, about):
    """Put a mask into labels/ under a free name, and what is known of it into answers.csv; False if it is there."""
    labels, others = request.folder / "labels", {other[key] for other in request.images for key in ("id", "name")}
    number = 1
    while True:
        name = image["name"] if number == 1 else f"{image['name']}__{number}"
        path, number = labels / f"{name}.png", number + 1
        if name in others - {image["id"], image["name"]}:
            continue
        if not path.exists():
            break
        with suppress(BadData):
            if equal(mask, pixels(path)):
                return False
    note(labels / "answers.csv", {"file": path.name, "id": image["id"], "sha256": image["sha256"], **about})
    write(path, png(mask))
    return True


def note(path, row):
    """Write a row into answers.csv, in the place of that file's own. Raises Refused."""
    try:
        rows = list(csv.DictReader(io.StringIO(read_text(path, "utf-8-sig")))) if path.exists() else []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise Refused(f"{path} cannot be read ({error}): mend or remove it.") from error
    rows = [r for r in rows if r.get("file") != harmless(row["file"])]
    rows.append({key: harmless(str(value)) for key, value in row.items()})
    head = list(dict.fromkeys(["file", "id", "sha256", "seconds", "annotator", *(k for r in rows for k in r if k)]))
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, head, restval="", extrasaction="ignore", lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    write(path, text.getvalue().encode())
