"""The way up of a U-Net with less arithmetic: no copy of the low resolution four times as large is made or convolved.

A 3 x 3 convolution of a nearest up-sampling by two is a transposed convolution of 4 x 4 with stride 2: each of its
outputs sees 2 x 2 pixels instead of 3 x 3 (Aitken et al. 2017, https://arxiv.org/abs/1707.02937). Imported late, as
it defines modules.
"""

import torch
from torch.nn.functional import avg_pool2d, interpolate

from experiments.network.folding import Folded, called

SHAPE = (3, 3), (1, 1), (1, 1), (1, 1), 1  # kernel, stride, padding, dilation, groups of what can be joined


def join(graph):
    """Make, in place, each convolution(cat([interpolate(low), skip])) that can be one Joined; gives them."""
    joined = []
    for node in graph.graph.nodes:
        parts = low_and_skip(node) if fits(called(graph, node)) else None
        if parts:
            joined.append(Joined(called(graph, node)))
            graph.set_submodule(node.target, joined[-1])
            node.args = parts
    graph.graph.eliminate_dead_code()
    return joined


def fits(module):
    if not (isinstance(module, Folded) and module.packed):
        return False
    conv = module.sources[0]
    return (conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups) == SHAPE


def low_and_skip(node):
    """(low, skip) if a node reads cat([interpolate(low), skip], 1), by nearest, and nothing else does; or None."""
    (cat,) = node.all_input_nodes
    parts = cat.args[0] if cat.target is torch.cat else ()
    if len(parts) != 2 or cat.kwargs.get("dim", *cat.args[1:]) != 1:
        return None
    grown, skip = parts
    if grown.target is not interpolate or len(cat.users) + len(grown.users) > 2:
        return None
    if grown.kwargs["mode"] != "nearest" or grown.kwargs["scale_factor"] not in (None, 2):
        return None  # by another factor the pixels may be others than by the size that it leads to
    return grown.args[0], skip


class Joined(torch.nn.Module):
    """A Folded convolution of cat([low resolution grown to the skip's size, skip])."""

    def __init__(self, folded):
        super().__init__()
        self.folded, self.packed, self.laid_out = folded, True, None

    def refresh(self):
        self.laid_out = None

    def forward(self, low, skip):
        height, width = skip.shape[-2:]
        if low.shape[-2:] != (height / 2, width / 2):  # the last row or column is not doubled
            return self.folded(torch.cat([interpolate(low, size=(height, width)), skip], 1))
        if self.laid_out is None:
            self.laid_out = laid_out(self.folded.weight, low.shape, skip.shape)
        grow, add = self.laid_out
        y = torch.ops.mkldnn._convolution_transpose_pointwise(
            low, grow, None, (1, 1), (0, 0), (2, 2), (1, 1), 1, "none", [None], ""
        )
        after = "relu" if self.folded.relu else None
        return torch.ops.mkldnn._convolution_pointwise_.binary(
            y, skip, add, self.folded.bias, *SHAPE[1:], "add", 1.0, after, [None], ""
        )


def laid_out(weight, low, skip):
    """oneDNN's layouts for inputs of these shapes: of what reads the low resolution, of what reads the skip."""
    first, second = weight.split([low[1], skip[1]], dim=1)
    first = grown(first).transpose(0, 1).contiguous()
    return (
        torch.ops.mkldnn._reorder_convolution_transpose_weight(first, (1, 1), (0, 0), (2, 2), (1, 1), 1, low),
        torch.ops.mkldnn._reorder_convolution_weight(second.contiguous(), (1, 1), (1, 1), (1, 1), 1, skip),
    )


def grown(weight):
    """(out, in, 3, 3) -> (out, in, 4, 4): what, transposed and with stride 2, convolves the doubled image."""
    return avg_pool2d(weight, 2, stride=1, padding=1, divisor_override=1).flip(2, 3)
