"""A trained network made ready for many passes: what no dropout reaches is computed once, small batches fold passes.

The part before the first dropout is found from the traced network (folding.py), not assumed; a network that torch.fx
cannot trace is run as it is. What crosses from there to the rest is repeated for folded passes if it grows with the
number of images, which is tried out once.
"""

from itertools import chain
from weakref import WeakKeyDictionary

import torch

from experiments.network import device
from experiments.network.dropout import turn
from experiments.network.ensemble import mean_logits
from experiments.network.folding import fold, halves, traced
from experiments.network.joining import join
from experiments.network.ready import members_of

PLANS = WeakKeyDictionary()  # {model: {settings: its halves}}: tracing and compiling are done once, not in each cycle


class Network:
    """What a model computes; to be made anew when its weights have changed.

    `mc_chunk` passes are made in one step, 0: as many as the device does best at once.
    """

    def __init__(self, model, compiled=False, precision="float32", mc_chunk=0):
        self.model, self.precision, self.mc_chunk = model.eval(), precision, mc_chunk
        members = members_of(model)
        self.members = [Network(m, compiled, precision) for m in members] if members != [model] else []
        if self.members:
            return
        self.keys = model.dropout_keys
        settings = compiled, precision, next(model.parameters(), torch.empty(0)).device
        plans = PLANS.setdefault(model, {})
        if settings not in plans:
            plans[settings] = plan(model, *settings)
        self.plans, self.settings = plans, settings
        made, self.prefix, self.rest = plans[settings] or ([], lambda x: (x,), model.forward)
        for module in made:
            module.refresh()

    def __call__(self, x):
        """Logits (B, C, H, W) of one pass without dropout for x (B, channels, H, W)."""
        (logits,) = self.passes(x, None)
        return logits

    def passes(self, x, keys, balanced=False, also_without=False):
        """Yield logits (B, C, H, W) pass by pass; `keys` (K, B) int64 are those of the dropout, None: one pass without.

        With `balanced` masks the keys of the first pass serve all; `also_without` makes one pass without dropout after
        them, of what was computed for them. The passes of an ensemble are shared by its members, one after the other;
        the one without dropout is of their mean probability.
        """
        if self.members:
            yield from self.shared(x, keys, balanced)
            if also_without:
                yield from self.shared(x, None)
            return
        height, width = x.shape[-2:]
        x = self.prepared(x)
        try:
            self.verify(x[:1])
            with device.autocast(x.device, self.precision):
                known = self.prefix(x)
            last = self.steps(x, known, None) if also_without else ()
            for now, shift, rows in chain(self.steps(x, known, keys, balanced), last):
                self.keys.now, self.keys.shift = now, shift
                with device.autocast(x.device, self.precision):
                    logits = self.rest(*rows)
                if x.shape[-2:] != (height, width):
                    logits = logits[..., :height, :width]
                yield from logits.unflatten(0, (-1, len(x))) if len(logits) > len(x) else [logits]
        finally:
            self.keys.now, self.keys.shift, self.keys.bits = None, None, None

    def shared(self, x, keys, balanced=False):
        """Yield logits pass by pass: every M-th of one of the M members."""
        if keys is None:
            yield mean_logits([member(x) for member in self.members])
            return
        for number, member in enumerate(self.members):
            member.mc_chunk, own = self.mc_chunk, keys[number :: len(self.members)]
            if len(own):
                yield from member.passes(x, own, balanced)

    def prompted(self, x):
        """The logits (B, C, H, W) of each of a promptable model's views of x, without dropout."""
        if self.members:
            return [mean_logits(view) for view in zip(*(each.prompted(x) for each in self.members), strict=True)]
        height, width = x.shape[-2:]
        x = self.prepared(x)
        with device.autocast(x.device, self.precision):
            return [logits[..., :height, :width] for logits in self.model.views(x)]

    def prepared(self, x):
        """x normalised and grown to the model's multiple, by the hooks that do so."""
        for hook in self.model._forward_pre_hooks.values():
            (x,) = hook(self.model, (x,))
        return x

    def verify(self, x):
        """Run the model as it is where its graph answers otherwise: in an `if` torch.fx takes no proxy for a tensor.

        Compared in float32, for bfloat16 rounds the two apart by as much as some wrong graphs.
        """
        _, first, second = self.plans[self.settings] or (None,) * 3
        if first is None or getattr(first, "verified", False):
            return
        right = self.model.forward(x)
        try:
            answer = getattr(second, "_orig_mod", second)(*first(x))
            first.verified = (answer - right).abs().max() <= 0.01 * right.abs().max() + 1e-5
        except Exception:  # whatever the modules of a wrong graph raise at what they are given
            first.verified = False
        if not first.verified:
            self.plans[self.settings], self.prefix, self.rest = None, lambda x: (x,), self.model.forward

    def steps(self, x, known, keys, balanced=False):
        """Yield (keys of the rows, shift of the masks, what `rest` takes) step by step."""
        if keys is None:
            yield None, None, known
        elif balanced:
            self.keys.bits, keys = {}, keys.to(x.device)
            for k in range(len(keys)):
                yield keys[0], turn(k / len(keys), x.device), known
        else:
            by_image = self.by_image(x)
            chunk = (self.mc_chunk or device.at_once(x[:, 0].numel(), x.device)) if by_image else 1
            for part in keys.to(x.device).split(chunk):
                more = len(part)
                pairs = zip(known, by_image, strict=True)
                rows = [torch.cat([value] * more) if each else value for value, each in pairs] if more > 1 else known
                yield part.flatten(), None, rows

    def by_image(self, x):
        """Which of the values that cross have rows of each image; [] if passes cannot be folded."""
        if not hasattr(self.prefix, "by_image"):
            one, two = (self.prefix(torch.cat([x[:1]] * n)) for n in (1, 2))
            kinds = [kind(a, b) for a, b in zip(one, two, strict=True)]
            self.prefix.by_image = [] if None in kinds else kinds
        return self.prefix.by_image


def kind(one, two):
    """Of what one image and two lead to: True if it is rows of images, False if it is the same, else None."""
    if isinstance(one, torch.Tensor) and isinstance(two, torch.Tensor):
        if one.dim() and two.shape == (2 * len(one), *one.shape[1:]):
            return True
        return False if one.shape == two.shape and torch.equal(one, two) else None
    return False if type(one) is type(two) and one == two else None


def plan(model, compiled, precision, place):
    """(all modules to refresh, first half, second half) of a model; None if torch.fx cannot trace it."""
    graph = traced(model)
    if graph is None:
        return None
    made = fold(graph, packed=device.packs(place) and precision != "bfloat16")
    made += join(graph)
    first, second = halves(graph)
    if compiled:
        for module in made:
            if module.packed:  # oneDNN's own kernel is faster than what is compiled around it
                module.forward = torch.compiler.disable(module.forward)
        second = device.compiled_for(place, second)
    return made, first, second
