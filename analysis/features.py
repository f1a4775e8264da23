"""What a run's last model sees in its training images, and how they look: two vectors an image."""

import warnings
from inspect import signature

import numpy as np

from analysis.ledgers import events_of
from experiments.components import ROOT, defaults, load
from experiments.errors import Refused
from experiments.network import checkpoint
from experiments.network.layers import layer_outputs
from experiments.network.ready import make_ready
from experiments.randomness import generator
from experiments.records import ledger
from experiments.training import trainer

SIDE = 16  # of a thumbnail


def features(folder, root="", device="auto"):
    """(ids, features (N, D), thumbnails (N, 256), both float32) of all training images of the run in `folder`.

    Features are the channel means of the last checkpoint's bottleneck, in one pass without dropout, whatever the
    run's own number of passes. Thumbnails are 16 x 16 mean grey values, which no model has seen. `root` is where the
    dataset lies, empty for the dataset's default, relative to the project. Raises Refused when the run, its weights
    or its images are missing, or are not those that the ledger names.
    """
    import torch

    from experiments.acquisition.prediction import floats

    model, layer, images = reopen(folder, root, device)
    means, order, small = [], [], []
    with torch.inference_mode(), layer_outputs(model, layer) as maps:
        for members, batch in images.batches(range(len(images)), size=4):
            model.eval()(floats(batch))
            means.append(torch.cat([made.mean((2, 3)) for made in maps()], 1).cpu())
            small.append(thumbnails(batch))
            order += members
    back = np.argsort(order)
    return images.ids, torch.cat(means)[back].numpy(), torch.cat(small)[back].numpy()


def thumbnails(images):
    """(B, SIDE * SIDE) float32 mean grey values of images (B, H, W, channels) uint8, on the CPU."""
    import torch

    return torch.nn.functional.adaptive_avg_pool2d(images.float().mean(-1)[:, None], SIDE).flatten(1).cpu()


def reopen(folder, root, device):
    """(model with the last checkpoint, the path of its bottleneck, Store of the training images)."""
    from experiments.store import Store

    events = events_of(folder)
    evaluated = [event for event in events if event["event"] == "evaluated"]
    if not evaluated:
        raise Refused(f"{folder} holds no trained model: run it first.")
    settings, last = events[0]["settings"], evaluated[-1]
    weights = ledger.Ledger(folder, settings, []).load_weights(last["cycle"], last["weights"])
    if weights is None:
        raise Refused(f"{folder} does not hold the weights of cycle {last['cycle']}: checkpoint=last keeps them.")

    data, model_file = load("dataset", settings["dataset"]), load("model", settings["model"])
    place = ROOT / (root or defaults(data.ingredient)["root"])
    rng = generator(settings["seed"], settings["dataset"], "split")
    older = {data.ingredient.path: getattr(data, "BEFORE", {}) | settings.get(data.ingredient.path, {})}
    splits = call(data.load, data.ingredient, settings | older, rng=rng, root=str(place)).described(data)
    device = trainer.prepare(device=device, threads=0, deterministic=False)
    images = Store(splits.train, device)
    if images.fingerprint != events[0]["data"][0]:
        raise Refused(f"The images in {place} are not those that {folder} learnt from: say where those are.")

    model = call(
        model_file.build, model_file.ingredient, settings, channels=splits.channels, classes=len(splits.classes)
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Using `tqdm.autonotebook")  # baal's, when imported into a notebook
        model, _ = make_ready(model, model_file.MEAN, model_file.STD, device)
    checkpoint.load(model, weights)
    return model, model_file.LAYERS["bottleneck"], images


def call(function, ingredient, settings, **given):
    """Call a component's captured function outside a run, with its settings as a ledger recorded them."""
    known = defaults(ingredient) | settings.get(ingredient.path, {}) | given
    return function(**{name: known[name] for name in signature(function).parameters if name in known})
