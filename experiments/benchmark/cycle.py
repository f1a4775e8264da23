"""A whole cycle of active learning, train, score the pool, test, by AskMask and by the published baselines' loop."""

import numpy as np

from experiments.acquisition import selection
from experiments.benchmark import peers, timing, work
from experiments.evaluation import evaluation
from experiments.network.inference import Network
from experiments.training import augment, trainer

OPTIONS = {
    "rounds": (2, "both systems once in each, a minute of two cores; one more to warm up"),
    "width": (16, "of the U-Net"),
    "crop": (128, "pixels a side of a crop; images are 240 x 160 of 128, as in GlaS 775 x 522 of 416"),
    "epochs": (12, "of training; 60 as published"),
    "labelled": (2, "images; 19 on average as published"),
    "val": (2, "images validated in each epoch; 17 as published"),
    "pool": (1, "images scored; 49 on average as published"),
    "test": (2, "images; 80 as published"),
    "passes": (20, "of MC dropout over pool and test; 20 as published"),
    "draws": (8, "crops of each image in an epoch; 8 as published"),
    "batch": (16, "crops in a step; 16 as published"),
}
PUBLISHED = {"crops": 19 * 8 * 60, "val": 17 * 60, "pool": 49 * 20, "test": 80 * 20}  # GlaS: crops, passes over images
PHASES = ("train", "score", "test")


def run(options, device):
    """(rows, notes)."""
    times = timing.rounds(variants(options, device), options.rounds, device)
    return rows_of(times), [scaled(options)]


def scaled(o):
    here = {
        "crops": o.labelled * o.draws * o.epochs,
        "val": o.val * o.epochs,
        "pool": o.pool * o.passes,
        "test": o.test * o.passes,
    }
    shares = ", ".join(f"{name} 1/{PUBLISHED[name] / count:.0f}" for name, count in here.items())
    height, width = sides(o.crop)
    return (
        "Scaled down from an average published cycle on GlaS (9,120 crops of 416, 1,020 validation passes, 980 over "
        f"the pool, 1,600 over the test images, of 775 x 522): {shares}; crops of {o.crop}, images of {width} x "
        f"{height}, {o.rounds} rounds. Both validate in every epoch. AskMask's test has a deterministic pass besides."
    )


def sides(crop):
    """(height, width) of images that are to a crop what GlaS's are to 416."""
    return round(crop * 1.25), round(crop * 1.875)


def variants(options, device):
    """{name: (function, 1)}: the phases of both, in `PHASES`."""
    size, k, draws, batch, crop = sides(options.crop), options.passes, options.draws, options.batch, options.crop
    parts = {
        name: work.draw(getattr(options, name), *size, seed=n)
        for n, name in enumerate(("labelled", "val", "pool", "test"))
    }
    stores = {name: work.store_of(pairs, device) for name, pairs in parts.items()}
    plain, model = work.models(options.width, device)
    dropping = peers.always_dropping(plain)
    pictures = {name: peers.pictures(pairs) for name, pairs in parts.items()}
    settings = {"optimizer": "sgd", "lr": 0.01, "loss": "linear", "schedule": "step", "precision": "float32"}
    settings |= {"epochs": options.epochs, "draws": draws, "batch": batch, "validate_every": 1}

    def train():
        labelled = list(range(options.labelled))
        with work.configured(trainer.ingredient, **settings), work.configured(augment.ingredient):
            trainer.fit(model, stores["labelled"], labelled, stores["val"], work.PLACE, crop)

    def score():
        pool = work.pool_of(stores["pool"], Network(model), k)
        return selection.select(work.BALD, work.TOP, pool, options.pool, np.random.default_rng(0))

    def test():
        with work.configured(evaluation.ingredient, passes=k):
            return evaluation.evaluate(model, stores["test"], work.PLACE, 2)

    def their_training():
        peers.baselines_fit(dropping, pictures["labelled"], pictures["val"], options.epochs, draws, batch, crop, device)

    return {
        "AskMask train": (train, 1),
        "AskMask score": (score, 1),
        "AskMask test": (test, 1),
        "baselines train": (their_training, 1),
        "baselines score": (
            lambda: peers.baselines_scores(dropping, [image for image, _ in pictures["pool"]], k, device),
            1,
        ),
        "baselines test": (lambda: peers.baselines_test(dropping, pictures["test"], k, device), 1),
    }


def rows_of(times):
    rows = [timing.seconds(name, found) for name, found in times.items()]
    for what, phases, target in (
        ("train", PHASES[:1], ""),
        ("score", PHASES[1:2], ""),
        ("test", PHASES[2:], ""),
        ("score and test", PHASES[1:], ">= 1.5"),
        ("the whole cycle", PHASES, ">= 1.25"),
    ):
        ours, theirs = (
            timing.together(*(times[f"{who} {phase}"] for phase in phases)) for who in ("AskMask", "baselines")
        )
        rows.append(timing.ratio(f"AskMask faster than baselines: {what}", theirs, ours, target))
    return rows
