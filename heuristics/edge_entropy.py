"""Edge entropy: predictive entropy at strong edges of the predicted foreground, 0 elsewhere.

As the EdgeEntropy of AL-MGS (https://github.com/lkf-Labs/AL-MGS): the Sobel magnitude of the foreground's probability,
scaled to 0 ... 1, marks an edge where it is over a threshold. The published code scales over a batch, so that a score
depends on its company; here it is over the image. With more than two classes it is all but the background, class 0.
"""

import torch
from sacred import Ingredient

from experiments.acquisition.prediction import entropy
from experiments.components.settings import Range

ingredient = Ingredient("edge_entropy")
NEEDS = ("background",)
UNIT = "nats"


@ingredient.config
def settings():
    threshold = 0.5  # of the scaled magnitude, 0 to 1
    reduction = "mean"  # how the map becomes one score: mean, max, q90, foreground ...


ALLOWED = {"threshold": Range(least=0, most=1)}


@ingredient.capture
def uncertainty(prediction, threshold):
    """(B, H, W) nats, 0 to log C."""
    magnitude = sobel(1 - prediction.mean[:, 0])
    low, high = (edge.view(-1, 1, 1) for edge in magnitude.flatten(1).aminmax(dim=1))
    edges = (magnitude - low) > threshold * (high - low)
    return entropy(prediction.mean) * edges


def sobel(x):
    """Magnitude of Sobel's gradient of (B, H, W), borders repeated."""
    kernel = x.new_tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    padded = torch.nn.functional.pad(x[:, None], (1, 1, 1, 1), mode="replicate")
    gradients = torch.nn.functional.conv2d(padded, torch.stack([kernel, kernel.T])[:, None])
    return gradients.square().sum(1).sqrt()
