"""Learning loss: the loss predicted by a module that is trained beside the model to rank images by their loss.

Yoo & Kweon 2019, https://arxiv.org/abs/1905.03677. What is learned is a ranking, for the losses themselves shrink as
training goes on. AL-MGS has `margin=0.0`, trains jointly for 20 epochs, and steps the module twice a batch, once by the
model's optimizer; here its own SGD alone owns it, and `joint` is a share of the epochs.
"""

import torch
from sacred import Ingredient

from experiments.acquisition.pool import pooled
from experiments.components.settings import Range

ingredient = Ingredient("learning_loss")
NEEDS = ("features",)
JOINT = True


@ingredient.config
def settings():
    layer = "encoder"  # of the model's LAYERS: the module looks at all its maps
    margin = 1.0  # how much higher the prediction for the worse of two crops must be
    weight = 1.0  # of the ranking loss in the objective
    joint = 0.6  # share of the epochs in which it trains the model as well, the paper's 120 of 200
    lr = 0.001  # of the module's SGD, AL-MGS's for segmentation; the paper's for CIFAR-10 is 0.1


ALLOWED = {
    "margin": Range(least=0),
    "weight": Range(least=0),
    "joint": Range(least=0, most=1),
    "lr": Range(least=0),
}


@ingredient.capture
def prepare(channels, widths, rng, lr):
    """For each map a layer of 128 units, and one for all of them; momentum and weight decay are the paper's."""
    scales = torch.nn.ModuleList(torch.nn.Linear(width, 128) for width in widths)
    learner = torch.nn.ModuleDict({"scales": scales, "last": torch.nn.Linear(128 * len(widths), 1)})
    learner.optimizer = torch.optim.SGD(learner.parameters(), lr, momentum=0.9, weight_decay=5e-4)
    return learner


@ingredient.capture
def loss(learner, maps, losses, done, margin, weight, joint):
    """The weighted ranking loss of the crops; from the share `joint` on the model does not feel it."""
    features = torch.cat([pooled(m, 1, "mean") for m in maps], 1)
    return weight * ranking_loss(predicted(learner, features if done < joint else features.detach()), losses, margin)


@ingredient.capture
def step(learner):
    learner.optimizer.step()
    learner.optimizer.zero_grad()


@ingredient.capture
def score(pool, rng, layer):
    """(N,) predicted loss of the whole images."""
    with torch.inference_mode():
        return predicted(pool.learner, pool.features(layer, own=True)).cpu().numpy()


def predicted(learner, features):
    """(B,) from the maps' means (B, all channels)."""
    parts = features.split([scale.in_features for scale in learner["scales"]], dim=1)
    hidden = [scale(part).relu() for scale, part in zip(learner["scales"], parts, strict=True)]
    return learner["last"](torch.cat(hidden, 1))[:, 0]


def ranking_loss(predictions, losses, margin):
    """Mean over the pairs (first, last), (second, last but one) ... of max(0, margin - s * difference of predictions).

    s is 1 where the first of the two has the larger loss, otherwise -1. An odd batch leaves its last one out, a lone
    one has loss 0.
    """
    half = len(losses) // 2
    first, last = slice(half), slice(half, 2 * half)
    sign = torch.where(losses[first] > losses[last].flip(0), 1.0, -1.0)
    hinge = (margin - sign * (predictions[first] - predictions[last].flip(0))).clamp_min(0)
    return hinge.sum() / max(half, 1)
