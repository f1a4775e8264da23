"""Scoring a pool by BALD: AskMask beside baal in its modes and the published baselines, on one U-Net."""

from contextlib import contextmanager
from functools import partial
from statistics import median

import numpy as np
import torch
from tqdm import tqdm

from experiments.acquisition import selection
from experiments.acquisition.prediction import floats, pass_keys
from experiments.benchmark import memory, peers, race, timing, work
from experiments.errors import Refused
from experiments.network.dropout import turn
from experiments.network.inference import Network

OPTIONS = {
    "rounds": (10, "all variants once in each"),
    "images": (1, "of the pool"),
    "compared": (0, "images of the pool that the peers score, whose time grows with their number; 0: all"),
    "size": (256, "pixels a side of an image"),
    "width": (16, "of the U-Net"),
    "passes": (20, "of MC dropout"),
    "batch": (0, "images at once, as prediction.batch: 0 is what suits the device"),
    "compiled": (False, "also with torch.compile, which takes minutes to compile"),
    "bfloat16": (False, "also in bfloat16, for GPUs"),
    "memory": (False, "also peak memory, in processes of their own"),
    "race": (False, "also a race with balanced masks on a trained model, with its recall; takes most of an hour"),
    "pool": (200, "images of the race's pool"),
    "query": (10, "images that the race looks for"),
    "side": (64, "pixels a side of an image where the race's picks are compared"),
    "trials": (20, "of the race, each with other masks"),
    "epochs": (25, "of training before the race, on 64 drawn images"),
}
FORWARDS = 4  # of an image in a round, for the yardsticks
TOLERANCE = 1e-6  # of BALD in nats
ROUNDING = 0.02  # of bfloat16: its BALD may be off by this part of the largest


def run(options, device):
    """(rows, notes)."""
    pairs = work.draw(options.images, options.size, options.size)
    store, pairs = work.store_of(pairs, device), pairs[: options.compared or None]
    plain, model = work.models(options.width, device)
    networks = networks_of(model, options)
    gate(plain, networks, pairs, options, device)
    times = timing.rounds(variants(plain, networks, pairs, store, options, device), options.rounds, device)
    arithmetic = timing.gflop(plain, torch.zeros(1, 3, options.size, options.size, device=device))
    rows, notes = rows_of(times, arithmetic, options), [settings_note(options)]
    for part, asked in ((memory, options.memory), (race, options.race)):
        if asked:
            more, said = part.run(options, device)
            rows, notes = rows + more, notes + said
    return rows, notes


def networks_of(model, options):
    """{what to add to AskMask's name: Network}."""
    found = {}
    for compiled in (False, True)[: 1 + options.compiled]:
        for precision in ("float32", "bfloat16")[: 1 + options.bfloat16]:
            name = " compiled" * compiled + " bfloat16" * (precision == "bfloat16")
            found[name] = Network(model, compiled, precision)
    return found


def settings_note(options):
    rounded = f", in bfloat16 within {ROUNDING:.0%} of the largest" * options.bfloat16
    return (
        f"{options.images} images of {options.size} x {options.size}, {options.compared or 'all'} of them for the "
        f"peers, U-Net of width {options.width}, {options.passes} passes, {options.rounds} rounds. BALD of every "
        f"variant was that of baal within {TOLERANCE:g} nats on the same masks{rounded}. A forward is one stochastic "
        "pass of one image by the plain module."
    )


def gate(plain, networks, pairs, options, device):
    """Raise Refused unless all score the same as baal's generator on the same masks; without a GPU's TensorFloat-32."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        compare(plain, networks, pairs, options, device)


def compare(plain, networks, pairs, options, device):
    store, k = work.store_of(pairs, device), options.passes
    keys = pass_keys(work.PLACE, "score", store.ids, k).to(device)
    images = peers.tensors(image for image, _ in pairs)

    def scores_of_baal(mode="baal, generator", balanced=False):
        with steered(work.ready(plain, device), keys, balanced) as model:
            return peers.baal_scores(model, images, k, device, **peers.MODES[mode])

    right = scores_of_baal()
    modes = tqdm(peers.MODES, "checking that all compute the same", leave=False, disable=None)  # None: terminals only
    found = {mode: scores_of_baal(mode) for mode in modes}
    with steered(work.ready(plain, device), keys) as model:
        found["baselines"] = peers.baselines_scores(model, [image for image, _ in pairs], k, device)
    for name, network in networks.items():
        found[f"AskMask{name}"] = work.bald_scores(work.pool_of(store, network, k, batch=options.batch))
    agree(right, found)
    balanced = work.bald_scores(work.pool_of(store, networks[""], k, batch=options.batch, masks="balanced"))
    agree(scores_of_baal(balanced=True), {"AskMask, balanced masks": balanced})


def agree(right, found):
    for name, scores in found.items():
        difference = np.abs(np.asarray(scores) - right).max()
        if not difference <= (ROUNDING * np.max(right) if "bfloat16" in name else TOLERANCE):
            raise Refused(f"BALD of {name} is {difference:.1e} away from baal's on the same masks: nothing is timed.")


@contextmanager
def steered(model, keys, balanced=False):
    """Each row that the model sees takes the next of the keys (K, N): all passes of an image, then the next image.

    With `balanced` masks it must see one row at a time.
    """
    passes, state = len(keys), model.dropout_keys
    queue, seen = keys.T.flatten(), 0

    def steer(module, inputs):
        nonlocal seen
        rows = len(inputs[0])
        state.now = queue[seen : seen + rows]
        if balanced:
            state.now, state.shift = keys[0, seen // passes].view(1), turn(seen % passes / passes, keys.device)
        seen += rows

    hook = model.register_forward_pre_hook(steer)
    try:
        yield model
    finally:
        hook.remove()
        state.now, state.shift = None, None


def variants(plain, networks, pairs, store, options, device):
    """{name: (function, units)}: of the yardsticks a forward, of the others an image."""
    n, few, k = len(store), len(pairs), options.passes
    dropping, images = peers.always_dropping(plain).eval(), [image for image, _ in pairs]
    dataset, pictures = peers.tensors(images), [picture for picture, _ in peers.pictures(pairs)]
    inputs = [x[None].to(device) for x, _ in dataset]

    def forwards(model):
        with torch.no_grad():
            for x in inputs:
                for _ in range(FORWARDS):
                    model(x)

    prepared = [
        (floats(batch), pass_keys(work.PLACE, "score", [store.ids[i] for i in members], k).to(device))
        for members, batch in store.batches(range(n), options.batch)
    ]

    def bare(network):
        with torch.inference_mode():
            for x, keys in prepared:
                for _ in network.passes(x, keys):
                    pass

    def pool(suffix="", scorers=None, **more):
        return work.pool_of(store, networks[suffix], k, scorers=scorers, batch=options.batch, **more)

    one, balanced, four = (
        pool(),
        pool(masks="balanced"),
        pool(scorers=selection.scorers(["entropy", "variance", "margin"])),
    )

    found = {
        "stochastic forward": (lambda: forwards(dropping), few * FORWARDS),
        "deterministic forward": (lambda: forwards(plain), few * FORWARDS),
        "convolution": timing.convolution(device),
        "product": timing.product(device, "float32"),
        "preparation": (lambda: Network(networks[""].model), 1),
        "network alone": (lambda: bare(networks[""]), n),
        "AskMask": (lambda: work.bald_scores(one), n),
        "AskMask, four scores": (lambda: (work.bald_scores(four), four.noted()), n),
        "AskMask, balanced masks": (lambda: work.bald_scores(balanced), n),
        "baselines": (lambda: peers.baselines_scores(dropping, pictures, k, device), few),
    }
    for name, mode in peers.MODES.items():
        found[name] = (lambda mode=mode: peers.baal_scores(dropping, dataset, k, device, **mode), few)
    for suffix in [name for name in networks if name]:
        found[f"AskMask{suffix}"] = (partial(work.bald_scores, pool(suffix)), n)
    if options.bfloat16:
        found["product in bfloat16"] = timing.product(device, "bfloat16")
    return found


def rows_of(times, arithmetic, options):
    ratio, forward = timing.ratio, times["stochastic forward"]
    half = times.pop("product in bfloat16", None)
    best = min(peers.MODES, key=lambda mode: median(time.wall for time in times[mode]))
    rows = [
        timing.seconds("stochastic forward", forward),
        timing.seconds("deterministic forward", times["deterministic forward"]),
        timing.rate("3 x 3 convolution, 64 channels", times["convolution"], "GFLOP/s"),
        timing.rate("product of matrices", times["product"], "GFLOP/s"),
        timing.seconds("network made ready, once a cycle", times["preparation"]),
    ]
    timed = list(times)[len(rows) :]
    rows += [timing.seconds(f"{name}: an image", times[name]) for name in timed]
    rows += timing.memory_rows({name: times[name] for name in timed})
    targets = {"AskMask": "<= 13.5", "AskMask compiled": "<= 11.5"}
    rows += [ratio(f"{name}: an image", times[name], forward, targets.get(name, ""), "forwards") for name in timed]
    if half:
        rows.append(timing.rate("product of matrices in bfloat16", half, "GFLOP/s"))
    for name in [n for n in timed if n.startswith("AskMask") and n != "AskMask, four scores"]:
        wanted = name == "AskMask"
        rows += [
            ratio(f"{name} faster than baal", times["baal"], times[name], ">= 2.2" if wanted else ""),
            ratio(f"{name} faster than baal's best ({best})", times[best], times[name], ">= 1.7" if wanted else ""),
            ratio(f"{name} faster than baselines", times["baselines"], times[name]),
            timing.share(
                f"{name}: part of the speed of a product of matrices",
                arithmetic * options.passes,
                times[name],
                half if "bfloat16" in name else times["product"],
            ),
        ]
    return [
        *rows,
        ratio("entropy, BALD, variance and margin / BALD", times["AskMask, four scores"], times["AskMask"], "<= 1.05"),
        ratio("AskMask / its network alone", times["AskMask"], times["network alone"], "<= 1.05"),
    ]
