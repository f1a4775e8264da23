"""Gradient checkpointing: the maps inside blocks of layers are forgotten and computed again on the way back.

Chen et al. 2016, https://arxiv.org/abs/1604.06174. A step takes more time and far less memory, to the same
weights. Blocks are found in any network by what a step on two small windows keeps: modules that hold a small share of
it. Of several shares the one is taken with which the inputs of all blocks and the inside of the largest are least.
"""

from contextlib import contextmanager, nullcontext
from functools import partial

import torch

from experiments.acquisition.needs import solved
from experiments.errors import Refused
from experiments.network import ready

SHARES = 1 / 2, 1 / 4, 1 / 8  # of what a step keeps: a block holds at most this, or is made of single layers
SIDE = 128  # pixels of the windows' sides at most


def check(config, file, splits):
    """Raise Refused if the settings ask for it of a model's file that has nothing to compute again."""
    if not config["trainer"]["gradient_checkpointing"]:
        return
    name, fix = config["model"], "leave out trainer.gradient_checkpointing"
    if config["trainer"]["compiled"]:
        raise Refused(f"trainer.compiled=True decides itself what is computed again: {fix}, or trainer.compiled.")
    if getattr(file, "WHOLE", False) or solved(file):
        raise Refused(f"model={name} trains no more than a head, which keeps little: {fix}.")
    with torch.random.fork_rng(devices=[]):
        net = file.build(channels=splits.channels, classes=len(splits.classes))
        model, _ = ready.make_ready(net, file.MEAN, file.STD, torch.device("cpu"))
        ready.train(model)
        side = min(splits.crop or SIDE, SIDE)
        if not blocks(model, torch.zeros(2, splits.channels, side, side)):
            raise Refused(f"model={name} has no modules of several layers to compute again: {fix}.")


class Recomputing:
    """A function of images (B, channels, H, W) that gives what the model gives, and keeps less for the gradients.

    The model is in training mode and its dropout keys stay until the gradients are there.
    """

    def __init__(self, model):
        self.model, self.chosen = model, []

    def choose(self, x):
        """Find the blocks, once, by a step on some of the images x (B, channels, H, W)."""
        if not self.chosen:
            self.chosen.extend(blocks(self.model, x[:2, :, :SIDE, :SIDE]))

    def __call__(self, x):
        self.choose(x)
        with checkpointed(self.chosen):
            return self.model(x)


@contextmanager
def checkpointed(modules):
    """In here these modules keep their inputs alone; hooks on a module itself see its output once."""
    from torch.utils.checkpoint import checkpoint

    for module in modules:
        again = partial(contexts, module)
        module.forward = partial(checkpoint, module.forward, use_reentrant=False, context_fn=again)
    try:
        yield
    finally:
        for module in modules:
            del module.forward


def contexts(module):
    """What a block's first and second computation run in."""
    return nullcontext(), buffers_kept(module)


@contextmanager
def buffers_kept(module):
    """Afterwards the buffers are as before: batch norms have seen these images already."""
    before = [(buffer, buffer.clone()) for buffer in module.buffers()]
    try:
        yield
    finally:
        for buffer, value in before:
            buffer.copy_(value)


def blocks(model, x):
    """The outermost modules to compute again, by what a step on images x (B, channels, H, W) keeps of each.

    A module whose inputs are changed in place, by itself or later, is none, as they would be others the second time;
    what else depends on more than inputs, buffers, dropout keys and torch's generator must not be in a network.
    """
    kept, changed = watched(model, x)
    changed |= {module for module in model.modules() if "forward" in vars(module)}  # which is not ours to replace
    ways = [parted(model, kept, changed, share * kept.get(model, 0)) for share in SHARES]

    def peak(way):
        with checkpointed(way):
            left, _ = watched(model, x)
        return left[model] + max(kept[block] for block in way)

    return min(filter(None, ways), key=peak, default=[])


def parted(model, kept, no_blocks, most):
    """The outermost modules inside the model that keep at most so many bytes, or are made of single layers."""
    found = {}
    for child in model.children():
        parts = list(child.children())
        small = kept.get(child, 0) <= most or not any(list(part.children()) for part in parts)
        if kept.get(child) and parts and small and child not in no_blocks:
            found[child] = None
        else:
            found |= dict.fromkeys(parted(child, kept, no_blocks, most))
    return list(found)


def watched(model, x):
    """({module: bytes that a step keeps of it}, the modules whose inputs change), of a step on images x.

    The model's buffers, its keys and torch's generator stay as they were.
    """
    seen = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    kept, calls, within = {}, [], []

    def enter(module, args, kwargs):
        within.append(module)
        calls.append((module, (args, kwargs), versions((args, kwargs))))

    def leave(module, args, output):
        within.pop()

    def pack(tensor):
        storage = tensor.untyped_storage()
        for module in set(within) if storage.data_ptr() not in seen else ():
            kept[module] = kept.get(module, 0) + storage.nbytes()
        seen.add(storage.data_ptr())
        return tensor

    hooks = []
    for module in model.modules():
        hooks.append(module.register_forward_pre_hook(enter, with_kwargs=True, prepend=True))
        hooks.append(module.register_forward_hook(leave))
    keys, now = model.dropout_keys, model.dropout_keys.now
    keys.now = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    watching = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    try:
        with torch.random.fork_rng([x.device] if x.is_cuda else []), buffers_kept(model), torch.enable_grad(), watching:
            given = model(x)  # what is kept lives as long as this
            changed = {module for module, inputs, before in calls if versions(inputs) != before}
            del given
    finally:
        keys.now = now
        for hook in hooks:
            hook.remove()
    return kept, changed


def versions(inputs):
    """[(id, version)] of the tensors in the inputs of a module: another list once one is changed or exchanged."""
    from torch.utils._pytree import tree_leaves

    return [(id(leaf), leaf._version) for leaf in tree_leaves(inputs) if isinstance(leaf, torch.Tensor)]
