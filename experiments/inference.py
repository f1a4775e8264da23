"""A trained network made ready for many passes: batch norm folded into the convolutions, what no dropout reaches once.

Folding: Jacob et al. 2018, https://arxiv.org/abs/1712.05877, section 3.2. The part before the first dropout is found
from the traced network, not assumed; a network that torch.fx cannot trace is run as it is.
"""

import torch

from experiments.dropout import KeyedDropout


class Network:
    """What a model computes; to be made anew when its weights have changed."""

    def __init__(self, model, compiled=False, precision="float32"):
        self.model, self.keys, self.steps = model.eval(), model.dropout_keys, None
        self.dtype = getattr(torch, precision)
        split = prepared(model)
        if split is not None:
            self.drawn = [n for n in split.graph.nodes if n.op == "output" or n.target == "submod_1"]
            if compiled:
                split.submod_1 = torch.compile(split.submod_1)
            self.steps = torch.fx.Interpreter(split, garbage_collect_values=False)

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
        known, rounds = {}, [None] if keys is None else keys.to(x.device)
        if balanced:
            self.keys.bits = {}
        try:
            for k in range(len(rounds)):
                self.keys.now = rounds[0 if balanced else k]
                self.keys.shift = k / len(rounds) if balanced else 0.0
                with torch.autocast(x.device.type, self.dtype, enabled=self.dtype != torch.float32):
                    logits = self.model.forward(x) if self.steps is None else self.steps.run(x, initial_env=known)
                yield logits
                if self.steps is not None:
                    known = {node: value for node, value in self.steps.env.items() if node not in self.drawn}
        finally:
            self.keys.now, self.keys.shift, self.keys.bits = None, 0.0, None
            if self.steps is not None:
                self.steps.env = {}


def prepared(model):
    """The model as a graph of submod_0, up to the first dropout, and submod_1; None if torch.fx cannot trace it."""
    from torch.fx.passes.split_module import split_module

    try:
        graph = torch.fx.GraphModule(model, Tracer().trace(model))
    except Exception:  # whatever a network's own code raises when it is given proxies instead of tensors
        return None
    fold(graph)
    drawn = after_dropout(graph)
    return split_module(graph, graph, lambda node: int(node in drawn))


def fold(graph):
    """Replace, in place, each convolution and the batch norm that alone reads it by one convolution."""
    modules = dict(graph.named_modules())
    for node in list(graph.graph.nodes):
        if node.op == "call_module" and isinstance(modules[node.target], torch.nn.BatchNorm2d):
            (source,) = node.all_input_nodes
            conv = modules[source.target] if source.op == "call_module" else None
            if isinstance(conv, torch.nn.Conv2d) and len(source.users) == 1:
                fused = torch.nn.utils.fuse_conv_bn_eval(conv, modules[node.target])
                graph.set_submodule(source.target, fused.to(memory_format=torch.channels_last))
                node.replace_all_uses_with(source)
                graph.graph.erase_node(node)
    graph.recompile()


class Tracer(torch.fx.Tracer):
    def is_leaf_module(self, module, path):
        return isinstance(module, KeyedDropout) or super().is_leaf_module(module, path)


def after_dropout(graph):
    """The nodes whose values differ between passes."""
    drawn, modules = set(), dict(graph.named_modules())
    for node in graph.graph.nodes:
        dropout = node.op == "call_module" and isinstance(modules[node.target], KeyedDropout)
        if dropout or any(source in drawn for source in node.all_input_nodes):
            drawn.add(node)
    return drawn
