"""Prediction: passes over a batch of images reduced to streaming moments on the device; no pass is stored.

MC dropout, Gal & Ghahramani 2016, https://arxiv.org/abs/1506.02142.
"""

from collections.abc import Sequence
from itertools import chain, islice
from typing import NamedTuple

import numpy as np
import torch
from sacred import Ingredient

from experiments.components.randomness import key
from experiments.components.settings import Range
from experiments.errors import Refused
from experiments.network.device import PRECISIONS, ran_out_of_memory

ingredient = Ingredient("prediction")


@ingredient.config
def settings():
    dropout = True  # False: one deterministic pass instead of mc_iters stochastic ones
    masks = "independent"  # or "balanced": a unit is dropped in exactly mc_iters x p of the passes, see dropout.py
    race = False  # True: few passes for all images, the rest for those that lead after them; batch=top only
    batch = 0  # images at once, 0: as many as suit the device; changes speed and memory, never the masks or the picks
    mc_chunk = 0  # passes at once of such a batch, likewise; those with balanced masks follow one another
    # True: torch.compile. 20 passes over an image of 416 x 416 took an H100 4.8 ms instead of 15.7 (unet.width=16,
    # bfloat16), after 20 s and more for each of the first sizes of a batch; no pool pays that back on a CPU
    compiled = False
    precision = "auto"  # float32, bfloat16 (BALD moves by about .3 %), or auto: bfloat16 where the device is fast at it
    rotation = 10.0  # views of test-time augmentation are turned by up to this many degrees either way
    noise = 0.01  # standard deviation of the noise on such a view, in the units of images in [0, 1]
    flip = False  # True: such a view is mirrored, either way, half of the times


ALLOWED = {
    "masks": ("independent", "balanced"),
    "batch": Range(least=1, zero="what suits the device"),
    "mc_chunk": Range(least=1, zero="what suits the device"),
    "precision": PRECISIONS,
    "rotation": Range(least=0, most=180),
    "noise": Range(least=0),
}


@ingredient.capture
def balanced(masks):
    """Whether this run's passes have balanced masks."""
    return masks == "balanced"


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
    without: "torch.Tensor | None" = None  # (B, C, H, W) those of one more pass, without dropout, likewise
    first: int = 1  # the first class that is foreground: 0 where none is a background


def predict(model, images, ids, keys=None, needs=(), balanced=False, means_alone=False):
    """Reduce the passes of a model or Network over images (B, H, W, channels) uint8 to a Prediction.

    `keys` (K, B) int64 makes K stochastic passes; None makes a single deterministic one. A model with one
    logit is read as foreground against background. A batch that the device cannot hold is halved, its passes single.
    With `means_alone` there are no second moment, votes and entropy.
    """
    from experiments.network.inference import Network  # needs torch at once

    network = model if isinstance(model, Network) else Network(model)
    try:
        with torch.inference_mode():
            passes = network.passes(floats(images), keys, balanced, also_without="without" in needs)
            counted = islice(passes, 1 if keys is None else len(keys))
            found = moments(((logits, None) for logits in counted), ids, needs, means_alone)
            for logits in passes:
                found = found._replace(without=two_sided(logits.float()).softmax(1))
            return found
    except (RuntimeError, MemoryError) as error:
        if not ran_out_of_memory(error):
            raise
        if len(ids) == network.mc_chunk == 1:
            height, width = images.shape[1:3]
            raise Refused(
                f"One image of {width} x {height} does not fit on {images.device}: use a smaller model."
            ) from error
    network.mc_chunk = 1
    if len(ids) == 1:
        return predict(network, images, ids, keys, needs, balanced, means_alone)
    middle = len(ids) // 2
    halves = [slice(None, middle), slice(middle, None)]
    parts = [(images[h], ids[h], keys if keys is None else keys[:, h]) for h in halves]
    return joined([predict(network, *part, needs, balanced, means_alone) for part in parts])


def joined(parts):
    """One Prediction of several of equally large images."""
    ids, *moments = zip(*parts, strict=True)
    moments = [torch.cat(part) if isinstance(part[0], torch.Tensor) else part[0] for part in moments]
    return Prediction(list(chain(*ids)), *moments)


def floats(images):
    """(B, H, W, channels) uint8 -> (B, channels, H, W) in [0, 1], channels last in memory."""
    return images.permute(0, 3, 1, 2).float().div_(255)


def moments(passes, ids, needs=(), means_alone=False):
    """Reduce passes, (logits (B, C, H, W), seen (B, H, W) bool or None for everything), to a Prediction."""
    mean, second, votes, expected = [None] * 4
    with torch.inference_mode():
        for logits, seen in passes:
            logits = two_sided(logits.float()).contiguous()
            if mean is None:
                mean, count = torch.zeros_like(logits), torch.zeros_like(logits[:, 0])
                logit_sum = torch.zeros_like(logits) if "mean_logits" in needs else None
                if not means_alone:
                    second, votes, expected = (
                        torch.zeros_like(logits),
                        torch.zeros_like(logits),
                        torch.zeros_like(count),
                    )
            p = last = logits.softmax(1)
            weight = torch.ones_like(count) if seen is None else seen.to(p.dtype)
            if not means_alone:
                votes.scatter_add_(1, winner(p)[:, None], weight[:, None])
                entropies = entropy(p)
                expected.add_(entropies if seen is None else entropies * weight)
            if seen is not None:
                p, logits = p * weight[:, None], logits * weight[:, None]
            count.add_(weight)
            mean.add_(p)
            if not means_alone:
                second.addcmul_(p, p)
            if logit_sum is not None:
                logit_sum.add_(logits)
        share = 1 / count.clamp_min(1)
        return Prediction(
            ids=ids,
            mean=mean.mul_(share[:, None]),
            second_moment=None if means_alone else second.mul_(share[:, None]),
            votes=votes,
            expected_entropy=None if means_alone else expected.mul_(share),
            count=count,
            valid=count > 0,
            mean_logits=None if logit_sum is None else logit_sum.mul_(share[:, None]),
            last=last if "last" in needs else None,
        )


def entropy(p):
    """-sum p log p of probabilities (B, C, ...), 0 log 0 = 0 -> (B, ...) nats; torch.special.entr is 3 times slower."""
    return p.log().clamp_min_(-200).mul_(p).sum(1).neg_()


def winner(p):
    """(B, H, W) the class of the largest of p (B, C, H, W), the first of equals; argmax is 4 to 17 times slower."""
    return p.max(1).indices if p.shape[1] > 2 else (p[:, 1] > p[:, 0]).long()


def in_foreground(prediction):
    """(B, H, W) bool: the pixels whose likeliest class is foreground."""
    return winner(prediction.mean) >= prediction.first


def two_sided(logits):
    """(B, 1, H, W) foreground logits -> (B, 2, H, W) whose softmax is their sigmoid; others unchanged."""
    if logits.shape[1] > 1:
        return logits
    return torch.cat([torch.zeros_like(logits), logits], dim=1)


def pass_keys(place, purpose, ids, passes):
    """(passes, B) int64: one dropout key for each pass of each image, `place` being (seed, dataset, cycle)."""
    keys = [[key(*place, purpose, id, k) for id in ids] for k in range(passes)]
    return torch.from_numpy(np.array(keys, dtype=np.uint64).view(np.int64))
