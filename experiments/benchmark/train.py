"""A training step: AskMask's loop beside the bare step on a batch that lies ready, and the published baselines'."""

import torch

from experiments.acquisition.prediction import floats, pass_keys, two_sided
from experiments.benchmark import peers, timing, work
from experiments.network.device import autocast
from experiments.training import augment, trainer
from experiments.training.losses import LOSSES

OPTIONS = {
    "rounds": (5, "all variants once in each"),
    "images": (4, "labelled"),
    "draws": (4, "crops of each in a round"),
    "batch": (4, "crops in a step"),
    "size": (256, "pixels a side of a crop; images have a quarter more"),
    "width": (16, "of the U-Net"),
    "narrow": (4, "width of a second U-Net, with which the host weighs more"),
    "compiled": (False, "also with torch.compile, which takes minutes to compile"),
    "bfloat16": (False, "all but the baselines in bfloat16, for GPUs"),
}
SETTINGS = {"optimizer": "sgd", "lr": 0.01, "loss": "linear", "schedule": "step"}


def run(options, device):
    """(rows, notes)."""
    rows = []
    for width in dict.fromkeys((options.width, options.narrow)):
        times = timing.rounds(variants(width, options, device), options.rounds, device)
        forward = timing.gflop(work.models(width, device)[0], torch.zeros(1, 3, *[options.size] * 2, device=device))
        rows += rows_of(times, width, 3 * forward, options)
    return rows, [
        f"{options.images * options.draws} crops of {options.size} x {options.size} in steps of {options.batch}, "
        f"{precision(options)}, {options.rounds} rounds, no validation. The bare step has forward, loss, backward "
        "and optimiser on one batch that is already augmented; the arithmetic of a step is that of three forwards."
    ]


def precision(options):
    return "bfloat16" if options.bfloat16 else "float32"


def variants(width, options, device):
    """{name: (function, units)}, a unit being a crop."""
    crop, batch, side = options.size, options.batch, options.size + options.size // 4
    pairs = work.draw(options.images, side, side)
    store = work.store_of(pairs, device)
    plain, model = work.models(width, device)
    bare_model, dropping = work.ready(plain, device), peers.always_dropping(plain)
    pictures, count = peers.pictures(pairs), options.images * options.draws
    steps = -(-count // batch)
    ready = [store.image(i % options.images)[:crop, :crop] for i in range(batch)]
    x = floats(torch.stack(ready))
    masks = torch.stack([store.mask(i % options.images)[:crop, :crop] for i in range(batch)])
    keys = pass_keys(work.PLACE, "train", range(batch), 1)[0].to(device)
    with work.configured(trainer.ingredient, **SETTINGS):
        optimizer, _ = trainer.make_optimizer(bare_model, steps_per_epoch=steps)

    def fit(compiled=False):
        own = dict(epochs=1, draws=options.draws, batch=batch, compiled=compiled, precision=precision(options))
        with work.configured(trainer.ingredient, **SETTINGS, **own), work.configured(augment.ingredient):
            trainer.fit(model, store, list(range(len(store))), None, work.PLACE, crop)

    def bare():
        bare_model.train()
        bare_model.dropout_keys.now = keys
        for _ in range(steps):
            with autocast(x.device, precision(options)):
                logits = bare_model(x)
            loss = LOSSES[SETTINGS["loss"]](two_sided(logits.float()), masks).mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

    def baselines():
        peers.baselines_fit(dropping, pictures, [], 1, options.draws, batch, crop, device)

    found = {
        "convolution": timing.convolution(device),
        "product": timing.product(device, precision(options)),
        "AskMask": (fit, count),
        "bare step": (bare, steps * batch),
        "baselines": (baselines, count),
    }
    return found | ({"AskMask compiled": (lambda: fit(compiled=True), count)} if options.compiled else {})


def rows_of(times, width, arithmetic, options):
    ours, bare, theirs = times["AskMask"], times["bare step"], times["baselines"]
    wide = width == options.width
    compiled = [
        timing.ratio(f"width {width}, AskMask compiled faster than {who}", than, times["AskMask compiled"])
        for who, than in (("AskMask", ours), ("baselines", theirs))
        if "AskMask compiled" in times
    ]
    return [
        timing.rate("3 x 3 convolution, 64 channels", times["convolution"], "GFLOP/s"),
        timing.rate(f"product of matrices, {precision(options)}", times["product"], "GFLOP/s"),
        *(timing.seconds(f"width {width}, {name}: a crop", times[name]) for name in list(times)[2:]),
        *(timing.memory_rows({f"width {width}, {name}": times[name] for name in times})),
        timing.ratio(f"width {width}, bare step / AskMask", bare, ours, ">= 0.95" if wide else ""),
        timing.ratio(f"width {width}, AskMask faster than baselines", theirs, ours, ">= 1.2" if wide else ""),
        *compiled,
        timing.share(f"width {width}, AskMask: part of the product's speed", arithmetic, ours, times["product"]),
    ]
