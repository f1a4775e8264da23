"""Data-parallel training under torchrun: the crops of each step split over processes, their gradients summed.

Li et al. 2020, PyTorch Distributed, https://arxiv.org/abs/2006.15704. Rank 0 is the run, as ever: it draws the crops,
validates, scores, tests and writes. The others open no file of it: they build its model when training begins, take the
weights and crops of each step, and give gradients.
"""

import os
import signal
import sys
from contextlib import contextmanager, suppress

import torch

from experiments.acquisition.needs import solved
from experiments.errors import Refused
from experiments.errors.process import refusal
from experiments.network import joint_norm, processes, ready
from experiments.network.device import ran_out_of_memory
from experiments.training.losses import crop_losses
from experiments.training.recompute import Recomputing


def check(config, components):
    """Raise Refused for what torchrun's processes do not train together."""
    if processes.started() == 1:
        return
    if processes.count() == 1:
        raise Refused("torchrun began several processes where one trains a run: let it start active.py itself.")
    file = components["model"]
    reasons = {
        "trainer.compiled=True": config["trainer"]["compiled"],
        f"heuristic={config['heuristic']}, which learns beside the model,": hasattr(components["heuristic"], "prepare"),
        f"model={config['model']}, which trains no more than a head,": getattr(file, "WHOLE", False) or solved(file),
        f"ray={config['ray']}": config["ray"],
        f"device={config['device']}": config["device"] not in ("auto", "cpu", "cuda", "cuda:0"),
    }
    for what, alone in reasons.items():
        if alone:
            raise Refused(f"{what} takes one process: leave out torchrun.")


@contextmanager
def together():
    """Around the command line: gives whether this process is to run it, which only rank 0 of torchrun's is."""
    if processes.started() == 1:
        yield True
        return
    processes.begin()
    if int(os.environ["RANK"]):
        _serve()
        yield False
        return
    try:
        yield True
    except SystemExit as ended:
        if ended.code:  # then torchrun ends the others
            raise
    with suppress(RuntimeError):  # the run is over, whatever has become of the others
        processes.join()
        processes.send(None)
        torch.distributed.destroy_process_group()


class Split:
    """A training of `model` whose steps are split, by the named loss and precision.

    `forward` is the model, or a function of images that gives what the model gives.
    """

    def __init__(self, model, forward, loss, precision):
        self.model, self.forward, self.how, self.sent = model, forward, (loss, precision), False

    @contextmanager
    def step(self, x, masks, keys):
        """In here this process computes what it is given of a step's crops, masks and dropout keys (B, ...).

        Gives those and their share of the step, which is to multiply the mean loss; afterwards gradients are those of
        the whole step. Without torchrun, and of fewer crops than ranks, it is given all. Raises Refused for a model
        that other processes cannot train.
        """
        if len(x) < processes.count() or processes.count() == 1:
            yield x, masks, keys, 1.0
            return
        processes.join()
        if not self.sent:
            self._send_model(x)
        tensors = x.contiguous(), masks, keys
        kinds = [(tensor.shape, f"{tensor.dtype}".removeprefix("torch.")) for tensor in tensors]
        processes.send((torch.initial_seed(), kinds))
        for tensor in (_flat(_trained(self.model)), *tensors):
            processes.give(tensor)
        with _part(self.model, tensors) as own:
            yield own

    def _send_model(self, x):
        here, gpus = int(os.environ["LOCAL_WORLD_SIZE"]), torch.cuda.device_count()
        if x.is_cuda and here > gpus:
            raise Refused(f"torchrun began {here} processes for {gpus} GPU(s): let it begin one for each.")
        joint_norm.norms(self.model)
        blocks = None
        if isinstance(self.forward, Recomputing):
            self.forward.choose(x)
            blocks = [name for name, module in self.model.named_modules() if module in self.forward.chosen]
        how = x.device.type, torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
        processes.send((*how, self.model.made_of, blocks, self.how))
        for tensor in _all(self.model):
            processes.give(tensor.contiguous())
        self.sent = True


@contextmanager
def _part(model, tensors):
    """In here this rank computes its rows of a step's tensors, given with their share; then gradients are summed."""
    rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
    own = [tensor.tensor_split(ranks)[rank] for tensor in tensors]
    share = len(own[0]) / len(tensors[0])
    with joint_norm.joined(model, share):
        yield *own, share
    gradients = [p.grad for p in _trained(model) if p.grad is not None]  # the same everywhere: one network, one loss
    sums = _flat(gradients)
    torch.distributed.all_reduce(sums)
    _fill(gradients, sums)


def _serve():
    """Compute what rank 0 sends until it says that this was all; ends the process where another is lost."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        processes.join()
        while (message := processes.received()) is not None:
            if isinstance(message[0], str):
                training = _begin(*message)
            else:
                _compute(*training, *message)
        torch.distributed.destroy_process_group()
    except (RuntimeError, MemoryError, Refused) as error:
        if not processes.is_lost(error):
            full = "Memory ran out: lower trainer.batch, the crop or the width." if ran_out_of_memory(error) else ""
            told = full or refusal(error)
            if not told:
                raise
            print(f"Rank {os.environ['RANK']}: {told}", file=sys.stderr, flush=True)
        os._exit(1)


def _begin(kind, threads, deterministic, made_of, blocks, how):
    """(model, what to call for its logits, loss and precision, this rank's device) of a training that rank 0 begins."""
    torch.set_num_threads(threads)
    if deterministic != torch.are_deterministic_algorithms_enabled():
        torch.use_deterministic_algorithms(deterministic)  # imports the compiler, which takes seconds
    device = processes.device_of(kind)
    model = forward = ready.build_again(*made_of, device)
    for tensor in _all(model):
        sent = tensor.contiguous()
        processes.give(sent)
        tensor.copy_(sent)
    ready.train(model)
    if blocks is not None:
        forward = Recomputing(model)
        forward.chosen = [model.get_submodule(name) for name in blocks]
    return model, forward, how, device


def _compute(model, forward, how, device, seed, kinds):
    """This rank's part of a step's gradients, by rank 0's weights."""
    weights = _flat(_trained(model))
    tensors = [torch.empty(shape, dtype=getattr(torch, kind), device=device) for shape, kind in kinds]
    for tensor in (weights, *tensors):
        processes.give(tensor)
    _fill([p.detach() for p in _trained(model)], weights)
    seed += torch.distributed.get_rank()  # what a network draws from torch's own generator differs, and repeats
    if seed != torch.initial_seed():
        torch.manual_seed(seed)
    with _part(model, tensors) as (x, masks, model.dropout_keys.now, share):
        (crop_losses(forward, x, masks, *how).mean() * share).backward()
    model.zero_grad(set_to_none=True)


def _all(model):
    """Its parameters and buffers, in their order."""
    return [tensor.detach() for tensor in (*model.parameters(), *model.buffers())]


def _trained(model):
    """The parameters that are not frozen, in their order."""
    return [p for p in model.parameters() if p.requires_grad]


def _flat(tensors):
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


def _fill(tensors, flat):
    """Put back in what `_flat` took out."""
    for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))
