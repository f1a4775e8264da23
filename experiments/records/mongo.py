"""MongoDB as a projection of the results folder: made from it at any time, again and again, with the same outcome.

A run's document carries its record's uid and the hash of what it was made from: whatever was interrupted, or arrived
without an acknowledgement, is found instead of made twice. The ids of metrics and files are hashes as well, so that
two processes which store the same at once write the same. The collection `askmask.stored` keeps the uid of every run
that was ever there: one without its document was deleted by a person.
"""

import hashlib
import mimetypes
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import pymongo
from bson import Binary, ObjectId
from pymongo import UpdateOne
from pymongo.errors import BulkWriteError, ConfigurationError, DuplicateKeyError, OperationFailure, PyMongoError

from experiments.components import ROOT
from experiments.errors import Refused
from experiments.errors.process import refusal
from experiments.records.ledger import read
from experiments.records.stored_records import mark_if_killed, measured, read_record, records

ANSWER = 4  # seconds in which a server says that it is there
CHUNK = 2**23  # bytes; Omniboard shows no more of a picture than its first chunk
LARGEST_FILE = 2**28  # bytes of an artifact
LOGIN = (13, 18)  # the server's codes for Unauthorized and AuthenticationFailed
TIMES = ("start_time", "heartbeat", "stop_time")
KEPT = (*TIMES, "captured_out", "command", "config", "experiment", "fail_trace", "format", "host", "info", "meta")
KEPT += ("resources", "result", "status")  # of a record; `artifacts` and `measured` become documents of their own


class Comparison(NamedTuple):
    """How a database stands to the records in a folder."""

    outdated: list  # paths of records that it does not hold as they are, newest first
    damaged: dict  # {path: why a record cannot be used}
    going_on: list  # records of runs that have not ended
    deleted: list  # records of runs that a person has deleted there
    held: list  # all others


@contextmanager
def opened(url, seconds):
    """The database that `url` names, `sacred` if it names none; what is done with it may take `seconds` in all."""
    try:
        client = pymongo.MongoClient(url if "://" in url else f"mongodb://{url}")
    except (ConfigurationError, ValueError) as error:  # whose message may quote the password
        raise Refused(f"mongo_url is no address of a MongoDB ({type(error).__name__})") from None
    with pymongo.timeout(seconds), client:
        with pymongo.timeout(ANSWER):
            client.admin.command("ping")
        yield client.get_default_database("sacred")


def compare(database, folder, restore=False, thorough=True):
    """The Comparison with the records in a results or a run's folder, of which those of killed runs are marked.

    `restore` takes what was deleted as outdated; `thorough` looks for metrics and files that got lost, too.
    """
    found = Comparison([], {}, [], [], [])
    usable = {}
    for path in records(folder)[::-1]:
        try:
            if read_record(path)["status"] == "RUNNING":
                mark_if_killed(path)
            usable[path] = read_record(path)["status"], digest(path.read_bytes())
        except (OSError, Refused) as error:
            found.damaged[path] = reason(error)
    fields = {"askmask": 1, "artifacts": 1, "experiment.sources": 1, "info.metrics": 1}
    runs = list(database.runs.find({"askmask.uid": {"$in": [path.stem for path in usable]}}, fields))
    held, lost_some = {run["askmask"]["uid"]: run["askmask"]["digest"] for run in runs}, set()
    if thorough:
        lost_some = incomplete(database, runs)
        note_stored(database, list(held))
    stored = {entry["_id"] for entry in database["askmask.stored"].find({"_id": {"$in": [p.stem for p in usable]}})}
    for path, (status, made_from) in usable.items():
        uid = path.stem
        if status == "RUNNING":
            found.going_on.append(path)
        elif uid in stored - held.keys() and not restore:
            found.deleted.append(path)
        elif held.get(uid) == made_from and uid not in lost_some:
            found.held.append(path)
        else:
            found.outdated.append(path)
    return found


def incomplete(database, runs):
    """The uids of those run documents that name metrics or files of which something is missing."""
    metrics, files = {}, {}
    for run in runs:
        uid, info, experiment = run["askmask"]["uid"], run.get("info", {}), run.get("experiment", {})
        metrics[uid] = {ObjectId(metric["id"]) for metric in info.get("metrics", ())}
        files[uid] = {artifact["file_id"] for artifact in run.get("artifacts", ())}
        files[uid] |= {id for _, id in experiment.get("sources", ())}
    wanted = list(set().union(*metrics.values()))
    there = {metric["_id"] for metric in database.metrics.find({"_id": {"$in": wanted}}, {"_id": 1})}
    there |= whole_files(database, list(set().union(*files.values())))
    return {uid for uid in metrics if not metrics[uid] | files[uid] <= there}


def upsert_run(database, path, restore=False):
    """Make the database hold the run of this record with its metrics and files: the run's number there.

    None if it was deleted there, unless `restore`. Raises Refused if the record cannot be used.
    """
    path = path.absolute()
    record, made_from, uid = read_record(path), digest(path.read_bytes()), path.stem
    try:
        run = {key: record[key] for key in KEPT if key in record}
        times, sources = record["measured"], run["experiment"].pop("sources")
        run |= {key: datetime.fromisoformat(run[key]) for key in TIMES if run.get(key)}
        run["config"]["tags"] = [tag.strip() for tag in run["config"]["tags"].split(",") if tag.strip()]
        evaluated = [e for e in measured(path) if str(e["images"]) in times]
        judge = read(path.parents[1])[0].get("headline", "test.dice") if evaluated else ""
        metrics, best = documents(uid, evaluated, times), headline(evaluated, judge)
        made = [(a["name"], artifact(path, a["path"])) for a in record["artifacts"] if plain(a["name"])]
        texts = [(name, contents(ROOT, [ROOT], name, md5)) for name, md5 in sources]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise Refused(f"{path} is no record of a run ({type(error).__name__}: {error}), or its ledger none") from error
    number = find_or_insert(database, uid, run, restore)
    if number is None:
        return None
    changes = [UpdateOne({"_id": m["_id"]}, {"$set": m | {"run_id": number}}, upsert=True) for m in metrics]
    write_all(database.metrics, changes)
    run["info"] |= best | {"metrics": [{"name": m["name"], "id": str(m["_id"])} for m in metrics]}
    ids = upload(database, [(f"artifact://runs/{uid}/{name}", data) for name, data in made])
    run["artifacts"] = [{"name": name, "file_id": id} for (name, _), id in zip(made, ids, strict=True) if id]
    ids = upload(database, texts)
    run["experiment"]["sources"] = [[name, id] for (name, _), id in zip(texts, ids, strict=True) if id]
    database.runs.update_one({"_id": number}, {"$set": {**run, "askmask": {"uid": uid, "digest": made_from}}})
    return number


def find_or_insert(database, uid, run, restore):
    """The number of the run with this uid; where there is none it becomes the next one, as Sacred counts.

    None where it was deleted, unless `restore`.
    """
    database.runs.create_index("askmask.uid", unique=True, sparse=True)
    while True:
        known = database.runs.find_one({"askmask.uid": uid}, {"_id": 1})
        if known:
            break
        if not restore and database["askmask.stored"].find_one({"_id": uid}):
            return None
        last = database.runs.find_one({"_id": {"$type": "number"}}, {"_id": 1}, sort=[("_id", -1)])
        new = {"_id": last["_id"] + 1 if last else 1, "askmask": {"uid": uid, "digest": ""}, "artifacts": []}
        try:
            database.runs.insert_one({**run, **new})
        except DuplicateKeyError:
            continue  # another run took the number, or this one arrived without an answer
    note_stored(database, [uid])
    return known["_id"]


def note_stored(database, uids):
    """Remember that these runs have been in the database."""
    changes = [UpdateOne({"_id": uid}, {"$setOnInsert": {"known": True}}, upsert=True) for uid in uids]
    write_all(database["askmask.stored"], changes)


def documents(uid, evaluated, times):
    """What the collection `metrics` shall hold of a run: each metric of these ledger events by labelled images."""
    return [
        {
            "_id": identity(uid, name),
            "name": name,
            "steps": [e["images"] for e in evaluated if name in e["metrics"]],
            "values": [e["metrics"][name] for e in evaluated if name in e["metrics"]],
            "timestamps": [datetime.fromisoformat(times[str(e["images"])]) for e in evaluated if name in e["metrics"]],
        }
        for name in dict.fromkeys(name for e in evaluated for name in e["metrics"])
    ]


def headline(evaluated, name):
    """The best and the last value of the metric `name`, to the three digits that Omniboard's table has room for."""
    values = [e["metrics"][name] for e in evaluated if name in e["metrics"]]
    return {"headline": name, "best": round(max(values), 3), "last": round(values[-1], 3)} if values else {}


def upload(database, files):
    """GridFS ids of these (name, content) pairs, None for no content; what is stored already stays as it is."""
    ids = [None if data is None else identity(name, digest(data)) for name, data in files]
    missing = {id: file for id, file in zip(ids, files, strict=True) if id}
    for id in whole_files(database, list(missing)):
        missing.pop(id)
    chunks, entries = [], []
    for id, (name, data) in missing.items():
        for n in range(pieces(len(data))):
            part = Binary(data[n * CHUNK : (n + 1) * CHUNK])
            chunks.append(UpdateOne({"files_id": id, "n": n}, {"$set": {"data": part}}, upsert=True))
        entry = {"filename": name, "length": len(data), "chunkSize": CHUNK, "uploadDate": datetime.now(UTC)}
        entry["metadata"] = {"contentType": mimetypes.guess_type(name)[0]}
        entries.append(UpdateOne({"_id": id}, {"$set": entry}, upsert=True))
    if missing:
        database["fs.chunks"].create_index([("files_id", 1), ("n", 1)], unique=True)
        database["fs.files"].create_index([("filename", 1), ("uploadDate", 1)])
    write_all(database["fs.chunks"], chunks)
    write_all(database["fs.files"], entries)
    return ids


def whole_files(database, ids):
    """The set of those of these GridFS ids of which the file's entry and every chunk are there."""
    lengths = {file["_id"]: file["length"] for file in database["fs.files"].find({"_id": {"$in": ids}}, {"length": 1})}
    counting = [{"$match": {"files_id": {"$in": ids}}}, {"$group": {"_id": "$files_id", "n": {"$sum": 1}}}]
    counted = {group["_id"]: group["n"] for group in database["fs.chunks"].aggregate(counting)}
    return {id for id, length in lengths.items() if counted.get(id) == pieces(length)}


def pieces(length):
    """In how many chunks a file lies; an empty one has one as well, for Omniboard ends where there is none."""
    return max(1, -(-length // CHUNK))


def write_all(collection, changes):
    """Upserts that may meet those of another process: who comes second finds the same content there."""
    try:
        if changes:
            collection.bulk_write(changes, ordered=False)
    except BulkWriteError as error:
        if {failed["code"] for failed in error.details["writeErrors"]} != {11000}:
            raise
        collection.bulk_write(changes, ordered=False)


def plain(name):
    """Whether an artifact's name is that of a file, on every system, and not a way to somewhere else."""
    return 0 < len(name) < 256 and not set(name) & set("/\\\0") and name.strip(". ") != ""


def artifact(path, relative):
    """The bytes of a file of the run whose record this is, or None."""
    return contents(path.parents[2], [path.parents[2], path.parents[1]], relative)


def contents(root, within, relative, md5=None):
    """The bytes of a file, or None where it lies in none of the folders `within`, is large, or has changed."""
    path = Path(root, relative)
    try:
        inside = any(path.resolve().is_relative_to(folder.resolve()) for folder in within)
        if not inside or not path.is_file() or path.stat().st_size > LARGEST_FILE:
            return None
        data = path.read_bytes()
    except (OSError, ValueError, RuntimeError):  # links in a circle; NUL in a name
        return None
    return data if md5 in (None, hashlib.md5(data).hexdigest()) else None


def identity(*words):
    return ObjectId(hashlib.sha256("\0".join(words).encode(errors="surrogatepass")).digest()[:12])


def digest(data):
    return hashlib.sha256(data).hexdigest()


def reason(error):
    """What a user is told of a failure; the driver's own words may quote an address with its password."""
    known = refusal(error)
    if known:
        return str(known).rstrip(".")
    if isinstance(error, OperationFailure) and error.code in LOGIN:
        says = "refuses the login"
    elif lost(error):
        says = "does not answer"
    else:
        says = "cannot hold a record"
    return f"MongoDB {says} ({type(error).__name__})"


def lost(error):
    """Whether it was the connection that failed, not what was sent over it."""
    return isinstance(error, pymongo.errors.ConnectionFailure) or (isinstance(error, PyMongoError) and error.timeout)
