"""Store the runs of a results folder in a MongoDB: `python -m experiments.sync results [--mongo_url mongodb://...]`.

As often as one likes: every ended run is there once, with every step of its ledger once, and what got lost there is
made anew. A run that was deleted there stays deleted unless `--restore` is given.
"""

import argparse
import os
import sys
from pathlib import Path

from experiments.errors import Refused
from experiments.errors.process import one_line_errors
from experiments.records.mongo import compare, lost, opened, reason, upsert_run
from experiments.records.stored_records import mark_killed, read_record, records

SECONDS = 60  # that one run may take


def main(folder, url, restore=False):
    """Print a line for each run that is stored, and for each that cannot be; whether there is none of the latter."""
    known = records(folder)
    if not known:
        raise Refused(f"{folder} holds no record of a run: give the results_dir of active.py.")
    mark_killed(folder)
    url = url or recorded(known)
    with opened(url, SECONDS) as database:
        found = compare(database, folder, restore)
    stored, failed = 0, dict(found.damaged)
    for path in reversed(found.outdated):
        try:
            with opened(url, SECONDS) as database:
                number = upsert_run(database, path, restore)
            print(f"{path.parents[1]} of {path.stem[:15]}: run {number}", flush=True)
            stored += 1
        except Exception as error:
            if lost(error):
                raise
            failed[path] = reason(error)
    for path, why in failed.items():
        print(why if str(path) in why else f"{path}: {why}", file=sys.stderr, flush=True)
    print(f"{stored} stored, {len(found.held)} were already, {len(failed)} could not be.")
    if found.going_on:
        print(f"{len(found.going_on)} still going on: stored by their own mongo_url, or once they have ended.")
    if found.deleted:
        print(f"{len(found.deleted)} deleted there by someone: --restore stores them again.")
    return not failed


def recorded(known):
    """The address that the newest usable of these records names, if it is one without a password."""
    url = ""
    for path in reversed(known):
        try:
            url = str(read_record(path)["config"].get("mongo_url", ""))
            break
        except (OSError, Refused):
            continue
    if not url or "***" in url:
        raise Refused(f"Where to? The newest run names {url or 'no database'}: set --mongo_url mongodb://...")
    return url


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("results", type=Path)
    known = os.environ.get("MONGO_URI", "")
    parser.add_argument("--mongo_url", default=known, help="or $MONGO_URI, where the recorded one has a password")
    parser.add_argument("--restore", action="store_true", help="store again what was deleted there")
    arguments = parser.parse_args()
    with one_line_errors():
        try:
            sys.exit(not main(arguments.results, arguments.mongo_url, arguments.restore))
        except Refused:
            raise
        except Exception as error:
            sys.exit(f"{reason(error)}.")
