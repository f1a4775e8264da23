"""Deep ensemble: several models of one kind, trained from other first weights on other crops, whose passes are shared.

Lakshminarayanan et al. 2017, https://arxiv.org/abs/1612.01474; for active learning Beluch et al. 2018,
https://openaccess.thecvf.com/content_cvpr_2018/html/Beluch_The_Power_of_CVPR_2018_paper.html.
"""

import torch


class Ensemble(torch.nn.Module):
    """`members`, each made ready; what it answers is the logarithm of their mean probability."""

    def __init__(self, members):
        super().__init__()
        self.members = torch.nn.ModuleList(members)
        self.pretrained = getattr(self.members[0], "pretrained", {})

    def forward(self, x):
        return mean_logits([member(x) for member in self.members])


def mean_logits(logits):
    """(B, C, H, W) logits of the mean probability of these logits; C = 1 are of the foreground alone."""
    logits = torch.stack(logits).float()
    if logits.shape[2] == 1:
        return torch.logsumexp(torch.nn.functional.logsigmoid(logits), 0) - torch.logsumexp(
            torch.nn.functional.logsigmoid(-logits), 0
        )
    return torch.logsumexp(logits.log_softmax(2), 0) - torch.tensor(len(logits)).log()
