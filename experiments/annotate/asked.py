"""What a run has asked people for: the folders of its queries and of its queue of suspects, held against its ledger."""

import json

from experiments.annotate.request import file_name, name_of, named, size_asked
from experiments.errors import Refused
from experiments.store.reading import read_text


def requests(state):
    """Yield (folder, the entries of its manifest) of all requests of a run, and of its queue of suspects.

    Raises Refused for one that was edited.
    """
    known = []
    for event in state.ledger.events:
        if event["event"] in ("start", "queried"):
            name = name_of(0 if event["event"] == "start" else event["cycle"] + 1)
            now = [(query["id"], False) for query in event["queries"]]
            known += now
            again = [(id, True) for id in event.get("repeats", ())]
            yield from whole(state, state.ledger.folder / "queries" / name, [*now, *again].__eq__, "the same command")
    suspects = "`python -m experiments.suspects` with --force"
    yield from whole(state, state.ledger.folder / "suspects", lambda found: {*found} <= {*known}, suspects)


def whole(state, place, expected, writer):
    """Yield (place, the entries of its manifest), if it holds one. Raises Refused unless that is as it was written.

    `expected` is asked of its [(id, whether it is a repeat)], `writer` makes it anew.
    """
    manifest = place / "manifest.json"
    if not manifest.exists():
        return
    position = {id: index for index, id in enumerate(state.train.ids)}
    try:
        asked = json.loads(read_text(manifest))
        images = asked["images"]
        kept = expected([(image["id"], image.get("repeat", False)) for image in images])
        kept &= asked["classes"] == named(state.splits.classes)
        kept &= all(image["name"] == file_name(image["id"]) for image in images)
        kept &= all((i["height"], i["width"]) == size_asked(state.train, position[i["id"]]) for i in images)
        kept &= all(isinstance(image["sha256"], str) for image in images)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        kept = False
    if not kept:
        raise Refused(f"{manifest} is not as it was written: remove it, and {writer} writes it anew.")
    yield place, images
