"""What an annotation tool gave back, mask by mask: checked, and put into a query's labels/ beside what lies there."""

import csv
import io
from contextlib import suppress

import numpy as np

from experiments.annotate import answers
from experiments.annotate.handoff import sized
from experiments.annotate.request import png
from experiments.errors import BadData, Refused, listed
from experiments.errors.process import stop_if_asked
from experiments.records.cells import harmless
from experiments.records.files import write
from experiments.records.progress import say
from experiments.store.reading import pixels, read_text


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
