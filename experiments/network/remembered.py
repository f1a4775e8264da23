"""Features of a frozen network, computed once of each image and kept in half precision.

What is kept is found by what is shown, a sha256 of the image's 8-bit values, so that no image can be given another's
features, whoever asks: training, validation, testing or scoring. In a folder each image has a file; its folder's name
is a sha256 of the weights and of all that decides on the last bits.
"""

import math
import os
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from experiments.errors import Refused
from experiments.errors.process import reason_and_advice
from experiments.network.checkpoint import hash_weights
from experiments.network.dropout import drops
from experiments.network.layers import maps as maps_in
from experiments.store.reading import MAX_WEIGHTS, regular

NEAR = 1e-3  # how far from a whole number of 255ths a value may be to count as read from 8 bits


class Remembered(nn.Module):
    """The maps that the modules `paths` of `net` put out for images (B, channels, H, W) in [0, 1]: [(B, D, h, w), ...].

    `strides` says how many pixels a side of a cell of each has. `net` sees an image normalised by `mean` and `std` and
    grown at its lower and right border to whole multiples of `multiple` and of the strides; the maps are cut to what
    covers the image. Images are computed one by one, so that their features are the same bits in any company. Copies
    that have other than 256 levels (turned by degrees, noisy) are computed each time, and so is all that comes when
    `memory` bytes are full. The network draws nothing, nothing of it is trained, and a checkpoint holds nothing of it.
    """

    def __init__(self, net, paths, channels, mean, std, multiple, memory):
        super().__init__()
        for path, module in list(net.named_modules(remove_duplicate=False)):
            if path and drops(module)[0]:
                net.set_submodule(path, nn.Identity())
        self.net, self.paths = net.requires_grad_(True), paths
        self.multiple, self.memory = multiple, memory
        for module in list(self.modules()):
            for name, buffer in list(module.named_buffers(recurse=False)):
                module.register_buffer(name, buffer, persistent=False)
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values).view(1, -1, 1, 1), persistent=False)
        self.kept, self.folder = Kept(), None
        self.train()
        side = multiple * -(-64 // multiple)
        maps = self.compute(torch.zeros(1, channels, side, side))
        self.strides, self.widths = [side // m.shape[-1] for m in maps], [m.shape[1] for m in maps]
        self.multiple = math.lcm(multiple, *self.strides)
        self.identity = hash_weights(in_use(net, maps))
        net.requires_grad_(False)

    def train(self, mode=True):
        """Stays as for predictions."""
        return super().train(False)

    @torch.compiler.disable
    def forward(self, x):
        with torch.no_grad():
            maps = [self.look_up(image[None]) for image in x]
        same = [torch.cat(rows).float() for rows in zip(*maps, strict=True)]
        return [m.contiguous(memory_format=torch.channels_last) for m in same]

    def look_up(self, image):
        """The maps of one image (1, channels, H, W), known or new."""
        values = 255 * image
        levels = values.round()
        if values.sub_(levels).abs_().amax() > NEAR:
            return self.compute(image)
        shown = levels[0].permute(1, 2, 0).to(torch.uint8).contiguous().cpu().numpy()  # as it lies in memory
        name = sha256(f"{shown.shape}".encode() + shown.tobytes()).hexdigest()
        if name not in self.kept:
            maps = self.read(name, image) or self.write(name, [m.half() for m in self.compute(levels / 255)])
            if not all(m.isfinite().all() for m in maps):
                raise Refused("The encoder's features of an image are too large for half precision, or no numbers.")
            maps = [m.contiguous(memory_format=torch.channels_last) for m in maps]  # as they are read, many times
            if self.kept.bytes <= self.memory:
                self.kept[name] = maps
            elif not self.kept.full:
                self.kept.full = True
                found = "read from" if self.folder else "computed anew; to keep all, set"
                print(
                    f"{len(self.kept)} images' features fill the memory for them: others are {found} cache_dir.",
                    flush=True,
                )
            return maps
        return self.kept[name]

    def read(self, name, image):
        """The maps of the image of that name from the folder, None where they are absent or damaged."""
        try:
            path = self.folder and regular(self.folder / name, MAX_WEIGHTS)
            if not path:
                return None
            with safe_open(path, "pt") as file:
                maps = {key: file.get_tensor(key) for key in sorted(file.keys())}
                whole = (file.metadata() or {}).get("sha256") == hash_weights(maps)
        except (OSError, SafetensorError):
            return None
        sizes = [(torch.float16, 1, width) for width in self.widths]
        if whole and [(m.dtype, *m.shape[:2]) for m in maps.values()] == sizes:
            return [m.to(image.device) for m in maps.values()]
        return None

    def write(self, name, maps):
        """These maps, which are put into the folder too, if there is one; without it the run goes on as well."""
        if self.folder:
            state = {f"{k:02d}": m.cpu().contiguous() for k, m in enumerate(maps)}
            part = self.folder / f"{name}.{os.getpid()}.part"
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                with open(part, "xb") as file:
                    file.write(save(state, {"sha256": hash_weights(state)}))
                os.replace(part, self.folder / name)
            except OSError as error:
                with suppress(OSError):
                    part.unlink(missing_ok=True)
                reason, advice = reason_and_advice(error)
                print(f"Features cannot be kept in {self.folder} ({reason}): to mend that, {advice}.", flush=True)
                self.folder = None
        return maps

    def compute(self, image):
        """float32 maps of one image (1, channels, H, W), new tensors."""
        height, width = image.shape[-2:]
        more = (0, -width % self.multiple, 0, -height % self.multiple)
        grown = nn.functional.pad(image, more, mode="replicate") if any(more) else image
        maps = outputs(self.net, self.paths, (grown - self.mean) / self.std)
        tall, wide = grown.shape[-2:]
        return [m[..., : -(-height * m.shape[-2] // tall), : -(-width * m.shape[-1] // wide)].clone() for m in maps]


class Kept(dict):
    """{name of an image: its maps}, one for all copies of a network: what is frozen is the same in each."""

    bytes, full = 0, False

    def __setitem__(self, name, maps):
        super().__setitem__(name, maps)
        self.bytes += sum(m.nbytes for m in maps)

    def __deepcopy__(self, copies):
        return self


class Reached(Exception):
    """All that is looked for has been put out."""


def outputs(net, paths, x):
    """What these modules put out for x, all maps (B, D, h, w); what comes after the last of them is not computed."""
    made = {}

    def note(path, output):
        made[path] = output
        if len(made) == len(paths):
            raise Reached

    hooks = [net.get_submodule(p).register_forward_hook(lambda m, i, out, p=p: note(p, out)) for p in paths]
    try:
        net(x)
    except Reached:
        pass
    finally:
        for hook in hooks:
            hook.remove()
    return [m for path in paths for m in maps_in(made[path])]


def in_use(net, maps):
    """{name: tensor} of the parameters that these maps were computed with, and the buffers beside them."""
    parameters = dict(net.named_parameters())
    grads = torch.autograd.grad(sum(m.sum() for m in maps), list(parameters.values()), allow_unused=True)
    used = {name: p.detach() for (name, p), grad in zip(parameters.items(), grads, strict=True) if grad is not None}
    places = {name.rpartition(".")[0] for name in used}
    return used | {name: b for name, b in net.named_buffers() if name.rpartition(".")[0] in places}


def remember(file, channels, classes, memory, deepest=False):
    """A Remembered of the encoder in the network of a model's file, of all its maps or of the `deepest` alone.

    Its `pretrained` are the files that weights came from, {name: sha256}.
    """
    net = file.build(channels=channels, classes=classes)
    paths = file.LAYERS["encoder"]
    paths = [paths] if isinstance(paths, str) else paths
    mean, std = getattr(net, "mean", file.MEAN), getattr(net, "std", file.STD)
    made = Remembered(net, paths[-1:] if deepest else paths, channels, mean, std, getattr(net, "multiple", 1), memory)
    made.pretrained = getattr(net, "pretrained", {})
    return made


def keep_in(folder, model, device):
    """Let what is remembered in a model on `device` be kept in a folder, too, which other runs may use; "": let it not.

    Other weights, another release of torch, device or number of threads have a folder of their own in it. What is the
    same network several times in the model keeps together.
    """
    together = {}
    for module in (module for module in model.modules() if isinstance(module, Remembered)):
        module.kept = together.setdefault(module.identity, module.kept)
        if device.type == "cuda":
            module.memory = min(module.memory, torch.cuda.mem_get_info(device)[0] // 4)
        if folder:
            cpu = torch.backends.cpu.get_cpu_capability()
            made = module.identity, torch.__version__, device.type, cpu, torch.get_num_threads()
            module.folder = Path(folder, f"features-{sha256(repr(made).encode()).hexdigest()[:16]}")
