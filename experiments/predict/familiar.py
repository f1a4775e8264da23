"""How far an image is from all that the model learnt from, in the model's own features.

Distance to the nearest labelled image in the channel means of the bottleneck, against the largest such distance
between labelled images: nearest-neighbour novelty, Sun et al. 2022, https://arxiv.org/abs/2204.06507.
"""

import numpy as np
import torch

from experiments.acquisition.prediction import floats
from experiments.errors import Refused
from experiments.network.layers import maps
from experiments.predict.opened import splits_of

LEAST = 3  # labelled images, to know a usual distance between them


class Reached(Exception):
    """The layer that was asked for has put something out; what comes after it need not be computed."""


def features(model, path, images):
    """(B, D) float32 channel means of a layer's maps for images (B, H, W, channels) uint8, on the CPU."""

    def stop(module, inputs, output):
        raise Reached(output)

    hook = model.get_submodule(path).register_forward_hook(stop)
    try:
        with torch.inference_mode():
            model(floats(images))
    except Reached as reached:
        return torch.cat([map.float().mean((2, 3)) for map in maps(reached.args[0])], 1).cpu().numpy()
    finally:
        hook.remove()
    raise Refused(f"The model's layer {path} took no part in its forward pass.")


class Familiar:
    """The labelled images of an Opened run by their features. Raises Refused where they cannot be had."""

    def __init__(self, run, root=""):
        if "bottleneck" not in run.layers:
            raise Refused("the model's file names no bottleneck")
        self.model, self.path = run.model, run.layers["bottleneck"]
        split = splits_of(run, root).train
        position = {id: i for i, id in enumerate(split.ids)}
        self.ids = run.labelled()
        missing = [id for id in self.ids if id not in position]
        if missing or len(self.ids) < LEAST:
            raise Refused(f"{missing[0]} is not there" if missing else f"it learnt from {len(self.ids)} images only")
        images = (torch.from_numpy(split[position[id]])[None].to(run.device) for id in self.ids)
        self.known = np.concatenate([features(self.model, self.path, image) for image in images])
        apart = np.linalg.norm(self.known[:, None] - self.known, axis=-1)
        np.fill_diagonal(apart, np.inf)
        self.usual = apart.min(1).max()

    def features(self, images):
        """(B, D) of images (B, H, W, channels) uint8."""
        return features(self.model, self.path, images)

    def judge(self, found):
        """[(id of the nearest labelled image, its distance over the largest usual one)] for features (B, D)."""
        apart = np.linalg.norm(found[:, None] - self.known, axis=-1)
        return [(self.ids[i], float(row[i] / self.usual)) for row, i in zip(apart, apart.argmin(1), strict=True)]
