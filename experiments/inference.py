"""A trained network made ready for many passes: batch norm folded into the convolutions, what no dropout reaches once.

Folding: Jacob et al. 2018, https://arxiv.org/abs/1712.05877, section 3.2. The part before the first dropout is found
from the traced network, not assumed; a network that torch.fx cannot trace is run as it is.
"""

from collections import Counter

import torch

from experiments import device
from experiments.dropout import KeyedDropout


class Network:
    """What a model computes; to be made anew when its weights have changed.

    `mc_chunk` passes are made in one step, 0: as many as the device does best at once.
    """

    def __init__(self, model, compiled=False, precision="float32", mc_chunk=0):
        self.model, self.keys = model.eval(), model.dropout_keys
        self.precision, self.mc_chunk = precision, mc_chunk
        place = next(model.parameters(), torch.empty(0)).device
        packed = device.packs(place) and precision != "bfloat16" and not compiled
        self.prefix, self.rest = halves(model, packed) or (lambda x: (x,), model.forward)
        if compiled:
            self.rest = device.compiled_for(place, self.rest)

    def __call__(self, x):
        """Logits (B, C, H, W) of one pass without dropout for x (B, channels, H, W)."""
        (logits,) = self.passes(x, None)
        return logits

    def passes(self, x, keys, balanced=False):
        """Yield logits (B, C, H, W) pass by pass; `keys` (K, B) int64 are those of the dropout, None: one pass without.

        With `balanced` masks the keys of the first pass serve all.
        """
        for hook in self.model._forward_pre_hooks.values():
            (x,) = hook(self.model, (x,))
        try:
            with device.autocast(x.device, self.precision):
                known = self.prefix(x)
            for now, shift, rows in self.steps(x, known, keys, balanced):
                self.keys.now, self.keys.shift = now, shift
                with device.autocast(x.device, self.precision):
                    logits = self.rest(*rows)
                yield from logits.unflatten(0, (-1, len(x))) if len(logits) > len(x) else [logits]
        finally:
            self.keys.now, self.keys.shift, self.keys.bits = None, 0.0, None

    def steps(self, x, known, keys, balanced):
        """Yield (keys of the rows, shift of the masks, what `rest` takes) step by step."""
        if keys is None:
            yield None, 0.0, known
        elif balanced:
            self.keys.bits, keys = {}, keys.to(x.device)
            for k in range(len(keys)):
                yield keys[0], k / len(keys), known
        else:
            foldable = all(isinstance(value, torch.Tensor) and len(value) == len(x) for value in known)
            chunk = (self.mc_chunk or device.at_once(x[:, 0].numel(), x.device)) if foldable else 1
            for part in keys.to(x.device).split(chunk):
                more = len(part)
                yield part.flatten(), 0.0, known if more == 1 else [torch.cat([value] * more) for value in known]


def halves(model, packed=False):
    """(function from x to all that the rest takes, the rest): up to the first dropout; None if it cannot be traced."""
    from torch.fx.passes.split_module import split_module

    try:
        graph = torch.fx.GraphModule(model, Tracer().trace(model))
    except Exception:  # whatever a network's own code raises when it is given proxies instead of tensors
        return None
    fold(graph)
    if packed:
        pack(graph)
    drawn = after_dropout(graph)
    split = split_module(graph, graph, lambda node: int(node in drawn))
    if not drawn:
        return lambda x: (split(x),), torch.nn.Identity()
    (rest,) = (node for node in split.graph.nodes if node.target == "submod_1")
    split.graph.output_node().args = (rest.args,)
    split.graph.erase_node(rest)
    split.recompile()
    return split, split.submod_1


def fold(graph):
    """Replace, in place, each convolution and the batch norm that alone reads it by one convolution."""
    modules = modules_called_once(graph)
    for node in list(graph.graph.nodes):
        if isinstance(modules.get(node), torch.nn.BatchNorm2d) and modules[node].track_running_stats:
            (source,) = node.all_input_nodes
            if isinstance(modules.get(source), torch.nn.Conv2d) and len(source.users) == 1:
                fused = torch.nn.utils.fuse_conv_bn_eval(modules[source], modules[node])
                graph.set_submodule(source.target, fused.to(memory_format=torch.channels_last))
                node.replace_all_uses_with(source)
                graph.graph.erase_node(node)


def pack(graph):
    """Replace, in place, each convolution, with the ReLU that alone reads it, by a Packed one."""
    modules = modules_called_once(graph)
    for node, conv in modules.items():
        if type(conv) is torch.nn.Conv2d and conv.padding_mode == "zeros" and not isinstance(conv.padding, str):
            (reader, *others) = node.users or [None]
            relu = not others and type(called(graph, reader)) is torch.nn.ReLU
            graph.set_submodule(node.target, Packed(conv, "relu" if relu else "none"))
            if relu:
                reader.replace_all_uses_with(node)
                graph.graph.erase_node(reader)


def called(graph, node):
    """The module that a node calls, None if it calls none."""
    return graph.get_submodule(node.target) if node is not None and node.op == "call_module" else None


def modules_called_once(graph):
    """{node: the module that it alone calls}."""
    times = Counter(node.target for node in graph.graph.nodes if node.op == "call_module")
    return {
        node: called(graph, node) for node in graph.graph.nodes if node.op == "call_module" and times[node.target] == 1
    }


class Packed(torch.nn.Module):
    """A convolution whose weights lie as oneDNN wants them: otherwise they are laid out anew in each pass."""

    def __init__(self, conv, after):
        super().__init__()
        self.weight, self.bias = conv.weight.detach(), None if conv.bias is None else conv.bias.detach()
        self.shape = conv.padding, conv.stride, conv.dilation, conv.groups
        self.after, self.laid_out = after, False

    def forward(self, x):
        if not self.laid_out:
            self.weight = torch.ops.mkldnn._reorder_convolution_weight(self.weight, *self.shape, x.shape)
            self.laid_out = True
        return torch.ops.mkldnn._convolution_pointwise(x, self.weight, self.bias, *self.shape, self.after, [None], "")


class Tracer(torch.fx.Tracer):
    def is_leaf_module(self, module, path):
        return isinstance(module, KeyedDropout) or super().is_leaf_module(module, path)


def after_dropout(graph):
    """The nodes whose values differ between passes."""
    drawn = set()
    for node in graph.graph.nodes:
        if isinstance(called(graph, node), KeyedDropout) or any(source in drawn for source in node.all_input_nodes):
            drawn.add(node)
    return drawn
