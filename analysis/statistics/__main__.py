"""Statistics of a results folder: `python -m analysis.statistics results --baseline random`, the table of verdicts."""

import argparse
import sys

import pandas as pd

from analysis import runs, sequential
from analysis.ledgers import printable
from analysis.statistics import LEGEND, compare, readable
from experiments.errors import Refused
from experiments.errors.process import one_line_errors


def main(words=None):
    about = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m analysis.statistics", description=about)
    parser.add_argument(
        "source", help="a results folder, a mongodb:// URL or a CSV: method, seed, round, n_labelled, metric"
    )
    parser.add_argument("--baseline", default="random", help="the method that the others are compared with")
    parser.add_argument(
        "--margin", type=float, default=0.0, help="the largest difference that does not matter, in the metric's units"
    )
    parser.add_argument("--metric", default="", help="else the dataset's headline; a CSV's only one need not be named")
    runs.add_published(parser)
    given = parser.parse_args(words)
    design = None if "://" in given.source else sequential.of_folder(given.source)
    try:
        frame = runs.load(given.source, **runs.published(given))
        metric = _metric(frame, given.metric or runs.headline(frame))
        asked = given.baseline, given.margin, metric
        if design:
            table = pd.concat([sequential.compare(group, *asked, design) for _, group in frame.groupby("dataset")])
        else:
            table = compare(frame, *asked)
    except Refused as error:
        sys.exit(str(error))
    print(f"{metric}: mean area under the budget curve, compared over paired runs with {printable(given.baseline)}")
    if design:
        print(
            f"Runs were added until each method was decided, {design.most} at most: verdicts and intervals are those "
            "of the sequential design, at which p values of single tests would say too much."
        )
    parts = readable(table)
    for part in parts:
        print("\n" + printable(part.reset_index().to_string(index=False)))
    shown = {head for part in parts for head in part}
    print("\n" + "\n".join(f"{head}: {text}" for head, text in LEGEND.items() if head in shown))


def _metric(frame, named):
    """The metric that is meant: the only one need not be named."""
    metrics = [name for name in frame if name not in (*runs.SETTINGS, "headline", "cycle", *runs.COSTS)]
    if named not in metrics and len(metrics) != 1:
        raise Refused(f"There is no metric {named} here, only {', '.join(metrics)}: name one by --metric.")
    return named if named in metrics else metrics[0]


if __name__ == "__main__":
    with one_line_errors():
        main()
