"""What there is to do: the cells, which of them are done, and on which devices the others run."""

import os
import sys
from pathlib import Path
from shutil import rmtree

from experiments.errors import Refused
from experiments.errors.process import unusable
from experiments.records.compare import refuse_other_settings
from experiments.records.files import write
from experiments.records.ledger import read
from experiments.study import grid, workers
from experiments.study.forked import answer


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
            "cells": [[list(c.words), str(c.results), c.label, c.run, c.cycles, c.stop_at] for c in found],
            "done": [str(cell.folder) for cell in found if workers.is_done(cell)],
            "parts": sorted(set(parts)),
        }

    found = answer(look, lifeline)
    cells = [grid.Cell(tuple(words), Path(folder), *rest) for words, folder, *rest in found["cells"]]
    return cells, {Path(folder) for folder in found["done"]}, {tuple(part) for part in found["parts"]}


def refuse_other(cell):
    """Raise Refused where the cell's folder holds a run of other settings."""
    try:
        events = read(cell.folder)
    except Refused:  # damaged: its run says so, and stops no other
        return
    if events:
        anyway = cell.settings["resume"] == "anyway"
        refuse_other_settings(cell.folder, events[0]["settings"], cell.settings, cell.usual, anyway)


def interleaved(cells, jobs):
    """The cells so that methods are soon compared, and that no two which begin alike are likely to begin together."""
    numbers = sorted({cell.run for cell in cells})
    return sorted(cells, key=lambda cell: numbers.index(cell.run) // jobs)


def keep(study, place, digest):
    """Store the study with its results, under the hash that the ledgers name."""
    path, text = place / f"{digest[:12]}.yaml", grid.written(study).encode()
    try:
        if path.is_file() and path.read_bytes() == text:
            return
        place.mkdir(parents=True, exist_ok=True)
        write(path, text, shared=True)
    except OSError as error:
        raise unusable(place, error, "written", ", or set --results") from error


def remove_shared(place):
    """Remove what runs shared, first cycles and decoded images, and say so; not while another study is at work here."""
    shared = [place / name for name in ("first_cycles", "images") if (place / name).is_dir()]
    if not shared or any(place.glob("*.lock")):
        return
    size = sum(path.stat().st_size for folder in shared for path in folder.rglob("*") if path.is_file())
    for folder in shared:
        rmtree(folder, ignore_errors=True)  # what is left does no harm
    removed = " and ".join(map(str, shared))
    print(f"{removed} removed, {size / 2**20:.0f} MiB: all is done, and what needs them makes them anew.", flush=True)


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
