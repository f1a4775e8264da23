"""What goes on in a results folder, for a page that follows it: runs under way, their last query, suspect masks.

A run under way is in no verdict and no mean; here it is shown as it stands, with about the time that it will yet take.
"""

import json
from time import strftime

from matplotlib.figure import Figure

from analysis import embedded
from analysis.ledgers import agreed, bounded, events_of, newest_start, unfinished, walk
from experiments.annotate import handoff
from experiments.annotate.request import name_of
from experiments.errors import Refused
from experiments.evaluation.metrics import HEADLINES
from experiments.records.ledger import evaluations, validation_headline
from experiments.records.progress import duration

RUNS = 4  # under way, that are shown whole: the newest
SUSPECTS = 4  # of a queue, with their outlines
SERIES = ("test", "validation", "audit")


def stamp(source):
    """What differs once a page of this folder is out of date: ledgers, requests, queues, processes."""
    found = []
    for folder, names in walk(source):
        if "ledger.jsonl" in names:
            places = (folder / "ledger.jsonl", folder / "queries", folder / "suspects" / "manifest.json")
            times = [place.stat().st_mtime_ns if place.exists() else 0 for place in places]
            labels = len(list(folder.glob("*/labels/*")) + list(folder.glob("queries/*/labels/*")))
            found.append((str(folder), *times, labels, sorted(path.name for path in folder.glob("sacred/*.lock"))))
    return found


def going_on(source):
    """{"runs": of those under way, the newest first, "more": how many others are, "queues": of suspects, "clock"}."""
    under_way, queues = [], []
    for folder, names in walk(source):
        if "ledger.jsonl" not in names:
            continue
        try:
            events = events_of(folder)
            state = unfinished(folder, events, agreed(folder, events))
        except Refused:
            continue  # the page names it among those that are left out
        queues += suspects(folder)
        if state and events:
            under_way.append(((folder / "ledger.jsonl").stat().st_mtime, folder, events, state))
    under_way.sort(key=lambda one: one[0], reverse=True)
    shown = [run(*one[1:]) for one in under_way[:RUNS]]
    return {"runs": shown, "more": len(under_way) - len(shown), "queues": queues, "clock": strftime("%d.%m. %H:%M:%S")}


def run(folder, events, state):
    """One run under way for the page."""
    settings, queried = events[0]["settings"], [event for event in events if event["event"] == "queried"]
    event = queried[-1] if queried else events[0]
    cycle = event["cycle"] + 1 if queried else 0
    place = folder / "queries" / name_of(cycle)
    waits = newest_start(folder).get("status") == "AWAITING_LABELS" and (place / "manifest.json").exists()
    files = embedded.inside(folder, f"queries/cycle_{event['cycle']:03d}.png") if queried else []
    url, size = embedded.picture(files[0]) if files else (None, None)
    asked = [query["id"] for query in event["queries"]] + [f"{id} again" for id in event.get("repeats", [])]
    drawn = len(embedded.inside(folder, f"queries/{place.name}/labels/*")) if waits else 0
    points, word = series(events), HEADLINES.get(events[0].get("headline", "test.dice").removeprefix("test."), "Dice")
    return {
        "name": f"{settings['label']} run {settings['run']}",
        "state": f"waits for masks of {len(asked)} images, {drawn} files in {place / 'labels'}" if waits else state,
        "left": "" if waits else left(folder, events),
        "curve": embedded.as_svg(lambda: drawn_curve(points, word)) if any(points.values()) else None,
        "points": points,
        "asked": asked,
        "query": cycle,
        "url": url,
        "size": size,
    }


def series(events):
    """{of SERIES: [(labelled images, value)]} by the run's headline, of the audit Dice; what was not measured lacks."""
    test, found = events[0].get("headline", "test.dice"), {name: [] for name in SERIES}
    for event in evaluations(events):
        for name, metric in zip(SERIES, (test, validation_headline(events), "audit.dice"), strict=True):
            if event["metrics"].get(metric) is not None:
                found[name].append((event["images"], event["metrics"][metric]))
    return found


def drawn_curve(points, word):
    """A Figure of `series`, whose values are called by this word."""
    figure = Figure(figsize=(4.6, 2.9), dpi=110, layout="constrained")
    axis = figure.add_subplot()
    for (name, values), marker, line in zip(points.items(), "osD", ("-", "--", ":"), strict=True):
        if values:
            axis.plot(*zip(*values, strict=True), line, marker=marker, color="black", markersize=5, label=name)
    axis.set(xlabel="labelled images", ylabel=word, ylim=(0, 1))
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    return figure


def left(folder, events):
    """About how long a run will yet take, as a person says it, from its own last cycle; "" where that is not known."""
    cycles, done = newest_start(folder).get("cycles"), [e for e in events if e["event"] == "evaluated"]
    try:
        lines = bounded(folder / "timing.jsonl").read_text().splitlines()
        rows = [row for row in map(json.loads, lines) if row["cycle"] in (done[-1]["cycle"], done[-1]["cycle"] - 1)]
        spent = {}
        for row in rows:  # a newer cycle's stand before those of the one before it
            spent |= {part: float(row[part]) for part in ("train", "evaluate", "query") if part in row}
        missing = cycles + 1 - len(done)
        grown = [1 + events[0]["settings"]["query"] * k / max(done[-1]["images"], 1) for k in range(1, missing + 1)]
        seconds = sum(spent.get("train", 0) * more + spent.get("evaluate", 0) + spent.get("query", 0) for more in grown)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, Refused):
        return ""
    return f"about {duration(seconds)} left" if seconds > 0 else ""


def suspects(folder):
    """[the queue of suspects of a run for the page], if it holds one."""
    place = folder / "suspects"
    try:
        asked = handoff.open_request(place)
    except Refused:
        return []
    kept = {path.name: path for path in embedded.inside(folder, "suspects/outlines/*.png")}
    found = []
    for image in asked.images[:SUSPECTS]:
        path = kept.get(f"{image['name']}.png")
        url, size = embedded.picture(path, 400) if path else (None, None)
        found.append({"name": image["name"], "score": image.get("score"), "url": url, "size": size})
    drawn = len([path for path in embedded.inside(folder, "suspects/labels/*") if path.name != "answers.csv"])
    return [{"name": asked.asked["run"], "count": len(asked.images), "drawn": drawn, "images": found,
             "page": str(place / "index.html")}]  # fmt: skip
