"""A network as a graph: batch norm and ReLU folded into the convolutions, cut in two at the first dropout.

Folding: Jacob et al. 2018, https://arxiv.org/abs/1712.05877, section 3.2. Imported late, as it defines modules.
"""

from collections import Counter

import torch

from experiments.network.dropout import KeyedDropout
from experiments.network.remembered import Remembered


def traced(model):
    """The model as a graph without what does nothing in it, or None.

    If torch.fx cannot look into it, modules without dropout are taken as a whole: what they compute alike in all passes
    is still computed once.
    """
    for whole in (False, True):
        try:
            graph = torch.fx.GraphModule(model, Tracer(whole).trace(model))
        except Exception:  # whatever a network's own code raises when it is given proxies instead of tensors
            continue
        for node in graph.graph.nodes:
            if isinstance(called(graph, node), NOTHING):
                node.replace_all_uses_with(node.args[0])
                graph.graph.erase_node(node)
        graph.recompile()
        return graph
    return None


def halves(graph):
    """(function from x to all that the second takes, the second): up to the first dropout, and from there on."""
    from torch.fx.passes.split_module import split_module

    drawn = after_dropout(graph)
    split = split_module(graph, graph, lambda node: int(node in drawn))
    if not drawn:
        return lambda x: (split(x),), torch.nn.Identity()
    (second,) = (node for node in split.graph.nodes if node.target == "submod_1")
    split.graph.output_node().args = (second.args,)
    split.graph.erase_node(second)
    split.recompile()
    return split, split.submod_1


def fold(graph, packed):
    """Make, in place, each convolution with the batch norm and the ReLU that alone read it one Folded; gives them."""
    modules, folded = modules_called_once(graph), []
    for node, conv in modules.items():
        if type(conv) is torch.nn.Conv2d:
            norm = sole_reader(graph, node, torch.nn.BatchNorm2d)
            norm = norm if norm in modules and modules[norm].track_running_stats else None
            relu = sole_reader(graph, norm or node, torch.nn.ReLU)
            folded.append(Folded(conv, modules.get(norm), relu is not None, packed))
            graph.set_submodule(node.target, folded[-1])
            for reader in filter(None, (norm, relu)):
                reader.replace_all_uses_with(node)
                graph.graph.erase_node(reader)
    return folded


def sole_reader(graph, node, kind):
    """The only node that reads another, if it calls a module of this kind, else None."""
    readers = list(node.users)
    return readers[0] if len(readers) == 1 and type(called(graph, readers[0])) is kind else None


def called(graph, node):
    """The module that a node calls, None if it calls none."""
    return graph.get_submodule(node.target) if node.op == "call_module" else None


def modules_called_once(graph):
    """{node: the module that it alone calls}."""
    times = Counter(node.target for node in graph.graph.nodes if node.op == "call_module")
    return {node: called(graph, node) for node in graph.graph.nodes if times[node.target] == 1}


class Folded(torch.nn.Module):
    """A convolution with the batch norm and the ReLU that follow it.

    `packed` weights lie as oneDNN wants them: others are laid out anew in each pass.
    """

    def __init__(self, conv, norm, relu, packed):
        super().__init__()
        self.sources, self.relu = (conv, norm), relu  # the sources stay modules of the model
        self.packed = packed and conv.padding_mode == "zeros" and not isinstance(conv.padding, str)
        with torch.inference_mode():
            for name, value in zip(("weight", "bias"), self.fused(), strict=True):
                self.register_buffer(name, value if value is None else value.clone(), persistent=False)

    def fused(self):
        conv, norm = self.sources
        if norm is None:
            return conv.weight, conv.bias
        moments = norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        return torch.nn.utils.fuse_conv_bn_weights(conv.weight, conv.bias, *moments)

    def refresh(self):
        """Take over the weights of the sources, in place: a compiled network keeps its memory."""
        self.laid_out = None
        with torch.inference_mode():
            for ours, value in zip((self.weight, self.bias), self.fused(), strict=True):
                if value is not None:
                    ours.copy_(value)

    def forward(self, x):
        conv = self.sources[0]
        if self.packed:
            shape, after = (conv.padding, conv.stride, conv.dilation, conv.groups), "relu" if self.relu else "none"
            if self.laid_out is None:
                self.laid_out = torch.ops.mkldnn._reorder_convolution_weight(self.weight, *shape, x.shape)
            return torch.ops.mkldnn._convolution_pointwise(x, self.laid_out, self.bias, *shape, after, [None], "")
        y = conv._conv_forward(x, self.weight, self.bias)
        return y.relu_() if self.relu else y


class Tracer(torch.fx.Tracer):
    """Looks into all modules but dropout, Remembered and torch's own; with `whole`, only into those with dropout."""

    def __init__(self, whole):
        super().__init__()
        self.whole = whole

    def is_leaf_module(self, module, path):
        if isinstance(module, KeyedDropout | Remembered) or super().is_leaf_module(module, path):
            return True
        return self.whole and not any(isinstance(part, KeyedDropout) for part in module.modules())


NOTHING = torch.nn.Identity, torch.nn.Dropout  # the latter of p = 0, for others are keyed


def after_dropout(graph):
    """The nodes whose values differ between passes."""
    drawn = set()
    for node in graph.graph.nodes:
        if isinstance(called(graph, node), KeyedDropout) or any(source in drawn for source in node.all_input_nodes):
            drawn.add(node)
    return drawn
