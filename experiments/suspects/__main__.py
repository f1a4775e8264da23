"""Look for masks that are probably wrong: `python -m experiments.suspects RUN`.

The run's labelled images are judged by models trained anew, by the run's settings, on the other folds of them. Writes
suspects.csv with all of them and, of the most suspicious, a folder as a query's, with a page to look at. The same
command continues where it was stopped; masks are only pointed at. Those put into its labels/ the run's own command
takes for the next training.
"""

import argparse
import sys
from pathlib import Path

from experiments.components.randomness import generator
from experiments.errors import Refused
from experiments.errors.process import one_line_errors, unusable
from experiments.records.files import hold, release
from experiments.records.progress import Progress, plan, say


def main(words):
    """Run the command; returns the exit code. Raises Refused."""
    options = parse(words)
    if options.folds < 2 or options.most < 0:
        raise Refused("--folds is at least 2, --most at least 1, or 0 for a tenth of the images.")
    place = Path(options.output or Path(options.run) / "suspects")
    from experiments.suspects import crossfit, queue  # need torch at once

    run = crossfit.open_labelled(options.run, options.data, options.device, options.threads)
    folds = crossfit.folds_of(run.train.split.items, options.folds, generator(*run.place, "suspects"))
    prepare(place, options.force)
    lock = hold(place / "lock")
    if not lock:
        raise Refused(f"{place} is being written by another process: wait or choose another -o.")
    try:
        found = judged(run, folds, place / "folds")
        queue.write_queue(run, place, found, options.most or max(10, -(-len(found) // 10)))
    finally:
        release(place / "lock", lock)
    print(place / "index.html")
    return 0


def prepare(place, force):
    """Make the folder of the queue. Raises Refused where one is that masks were put into, or something else is."""
    if place.exists() and not force:
        known = (place / "manifest.json").exists() or (place / "folds").exists()
        if not place.is_dir() or any(place.iterdir()) and not known:
            raise Refused(f"{place} holds something else: choose another -o, or --force.")
        if (place / "labels").exists() and any((place / "labels").iterdir()):
            raise Refused(f"{place / 'labels'} holds masks for the queue there: choose another -o, or --force.")
    try:
        (place / "folds").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unusable(place, error, "written", ", or choose another -o") from error


def judged(run, folds, place):
    """{position: what its fold's model says}; folds that are done already are taken from their files."""
    from experiments.suspects import crossfit

    key, found, judge = run.key(folds), {}, None
    files = [place / f"fold_{number}.npz" for number in range(len(folds))]
    done = [crossfit.kept(file, key) for file in files]
    left = sum(fold is None for fold in done)
    of = f"{len(run.train)} labelled images of {run.settings['label']} run {run.settings['run']} in {len(folds)} folds"
    say(f"{of}, {left} to train." if left else f"{of}, all judged.")
    each = {**run.settings, "cycles": 0, "start": len(run.train) - len(run.train) // len(folds)}
    with Progress(left * plan(each, run.crop, run.train, run.val, None)) as bar:
        for number, (held, known) in enumerate(zip(folds, done, strict=True)):
            if known is None:
                bar.start(f"fold {number + 1}/{len(folds)}, training on {len(run.train) - len(held)}")
                judge = judge or crossfit.Judge(run)
                known = judge.judge(number, held, bar.advance)
                crossfit.keep(files[number], key, known)
            found |= known
    return found


def parse(words):
    about, _, more = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(prog="python -m experiments.suspects", description=f"{about}\n\n{more}")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("run", metavar="RUN", help="the folder of a run, as results/bald_3")
    add("-o", "--output", default="", metavar="OUT", help="the folder of the queue (RUN/suspects)")
    add("--data", default="", metavar="ROOT", help="where the run's dataset lies (its default)")
    add("--folds", type=int, default=5, metavar="K", help="models are trained on K - 1 parts of K (5)")
    add(
        "--most",
        type=int,
        default=0,
        metavar="N",
        help="images in the folder (a tenth of the labelled ones, 10 at least)",
    )
    add("--force", action="store_true", help="write over what OUT holds; never over its labels/")
    add("--device", default="auto", help="cpu, cuda:N or mps (auto)")
    add("--threads", type=int, default=0, help="of the CPU; 0 leaves it to torch")
    return parser.parse_args(words)


if __name__ == "__main__":
    with one_line_errors():
        sys.exit(main(sys.argv[1:]))
