"""The end of a study: the verdict on each method, the labels that it saves, and the report."""

from pathlib import Path

import numpy as np
import pandas as pd

from analysis import labels_saved, report, runs, sequential, statistics
from analysis.ledgers import finished, printable, silent
from experiments.errors import Refused
from experiments.study import looks


def judged(cells, study):
    """[(folder, dataset, verdict table)] of the comparisons of a study, from the runs of these cells alone.

    Where runs are added until it is decided, the table is that of the sequential design. Raises Refused where runs
    cannot be compared.
    """
    found = []
    baseline, margin = study.get("baseline", "random"), study.get("margin", 0.0)
    for folder in dict.fromkeys(cell.results for cell in cells):
        own = pd.MultiIndex.from_tuples([(cell.label, cell.run) for cell in cells if cell.results == folder])
        frame = runs.load(folder, say=silent)
        frame = frame[pd.MultiIndex.from_frame(frame[["label", "run"]]).isin(own)]
        for dataset, group in frame.groupby("dataset"):
            if dataset != runs.apart(dataset.partition(",")[0], folder):
                continue  # of another study, in a folder below
            metric = runs.headline(group)
            if study.get("until"):
                table = sequential.compare(group, baseline, margin, metric, looks.design(study))
            else:
                table = statistics.compare(group, baseline, margin, metric)
            saved = labels_saved.compare(group, baseline, metric, study.get("minutes", 0.0))
            found.append((folder, dataset, table.merge(saved, on="label", how="left")))
    return found


def undecided(cells, study):
    """The methods of one comparison that its runs so far do not decide."""
    return [
        row.label for _, _, table in judged(cells, study) for row in table.itertuples() if row.verdict == "undecided"
    ]


def lines(cells, study):
    """What is said at the end, as a list of lines."""
    said = []
    for folder, dataset, table in judged(cells, study):
        said += [
            "",
            f"{dataset} ({folder}): mean area under the budget curve, against {study.get('baseline', 'random')}",
        ]
        said += [f"  {row.label}: {sentence(row)}" for row in table.itertuples() if row.verdict != "baseline"]
    return [printable(line) for line in said + differing(cells)]


def sentence(row):
    """The verdict on one method in words."""
    text = row.verdict
    if np.isfinite(row.difference):
        text += f", {row.difference:+.3f} ({row.low:+.3f} to {row.high:+.3f}) over {row.runs:.0f} paired runs"
    if row.verdict == "undecided" and row.more_runs > 0:
        text += f", {statistics._whole(row.more_runs)} more runs"
    if isinstance(row.note, str) and row.note:
        text += f" ({row.note})"
    return f"{text}; {row.saved_text}" if row.verdict in ("better", "worse") else text


def differing(cells):
    """A line for each folder whose runs of one number were not made from the same images and masks."""
    said = []
    for folder in dict.fromkeys(cell.results for cell in cells):
        names, known = {cell.folder.name for cell in cells if cell.results == folder}, {}
        for path, events in finished(folder, say=silent).items():
            start = events[0]
            if path.parent == folder and path.name in names:
                own = (start["data"], (start.get("masks") or {}).get("test"))
                known.setdefault((start["settings"]["dataset"], start["settings"]["run"]), []).append(own)
        if any(own != several[0] for several in known.values() for own in several):
            said.append(
                f"{folder}: runs that are compared were not made from the same images and masks: make one side anew."
            )
    return said


def write_report(folder, path, study):
    """Write the page of the whole results folder; returns its path."""
    page, _ = report.report(
        Path(folder), study.get("baseline", ""), study.get("margin", 0.0), minutes=study.get("minutes", 0.0)
    )
    report.save(Path(path), page.encode(errors="replace"))
    return str(path)


def said_or_refused(make):
    """The lines of make(), or the one that says why there are none."""
    try:
        return make()
    except Refused as error:
        return [str(error)]
