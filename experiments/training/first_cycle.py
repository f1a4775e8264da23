"""The first cycle of runs that begin alike, trained and tested once: what comes before the first query is the same.

Runs are alike where all is equal that their first weights and metrics depend on; the settings of the strategy, which
acts later, are not part of that, unless it trains too. Taking a cycle over changes no bit of a run.
"""

import json
from hashlib import sha256
from pathlib import Path

from experiments.errors import Refused
from experiments.network import checkpoint
from experiments.records.compare import recorded
from experiments.records.files import hold, release, write
from experiments.records.provenance import hash_sources
from experiments.store.reading import MAX_TEXT, MAX_WEIGHTS, read_text, regular
from experiments.training import weights

LATER = {"heuristic", "batch", "label", "run", "query", "mc_iters", "pool_size", "study", "audit", "repeat"}
EARLY = ("dataset", "model", "initial")  # components that act before the first query


def key_of(state, masks):
    """sha256 of all that cycle 0 of this run depends on, its `masks` too; "" where it is shared with no other."""
    heuristic = state.components["heuristic"]
    if not state.config["shared_dir"] or weights.learns(state) or getattr(heuristic, "JOINT", False):
        return ""
    early = [state.components[entry] for entry in EARLY]
    kept = {module.ingredient.path for module in early}
    later = {module.ingredient.path for module in state.components.values()} - kept
    header = {name: value for name, value in state.ledger.header.items() if name != "settings"}
    header["made"] = header["made"] | {"sources": hash_sources(early)}
    said = {
        "settings": {k: v for k, v in recorded(state.config).items() if k not in LATER | later},
        "header": header,
        "labelled": [query["id"] for query in state.ledger.find("start")["queries"]],
        "held_out": [state.train.ids[index] for index in weights.held_out(state)],
        "masks": masks,
        "origin": state.origin,
    }
    return sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def take(state, key):
    """(values of the event, weights) that another run left under this key, the model holding them; None without any."""
    if not key:
        return None
    place = Path(state.config["shared_dir"], key)
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        values = json.loads(read_text(place.with_suffix(".json")))
        digest = values.pop("weights")
        saved = load_file(regular(place.with_suffix(".safetensors"), MAX_WEIGHTS))
        if checkpoint.hash_weights(saved) != digest:
            return None
    except (OSError, ValueError, LookupError, AttributeError, SafetensorError):
        return None  # it is trained, then
    checkpoint.load(state.model, checkpoint.unpack(saved)[0])
    state.trained_cycle, state.learner = 0, None
    return values, saved


def leave(state, key, values, saved, digest):
    """Keep a first cycle for runs that begin alike; where that is refused, nothing is kept."""
    from safetensors.torch import save

    text = json.dumps(values | {"weights": digest}, sort_keys=True)
    if not key or len(text) > MAX_TEXT:
        return
    place = Path(state.config["shared_dir"], key)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        held = hold(place.with_suffix(".lock"))
        if held:  # else another run is writing the same
            tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in saved.items()}
            write(place.with_suffix(".safetensors"), save(tensors))
            write(place.with_suffix(".json"), text.encode())
            release(place.with_suffix(".lock"), held)
    except (OSError, Refused) as error:
        state.progress.line(f"The first cycle is not shared ({error}).")
