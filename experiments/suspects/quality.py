"""Confident learning for segmentation: how far a mask's least believable pixels are believed by a model.

The softmin of the pixels' self-confidence, the probability that the model gives the class which the mask has there:
Lad & Mueller 2023, https://arxiv.org/abs/2307.05080 (as cleanlab's segmentation.rank computes it).
"""

import torch

from experiments.store import IGNORE

TEMPERATURE = 0.1  # the paper's: towards 0 the worst pixel decides, towards infinity the mean of all


def self_confidence(p, masks):
    """(B, H, W) of probabilities (B, C, H, W): that of each pixel's class in masks (B, H, W), 1 where it is IGNORE."""
    known = masks != IGNORE
    given = p.gather(1, torch.where(known, masks, 0).long()[:, None])[:, 0]
    return torch.where(known, given, 1.0)


def quality(confidence, masks, temperature=TEMPERATURE):
    """(B,) float64 from 0, wrong, to 1, right, of self-confidences and masks (B, H, W); 1 where all is IGNORE.

    sum_i s_i exp((1 - s_i) / T) / sum_i exp((1 - s_i) / T) over the pixels i that are not IGNORE.
    """
    s, known = confidence.double().flatten(1), (masks != IGNORE).flatten(1)
    weight = ((1 - s) / temperature).masked_fill(~known, -torch.inf).softmax(1)
    return torch.where(known.any(1), (s * weight).nan_to_num().sum(1), 1.0)
