"""Learned strategies: what a heuristic's file may add to the training of every cycle, all of it optional.

    prepare(channels, widths, rng) -> learner
        An nn.Module with optimizers of its own as plain attributes, made anew for every training and given to the
        query as `pool.learner`. `widths` are the channels of the maps that `loss` gets; torch's generator is seeded.
    loss(learner, maps, losses, done) -> scalar
        Added to the objective. `maps` are what the model's LAYERS[layer] put out, `layer` being one of the file's
        settings; `losses` (B,) are those of the crops; `done` is the share of the epochs that is over.
    step(learner) or step(learner, labelled, unlabelled)
        After each step of the model's optimizer. `labelled` are that step's crops (B, channels, h, w) in [0, 1],
        `unlabelled` as many of the pool, drawn and coloured alike; not called with them once the pool is empty.
    pseudo_labels(pool), a generator of (positions, masks (B, H, W) uint8 with IGNORE)
        Trained on in the next cycle only. It looks at what the query left of the pool, with the weights that asked.
        The file's setting `pseudo_crops` is how many crops of them an epoch has for each labelled one.
    JOINT = True
        Says that the strategy changes the model's weights in the very first cycle.

A checkpoint holds the learner beside the model, so that a resumed run asks what an uninterrupted one would have.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch

from experiments.components.randomness import generator
from experiments.network.layers import layer_outputs
from experiments.training import augment, operations


@dataclass
class Strategy:
    """A learned strategy in one cycle's training."""

    heuristic: Any  # its module
    learner: "torch.nn.Module"
    paths: list  # the modules of the model whose outputs `loss` gets
    unlabelled: Sequence[int]  # positions in the Store that it trains on
    place: tuple  # (seed, dataset, cycle)

    def trained(self, model):
        """What is put back together to the best epoch: a learner that saw the model's maps fits no other weights."""
        return torch.nn.ModuleList([model, self.learner]) if hasattr(self.heuristic, "loss") else model

    def loss(self, maps, losses, done):
        """What is added to the objective."""
        if not hasattr(self.heuristic, "loss"):
            return 0.0
        return self.heuristic.loss(learner=self.learner, maps=[m.float() for m in maps], losses=losses, done=done)

    def step(self, store, labelled, *when):
        """Let the learner learn from a step's crops; `when` (epoch, step) decides which of the pool's it sees."""
        step = getattr(self.heuristic, "step", None)
        if step and "unlabelled" not in signature(step).parameters:
            step(learner=self.learner)
        elif step and len(self.unlabelled):
            rng = generator(*self.place, "unlabelled", *when)
            crops = draw(store, self.unlabelled, rng, *labelled.shape[:1], *labelled.shape[2:])
            step(learner=self.learner, labelled=labelled, unlabelled=crops)


def draw(store, indices, rng, n, height, width):
    """n crops (n, channels, height, width) in [0, 1] of these images, as the labelled ones are drawn and coloured."""
    chosen = torch.from_numpy(rng.choice(indices, n)).to(store.device)
    drawn = augment.draw(n=n, rng=rng) | operations.draw(n=n, rng=rng)
    drawn = {name: values.to(store.device) for name, values in drawn.items()}
    images, masks = augment.crops(store, chosen, drawn, height, width)
    inside = augment.inside(store, chosen, drawn, height, width)
    return operations.apply(augment.colour(images, inside, drawn["factors"]), masks, inside, drawn)[0]


def prepare(heuristic, model, paths, channels, place, device):
    """A new learner on the device, the same for the same `place`; torch's own generator stays as it was."""
    rng = generator(*place, "learner")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(rng.integers(2**63)))
        return heuristic.prepare(channels=channels, widths=widths(model, paths, channels, device), rng=rng).to(device)


def widths(model, paths, channels, device):
    """The channels of what these modules of the model put out."""
    model.eval()
    with torch.inference_mode(), layer_outputs(model, paths) as maps:
        if paths:
            model(torch.zeros(1, channels, 64, 64, device=device))
        return [made.shape[1] for made in maps()]
