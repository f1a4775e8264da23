"""Every run of a results folder, a MongoDB or a CSV as one tidy DataFrame: `load("results")`.

A folder is searched with all its subfolders, links included, so a study with a folder for each of its cells is one
frame. Which runs count is decided in analysis/ledgers.py; one line is said of each that does not.
"""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.ledgers import SETTINGS, aloud, array_of, bare_arrays, bounded, finished, silent
from experiments.errors import Refused
from experiments.records.compare import comparable
from experiments.records.ledger import CEILING, evaluations

OURS = {"$or": [{"askmask": {"$exists": True}}, {"experiment.name": "askmask"}]}  # runs in a MongoDB
TIMEOUT_MS = 3000  # until a server that does not answer is given up
COSTS = ["images", "pixels", "foreground", "boundary", "minutes"]
# a published baseline's results_dir='results' is glued to the file's name
BASELINE = re.compile(r"(?:results)?(?P<label>.+)_(?P<run>\d+)\.npy")
CSV = {"method": "label", "seed": "run", "round": "cycle", "n_labelled": "images"}


def load(source, per_image=False, published=False, start=None, query=None, say=aloud):
    """One row for each finished run and cycle: settings, headline (see below), cycle, COSTS, then metrics by name.

    `source` is a folder, or a mongodb:// URL, whose database is `sacred` unless the URL names one. `label` is the
    method's name; a run on all training labels, the ceiling, has label and heuristic "full". With `per_image` there
    is a row for each run, cycle, test image and class, with dice, iou and their deterministic_ counterparts, from a
    folder only. `minutes` are those that people stated for the masks they drew, else NaN. From MongoDB they,
    `foreground` and `boundary` are NaN, and so are `pixels` of a run that has not ended. Of several records of one run,
    which resuming leaves there, the most complete one counts, of equals the newest.

    With `published` the arrays that lie in no run's folder are read too, as the published baselines leave them:
    `bald_0.npy` or `resultsbald_0.npy` gives label, run, cycle and test.dice; its other settings are "unknown" and
    its images are `start + query * cycle`, which only the caller knows. A CSV has the columns method, seed, round,
    n_labelled, perhaps dataset, and one for each metric; its frame has no other settings. `say` is called with a line
    for each run or array that is left out. Raises Refused if nothing is left, or a CSV or a database is damaged.
    """
    mongo, csv = "://" in str(source), Path(source).suffix == ".csv"
    if per_image and (mongo or csv):
        raise Refused("Values of single images are read from a results folder only.")
    if published and (start is None or query is None):
        raise Refused("A published array does not say its budgets: give `start` and `query` (GlaS: 4 and 2).")
    if csv:
        return _from_csv(source)
    lines = []

    def left_out(line):
        lines.append(line)
        say(line)

    if mongo:
        frames = _from_mongo(source, left_out)
    else:
        frames = list(_from_folder(Path(source), per_image, published and (start, query), left_out))
    if not frames:
        raise Refused(_nothing(lines))
    frame = pd.concat(frames, ignore_index=True)
    if not per_image:
        metrics = sorted(frame.columns.difference([*SETTINGS, "headline", "cycle", *COSTS]))
        frame = frame.reindex(columns=[*SETTINGS, "headline", "cycle", *COSTS, *metrics])
    return frame.sort_values(["dataset", "label", "run", "cycle"], kind="stable", ignore_index=True)


def headline(frame):
    """The metric that judges the runs of a frame: what their dataset states, test.dice where nothing is said.

    Raises Refused for runs on datasets that state different ones.
    """
    said = sorted(frame["headline"].dropna().unique()) if "headline" in frame else []
    if len(said) > 1:
        raise Refused(
            f"These runs are judged by {' and '.join(said)}: look at one dataset at a time, or name a metric."
        )
    return said[0] if said else "test.dice"


def add_published(parser):
    """The command line's way to ask for arrays without a run."""
    parser.add_argument("--published", nargs=2, type=int, metavar=("START", "QUERY"), help="read arrays without a "
                        "run's folder too, which began with START images and asked for QUERY each time")  # fmt: skip


def published(given):
    """What a parsed command line asks of load()."""
    start, query = given.published or (None, None)
    return {"published": bool(given.published), "start": start, "query": query}


def constant_dice(folder, dataset):
    """What calling every test pixel foreground scores by the ledgers below `folder`; None if they do not agree."""
    starts = [events[0] for events in finished(Path(folder), say=silent).values()]
    said = {start.get("constant_dice") for start in starts if start["settings"]["dataset"] == dataset}
    return said.pop() if len(said) == 1 else None


def _nothing(lines):
    if not lines:
        return "There is no evaluated run here: `python active.py with heuristic=bald run=0` makes one."
    more = f" And {len(lines) - 1} more." if len(lines) > 1 else ""
    return f"There is no finished run here. {lines[0]}{more}"


def _from_folder(root, per_image, published, say):
    if not root.is_dir():
        raise Refused(f"{root} is not a folder of results.")
    for folder, events in finished(root, say).items():
        frame = _run(events, per_image)
        yield frame.assign(dataset=apart(frame["dataset"].iloc[0], folder.parent))
    for path in [] if per_image else bare_arrays(root, BASELINE):
        if not published:
            say(f"{path} is an array without its run, which does not say its budgets (--published 4 2): left out.")
            continue
        try:
            yield _baseline(path, *published)
        except Refused as refused:
            say(f"{str(refused).rstrip('.')} - left out.")


def apart(dataset, folder):
    """The dataset's name for runs in this folder: with the settings that the folder of a study's comparison names."""
    said = [word for word in folder.name.split(",") if "=" in word and not word.startswith("dataset=")]
    return ", ".join([dataset, *said])


def _run(events, per_image):
    """The frame of one run."""
    settings, judge = shown(events[0]["settings"]), events[0].get("headline", "test.dice")
    evaluated = evaluations(events)
    drawn = minutes(events)
    costs = [
        {"cycle": e["cycle"], **{cost: e.get(cost) for cost in COSTS}, "minutes": spent}
        for e, spent in zip(evaluated, drawn, strict=True)
    ]
    if not per_image:
        rows = [
            {**settings, "headline": judge, **cost, **e["metrics"]} for cost, e in zip(costs, evaluated, strict=True)
        ]
        frame = pd.DataFrame(rows)
        return frame.astype(dict.fromkeys(frame.columns.difference([*SETTINGS, "headline", "cycle", *COSTS]), float))
    names = pd.MultiIndex.from_product([events[0]["test"], events[0]["classes"]], names=["image", "class"])
    tables = [
        pd.DataFrame({name: np.ravel(np.array(v, float)) for name, v in e["per_image"].items()}, index=names)
        .reset_index()
        .assign(**settings, **cost)
        for cost, e in zip(costs, evaluated, strict=True)
    ]
    first = [*SETTINGS, "cycle", *COSTS, "image", "class"]
    frame = pd.concat(tables)
    return frame[[*first, *frame.columns.difference(first)]]


def minutes(events):
    """[minutes] that people had drawn by each evaluation, as they stated them; NaN where one did not, or none drew."""
    seconds, found = [], []
    for event in events:
        if event["event"] == "answered":
            drawn = [*event["masks"].values(), *event.get("again", {}).values()]
            seconds += [_seconds(version) for versions in drawn for version in versions]
        if event["event"] == "evaluated":
            found.append(sum(seconds) / 60 if seconds else np.nan)
    return found


def _seconds(version):
    try:
        value = float(version["seconds"])
    except (KeyError, TypeError, ValueError):
        return np.nan
    return value if 0 <= value < np.inf else np.nan


def shown(settings):
    """The SETTINGS of a run as they are shown: a run on all labels asks for nothing, so its heuristic is `full`."""
    kept = {key: settings[key] for key in SETTINGS}
    return kept | {"heuristic": CEILING["label"]} if kept["label"] == CEILING["label"] else kept


def _baseline(path, start, query):
    name = BASELINE.fullmatch(path.name)
    curve = array_of(bounded(path).read_bytes(), path)
    if curve.ndim != 1 or not len(curve):
        raise Refused(f"{path} is no learning curve: its shape is {curve.shape}, not (evaluations,).")
    cycle = np.arange(len(curve))
    settings = dict.fromkeys(SETTINGS, "unknown") | {"heuristic": name["label"], "label": name["label"]}
    return pd.DataFrame(
        {**settings, "run": int(name["run"]), "cycle": cycle, "images": start + query * cycle, "test.dice": curve}
    )


def _from_csv(path):
    path = Path(path)
    if not path.exists():
        raise Refused(f"{path} cannot be read as CSV: there is no such file.")
    try:
        frame = pd.read_csv(bounded(path), dtype={"method": str, "dataset": str})
    except (OSError, ValueError, OverflowError) as error:
        reason = str(error).partition("\n")[0]
        raise Refused(f"{path} cannot be read as CSV: {reason}") from error
    missing = [name for name in CSV if name not in frame]
    if missing:
        raise Refused(f"{path} lacks the column {missing[0]}: needed are {', '.join(CSV)} and a metric.")
    taken = frame.columns.intersection(list(CSV.values()))
    if len(taken):
        raise Refused(f"{path} has a column {taken[0]}: {', '.join(CSV)} are the names that are read.")
    words = [name for name in ("method", "dataset") if name in frame]
    for name in frame.columns.difference(words):
        if not pd.api.types.is_numeric_dtype(frame[name]):
            raise Refused(f"{path} has words among the numbers of {name}.")
    for name in [*words, "seed", "round", "n_labelled"]:
        holes = frame[name].isna() if name in words else ~np.isfinite(frame[name])
        if holes.any():
            raise Refused(f"{path}, line {holes.idxmax() + 2} has no {name}.")
    if "dataset" not in frame:
        frame.insert(0, "dataset", path.stem)
    return frame.rename(columns=CSV)


def _from_mongo(url, say):
    from pymongo import MongoClient
    from pymongo.errors import PyMongoError

    try:  # the errors' texts may hold the password
        client = MongoClient(url, serverSelectionTimeoutMS=TIMEOUT_MS)
    except (PyMongoError, ValueError) as error:
        raise Refused(f"This is no address of a MongoDB ({type(error).__name__}): mongodb://host:port/name.") from None
    try:
        with client:
            return _records(client.get_default_database("sacred"), say)
    except PyMongoError as error:
        raise Refused(f"The MongoDB does not answer ({type(error).__name__}): start it or load a folder.") from None


def _records(database, say):
    """The frames of those of Sacred's records that count."""
    from gridfs import GridFS

    files, best = GridFS(database), {}
    for record in database["runs"].find(OURS, {"captured_out": 0}).sort("_id"):
        settings, frame = _settings(record), _metrics(database["metrics"].find({"run_id": record["_id"]}))
        key = json.dumps(comparable(settings), sort_keys=True, default=str)
        if len(frame) and (key not in best or len(frame) >= len(best[key][0])):
            judge = record["info"].get("headline", "test.dice")
            best[key] = frame.assign(headline=judge), settings, record
    frames = []
    for frame, settings, record in best.values():
        if record["status"] != "COMPLETED" and len(frame) <= settings["cycles"]:
            going = "is going on" if record["status"] == "RUNNING" else "was stopped"
            say(f"run {settings['run']} of {settings['label']} {going} ({frame['images'].max()} images): left out.")
            continue
        artifacts = {a["name"]: files.get(a["file_id"]).read() for a in record["artifacts"]}
        try:
            frames.append(_record(frame, settings, artifacts))
        except Refused as refused:
            say(f"{str(refused).rstrip('.')} - left out.")
    return frames


def _settings(record):
    """The settings as the run's ledger has them."""
    return record["config"] | (CEILING if record["meta"]["command"] == "full" else {})


def _metrics(stored):
    """Sacred's metrics of one record, whose steps are labelled images, as columns."""
    frame = pd.DataFrame({m["name"]: pd.Series(dict(zip(m["steps"], m["values"], strict=True))) for m in stored})
    return frame.rename_axis("images").reset_index()


def _record(frame, settings, artifacts):
    """The frame of one of Sacred's records, if its arrays, which are stored when a run ends, agree with it."""
    name = f"{settings['label']}_{settings['run']}.npy"
    arrays = {key: array_of(artifacts[key], f"The artifact {key}") for key in {name, "budget.npy"} & artifacts.keys()}
    budget, curve = arrays.get("budget.npy"), arrays.get(name)
    if budget is not None:
        agree = np.array_equal(budget[:, 0], frame["images"])
        if not agree or not (curve is None or np.array_equal(curve, frame.get(headline(frame)))):
            raise Refused(f"In MongoDB the metrics of {name} are not what the array says: load the results folder.")
        frame["pixels"] = budget[:, 1]
    return frame.assign(cycle=range(len(frame)), **shown(settings))
