"""Bring a MongoDB level with a results folder: `python -m experiments.sync results [--mongo_url mongodb://...]`.

As often as one likes: every run is there once, with every step of its ledger once.
"""

import argparse
import json
import os
import sys
from pathlib import Path

from experiments.errors import Refused
from experiments.records.mongo import lost, opened, outdated, reason, upsert_run
from experiments.records.sacred_record import records

SECONDS = 60  # that one run may take


def main(folder, url):
    """Print a line for each run brought level; whether all are."""
    known = records(folder)
    if not known:
        raise Refused(f"{folder} holds no record of a run: give the results_dir of active.py.")
    url = url or recorded(known)
    with opened(url, SECONDS) as database:
        paths = outdated(database, folder)
    failed = 0
    for path in reversed(paths):
        try:
            with opened(url, SECONDS) as database:
                print(f"{path.parents[1]} of {path.stem[:15]}: run {upsert_run(database, path)}", flush=True)
        except Exception as error:
            if lost(error):
                raise
            failed += 1
            print(f"{path}: {reason(error)}", file=sys.stderr, flush=True)
    print(f"{len(paths) - failed} brought level, {len(known) - len(paths)} were, {failed} could not be.")
    return not failed


def recorded(known):
    """The address that the newest of these records names, if it is one without a password."""
    url = json.loads(known[-1].read_bytes())["config"]["mongo_url"]
    if not url or "***" in url:
        raise Refused(f"Where to? The newest run names {url or 'no database'}: set --mongo_url mongodb://...")
    return url


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("results", type=Path)
    known = os.environ.get("MONGO_URI", "")
    parser.add_argument("--mongo_url", default=known, help="or $MONGO_URI, where the recorded one has a password")
    arguments = parser.parse_args()
    try:
        sys.exit(not main(arguments.results, arguments.mongo_url))
    except Refused as error:
        sys.exit(str(error))
    except Exception as error:
        sys.exit(f"{reason(error)}.")
