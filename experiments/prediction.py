"""Prediction: stochastic passes reduced to streaming moments on the device, and the Pool a heuristic sees.

MC dropout, Gal & Ghahramani 2016, https://arxiv.org/abs/1506.02142. No pass is stored and nothing of the pool's
predictions outlives its batch.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from sacred import Ingredient

from experiments.randomness import key

ingredient = Ingredient("prediction")


@ingredient.config
def settings():
    dropout = True  # False: one deterministic pass instead of mc_iters stochastic ones
    batch = 4  # images at once; changes speed and memory, never the masks or the picks


class Prediction(NamedTuple):
    """Moments over the passes of one batch of B equally large images, on the device."""

    ids: Sequence[str]
    mean: "torch.Tensor"  # (B, C, H, W) probabilities, C >= 2, sum 1
    second_moment: "torch.Tensor"  # (B, C, H, W) mean of squared probabilities
    votes: "torch.Tensor"  # (B, C, H, W) passes in which the class won
    expected_entropy: "torch.Tensor"  # (B, H, W) mean entropy of a pass, nats
    count: "torch.Tensor"  # (B, H, W) passes that saw the pixel
    valid: "torch.Tensor"  # (B, H, W) bool, False for pixels that no score may count
    mean_logits: "torch.Tensor | None" = None  # (B, C, H, W), only for a heuristic whose NEEDS names it
    last: "torch.Tensor | None" = None  # (B, C, H, W) probabilities of the last pass, only if NEEDS names it


def predict(model, images, ids, keys=None, needs=()):
    """Reduce the passes over images (B, H, W, channels) uint8 to a Prediction.

    `keys` (K, B) int64 makes K stochastic passes; None makes a single deterministic one. A model with one
    logit is read as foreground against background.
    """
    x = images.permute(0, 3, 1, 2).float().div_(255)
    rounds = [None] if keys is None else keys.to(images.device)
    mean = second = votes = entropy = logit_sum = p = None
    model.eval()
    with torch.inference_mode():
        for now in rounds:
            model.dropout_keys.now = now
            logits = two_sided(model(x).float())
            p = logits.softmax(1)
            vote = torch.zeros_like(p).scatter_(1, p.argmax(1, keepdim=True), 1)
            terms = (p, p.square(), vote, torch.special.entr(p).sum(1))
            if mean is None:
                mean, second, votes, entropy = (term.clone() for term in terms)
            else:
                for total, term in zip((mean, second, votes, entropy), terms, strict=True):
                    total.add_(term)
            if "mean_logits" in needs:
                logit_sum = logits if logit_sum is None else logit_sum + logits
        model.dropout_keys.now = None
        passes = len(rounds)
        return Prediction(
            ids=ids,
            mean=mean.div_(passes),
            second_moment=second.div_(passes),
            votes=votes,
            expected_entropy=entropy.div_(passes),
            count=torch.full_like(entropy, passes),
            valid=torch.ones_like(entropy, dtype=torch.bool),
            mean_logits=None if logit_sum is None else logit_sum / passes,
            last=p if "last" in needs else None,
        )


def two_sided(logits):
    """(B, 1, H, W) foreground logits -> (B, 2, H, W) whose softmax is their sigmoid; others unchanged."""
    if logits.shape[1] > 1:
        return logits
    return torch.cat([torch.zeros_like(logits), logits], dim=1)


def pass_keys(place, purpose, ids, passes):
    """(passes, B) int64: one dropout key for each pass of each image, `place` being (seed, dataset, cycle)."""
    keys = [[key(*place, purpose, id, k) for id in ids] for k in range(passes)]
    return torch.from_numpy(np.array(keys, dtype=np.uint64).view(np.int64))


class Pool:
    """The unlabelled images as a heuristic sees them: positions 0 .. N - 1, ids, groups, images, predictions.

    It is given functions, not the store, and so has no way to a mask. `memory` is a dict of JSON values that is
    saved with the ledger line it belongs to; `cycle` counts the queries before this one. `scorers` {name: function
    from a Prediction to (B,)} are noted as the heuristic looks at predictions.
    """

    def __init__(self, ids, groups, batches, predictions=None, cycle=0, memory=None, scorers=None):
        self.ids, self.groups, self.cycle = list(ids), list(groups), cycle
        self.memory = {} if memory is None else memory
        self.passes = np.zeros(len(self.ids), dtype=int)  # how many passes have seen each image
        self._batches, self._predictions = batches, predictions
        self._scorers, self._noted = scorers or {}, []

    def __len__(self):
        return len(self.ids)

    def images(self):
        """Yield (positions, images (B, H, W, channels) uint8 on the device), every image once."""
        yield from self._batches()

    def predictions(self, source=""):
        """Yield (positions, Prediction), every image once.

        `source` is "dropout" (mc_iters stochastic passes) or "deterministic" (one pass); empty follows the
        setting prediction.dropout.
        """
        for positions, images in self._batches():
            prediction, passes = self._predictions(images, [self.ids[i] for i in positions], source)
            self.passes[positions] = passes
            self._noted.append((positions, {name: score(prediction) for name, score in self._scorers.items()}))
            yield positions, prediction

    def noted(self):
        """{name: (N,) float64} scores of the predictions made so far, NaN where there were none."""
        scores = {name: np.full(len(self), np.nan) for name in (self._scorers if self._noted else {})}
        for positions, values in self._noted:
            for name, value in values.items():
                scores[name][positions] = value.cpu().numpy()
        return scores


@ingredient.capture
def open_pool(store, indices, place, mc_iters, batch, dropout, model=None, needs=(), memory=None,
              scorers=None, advance=lambda pixels: None):  # fmt: skip
    """The Pool of these images of a Store; without a model it has images but no predictions."""
    position = {index: i for i, index in enumerate(indices)}

    def batches():
        for members, images in store.batches(indices, batch):
            yield [position[i] for i in members], images

    def predictions(images, ids, source):
        stochastic = dropout if source == "" else {"dropout": True, "deterministic": False}[source]
        passes = mc_iters if stochastic else 1
        keys = pass_keys(place, "score", ids, mc_iters) if stochastic else None
        advance(images[..., 0].numel() * passes)
        return predict(model, images, ids, keys, needs), passes

    ids, groups = [store.ids[i] for i in indices], [store.groups[i] for i in indices]
    return Pool(ids, groups, batches, predictions, place[-1], memory, scorers)
