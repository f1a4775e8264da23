"""Find what is wrong with the files of a dataset: `python -m data.doctor NAME-or-FOLDER [name.root=...]`.

Reads every file once, prints each fault with file, reason and fix, and ends with 1 if there is any. It opens the masks
of the pool too, so it is no part of a run.
"""

import argparse
import os
import sys
from pathlib import Path

from data.doctor import page
from data.doctor.dataset import asked
from data.doctor.examine import Fault, examine
from data.doctor.fixes import mend
from data.doctor.pairs import paired
from data.doctor.sets import by_kind
from experiments.errors import Refused
from experiments.errors.process import one_line_errors
from experiments.records.files import write
from experiments.store.reading import files_of

UNSEEN = (
    "Not seen: about half of the masks that lie wrong on their image, more where classes differ little in colour, and "
    "copies that are mirrored, turned or cut: `python -m data.preview` shows masks on their images."
)
MANY = 40  # faults from which a table by kind is printed
EXAMPLES = 3  # of each kind in it


def main(words):
    """Run the command; returns the exit code, 1 if a fault was found. Raises Refused."""
    options = parse(words)
    dataset = asked(options.dataset, options.settings)
    classes, faults = tuple(dataset.module.CLASSES), []
    try:
        splits = dataset.load()
        classes = tuple(splits.classes or classes)  # of some they are settings
    except Refused as error:
        splits = paired(dataset.root) if dataset.name == "folder" and dataset.root else None
        if splits is None:
            raise
        faults = [Fault("layout", dataset.root, str(error))]
    root = dataset.root or common(splits)
    faults += examine(splits, classes, root)
    for line in lines(faults):
        print(line)
    print(UNSEEN)
    count = sum(map(len, filter(None, splits[:3])))
    print(f"{dataset.name}: {count} images, {len(faults) or 'no'} fault{'s' * (len(faults) != 1)}.")
    if options.fix:
        done = mend(faults, root, options.fix, classes)
        print(f"{options.fix} is a copy with {len(done)} files mended: examine it next. {root} is as it was.")
    if options.html:
        write(Path(options.html), page.page(dataset.name, count, faults).encode("utf-8", "backslashreplace"))
        print(options.html)
    return int(bool(faults))


def parse(words):
    about, _, more = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(prog="python -m data.doctor", description=f"{about}\n\n{more}", epilog="")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("dataset", metavar="NAME-or-FOLDER", help="a dataset, as glas; a folder is read by `folder`")
    parser.add_argument("settings", nargs="*", metavar="name.setting=value", help="as glas.root=elsewhere")
    parser.add_argument("--fix", default="", metavar="DIR", help="write a corrected copy; originals stay as they are")
    parser.add_argument("--html", default="", metavar="FILE", help="write a page with pictures of what is suspicious")
    return parser.parse_intermixed_args(words)


def common(splits):
    """The folder that all files lie in."""
    return os.path.commonpath([os.path.dirname(files_of(i.image)[0]) for s in splits[:3] if s for i in s.items])


def lines(faults):
    """A line a fault, or where there are many a table by kind with a few examples each."""
    if len(faults) <= MANY:
        return [line(fault) for fault in faults]
    found = sorted(by_kind(faults).items(), key=lambda pair: -len(pair[1]))
    width = max(len(kind) for kind, _ in found)
    rows = [f"{'kind':{width}}  faults  fix"]
    for kind, some in found:
        rows.append(f"{kind:{width}}  {len(some):6}  {some[0].fix}")
        rows += [f"{'':{width}}          {plain(fault.path)}: {plain(fault.found)}" for fault in some[:EXAMPLES]]
    return rows


def line(fault):
    fix = f": {fault.fix}." if fault.fix else ""
    return f"{plain(fault.path)}: {fault.kind}: {plain(fault.found)}{fix}"


def plain(text):
    """Without what would break a line or cannot be printed, as a name may hold."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


if __name__ == "__main__":
    with one_line_errors():
        sys.exit(main(sys.argv[1:]))
