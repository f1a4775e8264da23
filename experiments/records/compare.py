"""Whether a run that goes on is the run that began: settings, images, masks, and what its numbers were made with."""

from hashlib import sha256

from experiments.errors import BadData, Refused
from experiments.records.chain import damaged

# settings that a ledger does not record, for they say where things lie and run, and how long a run shall be
FREE = {"results_dir", "runs_dir", "mongo_url", "tensorboard_dir", "tags", "device", "cycles", "checkpoint", "noted"}
FREE |= {"resume", "cache_dir", "shared_dir", "stop_at", "ray"}
# recorded, but not in the way of going on: what is computed at once changes the last digits of a score at most, and
# `threads` counts as what it makes of the machine at hand. trainer.compiled is not among them: training with it is
# training with other last digits, which is another run after some epochs
UNCOMPARED = {"study", "threads", "prediction.batch", "prediction.mc_chunk", "prediction.compiled", "evaluation.batch"}


def recorded(settings):
    """The settings that a ledger records, sections included."""
    kept = {key: value for key, value in settings.items() if key not in FREE}
    sections = {key: value for key, value in kept.items() if isinstance(value, dict)}
    return kept | {key: {k: v for k, v in own.items() if k != "root"} for key, own in sections.items()}


def comparable(settings):
    """The settings that decide the results: as recorded, without those that change speed only."""

    def kept(settings, prefix=""):
        return {
            key: kept(value, f"{key}.") if isinstance(value, dict) else value
            for key, value in settings.items()
            if prefix + key not in UNCOMPARED
        }

    return kept(recorded(settings))


def refuse_other_settings(folder, was, now, usual, anyway=False):
    """Raise Refused, naming the differences, if the settings of a ledger and of this run differ.

    A setting that the ledger does not know counts as its default in `usual`. One that this version does not know is
    refused too; with `anyway` it is left out, and the line returned says so.
    """
    was, now, usual = dict(flat(comparable(was))), dict(flat(comparable(now))), dict(flat(usual))
    changed = [key for key in was.keys() & now.keys() if was[key] != now[key]]
    changed += [key for key in now.keys() - was.keys() if key not in usual or usual[key] != now[key]]
    gone = sorted(was.keys() - now.keys())
    if changed:
        shown = shorten([f"{k} {was.get(k, usual.get(k))!r} -> {now[k]!r}" for k in sorted(changed)])
        raise Refused(
            f"{folder} holds a run of another configuration ({shown}): "
            "set label=... or results_dir=..., or repeat the old settings."
        )
    if not gone:
        return ""
    what = f"with settings that do not exist any more ({shorten([f'{key}={was[key]!r}' for key in gone])})"
    if not anyway:
        raise Refused(f"{folder} was made {what}: resume=anyway goes on without them, label=... starts anew.")
    return f"{folder} was made {what}: it goes on without them."


def refuse_other_images(folder, was, now):
    """Raise Refused if the fingerprints of the train, val and test images differ."""
    names = [name for name, a, b in zip(("train", "val", "test"), was, now, strict=False) if a != b]
    if names or len(was) != len(now):
        raise Refused(
            f"{folder} holds a run of another configuration (data: other {', '.join(names)} images): "
            "set label=... or results_dir=..., or put the old images back."
        )


def digest_masks(store, indices):
    """{sha256 over the masks of these images, each: 8 digits of each mask's own} as JSON values; they are opened."""
    digests = [store.mask_digests[index] for index in indices]
    return {"sha256": sha256("".join(digests).encode()).hexdigest(), "each": [digest[:8] for digest in digests]}


def refuse_other_masks(folder, store, indices, was):
    """Raise BadData, naming a file, if these opened masks are not those a ledger has as `was`, if any."""
    now = digest_masks(store, indices)
    if was and was != now:
        pairs = zip(was["each"], now["each"], strict=False)
        changed = [index for index, (then, here) in zip(indices, pairs, strict=False) if then != here]
        files = shorten([str(store.split.items[index].mask or store.ids[index]) for index in changed or indices])
        raise BadData(
            f"{files}: the mask is not the one that the run in {folder} used: put that one back, "
            "or set label=... for a run with the new one."
        )


def refuse_other_making(folder, events, made, anyway=False):
    """Raise Refused if `made` is not what the last lines were made with; with `anyway` the line returned says so."""
    was = next((event["made"] for event in reversed(events) if "made" in event), None)
    if was == made:
        return ""
    what = "by a version that did not record its versions, threads and sources"
    if was is not None:
        was, now = dict(flat(was)), dict(flat(made))
        differing = [key for key in sorted(was.keys() | now.keys()) if was.get(key) != now.get(key)]
        changes = [f"{key} {_short(was.get(key))} -> {_short(now.get(key))}" for key in differing]
        what = f"with other versions, sources or devices ({shorten(changes, most=8)})"
    if not anyway:
        raise Refused(f"{folder} was made {what}: resume=anyway goes on, and the ledger records it; or label=... anew.")
    return f"{folder} was made {what}: it goes on, and the ledger records that."


def refuse_other_origin(folder, began, now):
    """Raise Refused if frozen, pretrained or an encoder's weights are not those of the ledger's first line."""
    was, now = ({k: v for k, v in e.items() if k in ("frozen", "pretrained", "encoder")} for e in (began, now))
    was, now = dict(flat(was)), dict(flat(now))
    changed = [
        f"{k} {_short(was.get(k))} -> {_short(now.get(k))}" for k in sorted(was | now) if was.get(k) != now.get(k)
    ]
    if changed:
        raise Refused(
            f"{folder} began with other weights ({shorten(changed)}): put those back, or set label=... for a new run."
        )


def refuse_other_ids(path, events, ids):
    """Raise Refused, with the line's number, if a query names an image that is not there, or one for a second time.

    So for a repeat of one that was not asked for.
    """
    known, asked = set(ids), set()
    for number, event in enumerate(events, 1):
        for query in event.get("queries", []):
            if query["id"] not in known or query["id"] in asked:
                why = "is asked for twice" if query["id"] in asked else "is no training image"
                raise damaged(path, number, f"{query['id'][:80]!r} {why}")
            asked.add(query["id"])
        unasked = [id for id in event.get("repeats", []) if id not in asked]
        if unasked:
            raise damaged(path, number, f"{unasked[0][:80]!r} is asked for again and was not before")


def flat(settings, prefix=""):
    """(dotted name, value) of all settings, sections included."""
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def shorten(words, most=4):
    """The first of these words with commas between, and how many more there are."""
    more = f" and {len(words) - most} more" if len(words) > most else ""
    return ", ".join(words[:most]) + more


def _short(value):
    """A hash by its first digits, anything else whole."""
    return f"{value[:8]}" if isinstance(value, str) and len(value) == 64 else str(value)
