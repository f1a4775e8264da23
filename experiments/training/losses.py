"""Training losses (logits (B, C, H, W), masks (B, H, W) uint8) -> (B,) per image; IGNORE pixels count nowhere."""

import torch

from experiments.acquisition.prediction import two_sided
from experiments.network.device import autocast
from experiments.store import IGNORE


def ce(logits, masks):
    """Cross-entropy, the mean over an image's valid pixels, in nats."""
    target = masks.long()
    loss = torch.nn.functional.cross_entropy(logits, target, ignore_index=IGNORE, reduction="none")
    return loss.sum((1, 2)) / valid(masks).sum((1, 2)).clamp_min(1)


def dice(logits, masks):
    """Soft Dice loss averaged over the classes, MONAI's; Milletari et al. 2016, https://arxiv.org/abs/1606.04797."""
    from monai.losses import DiceLoss

    p, truth = masked(logits, masks)
    return DiceLoss(reduction="none")(p, truth).flatten(1).mean(1)


def dice_ce(logits, masks):
    """Sum of `dice` and `ce`, the kind of loss of nnU-Net: Isensee et al. 2021, https://arxiv.org/abs/1904.08128.

    Its Dice leaves the background out and is often taken over a whole batch; ours averages all classes image by image.
    """
    return dice(logits, masks) + ce(logits, masks)


def dice8_ce2(logits, masks):
    """.8 `dice` and .2 `ce`, MD-SAM-AL's and CPC-SAM's, whose Dice is of the batch; ours of each image."""
    return 0.8 * dice(logits, masks) + 0.2 * ce(logits, masks)


def linear(logits, masks):
    """1 - mean probability of the true class: what the published baselines' "Dice" loss amounts to."""
    p, truth = masked(logits, masks)
    return 1 - (p * truth).sum((1, 2, 3)) / valid(masks).sum((1, 2)).clamp_min(1)


LOSSES = {loss.__name__: loss for loss in (ce, dice, dice_ce, dice8_ce2, linear)}


def crop_losses(forward, x, masks, loss, precision):
    """(B,) losses of the crops x (B, channels, H, W), weighted where the network has several outputs."""
    with autocast(x.device, precision):
        given = forward(x)
    parts = given if isinstance(given, list) else [(1.0, given)]
    kind = torch.promote_types(parts[0][1].dtype, torch.float32)
    return sum(weight * LOSSES[loss](two_sided(logits.to(kind)), masks) for weight, logits in parts)


def masked(logits, masks):
    """Probabilities and one-hot truth, both (B, C, H, W) and 0 at ignored pixels."""
    counted = valid(masks)[:, None]
    classes = torch.arange(logits.shape[1], device=logits.device).view(1, -1, 1, 1)
    return logits.softmax(1) * counted, (masks[:, None] == classes).to(logits.dtype)


def valid(masks):
    return masks != IGNORE
