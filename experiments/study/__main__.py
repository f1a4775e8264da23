"""A whole study: `python -m experiments.study heuristic=random,entropy,bald run=0-9 dataset=phantom`.

Each run is the one that `python active.py with ...` makes; typed again, the command does what is missing.
"""

import argparse
import os
import shlex
import sys
from pathlib import Path
from time import monotonic

import active
from experiments.errors import Refused
from experiments.errors.process import (
    drop_unwritable_output,
    refusal,
    signals_noted,
    stop_if_asked,
)
from experiments.records.cluster import left
from experiments.records.progress import duration, say
from experiments.study import cluster, estimate, grid, looks, plan, workers
from experiments.study.forked import Lifeline, answer, import_libraries
from experiments.study.table import shown


def arguments(words):
    parser = argparse.ArgumentParser(
        prog="python -m experiments.study",
        description="Run a grid of settings over paired runs and judge it; typed again, it does what is missing.",
        epilog="Commas separate values, 0-9 is ten runs; a preset's name or a YAML file says the same.",
    )
    parser.add_argument("words", nargs="*", metavar="setting=a,b", help="as after `active.py with`, or a study file")
    parser.add_argument("--jobs", type=int, default=0, help="runs at once; else one for each CPU core, or GPU")
    parser.add_argument("--per-device", type=int, default=1, help="runs at once on each GPU")
    parser.add_argument("--ray", default="", metavar="ADDRESS", help="of a Ray cluster for the runs; local: its own")
    parser.add_argument("--results", default="", help="the folder of the results (results)")
    parser.add_argument("--report", default="", help="the page (report.html in the folder of the results)")
    parser.add_argument("--mongo", default="", metavar="URL", help="adds the runs to a MongoDB")
    parser.add_argument("--dry-run", action="store_true", help="print the grid and, from a timed first cycle, its cost")
    parser.add_argument("--commands", action="store_true", help="print a line for each run, as for GNU parallel")
    parser.add_argument("--only", type=int, default=-1, metavar="K", help="do run K of those lines, counted from 0")
    parser.add_argument("--until", choices=("decided",), help="add paired runs until each method is decided")
    parser.add_argument("--most", type=int, help="paired runs at the end of --until decided (30)")
    parser.add_argument("--step", type=int, help="paired runs between two looks of --until decided (1)")
    parser.add_argument("--baseline", help="the method that the others are compared with (random)")
    parser.add_argument("--margin", type=float, help="the largest difference that does not matter (0: none)")
    parser.add_argument("--minutes", type=float, help="that a mask takes to draw, for what the labels saved are worth")
    parser.add_argument("--apart", action="store_true", help="share no first cycle between runs that begin alike")
    given = parser.parse_intermixed_args(words)
    if given.jobs < 0 or given.per_device < 1:
        parser.error("--jobs and --per-device are at least 1")
    return given


def main(words):
    given = arguments(words)
    study = asked(given)
    [named] = study.pop("results_dir", ["results"])
    results = given.results or named
    digest, place = grid.digest(study), Path(results, "study")
    more = [f"study={digest}"]
    if "threads" not in study:
        more.append("threads=1")  # so that neither --jobs nor the machine changes a bit of the results
    if "shared_dir" not in study and not given.apart:
        more.append(grid.word("shared_dir", str(place / "first_cycles")))
    if "cache_dir" not in study:
        more.append(grid.word("cache_dir", str(place / "images")))
    if given.mongo and not given.commands:  # no password is printed
        more.append(grid.word("mongo_url", given.mongo))
    lifeline = Lifeline()
    cells, done, parts = plan.planned(study | {"run": looks.numbers(study)}, results, more, lifeline)
    if given.commands:
        plan.keep(study, place, digest)
        for cell in cells:
            print(shlex.join(["python", "active.py", "with", *cell.words]))
        return 0
    if given.only >= len(cells):
        raise Refused(f"--only {given.only}: there are {len(cells)} runs, counted from 0.")
    if given.only >= 0:
        cells = [cells[given.only]]
        done &= {cells[0].folder}
    slots = [{}] if given.ray else plan.slots_of(given, study, lifeline)
    if given.dry_run:
        return tell(cells, done, parts, len(slots), lifeline)
    plan.keep(study, place, digest)
    at = cluster.Tasks(given, study) if given.ray else workers.Forks(run, lifeline, slots)
    cells, progress, began = (
        plan.interleaved(cells, given.jobs or len(slots)),
        workers.Progress([], done=done),
        monotonic(),
    )
    growing = "until" in study and given.only < 0
    chosen = looks.first_look(cells, study) if growing else cells
    if growing:
        say(f"Runs are added until each method is decided, {len(looks.numbers(study))} of each at most.")
    while chosen:
        progress.cells = [cell for cell in cells if cell in progress.cells or cell in chosen]
        say(f"{len(progress.cells)} runs, {sum(cell.folder in done for cell in progress.cells)} of them done.")
        do(progress, place, parts, at)
        chosen = looks.next_look(cells, progress, study, undecided(study, lifeline)) if growing else []
    changed = progress.cpu > 0
    if changed:
        ended = sum(cell.folder in progress.done for cell in progress.cells)
        used = f"{duration(monotonic() - began)}, {duration(progress.cpu)} of CPU"
        say(f"{ended} of {len(progress.cells)} runs done, {used}.")
    if given.only < 0:
        if all(cell.folder in progress.done for cell in progress.cells):
            plan.remove_shared(place)
        finish(progress.cells, study, results, given.report, changed, lifeline)
    for cell, reason, log in progress.failed.values():
        print(f"{cell.name} failed: {reason} - {log}", file=sys.stderr, flush=True)
    return 1 if progress.failed else 0


def do(progress, place, parts, at):
    """Do what is missing of these cells."""
    done = {cell.folder for cell in progress.cells} & progress.done
    if len(done) < len(progress.cells) - len(progress.failed):
        if isinstance(at, workers.Forks):
            say("Importing the libraries once for all runs.")
            import_libraries(parts)
        else:
            at.join(parts)
        stop_if_asked()
        with shown(progress.cells, progress.done) as show:
            workers.work(progress, at, place, show)


def run(cell):
    """The run of a cell, as its own command line makes it."""
    active.ex.run_commandline(["active.py", "with", *cell.words])


def tell(cells, done, parts, jobs, lifeline):
    """Print the grid, and what it will cost."""
    missing = [cell for cell in cells if cell.folder not in done]
    for cell in cells:
        print(f"{cell.folder}{' (done)' if cell.folder in done else ''}: {' '.join(cell.words)}")
    print(f"{len(cells)} runs, {len(done)} of them done.", flush=True)
    if missing:
        import_libraries(parts)
        seconds, said = estimate.seconds(missing, run, lifeline)
        print("\n".join(said))
        print(f"About {duration(seconds / jobs)} with {jobs} at once, where nothing else is at work.", flush=True)
    return 0


def undecided(study, lifeline):
    """A function of cells that gives the methods which they do not decide, found in a process of its own."""
    from experiments.study import ending  # matplotlib and pandas take seconds to import

    return lambda cells: answer(lambda: ending.undecided(cells, study), lifeline)


def finish(cells, study, results, report, changed, lifeline):
    """Say the verdicts and where the report lies."""
    from experiments.study import ending

    said = answer(lambda: ending.said_or_refused(lambda: ending.lines(cells, study)), lifeline)
    print("\n".join(said), flush=True)
    page = Path(report or Path(results, "report.html"))
    if changed or not page.exists():
        page = answer(lambda: ending.said_or_refused(lambda: [ending.write_report(results, page, study)])[0], lifeline)
    else:
        print(page, flush=True)


def asked(given):
    """The study of a command line."""
    study = grid.read(given.words)
    for name in ("until", "most", "step", "baseline", "margin", "minutes"):
        if getattr(given, name) is not None:
            study[name] = getattr(given, name)
    if "until" in study:
        study = {"most": 30} | study
    grid.check_own(study)
    return study


def command(words):
    """The exit code of the whole command."""
    drop_unwritable_output()
    try:
        with left(), signals_noted(lambda number: os._exit(128 + number)):
            return main(words)
    except KeyboardInterrupt as error:
        print("Stopped: the same command continues.", file=sys.stderr, flush=True)
        return workers.code_of(error)
    except Exception as error:
        refused = refusal(error)
        if refused is None:
            raise
        print(refused, file=sys.stderr, flush=True)
        return 1


if __name__ == "__main__":
    sys.exit(command(sys.argv[1:]))
