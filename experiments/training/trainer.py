"""Training: the labelled images of a Store, augmented in batches on the device, best weights by validation."""

import math
import os
from contextlib import contextmanager

import numpy as np
import torch
from sacred import Ingredient

from experiments.acquisition.prediction import floats, pass_keys, predict, winner
from experiments.components.randomness import generator, key
from experiments.components.settings import Range
from experiments.errors import Refused
from experiments.evaluation import metrics
from experiments.network import checkpoint, processes, ready
from experiments.network.device import PRECISIONS, compiled_for, ran_out_of_memory
from experiments.network.layers import layer_outputs
from experiments.training import augment, operations, ranks
from experiments.training.losses import LOSSES, crop_losses
from experiments.training.recompute import Recomputing

ingredient = Ingredient("trainer")


@ingredient.config
def settings():
    optimizer = "adam"  # sgd (Nesterov), adam or adamw
    lr = 0.004  # learning rate at the start, after any warm-up
    momentum = 0.9  # of sgd
    weight_decay = 1e-4
    clip = 0.0  # gradients together longer than this are shortened to it (Euclidean norm), 0: never
    schedule = "cosine"  # constant, step, cosine or poly
    warmup = 0.0  # epochs of linear warm-up
    step_size = 40  # epochs between the falls of schedule=step
    gamma = 0.1  # what each of those multiplies
    power = 0.9  # of schedule=poly
    loss = "dice_ce"  # ce, dice, dice_ce, dice8_ce2 (MD-SAM-AL's) or linear (the published baselines')
    epochs = 10  # in each cycle
    draws = 8  # crops of each labelled image in an epoch
    batch = 8  # crops in a step
    select_by = "loss"  # which validation value keeps the best weights: loss, dice, iou, miou or class_dice
    validate_every = 5  # epochs; the last one is always validated
    patience = 0  # validations without a better value before training stops, 0 = never
    warm_start = False  # True: go on from the last cycle's weights instead of the first ones
    replay = True  # False: train on the newest query's images alone, for a warm start that has seen the others before
    precision = "auto"  # float32, bfloat16, or auto: bfloat16 where the device is fast at it
    # True: torch.compile, for GPUs. A step of 16 crops of 416 x 416 took an H100 22 ms instead of 38 (unet.width=16,
    # bfloat16), after 67 s once a run
    compiled = False
    gradient_checkpointing = False  # True: maps inside blocks are computed again, not kept: more time, less memory
    deterministic = False  # True: bitwise equal runs on a GPU too, slower


ALLOWED = {
    "optimizer": ("sgd", "adam", "adamw"),
    "lr": Range(least=0),
    "momentum": Range(least=0, below=1),
    "weight_decay": Range(least=0),
    "clip": Range(least=0),
    "schedule": ("constant", "step", "cosine", "poly"),
    "warmup": Range(least=0),
    "step_size": Range(least=1),
    "gamma": Range(least=0),
    "power": Range(least=0),
    "loss": tuple(LOSSES),
    "epochs": Range(least=1),
    "draws": Range(least=1),
    "batch": Range(least=1),
    "select_by": ("loss", *metrics.OVERLAPS),
    "validate_every": Range(least=1),
    "patience": Range(least=1, zero="no such stop"),
    "precision": PRECISIONS,
}


@ingredient.capture
def prepare(device, threads, deterministic):
    """The torch.device that `device` (auto, cpu, cuda:N, mps) names, with torch set up for it."""
    if device == "auto":
        mps = torch.backends.mps.is_available()
        device = "cuda:0" if torch.cuda.is_available() else "mps" if mps else "cpu"
    try:
        chosen = torch.device(device)
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        fix = "use auto, cpu, cuda:N or mps"
        if device.startswith("cuda") and torch.version.cuda is None:
            release = torch.__version__.partition("+")[0]
            fix = (
                f"pip install --force-reinstall torch=={release} --index-url <the CUDA index of pytorch.org>, or {fix}"
            )
        reason = str(error).splitlines()[0]
        raise Refused(f"device={device} cannot be used ({reason}): {fix}.") from error
    if threads:
        torch.set_num_threads(threads)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it torch refuses cuBLAS on a GPU
    if deterministic != torch.are_deterministic_algorithms_enabled():
        torch.use_deterministic_algorithms(deterministic)  # imports the compiler, which takes seconds
    return chosen


@ingredient.capture
def reset_weights(model, first, cycle, warm_start):
    """Put the first weights back before a cycle's training, unless a warm start goes on from the last ones."""
    if cycle == 0 or not warm_start:
        checkpoint.load(model, first)


@ingredient.capture
def fit(model, train, labelled, val, place, crop, epochs, draws, batch, loss, validate_every, patience, select_by,
        precision, compiled, gradient_checkpointing, clip, whole=False, strategy=None, pseudo=(), pseudo_crops=1.0,
        advance=lambda pixels, note="": None):  # fmt: skip
    """Train `model` on the labelled indices of Store `train`; returns what validation saw at the kept epoch.

    Each epoch shows every image `draws` times in steps of at most `batch` crops, and of the `pseudo` labelled ones
    as many crops, but no more than `pseudo_crops` for each of the others. With `whole` they are whole images, oblong if
    these are, of which augmentation only mirrors and turns. A learned `strategy` takes part. Without a
    validation Store the last weights stay. What a network draws from torch's own generator repeats, too: it is seeded
    for each epoch. Raises Refused when the loss or a weight stops being finite.
    """
    height, width = (crop, crop) if crop else [max(max(train.sizes[i]) for i in labelled)] * 2
    if whole:
        height, width = map(max, zip(*(train.sizes[i] for i in [*labelled, *pseudo]), strict=True))
    objective = LOSSES[loss]
    known, guessed = (np.repeat(np.array(indices, dtype=np.int64), draws) for indices in (labelled, pseudo))
    more = min(len(guessed), round(pseudo_crops * len(known)))
    steps = math.ceil((len(known) + more) / batch)
    optimizer, scheduler = make_optimizer(model, steps_per_epoch=steps)
    forward = compiled_for(train.device, model) if compiled else Recomputing(model) if gradient_checkpointing else model
    best = Best(strategy.trained(model) if strategy else model, select_by, patience)
    paths = strategy.paths if strategy else []
    split = ranks.Split(model, forward, loss, precision)
    for epoch in range(epochs):
        rng = generator(*place, "train", epoch)
        added = generator(*place, "pseudo", epoch).permutation(guessed)[:more]
        order = rng.permutation(np.concatenate([known, added]))
        parameters = augment.draw(n=len(order), rng=rng) | operations.draw(n=len(order), rng=rng)
        parameters = {k: v.to(train.device) for k, v in parameters.items()}
        keys = pass_keys(place, f"train {epoch}", range(len(order)), 1)[0].to(train.device)
        shown = torch.from_numpy(order).to(train.device)
        total = torch.zeros((), device=train.device)
        torch.manual_seed(key(*place, "torch", epoch) % 2**63)
        ready.train(model)
        for part in np.array_split(np.arange(len(order)), steps):
            now = slice(int(part[0]), int(part[-1]) + 1)
            drawn = {k: v[now] for k, v in parameters.items()}
            images, masks = augment.crops(train, shown[now], drawn, height, width)
            if whole:
                x = floats(images)
            else:
                inside = augment.inside(train, shown[now], drawn, height, width)
                x, masks = operations.apply(augment.colour(images, inside, drawn["factors"]), masks, inside, drawn)
            with errors_explained(f"{len(x)} crop(s) of {width} x {height}", x.device):
                with split.step(x, masks, keys[now]) as (own, own_masks, model.dropout_keys.now, share):
                    with layer_outputs(model, paths) as maps:
                        losses = crop_losses(forward, own, own_masks, loss, precision)
                    value = losses.mean()
                    if strategy:
                        value = value + strategy.loss(maps(), losses, epoch / epochs)
                    optimizer.zero_grad(set_to_none=True)
                    (value * share).backward()
                if clip:
                    torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
                optimizer.step()
            scheduler.step()
            if strategy:
                strategy.step(train, x, epoch, now.start)
            total += value.detach()
            advance(3 * masks.numel(), note=f"epoch {epoch + 1}/{epochs}")
        model.dropout_keys.now = None
        if (epoch + 1) % validate_every == 0 or epoch + 1 == epochs:
            seen = {} if val is None else validate(model, val, objective, advance)
            for value in (total.item(), seen.get("loss", 0.0)):
                if not math.isfinite(value):
                    raise Refused(f"Training diverged by epoch {epoch + 1} (the loss is {value}): lower trainer.lr.")
            state = checkpoint.pack(model, strategy and strategy.learner)
            checkpoint.refuse_not_finite(state, f"The weights after epoch {epoch + 1}", "lower trainer.lr")
            if seen:
                best.update(epoch + 1, seen)
            if best.out_of_patience:
                break
    return best.restore()


@contextmanager
def errors_explained(crops, device):
    """Say which setting is wrong where a step is too much for the device or too little for batch norm."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        processes.stop_if_lost(error)
        if not ran_out_of_memory(error):
            raise
        raise Refused(
            f"A step of {crops} does not fit on {device}: lower trainer.batch, the crop or the width."
        ) from error
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        reason = f"{crops} are too little to train on ({error})"
        raise Refused(f"{reason}: raise trainer.batch, trainer.draws or the crop.") from error


@ingredient.capture
def make_optimizer(model, optimizer, lr, momentum, weight_decay, schedule, warmup, step_size, gamma, power, epochs,
                   steps_per_epoch):  # fmt: skip
    """The optimizer and its per-step schedule, in units of epochs."""
    parameters = groups(model, lr, weight_decay)
    if optimizer == "sgd":
        made = torch.optim.SGD(parameters, lr, momentum, weight_decay=weight_decay, nesterov=momentum > 0, fused=True)
    else:
        kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[optimizer]
        made = kind(parameters, lr, weight_decay=weight_decay, fused=True)

    def factor(step):
        epoch = step / steps_per_epoch
        rise = min(1.0, (step + 1) / (warmup * steps_per_epoch)) if warmup else 1.0
        done = max(0.0, (epoch - warmup) / max(epochs - warmup, 1e-9))
        return rise * SCHEDULES[schedule](epoch, min(done, 1.0), step_size, gamma, power)

    return made, torch.optim.lr_scheduler.LambdaLR(made, factor)


def groups(model, lr, weight_decay):
    """The optimizer's groups of what is not frozen: those that the model names, then all that it does not."""
    named = [
        {
            "params": [p for p in group["params"] if p.requires_grad],
            "lr": lr * group.get("lr", 1.0),
            "weight_decay": weight_decay * group.get("weight_decay", 1.0),
        }
        for group in (model.groups() if hasattr(model, "groups") else [])
    ]
    taken = {id(p) for group in named for p in group["params"]}
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in taken]
    return [group for group in [*named, {"params": rest}] if group["params"]]


SCHEDULES = {  # (epoch, share of the training done, step_size, gamma, power) -> factor of lr
    "constant": lambda epoch, done, step_size, gamma, power: 1.0,
    "step": lambda epoch, done, step_size, gamma, power: gamma ** (int(epoch) // step_size),
    "cosine": lambda epoch, done, step_size, gamma, power: (1 + math.cos(math.pi * done)) / 2,
    "poly": lambda epoch, done, step_size, gamma, power: (1 - done) ** power,
}


def validate(model, store, objective, advance, indices=None):
    """Mean loss and metrics.overlaps of the single deterministic pass over whole images, as plain floats.

    Of all images of the Store or those at `indices`.
    """
    from experiments.network.inference import Network  # needs torch at once

    network, losses, counted = Network(model), [], []
    for members, images in store.batches(range(len(store)) if indices is None else indices):
        masks = torch.stack([store.mask(i) for i in members]).to(images.device)
        prediction = predict(network, images, [store.ids[i] for i in members], needs=("mean_logits",), means_alone=True)
        losses.append(objective(prediction.mean_logits, masks))
        counted.append(metrics.counts(winner(prediction.mean), masks, prediction.mean.shape[1]))
        advance(masks.numel())
    return {"loss": torch.cat(losses).mean().item(), **metrics.overlaps(torch.cat(counted).cpu(), store.foreground)}


@ingredient.capture
def check_validation(val, select_by):
    """Raise Refused if the masks of Store `val`, None without one, cannot say which weights are best."""
    if val and select_by != "loss" and not val.mask_pixels[val.foreground].any():
        raise Refused(
            f"None of the {len(val)} validation images has a pixel of a foreground class, so trainer.select_by="
            f"{select_by} cannot choose weights: use loss."
        )


class Best:
    """The weights of the best validation so far, copied in place."""

    def __init__(self, model, select_by, patience):
        self.model, self.select_by, self.patience = model, select_by, patience
        self.kept, self.seen, self.waited = None, {}, 0

    @property
    def out_of_patience(self):
        """Whether `patience` validations in a row brought nothing better."""
        return self.patience > 0 and self.waited >= self.patience

    def update(self, epoch, values):
        """Keep the weights if these validation values are the best so far."""
        sign = -1 if self.select_by == "loss" else 1
        if not self.seen or sign * values[self.select_by] > sign * self.seen[self.select_by]:
            self.seen, self.waited = {**values, "epoch": epoch}, 0
            state = checkpoint.kept(self.model)
            if self.kept is None:
                self.kept = {name: tensor.clone() for name, tensor in state.items()}
            for name, tensor in state.items():
                self.kept[name].copy_(tensor)
        else:
            self.waited += 1

    def restore(self):
        """Put the kept weights back; returns the validation values they had, {} without validation."""
        if self.kept is not None:
            checkpoint.load(self.model, self.kept)
        return self.seen
