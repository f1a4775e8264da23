"""Vote variance: population variance over the passes of the winning class's number, the published baselines' `mc`.

For two classes f (1 - f), f being the share of passes that vote foreground. After the AMS of
Lubrano di Scandalea et al. 2019, https://arxiv.org/abs/1907.05143, with hard votes in place of probabilities. With more
than two classes it depends on how the classes are numbered: prefer `variance` there.
"""

import torch
from sacred import Ingredient

ingredient = Ingredient("vote_variance")
PUBLISHED_AS = ("mc",)


@ingredient.config
def settings():
    reduction = "mean"  # how the map becomes one score: mean, max, q90, foreground ...


@ingredient.capture
def uncertainty(prediction):
    """(B, H, W), 0 to ((C - 1) / 2) ** 2."""
    share = prediction.votes / prediction.count[:, None]
    number = torch.arange(share.shape[1], dtype=share.dtype, device=share.device).view(1, -1, 1, 1)
    return ((share * number.square()).sum(1) - (share * number).sum(1).square()).clamp_min(0)
