"""MongoDB as a projection of the results folder: made from it at any time, again and again, with the same outcome.

A run's document carries its record's uid and the hash of what it was made from: whatever was interrupted, or arrived
without an acknowledgement, is found instead of made twice. The ids of metrics and files are hashes as well.
"""

import hashlib
import json
import mimetypes
from contextlib import contextmanager
from datetime import datetime

import gridfs
import pymongo
from bson import ObjectId
from pymongo.errors import ConfigurationError, DuplicateKeyError, OperationFailure, PyMongoError

from experiments.components import ROOT
from experiments.errors import Refused
from experiments.records.sacred_record import mark_interrupted, measured, records

ANSWER = 4  # seconds in which a server says that it is there
CHUNK = 2**23  # bytes; Omniboard shows no more of a picture than its first chunk
LOGIN = (13, 18)  # the server's codes for Unauthorized and AuthenticationFailed
TIMES = ("start_time", "heartbeat", "stop_time")


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


def outdated(database, folder):
    """The records in a results or a run's folder that the database does not hold as they are, newest first."""
    paths = records(folder)[::-1]
    for path in paths:
        mark_interrupted(path)
    runs = database.runs.find({"askmask.uid": {"$in": [path.stem for path in paths]}}, {"askmask": 1})
    held = {run["askmask"]["uid"]: run["askmask"]["digest"] for run in runs}
    return [path for path in paths if held.get(path.stem) != digest(path.read_bytes())]


def upsert_run(database, path):
    """Make the database hold the run of this record with its metrics and files; returns the run's number there."""
    data, uid = path.read_bytes(), path.stem
    run = json.loads(data)
    times, artifacts, sources = run.pop("measured"), run.pop("artifacts"), run["experiment"].pop("sources")
    run |= {key: datetime.fromisoformat(run[key]) for key in TIMES if run.get(key)}
    run["config"]["tags"] = [tag.strip() for tag in run["config"]["tags"].split(",") if tag.strip()]
    number = find_or_insert(database, uid, run)
    metrics = documents(number, uid, [e for e in measured(path) if str(e["images"]) in times], times)
    if metrics:
        database.metrics.bulk_write([pymongo.ReplaceOne({"_id": m["_id"]}, m, upsert=True) for m in metrics])
    run["info"]["metrics"] = [{"name": metric["name"], "id": str(metric["_id"])} for metric in metrics]
    made = [(a["name"], contents(path.parents[2], a["path"])) for a in artifacts]
    ids = upload(database, [(f"artifact://runs/{uid}/{name}", data) for name, data in made])
    run["artifacts"] = [{"name": name, "file_id": id} for (name, _), id in zip(made, ids, strict=True) if id]
    texts = [(name, contents(ROOT, name, md5)) for name, md5 in sources]
    ids = upload(database, texts)
    run["experiment"]["sources"] = [[name, id] for (name, _), id in zip(texts, ids, strict=True) if id]
    database.runs.update_one({"_id": number}, {"$set": {**run, "askmask": {"uid": uid, "digest": digest(data)}}})
    return number


def find_or_insert(database, uid, run):
    """The number of the run with this uid; where there is none it becomes the next one, as Sacred counts."""
    database.runs.create_index("askmask.uid", unique=True, sparse=True)
    while True:
        known = database.runs.find_one({"askmask.uid": uid}, {"_id": 1})
        if known:
            return known["_id"]
        last = database.runs.find_one({"_id": {"$type": "number"}}, {"_id": 1}, sort=[("_id", -1)])
        new = {"_id": last["_id"] + 1 if last else 1, "askmask": {"uid": uid, "digest": ""}, "artifacts": []}
        try:
            database.runs.insert_one({**run, **new})
        except DuplicateKeyError:
            continue  # another run took the number, or this one arrived without an answer


def documents(number, uid, evaluated, times):
    """What the collection `metrics` shall hold of a run: each metric of these ledger events by labelled images."""
    return [
        {
            "_id": identity(uid, name),
            "run_id": number,
            "name": name,
            "steps": [e["images"] for e in evaluated if name in e["metrics"]],
            "values": [e["metrics"][name] for e in evaluated if name in e["metrics"]],
            "timestamps": [datetime.fromisoformat(times[str(e["images"])]) for e in evaluated if name in e["metrics"]],
        }
        for name in dict.fromkeys(name for e in evaluated for name in e["metrics"])
    ]


def upload(database, files):
    """GridFS ids of these (name, content) pairs, nothing for no content; what is stored already stays as it is."""
    ids = [data and identity(name, digest(data)) for name, data in files]
    stored = {file["_id"] for file in database.fs.files.find({"_id": {"$in": ids}}, {"_id": 1})}
    store = gridfs.GridFS(database)
    for id, (name, data) in zip(ids, files, strict=True):
        if id and id not in stored:
            more = {"filename": name, "metadata": {"contentType": mimetypes.guess_type(name)[0]}, "chunk_size": CHUNK}
            try:
                store.put(data, _id=id, **more)
            except gridfs.errors.FileExists:  # chunks of an upload that was cut off
                store.delete(id)
                store.put(data, _id=id, **more)
    return ids


def contents(root, relative, md5=None):
    """The bytes of a file, or None: a record may not reach out of its folder, and a source may have changed."""
    path = (root / relative).resolve()
    if not path.is_file() or not path.is_relative_to(root.resolve()):
        return None
    data = path.read_bytes()
    return data if md5 in (None, hashlib.md5(data).hexdigest()) else None


def identity(*words):
    return ObjectId(hashlib.sha256("\0".join(words).encode()).digest()[:12])


def digest(data):
    return hashlib.sha256(data).hexdigest()


def reason(error):
    """What a user is told of a failure; the driver's own words may quote an address with its password."""
    if isinstance(error, Refused):
        return str(error).rstrip(".")
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
