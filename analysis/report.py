"""A study as one page that opens anywhere: `python -m analysis.report results -o report.html --zip study.zip`.

The page asks for nothing from outside: pictures, curves and style are in it. `--zip` packs what a colleague needs to
check the numbers, without images: ledgers, arrays, timing, tables and the page.
"""

import argparse
import csv
import io
import re
import sys
import zipfile
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from time import sleep

import jinja2
import pandas as pd
from markupsafe import Markup

from analysis import audits, embedded, labels_saved, live, plots, rank_diagram, runs, sequential, statistics
from analysis.embedded import as_svg, inside
from analysis.ledgers import aloud, bare_arrays, bounded, curve_of, finished, silent
from experiments.errors import Refused
from experiments.errors.process import one_line_errors, unusable
from experiments.records.cells import harmless
from experiments.records.files import write

PACKED = ("ledger.jsonl", "timing.jsonl", "dice.npy", "budget.npy", "queries/*.csv")
PICTURES = 24  # at most, in the gallery
LISTED = 8  # queries of a cycle: as many as its picture shows


def report(source, baseline="", margin=0.0, refresh=0, minutes=0.0, **asked):
    """(HTML, {file name: DataFrame}) of the study in the folder `source`, searched with its subfolders.

    The page loads itself anew every `refresh` seconds, 0: never. `baseline` is the method that the others are compared
    with; "" is random, if it is there. `margin` is the largest difference in Dice that does not matter, as
    statistics.compare takes it, `minutes` what a mask takes to draw, 0: what the ledgers say; what else is `asked` goes
    to runs.load. A study that cannot be compared is a page that says why, and so is what was left out. A page that
    loads itself anew shows what is under way, too. Raises Refused if there is no run to show, or a baseline was named
    that none has.
    """
    if not source.is_dir():
        raise Refused(f"{source} is not a folder of results: run active.py first.")
    left_out = []

    def leave_out(line):
        aloud(line)
        left_out.append(line)

    now = live.going_on(source) if refresh else {"runs": [], "queues": []}
    try:
        frame = runs.load(source, say=leave_out, **asked)
    except Refused:
        if baseline or not now["runs"]:
            raise
        frame = pd.DataFrame({name: [] for name in ("dataset", "label", "run", "cycle")})  # none is finished yet
    methods = sorted(set(frame["label"]) - {statistics.CEILING})
    if baseline and baseline not in methods:
        raise Refused(statistics.unknown(baseline, methods or [statistics.CEILING]))
    baseline = baseline or "random"
    books = finished(source, say=silent)
    judges = {dataset: runs.headline(group) for dataset, group in frame.groupby("dataset")}
    tested = bool(set(judges.values()) & set(frame))
    frame = frame.assign(**dict.fromkeys(set(judges.values()) - set(frame), float("nan")))
    classes = pd.DataFrame({"dataset": []})
    if books and tested:
        classes = per_class(runs.load(source, per_image=True, say=silent))
    studies, tables, design = [], {"curves.csv": frame}, sequential.of_folder(source)
    for number, (dataset, group) in enumerate(frame.groupby("dataset"), 1):
        metric = judges[dataset]
        ends, verdicts, missing = compare(group, baseline, margin, metric, design, minutes)
        studies.append(
            {
                "dataset": dataset,
                "about": about(group, metric),
                "measure": {"test.miou": "mIoU", "test.class_dice": "class Dice"}.get(metric, "Dice"),
                "ends": ends,
                "verdicts": verdicts,
                "missing": missing,
                "paired": starts_alike(group, metric),
                "curves": curves(group, runs.constant_dice(source, dataset), metric),
                "budgets": statistics.per_budget(group, metric).reset_index(),
                "penalties": statistics.penalty_matrix(group, metric) if verdicts is not None else None,
                "efficiency": statistics.fg_efficiency(group, metric).to_dict(),
                "classes": classes[classes["dataset"] == dataset],
                "audits": audits.table(group),
                "audited": as_svg(partial(audits.curves, audits.table(group))) if len(audits.table(group)) else None,
                "agreement": audits.agreement(group),
            }
        )
        if verdicts is not None:
            tables[f"verdicts_{number}.csv"] = verdicts
    from analysis import reproduce  # torch takes seconds to import

    pictures, pictured = gallery(source, books)
    ranked = overall(frame, judges, baseline) if studies else None
    page = template().render(
        studies=studies,
        left_out=left_out,
        baseline=baseline,
        margin=margin,
        design=design,
        refresh=refresh,
        live=now,
        overall=ranked,
        across=across(studies, baseline),
        ranks_drawn=as_svg(lambda: rank_diagram.draw(ranked[0]["rank"], ranked[2])) if ranked else None,
        pictures=pictures,
        pictured=pictured,
        settings=reproduce.settings(books.values()),
        commands=[reproduce.command(events) for events in books.values()],
        data=reproduce.fingerprints(books.values()),
        made=reproduce.made(books.values()),
        resumed=reproduce.resumed(books.values()),
        made_with=reproduce.made_with(),
    )
    return page, tables


def template():
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {f.__name__: f for f in (number, spread, signed, probability, count, breakable)}
    return environment.get_template("report.html.j2")


def about(frame, metric="test.dice"):
    """What was studied on one dataset, as {what: text}."""
    full = frame[frame["label"] == statistics.CEILING]
    active = full if len(full) == len(frame) else frame.drop(full.index)
    runs_of, images, ceiling = active.groupby("label")["run"].nunique(), active["images"], full[metric]
    text = {
        "methods": ", ".join(runs_of.index),
        "runs of each": " to ".join(str(n) for n in sorted({runs_of.min(), runs_of.max()})),
        "budget": f"{images.min():.0f} to {images.max():.0f} labelled images, {active['cycle'].max()} queries",
        "model": ", ".join(frame["model"].unique()),
        "batch": ", ".join(active["batch"].unique()),
    }
    if len(full):
        text["all labels"] = f"test Dice {spread(ceiling.mean(), ceiling.std())}, runs: {len(full)}"
    return text


def compare(frame, baseline, margin, metric="test.dice", design=None, minutes=0.0):
    """(endpoints by method, verdict table, what is missing for one) of a dataset; what there is none of is None.

    The verdicts are those of a sequential `design`, if there is one.
    """
    ends = None
    try:
        ends = statistics.endpoints(frame, metric).groupby("label", as_index=False)
        ends = ends.agg(runs=("run", "size"), aubc=("aubc", "mean"), sd_ddof1=("aubc", "std"), final=("final", "mean"))
        if design:
            table = sequential.compare(frame, baseline, margin, metric, design)
        else:
            table = statistics.compare(frame, baseline, margin, metric)
        return ends, table.merge(labels_saved.compare(frame, baseline, metric, minutes), on="label", how="left"), ""
    except Refused as error:
        return ends, None, str(error)


def across(studies, baseline):
    """{method: {dataset: its row of the verdict table}} of the datasets that have one, the baseline left out."""
    found = {}
    for study in studies:
        for row in [] if study["verdicts"] is None else study["verdicts"].to_dict("records"):
            if row["label"] != baseline:
                found.setdefault(row["label"], {})[study["dataset"]] = row
    return dict(sorted(found.items()))


def overall(frame, judges, baseline):
    """(mean ranks by method, Friedman's p, critical difference) over the datasets; None while these are too few."""
    headline = [judges[dataset] for dataset in frame["dataset"]]
    measured = pd.Series([row[name] for row, name in zip(frame.to_dict("records"), headline, strict=True)], frame.index)
    try:
        return statistics.ranks(frame.assign(headline_value=measured), baseline, "headline_value")
    except Refused:
        return None


def starts_alike(frame, metric="test.dice"):
    """Whether the first value of every run is the same for all methods, bit for bit."""
    first = frame[(frame["cycle"] == 0) & (frame["label"] != statistics.CEILING)]
    return (first.groupby("run")[metric].nunique() == 1).all()


def curves(frame, constant, metric="test.dice"):
    """The learning curves as SVG whose text and lines take the page's colour; None without test Dice."""
    if frame[metric].isna().all():
        return None
    return as_svg(lambda: plots.curves(frame, metric=metric, constant=constant, size=(5.4, 3.9)))


def per_class(frame):
    """Dice and IoU of each class after the last query: the mean over test images, then mean and SD over runs."""
    last = frame[frame["cycle"] == frame.groupby(["dataset", "label", "run"])["cycle"].transform("max")]
    by_run = last.groupby(["dataset", "label", "class", "run"], sort=False)[["dice", "iou"]].mean()
    table = by_run.groupby(["dataset", "label", "class"], sort=False).agg(["mean", "std"])
    table.columns = ["_".join(names) for names in table.columns]
    return table.reset_index()


def gallery(source, books):
    """(pictures, a line that says which are left out): of each method's first run the first, middle and last query."""
    found, chosen, methods = 0, [], set()
    for folder, events in books.items():
        queried = [e for e in events if e["event"] == "queried"]
        files = {path.name: path for path in inside(folder, "queries/cycle_*.png")}
        pictured = [(files[name], e) for e in queried if (name := f"cycle_{e['cycle']:03d}.png") in files]
        found += len(pictured)
        settings = events[0]["settings"]
        method = (settings["dataset"], settings["label"])
        if pictured and method not in methods:
            methods.add(method)
            some = sorted({0, len(pictured) // 2, len(pictured) - 1})
            chosen += [(*pictured[k], settings) for k in some]
    shown = [picture(*one) for one in chosen[:PICTURES]]
    line = f"{len(shown)} of {found} query pictures are here: the first, middle and last query of a method's first run."
    left = sorted({settings["label"] for *_, settings in chosen} - {one["label"] for one in shown})
    return shown, line + (f" There was no room for {', '.join(left)}." if left else "")


def picture(path, event, settings):
    """One query for the page: the picture as a data URL, None if the file is no PNG or larger than Pillow trusts."""
    url, size = embedded.picture(path)
    return {
        "url": url,
        "size": size,
        "queries": event["queries"][:LISTED],
        "more": len(event["queries"][LISTED:]),
        "cycle": event["cycle"],
        **{key: settings[key] for key in ("dataset", "label", "heuristic", "run")},
    }


def breakable(name):
    """A name that may go on in the next line after each mark in it."""
    return Markup("<wbr>").join(re.split(r"(?<=[,.=/])", str(name)))


def number(value, digits=3):
    """Text of a number, a dash for none."""
    return "–" if pd.isna(value) else f"{value:.{digits}f}"


def spread(mean, sd):
    return number(mean) if pd.isna(sd) else f"{number(mean)} ± {number(sd)}"


def signed(value):
    return "–" if pd.isna(value) else f"{value:+.3f}".replace("-", "−")


def probability(value):
    return "< 0.001" if value < 0.001 else number(value)


def count(value):
    return "–" if pd.isna(value) else "more than 1000" if value > 1000 else f"{value:.0f}"


def pack(source, page, tables, published=False):
    """Bytes of a zip file, the same for the same study: the PACKED files and curves of its runs, page and tables.

    No name in it is absolute, climbs by `..` or holds a backslash, which Windows takes for a folder; a file that
    cannot be named so is left out with a line. No cell of its tables is a formula to a spreadsheet.
    """
    files = {}
    for folder in finished(source, say=silent):
        place = folder.relative_to(source)
        files |= {place / path.relative_to(folder): path for p in PACKED for path in inside(folder, p)}
        if (curve := curve_of(folder)).is_file():
            files[Path(f"{place}.npy" if place.name else curve.name)] = curve
    if published:
        files |= {path.relative_to(source): path for path in bare_arrays(source, runs.BASELINE)}
    entries = {"report.html": page}
    entries |= {name: table_bytes(table) for name, table in tables.items()}
    for name, path in files.items():
        try:
            data = bounded(path).read_bytes()
            entries[entry(name)] = safe_csv(data) if path.suffix == ".csv" else data
        except (Refused, OSError, ValueError, csv.Error) as error:
            aloud(f"{path} is not packed: {error}")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name in sorted(entries):
            file.writestr(zipfile.ZipInfo(name), entries[name], zipfile.ZIP_DEFLATED)  # dated 1980, as no clock is read
    return buffer.getvalue()


def entry(path):
    """The name of a relative path in a zip file. Raises ValueError for one that could lead elsewhere."""
    name = path.as_posix()
    if path.is_absolute() or ".." in path.parts or "\\" in name:
        raise ValueError("its name holds a backslash or leads out of the folder.")
    return name


def table_bytes(table):
    """A DataFrame as CSV without formulas."""
    return table.rename(columns=harmless).map(harmless).to_csv(index=False).encode(errors="replace")


def safe_csv(data):
    """The bytes of a CSV, every formula in it made a text."""
    text = io.StringIO(newline="")
    rows = csv.reader(io.StringIO(data.decode(errors="surrogateescape"), newline=""), strict=True)
    csv.writer(text, lineterminator="\n").writerows([harmless(cell) for cell in row] for row in rows)
    return text.getvalue().encode(errors="surrogateescape")


def save(path, data):
    try:
        path.write_bytes(data)
    except OSError as error:
        raise unusable(path, error, "written") from error
    print(path)


def main(words=None):
    parser = argparse.ArgumentParser(prog="python -m analysis.report", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("results", type=Path, help="a results folder, searched with its subfolders")
    parser.add_argument("-o", "--output", type=Path, default=Path("report.html"))
    parser.add_argument("--baseline", default="", help="the method that the others are compared with: random")
    parser.add_argument("--margin", type=float, default=0.0, help="the largest difference in Dice that does not matter")
    parser.add_argument("--minutes", type=float, default=0.0, help="that a mask takes to draw; else what people stated")
    parser.add_argument("--zip", type=Path, metavar="FILE", help="pack the study too, without its images")
    runs.add_published(parser)
    parser.add_argument("--watch", nargs="?", type=int, const=30, default=0, metavar="SECONDS",
                        help="follow a study: write the page anew whenever a run got further")  # fmt: skip
    given = parser.parse_args(words)
    if given.watch < 0:
        parser.error("--watch takes seconds, at least 1")
    try:
        if given.watch:
            watch(given)
        said = {"minutes": given.minutes, **runs.published(given)}
        page, tables = report(given.results, given.baseline, given.margin, **said)
        page = page.encode(errors="replace")  # a file name need not be Unicode
        save(given.output, page)
        if given.zip:
            save(given.zip, pack(given.results, page, tables, given.published))
    except Refused as error:
        sys.exit(str(error))


def watch(given):
    """Write the page whenever a run got further, until Ctrl-C; a browser loads it anew by itself."""
    seen = None
    print(f"{given.output} follows {given.results} every {given.watch} s, until Ctrl-C.", flush=True)
    while True:
        try:
            now = live.stamp(given.results)
            if now != seen:
                with redirect_stdout(io.StringIO()):  # the page itself says what is left out of it
                    said = {"refresh": given.watch, "minutes": given.minutes, **runs.published(given)}
                    page, _ = report(given.results, given.baseline, given.margin, **said)
                write(given.output, page.encode(errors="replace"), shared=True)
                seen = now
        except (OSError, Refused) as refused:  # no run is finished yet, or a file was moved meanwhile
            print(str(refused), flush=True)
        sleep(given.watch)


if __name__ == "__main__":
    with one_line_errors():
        main()
