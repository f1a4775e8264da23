"""Networks of transformers from a local folder or a repository of the hub: safetensors alone, no code, one line if not.

Settings called `weights` name either. Nothing is fetched for a folder.
"""

from hashlib import file_digest
from pathlib import Path

from experiments.errors import Refused
from experiments.store.reading import MAX_WEIGHTS, regular

FIX = "name a folder with config.json and model.safetensors, or a repository of the hub"


def require(model, weights):
    """Raise Refused without transformers, or if `weights` name a folder that holds no model."""
    try:
        import transformers
    except ImportError as error:
        raise Refused(f"model={model} needs transformers ({error}): pip install -r requirements-hf.txt") from error
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if weights and Path(weights).is_dir() and not Path(weights, "config.json").is_file():
        raise Refused(f"{model}.weights={weights} has no config.json: {FIX}.")


def file_of(weights):
    """The path of the weights, fetched from the hub unless `weights` is a folder; "" if that has a config alone."""
    if Path(weights).is_dir():
        file = Path(weights, "model.safetensors")
        return regular(file, MAX_WEIGHTS) if file.is_file() else ""
    from transformers.utils import cached_file

    return cached_file(weights, "model.safetensors")


def drawn(weights):
    """Whether these settings bring no weights."""
    return not weights or Path(weights).is_dir() and not Path(weights, "model.safetensors").is_file()


def loaded(model, kind, weights, **more):
    """(network, what transformers tell of its loading, {file: sha256}); raises Refused for what cannot be read.

    Tensors of other shapes than the network's are drawn, as are missing ones.
    """
    from safetensors import SafetensorError

    try:
        file = file_of(weights)
        with open(file, "rb") as opened:
            digest = file_digest(opened, "sha256").hexdigest()
        more |= {"ignore_mismatched_sizes": True, "output_loading_info": True, "use_safetensors": True}
        net, told = kind.from_pretrained(weights, **more)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise unreadable(model, weights, error) from error
    return net.float(), told, {f"{Path(weights).name}/model.safetensors": digest}


def unreadable(model, weights, error):
    return Refused(f"{model}.weights={weights} cannot be read ({' '.join(str(error).split())[:160]}): {FIX}.")


def refuse_unlike(model, weights, told, needed):
    """Raise Refused with the first three tensors, of names that begin with `needed`, that the weights lack."""
    unlike = [f"{key} is {tuple(a)}, not {tuple(b)}" for key, a, b in told["mismatched_keys"] if key.startswith(needed)]
    unlike += [f"{key} is missing" for key in told["missing_keys"] if key.startswith(needed)]
    if unlike:
        raise Refused(f"{model}.weights={weights} do not fit: {', '.join(sorted(unlike)[:3])}. Name others.")
