"""What a study will cost: its first cycle is timed, once for each dataset, and counted up."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from time import sleep

from experiments.components import written
from experiments.errors import Refused
from experiments.errors.process import stop_if_asked
from experiments.records.ledger import read
from experiments.study.forked import POLL, fork


def seconds(cells, run, lifeline):
    """(seconds that these cells will take one after another, lines that say what that rests on).

    Training is taken to cost in proportion to the labelled images, testing and scoring to cost the same each time.
    Raises Refused where the timed run fails.
    """
    total, said = 0.0, []
    for results in dict.fromkeys(cell.results for cell in cells):
        own = [cell for cell in cells if cell.results == results]
        timed = next((cell for cell in own if looks_at_a_model(cell)), own[0])
        cost = first_cycle(timed, run, lifeline)
        each = {cell.cycles: of_run(cost, cell.cycles) for cell in own}
        total += sum(each[cell.cycles] for cell in own)
        parts = f"training {cost['train']:.1f} s, testing {cost['evaluate']:.1f} s, a query {cost['query']:.1f} s"
        said.append(f"{results}: the first cycle of {timed.name} took {parts}, so a run {max(each.values()):.0f} s.")
    return total, said


def looks_at_a_model(cell):
    """Whether the cell's strategy scores by a model, as the dear ones do."""
    name = next((word.partition("=")[2] for word in cell.words if word.startswith("heuristic=")), "bald")
    return written("heuristic", name).get("NEEDS_MODEL", True)


def of_run(cost, cycles):
    """Seconds of a run by those of its first cycle."""
    labelled = [cost["images"] + cycle * cost["asked"] for cycle in range(cycles + 1)]
    trained = cost["train"] * sum(labelled) / max(1, labelled[0])
    return trained + cost["evaluate"] * len(labelled) + cost["query"] * cycles


def first_cycle(cell, run, lifeline):
    """{train, evaluate, query: seconds; images, asked: numbers} of a run's first cycle, made aside and thrown away."""
    with TemporaryDirectory(prefix="askmask_") as place:
        aside = [f"results_dir={place}", "runs_dir=", "mongo_url=", "tensorboard_dir=", "shared_dir=", "cache_dir="]
        cell = replace(cell, words=(*cell.words, *aside), results=Path(place))
        with open(Path(place, "log"), "wb") as log:
            number, code = fork(lambda: run(cell), lifeline, log), None
        try:
            while code is None and "query" not in timing(cell):
                stop_if_asked()
                sleep(POLL)
                ended, status = os.waitpid(number, os.WNOHANG)
                code = os.waitstatus_to_exitcode(status) if ended else None
        finally:
            if code is None:
                os.kill(number, signal.SIGTERM)
                os.waitpid(number, 0)
        if code:
            lines = Path(place, "log").read_text(errors="replace").strip().splitlines()
            raise Refused(f"{cell.name}, whose first cycle is timed, fails: {lines[-1] if lines else code}")
        events = read(cell.folder)
        images = next(event["images"] for event in events if event["event"] == "evaluated")
        asked = next((len(event["queries"]) for event in events if event["event"] == "queried"), 0)
        return {"query": 0.0} | timing(cell) | {"images": images, "asked": asked}


def timing(cell):
    """{what: seconds} of cycle 0 so far."""
    path, found = cell.folder / "timing.jsonl", {}
    for line in path.read_text().splitlines() if path.exists() else []:
        if line.endswith("}"):
            values = json.loads(line)
            found |= values if values.pop("cycle") == 0 else {}
    return found
