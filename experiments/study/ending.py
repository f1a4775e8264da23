"""The end of a study: the verdict on each method, the labels that it saves, and the report."""

from pathlib import Path

import numpy as np
import pandas as pd

from analysis import labels_saved, report, runs, sequential, statistics
from analysis.ledgers import finished, printable, silent
from experiments.errors import Refused
from experiments.study import looks


def judged(cells, study):
    """[(what is compared, its verdict table or the Refused that says why there is none)], from these runs alone."""
    found = []
    for folder in dict.fromkeys(cell.results for cell in cells):
        try:
            groups = comparisons(folder, [cell for cell in cells if cell.results == folder])
        except Refused as error:
            found.append((str(folder), error))
            continue
        for dataset, group in groups:
            try:
                found.append((f"{dataset} ({folder})", verdicts(group, study)))
            except Refused as error:
                found.append((f"{dataset} ({folder})", error))
    return found


def comparisons(folder, cells):
    """[(dataset, frame of its runs)] of these cells of one folder. Raises Refused where none has ended."""
    frame, own = runs.load(folder, say=silent), pd.MultiIndex.from_tuples([(cell.label, cell.run) for cell in cells])
    frame = frame[pd.MultiIndex.from_frame(frame[["label", "run"]]).isin(own)]
    parts = [(dataset, group, dataset.partition(",")[0]) for dataset, group in frame.groupby("dataset")]
    return [(dataset, group) for dataset, group, plain in parts if dataset == runs.apart(plain, folder)]  # none below


def verdicts(group, study):
    """The verdict table of one comparison; that of the sequential design where runs are added until it is decided.

    Raises Refused where runs cannot be compared.
    """
    baseline, margin, metric = study.get("baseline", "random"), study.get("margin", 0.0), runs.headline(group)
    if study.get("until"):
        table = sequential.compare(group, baseline, margin, metric, looks.design(study))
    else:
        table = statistics.compare(group, baseline, margin, metric)
    saved = labels_saved.compare(group, baseline, metric, study.get("minutes", 0.0))
    return table.merge(saved, on="label", how="left")


def undecided(cells, study):
    """The methods of one comparison that its runs so far do not decide, none where they cannot be compared."""
    tables = [table for _, table in judged(cells, study) if not isinstance(table, Refused)]
    return [row.label for table in tables for row in table.itertuples() if row.verdict == "undecided"]


def lines(cells, study):
    """What is said at the end, as a list of lines; a comparison that cannot be made says why and hides no other."""
    said, baseline = [], study.get("baseline", "random")
    for what, table in judged(cells, study):
        if isinstance(table, Refused):
            said += ["", f"{what}: {table}"]
            continue
        said += ["", f"{what}: mean area under the budget curve, against {baseline}"]
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
