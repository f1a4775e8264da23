"""Where Sacred's record of a run goes: files in `runs_dir`, and MongoDB when `mongo_url` names one."""

from pathlib import Path

from sacred.observers import FileStorageObserver

from experiments.ledger import finished

TIMEOUT_MS = 3000  # a lost server may not hold up a run


def observers(config, url, command):
    """The observers of a run with this configuration; a run that is already finished is not recorded twice."""
    label, cycles = ("full", 0) if command == "full" else (config["label"], config["cycles"])
    if finished(Path(config["results_dir"]) / f"{label}_{config['run']}", cycles):
        return []
    made = [FileStorageObserver(config["runs_dir"])] if config["runs_dir"] else []
    return made + (mongo(url, config["results_dir"]) if url else [])


def mongo(url, failure_dir):
    """A MongoObserver for `url` (database `sacred` unless it names one); [] with one line if nobody answers."""
    from pymongo import MongoClient
    from pymongo.errors import PyMongoError
    from pymongo.uri_parser import parse_uri
    from sacred.observers import MongoObserver

    try:
        if "://" not in url:
            url = f"mongodb://{url}"
        database = parse_uri(url)["database"] or "sacred"
        with MongoClient(url, serverSelectionTimeoutMS=TIMEOUT_MS) as client:
            client.admin.command("ping")
    except (PyMongoError, ValueError) as error:
        reason = type(error).__name__
        print(f"MongoDB does not answer ({reason}): the run is recorded in files alone.", flush=True)
        return []
    folder = Path(failure_dir) / "mongo_failures"
    return [MongoObserver(url=url, db_name=database, failure_dir=str(folder), serverSelectionTimeoutMS=TIMEOUT_MS)]
