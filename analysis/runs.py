"""Every run of a results folder, a MongoDB or a CSV as one tidy DataFrame: `load("results")`.

A folder is searched with all its subfolders, so a study with a folder for each of its cells is one frame. The
stored arrays (experiments/records/ledger.py says which) are the contract for the curve; what only the ledger knows is
taken from there, and the two must agree.
"""

import io
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd

from experiments.errors import Refused
from experiments.records.ledger import CEILING, comparable, read

OURS = {"$or": [{"askmask": {"$exists": True}}, {"experiment.name": "askmask"}]}  # runs in a MongoDB
TIMEOUT_MS = 3000  # until a server that does not answer is given up
SETTINGS = ["dataset", "heuristic", "batch", "initial", "model", "label", "run"]
COSTS = ["images", "pixels", "foreground", "boundary"]
# a published baseline's results_dir='results' is glued to the file's name
BASELINE = re.compile(r"(?:results)?(?P<label>.+)_(?P<run>\d+)\.npy")
CSV = {"method": "label", "seed": "run", "round": "cycle", "n_labelled": "images"}


def load(source, per_image=False, start=4, query=2):
    """One row for each run and cycle: the settings, cycle, COSTS, then every metric by its name.

    `source` is a folder, or a mongodb:// URL, whose database is `sacred` unless the URL names one. `label` is the
    method's name; label "full" is a run on all training labels, the ceiling. With `per_image` there is a row for
    each run, cycle, test image and class, with dice, iou and their deterministic_ counterparts, from a folder only.
    From MongoDB `foreground` and `boundary` are NaN, and so are `pixels` of a run that has not ended. Of several
    records of one run, which resuming leaves there, the most complete one counts, of equals the newest.

    A published baseline's `bald_0.npy` or `resultsbald_0.npy`, an array without a folder, gives label, run, cycle
    and test.dice; its other settings are "unknown" and its images are `start + query * cycle`, 4 and 2 being the
    published values. A CSV has the columns method, seed, round, n_labelled, perhaps dataset, and one for each metric;
    its frame has no other settings. Raises Refused if nothing is found, a file is damaged, or an array is not what
    the ledger says.
    """
    mongo, csv = "://" in str(source), Path(source).suffix == ".csv"
    if per_image and (mongo or csv):
        raise Refused("Values of single images are read from a results folder only.")
    if csv:
        return _from_csv(source)
    if mongo:
        frames = _from_mongo(source)
    else:
        frames = list(_from_folder(Path(source), per_image, start, query))
    if not frames:
        raise Refused("There is no evaluated run here: `python active.py with heuristic=bald run=0` makes one.")
    frame = pd.concat(frames, ignore_index=True)
    if not per_image:
        metrics = sorted(frame.columns.difference([*SETTINGS, "cycle", *COSTS]))
        frame = frame.reindex(columns=[*SETTINGS, "cycle", *COSTS, *metrics])
    return frame.sort_values(["dataset", "label", "run", "cycle"], kind="stable", ignore_index=True)


def constant_dice(folder, dataset):
    """What calling every test pixel foreground scores by the ledgers below `folder`; None if they do not agree."""
    starts = [events[0] for path in Path(folder).rglob("ledger.jsonl") if (events := read(path.parent))]
    said = {start.get("constant_dice") for start in starts if start["settings"]["dataset"] == dataset}
    return said.pop() if len(said) == 1 else None


def _from_folder(root, per_image, start, query):
    if not root.is_dir():
        raise Refused(f"{root} is not a folder of results.")
    folders = sorted(path.parent for path in root.rglob("ledger.jsonl"))
    for folder in folders:
        frame = _run(folder, per_image)
        if len(frame):
            yield frame
    ours = {_curve_of(folder) for folder in folders}
    for path in [] if per_image else sorted(root.rglob("*_*.npy")):
        copied_by_sacred = (path.parent / "run.json").exists()
        if BASELINE.fullmatch(path.name) and path not in ours and not copied_by_sacred:
            yield _baseline(path, start, query)


def _run(folder, per_image):
    """The frame of one run; empty before its first evaluation."""
    paths = {"curve": _curve_of(folder), "budget": folder / "budget.npy", "dice": folder / "dice.npy"}
    arrays = {name: _array(path.read_bytes(), path) for name, path in paths.items() if path.exists()}
    events = read(folder)  # after the arrays: a run that goes on meanwhile is then ahead of them, not behind
    if not arrays:
        return pd.DataFrame()
    evaluated = [e for e in events if e["event"] == "evaluated"]
    said = {
        "curve": [e["metrics"].get("test.dice") for e in evaluated],
        "budget": [[e["images"], e["pixels"]] for e in evaluated],
        "dice": [e["per_image"].get("dice") for e in evaluated],
    }
    for name, array in arrays.items():
        one_behind = len(array) == len(evaluated) - 1  # the moment between a line of the ledger and the arrays
        if not (one_behind or len(array) == len(evaluated)) or not np.array_equal(array, said[name][: len(array)]):
            raise Refused(f"{paths[name]} is not what its ledger says: the same command writes it anew.")
    measured = evaluated[: min(map(len, arrays.values()))]
    settings = {name: events[0]["settings"][name] for name in SETTINGS}
    costs = [{"cycle": e["cycle"], **{cost: e.get(cost) for cost in COSTS}} for e in measured]
    if not per_image:
        rows = [{**settings, **cost, **e["metrics"]} for cost, e in zip(costs, measured, strict=True)]
        return pd.DataFrame(rows)
    names = pd.MultiIndex.from_product([events[0]["test"], events[0]["classes"]], names=["image", "class"])
    tables = [
        pd.DataFrame({name: np.ravel(values) for name, values in e["per_image"].items()}, index=names)
        .reset_index()
        .assign(**settings, **cost)
        for cost, e in zip(costs, measured, strict=True)
    ]
    first = [*SETTINGS, "cycle", *COSTS, "image", "class"]
    frame = pd.concat(tables)
    return frame[[*first, *frame.columns.difference(first)]]


def _baseline(path, start, query):
    name = BASELINE.fullmatch(path.name)
    curve = _array(path.read_bytes(), path)
    if curve.ndim != 1:
        raise Refused(f"{path} is no learning curve: its shape is {curve.shape}, not (evaluations,).")
    cycle = np.arange(len(curve))
    settings = dict.fromkeys(SETTINGS, "unknown") | {"heuristic": name["label"], "label": name["label"]}
    return pd.DataFrame(
        {**settings, "run": int(name["run"]), "cycle": cycle, "images": start + query * cycle, "test.dice": curve}
    )


def _from_csv(path):
    try:
        frame = pd.read_csv(path)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise Refused(f"{path} cannot be read as CSV: {reason}") from error
    missing = [name for name in CSV if name not in frame]
    if missing:
        raise Refused(f"{path} lacks the column {missing[0]}: needed are {', '.join(CSV)} and a metric.")
    for name in frame.columns.difference(["method", "seed", "dataset"]):
        if not pd.api.types.is_numeric_dtype(frame[name]):
            raise Refused(f"{path} has words among the numbers of {name}.")
    if "dataset" not in frame:
        frame.insert(0, "dataset", Path(path).stem)
    return frame.rename(columns=CSV)


def _from_mongo(url):
    from pymongo import MongoClient
    from pymongo.errors import PyMongoError

    try:  # the errors' texts may hold the password
        client = MongoClient(url, serverSelectionTimeoutMS=TIMEOUT_MS)
    except (PyMongoError, ValueError) as error:
        raise Refused(f"This is no address of a MongoDB ({type(error).__name__}): mongodb://host:port/name.") from None
    try:
        with client:
            return _records(client.get_default_database("sacred"))
    except PyMongoError as error:
        raise Refused(f"The MongoDB does not answer ({type(error).__name__}): start it or load a folder.") from None


def _records(database):
    """The frames of those of Sacred's records that count."""
    from gridfs import GridFS

    files, best = GridFS(database), {}
    for record in database["runs"].find(OURS, {"captured_out": 0}).sort("_id"):
        settings, frame = _settings(record), _metrics(database["metrics"].find({"run_id": record["_id"]}))
        key = json.dumps(comparable(settings), sort_keys=True, default=str)
        if len(frame) and (key not in best or len(frame) >= len(best[key][0])):
            best[key] = frame, settings, record["artifacts"]
    return [
        _record(frame, settings, {a["name"]: files.get(a["file_id"]).read() for a in artifacts})
        for frame, settings, artifacts in best.values()
    ]


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
    arrays = {key: _array(artifacts[key], f"The artifact {key}") for key in {name, "budget.npy"} & artifacts.keys()}
    budget, curve = arrays.get("budget.npy"), arrays.get(name)
    if budget is not None:
        agree = np.array_equal(budget[:, 0], frame["images"])
        if not agree or not (curve is None or np.array_equal(curve, frame.get("test.dice"))):
            raise Refused(f"In MongoDB the metrics of {name} are not what the array says: load the results folder.")
        frame["pixels"] = budget[:, 1]
    return frame.assign(cycle=range(len(frame)), **{key: settings[key] for key in SETTINGS})


def _curve_of(folder):
    return folder.with_name(f"{folder.name}.npy")


def _array(data, name):
    try:
        array = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise Refused(f"{name} is damaged ({error}): restore it, or run the same command again.") from error
    if not isinstance(array, np.ndarray) or array.ndim == 0 or array.dtype.kind not in "iuf":
        raise Refused(f"{name} is damaged (no array of numbers): restore it, or run the same command again.")
    return array
