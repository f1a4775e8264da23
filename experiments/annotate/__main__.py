"""Hand a query to an annotation tool and take back what was drawn: `python -m experiments.annotate QUERY --to cvat`.

`--to cvat` writes what the tool reads, the model's first masks with it, into a folder; `--from cvat FILE` puts what
comes back, a file, a zip or a folder, into the query's labels/, where the run finds it. Nothing there is overwritten.
"""

import argparse
import importlib
import sys
from pathlib import Path

from experiments.annotate import handoff, returned
from experiments.annotate.untrusted import opened
from experiments.errors import Refused
from experiments.errors.process import one_line_errors
from experiments.records.progress import say

FORMATS = sorted(path.stem for path in Path(__file__).with_name("formats").glob("[a-z]*.py"))


def main(words):
    """Run the command; returns the exit code, 1 if something that came back could not be taken. Raises Refused."""
    options = parse(words)
    request = handoff.open_request(options.query)
    if options.to:
        out = Path(options.output or request.folder / options.to)
        say(f"{out}: {handoff.written(request, out, format_of(options.to).write)}")
        return 0
    kind, source = options.source
    if kind not in FORMATS:
        raise Refused(f"--from {kind} is no format: choose from {', '.join(FORMATS)}.")
    with opened(source) as place:
        return int(returned.take(request, format_of(kind).read(request, place), options.unchanged))


def format_of(name):
    return importlib.import_module(f"experiments.annotate.formats.{name}")


def parse(words):
    about, _, more = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(prog="python -m experiments.annotate", description=f"{about}\n\n{more}")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("query", metavar="QUERY", help="the folder of a query, as results/bald_0/queries/cycle_000")
    way = parser.add_mutually_exclusive_group(required=True)
    way.add_argument("--to", choices=FORMATS, help="write the query for this tool")
    way.add_argument("--from", dest="source", nargs=2, metavar=("TOOL", "FILE"), help="a file, zip or folder of a tool")
    parser.add_argument("-o", "--output", metavar="OUT", help="a new folder (QUERY/TOOL)")
    parser.add_argument("--unchanged", action="store_true", help="take masks that equal the model's first masks too")
    return parser.parse_args(words)


if __name__ == "__main__":
    with one_line_errors():
        sys.exit(main(sys.argv[1:]))
