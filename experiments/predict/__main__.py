"""Segment images of your own with a run's model: `python -m experiments.predict RUN IMAGES -o OUT`.

Writes a mask an image, a table with what is uncertain, empty or unlike all that the model learnt from, and a contact
sheet. The same command continues where it was stopped, with new images too.
"""

import argparse
import hashlib
import sys
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from experiments.components import load
from experiments.errors import BadData, Refused
from experiments.errors.process import one_line_errors
from experiments.predict.opened import open_run, scaled, seen_size
from experiments.predict.results import FORMATS, Results
from experiments.records.files import write
from experiments.records.progress import say
from experiments.store.reading import FORMATS as READABLE
from experiments.store.reading import MAX_IMAGE, pages, regular

WAITING = 256  # images that may wait for others of their size


def main(words):
    """Run the command; returns the exit code, 1 if an image could not be read. Raises Refused."""
    options = parse(words)
    check(options)
    run = open_run(options.run, options.device, options.threads)
    passes = run.passes if options.passes < 0 else options.passes
    made = {"weights": run.weights, "classes": run.classes, "passes": passes, "scale": options.scale}
    made |= {"tile": options.tile, "overlap": options.overlap}
    found = files(options.images, options.pattern)
    results = Results(options.output, made, run.classes, options.format, options.force)
    how = f"{passes} passes with dropout" if passes else "one pass without dropout"
    where = "" if run.device.type == "cpu" else f" on {run.device}"
    say(f"{options.run}, cycle {run.place[-1]}: {len(run.labelled())} labelled images, {how}{where}.")
    from experiments.predict.segment import Segmenter  # needs torch at once

    segmenter = Segmenter(run, passes, options.tile, options.overlap, familiar(run, options.data))
    failed = predict(segmenter, results, found, options)
    for reason in failed[:20]:
        print(reason)
    if results.rows:
        summary(results, found, options)
    if failed:
        print(f"{len(failed)} of {len(found)} images could not be read; the same command tries them again.")
    return int(bool(failed))


def familiar(run, root):
    """What judges how far images are from those that the model learnt from; None, said in a line, without these."""
    from experiments.predict.familiar import Familiar  # needs torch at once

    try:
        return Familiar(run, root)
    except Refused as reason:
        say(f"How far images are from the labelled ones is not judged: {str(reason).rstrip('.')}.")
        return None


def files(place, pattern):
    """{id: (path, page, pages)} of all images in a folder, or of one file, in their order. Raises Refused."""
    place = Path(place)
    if place.is_file():
        listed, root = [place], place.parent
    elif place.is_dir():
        listed, root = sorted(place.rglob(pattern)), place
    else:
        raise Refused(f"{place} is neither a folder nor a file: name the images' folder.")
    listed = [p for p in listed if p.suffix.lower() in READABLE and not any(x.startswith(".") for x in p.parts[1:])]
    found = {}
    for path in listed:
        if not path.resolve().is_relative_to(root.resolve()):
            raise Refused(f"{path} leads out of {root}: copy the image, or name its own folder.")
        count = pages(path)
        title = path.relative_to(root).with_suffix("").as_posix()
        for page in range(count):
            id = title if count == 1 else f"{title}_{page:03d}"
            if id in found:
                raise Refused(f"{found[id][0]} and {path} would give one mask: rename one.")
            found[id] = path, page, count
    if not found:
        raise Refused(f"{place} holds no PNG, JPEG, BMP, GIF or TIFF file called {pattern}: name the images' folder.")
    return found


class Page(NamedTuple):
    """A page of an image file, as the dataset `folder` decodes it."""

    paths: tuple
    page: int

    def __str__(self):
        return str(self.paths[0])


class Waiting:
    """Images to be read in threads: (id, sha256 of the file, image (H, W, channels) uint8 or why there is none)."""

    def __init__(self, found, results, data, channels):
        self.found, self.results, self.ids = found, results, list(found)
        self.decoded = load("dataset", "folder").decoded
        self.how = {"channels": channels, "resize": 1.0}
        self.how |= {"black": data.get("black", 0), "white": data.get("white", 65535)}
        self.how |= {"percentile": data.get("percentile", 0.0)}

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        id = self.ids[index]
        path, page, count = self.found[id]
        try:
            digest = sha256(path)
            if self.results.done(id, digest):
                return id, digest, None
            return id, digest, self.decoded(Page((path,), page), **self.how)
        except BadData as bad:
            return id, "", str(bad)


def sha256(path):
    try:
        with open(regular(path, MAX_IMAGE), "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BadData(f"{path} cannot be read ({error}).") from error


def predict(segmenter, results, found, options):
    """Segment what is not done yet; returns a line for each image that could not be read."""
    from experiments.store import read_ahead

    run = segmenter.run
    waiting, failed, held = defaultdict(list), [], 0
    reading = read_ahead(Waiting(found, results, run.data, run.channels))
    with (
        ThreadPoolExecutor(2) as writers,
        tqdm(total=len(found), desc="predicting", unit="image", disable=None, leave=False) as bar,
    ):
        pending = []

        def settle(keep=0):
            while len(pending) > keep:
                row, writing = pending.pop(0)
                writing.result()
                results.note(row)
                bar.update()

        def flush(members):
            for row, mask, maps in segmenter.segment(members):
                row |= {"file": found[row["id"]][0].name}
                wanted = {name: maps[name]() for name in ("uncertainty", "probability") if getattr(options, name)}
                pending.append((row, writers.submit(results.keep, row["id"], mask, wanted)))
            settle(keep=8)

        for id, digest, image in reading:
            if image is None:
                bar.update()
            elif isinstance(image, str):
                failed.append(image)
                bar.update()
            else:
                size = seen_size(image.shape[:2], run.data, options.scale)
                same = waiting[size, image.shape[:2]]
                same.append((id, digest, image, scaled(image, size)))
                held += 1
                if len(same) == segmenter.at_once(size):
                    held -= len(same)
                    flush(waiting.pop((size, image.shape[:2])))
                elif held > WAITING:
                    largest = max(waiting, key=lambda key: len(waiting[key]))
                    held -= len(waiting[largest])
                    flush(waiting.pop(largest))
        for members in waiting.values():
            flush(members)
        settle()
    return failed


def summary(results, found, options):
    """Draw the contact sheet and say what to look at."""
    from experiments.predict.sheet import contact_sheet

    rows = [results.rows[id] for id in found if id in results.rows]
    rows.sort(key=lambda row: -float(row["uncertainty"]))
    suspicious = [row for row in rows if row["suspicious"]]
    order = suspicious + [row for row in rows if not row["suspicious"]]
    write(results.folder / "contact_sheet.png", contact_sheet(results, found, order))
    said = f"{results.folder}: {len(rows)} masks, predictions.csv, contact_sheet.png"
    if suspicious:
        said += f"; to look at first: {', '.join(row['id'] for row in suspicious[:5])}"
        said += f" and {len(suspicious) - 5} more" if len(suspicious) > 5 else ""
    print(f"{said}.")


def check(options):
    """Raise Refused for sizes of tiles that cannot be blended."""
    if options.tile and (options.tile % 32 or options.overlap % 32 or not 0 < options.overlap <= options.tile // 2):
        raise Refused("--tile and --overlap are multiples of 32, the overlap at most half of a tile.")


def parse(words):
    about, _, more = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(prog="python -m experiments.predict", description=f"{about}\n\n{more}")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("run", metavar="RUN", help="the folder of a run, as results/bald_3")
    add("images", metavar="IMAGES", help="a folder of images of any size, or one image")
    add("-o", "--output", required=True, metavar="OUT", help="where masks/, predictions.csv ... are written")
    add("--data", default="", metavar="ROOT", help="where the run's dataset lies (its default)")
    add("--pattern", default="*", help="which files, as 'testA_*.bmp' (all images)")
    add("--format", default="png", choices=FORMATS, help="of the masks, whose values are class numbers (png)")
    add("--uncertainty", action="store_true", help="write maps of the predictive entropy too, in nats")
    add("--probability", action="store_true", help="write the probability of each class too")
    add("--passes", type=int, default=-1, metavar="N", help="with dropout; 0: one without (as the run was tested)")
    add("--scale", type=float, default=0.0, metavar="F", help="both sides times F for the model (as the run's dataset)")
    add(
        "--tile",
        type=int,
        default=1536,
        metavar="N",
        help="larger images are cut into tiles of this side (1536); 0: never",
    )
    add("--overlap", type=int, default=448, metavar="N", help="of neighbouring tiles (448)")
    add("--force", action="store_true", help="begin anew over what OUT holds of another prediction")
    add("--device", default="auto", help="cpu, cuda:N or mps (auto)")
    add("--threads", type=int, default=0, help="of the CPU; 0 leaves it to torch")
    return parser.parse_intermixed_args(words)


if __name__ == "__main__":
    with one_line_errors():
        sys.exit(main(sys.argv[1:]))
