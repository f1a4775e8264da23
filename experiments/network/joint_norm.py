"""Batch norm whose mean and variance are those of all processes' crops of a step, as in MegDet.

Peng et al. 2018, https://arxiv.org/abs/1711.07240. torch's SyncBatchNorm is for GPUs alone; this is plain torch.
"""

from contextlib import contextmanager
from functools import partial

import torch

from experiments.errors import Refused


def norms(model):
    """The batch norms at work in a model in training mode. Raises Refused for one that computes more than torch's."""
    kind = torch.nn.modules.batchnorm._BatchNorm
    found = [module for module in model.modules() if isinstance(module, kind) and module.training]
    other = next((module for module in found if type(module).forward is not kind.forward), None)
    if other is not None:
        name = type(other).__name__
        raise Refused(f"{name} of this model is a batch norm that sees one process's crops alone: leave out torchrun.")
    return found


@contextmanager
def joined(model, share):
    """In here the batch norms of `model` see the crops of all ranks, of which it has this share."""
    replaced = norms(model)
    for norm in replaced:
        norm.forward = partial(batch_norm, norm, share)
    try:
        yield
    finally:
        for norm in replaced:
            del norm.forward


def batch_norm(norm, share, x):
    """`norm` of x (B, C, ...), this share of all ranks' x, with the mean and variance of all.

    Gradients go through both. Raises Refused for a single value of each channel.
    """
    axes, shape = [0, *range(2, x.dim())], (1, -1, *[1] * (x.dim() - 2))
    values = x.to(torch.promote_types(x.dtype, torch.float32))
    count = round(values.numel() / values.shape[1] / share)
    if count == 1:
        reason = "A batch norm of the model sees a single value of each channel in a step"
        raise Refused(f"{reason}: raise trainer.batch, trainer.draws or the crop.")
    mean = total(values.sum(axes)) / count
    centred = values - mean.view(shape)
    variance = total(centred.square().sum(axes)) / count
    y = centred * (variance + norm.eps).rsqrt().view(shape)
    if norm.track_running_stats:
        with torch.no_grad():
            norm.num_batches_tracked.add_(1)
            momentum = 1 / norm.num_batches_tracked.item() if norm.momentum is None else norm.momentum
            norm.running_mean.lerp_(mean.to(norm.running_mean), momentum)
            norm.running_var.lerp_((variance * (count / (count - 1))).to(norm.running_var), momentum)
    if norm.affine:
        y = y * norm.weight.view(shape) + norm.bias.view(shape)
    return y.to(x.dtype)


def total(x):
    """The sum of all ranks' x; the gradient of x is that of all ranks' losses together."""

    def summed(values):
        values = values.detach().clone()
        torch.distributed.all_reduce(values)
        return values

    y = summed(x) + (x - x.detach())  # which is 0, and has the gradient
    if y.requires_grad:
        y.register_hook(summed)
    return y
