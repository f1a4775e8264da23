"""A network made ready for a run: it takes images in [0, 1] of any size, its dropout is keyed, what is frozen stays.

What the module of a model file may carry, all of it optional:

    mean, std    of a channel, for those of the file's MEAN, STD that depend on its settings
    multiple     what it needs height and width to be whole multiples of: images are grown to that at their lower and
                 right border, by what stands there, and the logits cropped
    groups()     [{"params": some of its parameters, "lr": factor of trainer.lr, "weight_decay": of that}, ...]: one
                 factor may be left out, and parameters in no group have 1
    views(x)     [logits, ...] of images under several prompts, of a file that has "prompts" in HAS
    pretrained   {name of a file that weights came from: its sha256}, for the ledger

While training its forward may give [(weight, logits), ...] instead of logits: the loss is their weighted sum. A
parameter without `requires_grad` is frozen: it is neither trained nor in a checkpoint, and a batch norm whose weight
is frozen keeps its statistics. Dropout are modules (dropout.py has their kinds); a submodule that gives a list is
indexed, never iterated, so that torch.fx can take it as a whole where it cannot look into it.
"""

from importlib import import_module

import torch

from experiments.components import configure
from experiments.components.randomness import key
from experiments.network import checkpoint


def make_ready(model, mean, std, device):
    """Make `model` ready for [0, 1] images and keyed dropout: (model, its first weights)."""
    from experiments.network.dropout import patch  # defines a module, so it needs torch at once

    model.dropout_keys = patch(model)
    mean, std = getattr(model, "mean", mean), getattr(model, "std", std)
    if any(mean) or any(value != 1 for value in std):
        shift, scale = (torch.as_tensor(v, dtype=torch.float32, device=device).view(1, -1, 1, 1) for v in (mean, std))
        model.register_forward_pre_hook(lambda module, inputs: ((inputs[0] - shift) / scale,))
    if getattr(model, "multiple", 1) > 1:
        padding = Padding(model.multiple)
        model.register_forward_pre_hook(padding.grow)
        model.register_forward_hook(padding.crop)
    model.to(device, memory_format=torch.channels_last)
    checkpoint.refuse_not_finite(model.state_dict(), "The model's first weights", "mend its file in models/")
    return model, {name: tensor.clone() for name, tensor in checkpoint.kept(model).items()}


def build(file, channels, classes, place, device, members=1):
    """A model of a model's file made ready, or an Ensemble of `members` of them: (model, its first weights).

    `place` is (seed, dataset), from which what is drawn of each is derived; torch's generator stays seeded by it.
    """
    made = []
    for member in range(members):
        made.append(build_one(file, channels, classes, key(*place, "weights", *([member] if member else [])), device))
    if members == 1:
        return made[0]
    from experiments.network.ensemble import Ensemble  # defines a module, so it needs torch at once

    model = Ensemble([model for model, _ in made])
    return model, {name: tensor.clone() for name, tensor in checkpoint.kept(model).items()}


def build_one(file, channels, classes, seed, device):
    """A model of a model's file made ready: (model, its first weights). Its `made_of` is what `build_again` takes."""
    torch.manual_seed(seed % 2**63)
    model, first = make_ready(file.build(channels=channels, classes=classes), file.MEAN, file.STD, device)
    model.made_of = file.__name__, dict(getattr(file.build, "config", {})), channels, classes, seed
    return model, first


def build_again(name, settings, channels, classes, seed, device):
    """The model of a `made_of`, in another process, on a device there."""
    file = import_module(name)
    configure(file, {file.ingredient.path: settings})
    return build_one(file, channels, classes, seed, device)[0]


def members_of(model):
    """The members of an ensemble, [model] of any other."""
    return list(getattr(model, "members", [model]))


def train(model):
    """Put the model into training mode; frozen batch norms stay out of it."""
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            if module.weight is not None and not module.weight.requires_grad:
                module.eval()


class Padding:
    """Two hooks of a module: its batch is grown to whole multiples, what it gives cropped to the batch's size."""

    def __init__(self, multiple):
        self.multiple, self.size, self.grown = multiple, None, None

    def grow(self, module, inputs):
        (x,) = inputs
        height, width = self.size = x.shape[-2:]
        more = (0, -width % self.multiple, 0, -height % self.multiple)
        x = torch.nn.functional.pad(x, more, mode="replicate") if any(more) else x
        self.grown = x.shape[-2:]
        return (x,)

    def crop(self, module, inputs, outputs):
        """Logits of another size than the grown batch's stay as they are, for the trial to refuse."""
        if isinstance(outputs, torch.Tensor):
            height, width = self.size
            return outputs[..., :height, :width] if outputs.shape[-2:] == self.grown else outputs
        return [(weight, self.crop(module, inputs, logits)) for weight, logits in outputs]
