"""A whole study: `python -m experiments.study heuristic=random,entropy,bald run=0-9 dataset=phantom`.

Each run is the one that `python active.py with ...` makes; typed again, the command does what is missing.
"""

import argparse
import os
import sys
from pathlib import Path
from time import monotonic

import active
from experiments.command_line.process import (
    drop_unwritable_output,
    refusal,
    signals_noted,
    stop_if_asked,
    unusable,
)
from experiments.records.files import write
from experiments.records.progress import duration, say
from experiments.study import grid, workers
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
    parser.add_argument("--results", default="", help="the folder of the results (results)")
    parser.add_argument("--report", default="", help="the page (report.html in the folder of the results)")
    parser.add_argument("--mongo", default="", metavar="URL", help="adds the runs to a MongoDB")
    given = parser.parse_intermixed_args(words)
    if given.jobs < 0 or given.per_device < 1:
        parser.error("--jobs and --per-device are at least 1")
    return given


def main(words):
    given = arguments(words)
    study = grid.read(given.words)
    grid.check_own(study)
    results = given.results or study.pop("results_dir", ["results"])[0]
    place = Path(results, "study")
    digest = grid.digest(study)
    more = [f"study={digest}"]
    if "threads" not in study:
        more.append("threads=1")  # so that neither --jobs nor the machine changes a bit of the results
    if given.mongo:
        more.append(grid.word("mongo_url", given.mongo))
    lifeline = Lifeline()
    slots = slots_of(given, study, lifeline)
    cells, done, parts = planned(study, results, more, lifeline)
    cells = interleaved(cells, len(slots))
    keep(study, place, digest)
    progress = workers.Progress(cells, done=set(done))
    say(f"{len(cells)} runs, {len(done)} of them done.")
    began, missing = monotonic(), len(cells) - len(done)
    if missing:
        say("Importing the libraries once for all runs.")
        import_libraries(parts)
        stop_if_asked()
        with shown(cells, done) as show:
            workers.work(progress, run, place, lifeline, slots, show)
        used = f"{duration(monotonic() - began)}, {duration(progress.cpu)} of CPU"
        say(f"{len(progress.done)} of {len(cells)} runs done, {missing - len(progress.failed)} now, in {used}.")
    finish(cells, study, results, given.report, bool(missing), lifeline)
    for cell, reason, log in progress.failed.values():
        print(f"{cell.name} failed: {reason} - {log}", file=sys.stderr, flush=True)
    return 1 if progress.failed else 0


def interleaved(cells, jobs):
    """The cells so that methods are soon compared, and that no two which begin alike are likely to begin together."""
    numbers = sorted({cell.run for cell in cells})
    return sorted(cells, key=lambda cell: numbers.index(cell.run) // jobs)


def planned(study, results, more, lifeline):
    """(cells, folders of those that are done, {(entry, name)} of the components), seen by a process of its own."""

    def look():
        standard, sys.stdout = sys.stdout, open(os.devnull, "w")
        try:
            found = grid.cells(study, results, more)
            for cell in found:
                refuse_other(cell)
        finally:
            sys.stdout = standard
        parts = [(entry, cell.settings[entry]) for cell in found for entry in grid.FOLDERS]
        parts += [("heuristic", name) for cell in found for name in cell.settings["noted"]]
        return {
            "cells": [[list(c.words), str(c.results), c.label, c.run, c.cycles] for c in found],
            "done": [str(cell.folder) for cell in found if workers.is_done(cell)],
            "parts": sorted(set(parts)),
        }

    found = answer(look, lifeline)
    cells = [grid.Cell(tuple(words), Path(folder), *rest) for words, folder, *rest in found["cells"]]
    return cells, {Path(folder) for folder in found["done"]}, {tuple(part) for part in found["parts"]}


def refuse_other(cell):
    """Raise Refused where the cell's folder holds a run of other settings."""
    from experiments.records.compare import refuse_other_settings
    from experiments.records.ledger import read

    events = read(cell.folder)
    if events:
        usual, anyway = active.ex.usual(), cell.settings["resume"] == "anyway"
        refuse_other_settings(cell.folder, events[0]["settings"], cell.settings, usual, anyway)


def keep(study, place, digest):
    """Store the study with its results, under the hash that the ledgers name."""
    try:
        place.mkdir(parents=True, exist_ok=True)
        write(place / f"{digest[:12]}.yaml", grid.written(study).encode())
    except OSError as error:
        raise unusable(place, error, "written", ", or set --results") from error


def run(cell):
    """The run of a cell, as its own command line makes it."""
    active.ex.run_commandline(["active.py", "with", *cell.words])


def slots_of(given, study, lifeline):
    """[{environment}], one for each run at once: of a GPU each, where there are some and none is named."""
    automatic = study.get("device", ["auto"]) == ["auto"] and os.path.exists("/dev/nvidiactl")
    devices = answer(visible_devices, lifeline) if automatic else []
    slots = [{"CUDA_VISIBLE_DEVICES": device} for _ in range(given.per_device) for device in devices]
    slots = slots or [{}] * len(os.sched_getaffinity(0))
    jobs = given.jobs or len(slots)
    return [slots[number % len(slots)] for number in range(jobs)]


def visible_devices():
    """The GPUs that a process may be given one of, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    known = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return [part for part in known.split(",") if part] if known else [str(n) for n in range(torch.cuda.device_count())]


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


def command(words):
    """The exit code of the whole command."""
    drop_unwritable_output()
    try:
        with signals_noted(lambda number: os._exit(128 + number)):
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
