"""What a run's last model sees in its training images, and how they look: two vectors an image."""

import numpy as np

from experiments.components import ROOT, defaults, load
from experiments.errors import Refused
from experiments.network.layers import layer_outputs
from experiments.network.ready import members_of
from experiments.predict.opened import open_run, splits_of

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

    run = open_run(folder, device)
    data = load("dataset", run.settings["dataset"])
    place = ROOT / (root or defaults(data.ingredient)["root"])
    images = Store(splits_of(run, str(place)).train, run.device)
    if images.fingerprint != run.events[0]["data"][0]:
        raise Refused(f"The images in {place} are not those that {folder} learnt from: say where those are.")
    return members_of(run.model)[0], run.layers["bottleneck"], images
