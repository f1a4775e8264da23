"""Images put into a folder between two starts of a run: they join the pool, behind those that were there before.

The ledger's first line names all images of a dataset that may grow, and each event `joined` those that came later, so
that who validates and tests, and where an image stands, are what they were. Nothing but additions is taken.
"""

from experiments.errors import Refused
from experiments.records.compare import shorten
from experiments.records.progress import say
from experiments.store import Split

PARTS = "train", "val", "test"


def named(splits):
    """{part: ids} for the first line of a ledger, where the dataset may grow."""
    if not splits.grows:
        return {}
    return {"images": {name: split.ids if split else [] for name, split in zip(PARTS, splits, strict=False)}}


def known(events):
    """{part: ids} that a run has so far, in its order; {} of a run that may not grow or has not begun."""
    if not events or "images" not in events[0]:
        return {}
    later = [image["id"] for event in events if event["event"] == "joined" for image in event["images"]]
    return {**events[0]["images"], "train": [*events[0]["images"]["train"], *later]}


def dealt_as_before(splits, folder, events, cycles):
    """The Splits with every known image where the run has it and new ones behind those of train, unless it is finished.

    New images of a source that validates or tests are left out, said in a line. Raises Refused, naming them, where
    known images are gone.
    """
    before = known(events)
    if not before or not splits.grows:
        return splits
    items = {item.id: item for split in splits[:3] if split for item in split.items}
    gone = [id for ids in before.values() for id in ids if id not in items]
    if gone:
        raise Refused(
            f"{folder} holds a run with {shorten(gone)}, which the folder lacks now: "
            "put the old images back, or set label=... for a run without them."
        )
    had = {id for ids in before.values() for id in ids}
    held = {items[id].source for part in ("val", "test") for id in before[part]}
    new = [item for id, item in items.items() if id not in had]
    apart = [item for item in new if item.source in held]
    new = [item for item in new if item.source not in held]
    if apart:
        names = shorten([item.id for item in apart])
        say(f"{names}: new, of a source that validates or tests, and left out.")
    if new and sum(event["event"] == "evaluated" for event in events) > cycles:
        names = shorten([item.id for item in new])
        say(f"New, and not in the pool before this finished run goes on, as with cycles={cycles + 1}: {names}.")
        new = []
    parts = {part: [items[id] for id in ids] for part, ids in before.items()}
    parts["train"] += new
    how = splits.train
    made = {part: Split(found, how.read_image, how.read_mask, how.read_original) for part, found in parts.items()}
    return splits._replace(**{part: split if split.items else None for part, split in made.items()})


def coming(events, train):
    """Positions of the images of `train` that no event names yet."""
    before = known(events)
    return range(len(before["train"]), len(train)) if before else range(0)


def join(ledger, train):
    """Record the images of `train` that the ledger does not know yet as an event `joined`, said in a line."""
    new = coming(ledger.events, train)
    if new:
        images = [{"id": train.ids[index], "sha256": train.hash_images([index])} for index in new]
        cycle = sum(event["event"] == "evaluated" for event in ledger.events)
        ledger.append("joined", cycle, images=images, fingerprint=train.fingerprint)
        say(f"New since the last start, and in the pool from now on: {shorten([image['id'] for image in images])}.")
