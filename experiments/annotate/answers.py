"""Masks that people drew: found, checked one by one, kept for good under their hash, counted in the ledger's order.

A mask may name its image by the image's name or by the sha256 of its file. `labels/answers.csv` may say more of a file:
columns file, id, sha256, seconds, annotator. Nothing in labels/ is ever changed or removed.
"""

import csv
import io
from collections import defaultdict
from hashlib import sha256
from pathlib import Path

import numpy as np
from PIL import Image

from experiments.acquisition.pictures import mask_colour
from experiments.annotate import asked
from experiments.annotate.request import png
from experiments.errors import BadData, Refused
from experiments.records.cells import meant
from experiments.records.files import write
from experiments.records.progress import say
from experiments.store import IGNORE
from experiments.store.reading import FORMATS, pixels, read_text

LOSSLESS = sorted(ending for ending, kind in FORMATS.items() if kind in ("PNG", "BMP", "TIFF"))


def collect(state):
    """Take every new mask of all requests of a run into an `answered` event; says what is taken and what is not.

    A mask that was asked for again stands apart from those that count, under `again`.
    """
    ledger, classes = state.ledger, state.splits.classes
    latest = {"masks": in_force(ledger.events), "again": {id: v["sha256"] for id, v in repeats(ledger.events).items()}}
    by_file, refused = last_of_files(ledger.events), []
    taken = {kind: defaultdict(list) for kind in latest}
    for place, images in asked.requests(state):
        labels = place / "labels"
        more = table(labels / "answers.csv")
        for path in sorted(labels.glob("*"), key=lambda path: (path.stat().st_mtime_ns, path.name)):
            if path.name == "answers.csv" or path.name.startswith("."):
                continue
            try:
                image = image_of(path, images, more.get(path.name, {}))
                mask = checked(path, image, len(classes))
            except BadData as error:
                refused.append(str(error))
                continue
            id, kind, digest = image["id"], "again" if image.get("repeat") else "masks", digest_of(mask)
            name = path.name if place.parent.name == "queries" else f"{place.name}/{path.name}"
            before = taken[kind][id][-1]["sha256"] if taken[kind][id] else latest[kind].get(id)
            if digest not in (before, by_file.get((kind, id, name))):
                keep(ledger.folder, digest, mask)
                said = {k: v for k, v in more.get(path.name, {}).items() if k in ("seconds", "annotator") and v}
                taken[kind][id].append({"sha256": digest, "file": name, **said})
    for reason in refused:
        say(reason)
    new = {kind: {id: each for id, each in found.items() if each} for kind, found in taken.items()}
    for kind, found in new.items():
        for id, versions in found.items():
            tell(state, id, versions, id in latest[kind], kind)
    count = sum(map(len, new.values()))
    if count:
        again = {"again": new["again"]} if new["again"] else {}
        ledger.append("answered", sum(e["event"] == "evaluated" for e in ledger.events), masks=new["masks"], **again)
        say(f"Taken: {count} mask{'s' * (count != 1)}.")
    return count


def tell(state, id, versions, known, kind):
    """Say which of several masks of an image counts, and that an earlier one does not any more."""
    files = ", ".join(version["file"] for version in versions)
    own = state.train.split.items[state.train.ids.index(id)].mask
    if len(versions) > 1:
        say(f"{id} was drawn {len(versions)} times ({files}): all are kept, the last one counts.")
    elif known and kind == "again":
        say(f"{id} was asked for again and drawn anew ({files}): kept; an agreement that was measured stays.")
    elif known or own:
        old = "the earlier one stays in the ledger" if known else f"{own} stays as it is"
        say(f"{id} was drawn anew ({files}): from the next training on that mask counts, {old}.")


def versions(events, cycle=None):
    """{id: the mask that counts, as its event has it} when this cycle is trained, by default now."""
    found = {}
    for event in events:
        if event["event"] == "evaluated" and event["cycle"] == cycle:
            break
        if event["event"] == "answered":
            found |= {id: drawn[-1] for id, drawn in event["masks"].items()}
    return found


def in_force(events, cycle=None):
    """{id: digest of the mask that counts} when this cycle is trained, by default now."""
    return {id: version["sha256"] for id, version in versions(events, cycle).items()}


def repeats(events):
    """{id: the last mask that came when it was asked for again, as its event has it}."""
    answered = (event.get("again", {}) for event in events if event["event"] == "answered")
    return {id: drawn[-1] for again in answered for id, drawn in again.items()}


def last_of_files(events):
    """{("masks" or "again", id, file): digest of the mask that was last taken from it}."""
    return {
        (kind, id, version["file"]): version["sha256"]
        for event in events
        if event["event"] == "answered"
        for kind in ("masks", "again")
        for id, drawn in event.get(kind, {}).items()
        for version in drawn
    }


def table(path):
    """{file: its row} of answers.csv; none of its absence."""
    if not path.exists():
        return {}
    try:
        rows = list(csv.DictReader(io.StringIO(read_text(path, "utf-8-sig"))))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        say(f"{path} cannot be read ({error}): who drew the masks and how long it took is not recorded.")
        return {}
    rows = [{key: meant(value or "") for key, value in row.items() if key} for row in rows]
    return {row["file"]: row for row in rows if row.get("file")}


def image_of(path, images, row):
    """The entry of the manifest that a mask is of, by the hash or the id that its row or its name says."""
    by_hash, by_id, by_name = ({image[key]: image for image in images} for key in ("sha256", "id", "name"))
    digest, id = (row.get("sha256") or "").lower(), row.get("id")
    if digest and digest not in by_hash:
        raise BadData(f"{path} is by its hash {digest[:12]} of an image that was not asked for: it stays where it is.")
    if digest and by_id.get(id, by_hash[digest]) is not by_hash[digest]:
        other = by_hash[digest]["id"]
        raise BadData(f"{path} is said to be of {id}, by the hash of {other}: it stays where it is, say which one.")
    for word in filter(None, (digest, id, path.stem)):
        for known in (by_hash, by_id, by_name):
            if word in known:
                return known[word]
    raise BadData(f"{path} is for no image that was asked for: it stays where it is, name it as its image is called.")


def checked(path, image, classes):
    """The mask (H, W) uint8 of class numbers and IGNORE in a file. Raises BadData saying what is wrong with it."""
    if path.suffix.lower() not in LOSSLESS:
        raise BadData(f"{path} is no {', '.join(LOSSLESS)}: save the mask as PNG, whose values stay as they are.")
    found = pixels(path)
    if found.ndim == 3:
        found = of_colours(path, found, classes)
    if found.shape != (image["height"], image["width"]):
        size = f"{found.shape[1]} x {found.shape[0]}, its image {image['width']} x {image['height']}"
        raise BadData(f"{path} is {size}: draw it at the image's own size.")
    wrong = [value for value in np.unique(found).tolist() if value >= classes and value != IGNORE]
    if wrong:
        few = ", ".join(map(str, wrong[:6])) + (" ..." if len(wrong) > 6 else "")
        raise BadData(f"{path} holds {few}: the classes are 0 to {classes - 1}, {IGNORE} is what nobody looked at.")
    if set(np.unique(found).tolist()) <= {0, IGNORE} and (found == IGNORE).any():
        raise BadData(f"{path} holds 0 and {IGNORE} alone, {IGNORE} being unseen: draw classes as 1 to {classes - 1}.")
    return found.astype(np.uint8)


def of_colours(path, found, classes):
    """The class numbers of a mask whose values are colours (H, W, 3): those of the predictions.

    A palette may say which numbers its colours stand for, if they are others.
    """
    known = {mask_colour(n): n for n in [*range(classes), IGNORE]}
    values, where = np.unique(found.reshape(-1, found.shape[-1]), axis=0, return_inverse=True)
    values = [tuple(value) for value in values.tolist()]
    other = [value for value in values if value not in known]
    if not other:
        return np.array([known[value] for value in values], np.uint8)[where].reshape(found.shape[:2])
    numbers = pixels(path, indices=True)
    if numbers.ndim == 3:
        raise BadData(f"{path} has the colour {other[0]}, which is no class's: save class numbers, or their colours.")
    return numbers


def digest_of(mask):
    return sha256(f"{mask.shape}".encode() + mask.tobytes()).hexdigest()


def keep(folder, digest, mask):
    """Keep a mask for good before the ledger names it."""
    place = Path(folder) / "masks" / f"{digest}.png"
    if not place.exists():
        place.parent.mkdir(exist_ok=True)
        write(place, png(mask))


def read(folder, digest, size):
    """The kept mask with this digest at the (height, width) of the run's image. Raises Refused if it is not there."""
    path = Path(folder) / "masks" / f"{digest}.png"
    try:
        mask = pixels(path)
    except BadData as error:
        raise Refused(f"{path} is a mask that the ledger counts, and cannot be read: put it back.") from error
    if digest_of(mask) != digest:
        raise Refused(f"{path} is not the mask that the ledger counts: put that one back.")
    if mask.shape == size:
        return mask
    return np.array(Image.fromarray(mask).resize(size[::-1], Image.Resampling.NEAREST))
