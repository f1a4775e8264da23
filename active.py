"""Active learning for semantic segmentation, one experiment: `python active.py with heuristic=bald run=3`.

Label a few images, train, test, ask for the masks that the heuristic wants most, and again.
"""

import os
from pathlib import Path
from time import perf_counter

from experiments import augment, evaluation, ledger, observers, prediction, progress, training
from experiments.components import SelectiveExperiment
from experiments.errors import Refused
from experiments.randomness import generator

ex = SelectiveExperiment(
    "askmask",
    ingredients=[training.ingredient, augment.ingredient, prediction.ingredient, evaluation.ingredient],
    fractions=("start", "query"),
    observe=observers.observers,
)


@ex.config
def settings():
    heuristic = "bald"  # which images to ask for: a file in heuristics/
    batch = "top"  # how scores become a query: a file in heuristics/batches/
    initial = "random"  # the first labelled images: a file in heuristics/ that needs no model
    dataset = "glas" if os.path.isdir("data/GlaS") else "phantom"  # a file in data/; phantom needs no download
    model = "unet"  # a file in models/
    run = 0  # repetition: run 3 of every heuristic starts from the same images and weights
    seed = run  # what all randomness is derived from
    start = 4  # labelled images at the beginning, or their share of the training set
    query = 4  # images to label in each cycle, or their share of the training set
    cycles = 4  # queries; there is one evaluation more
    mc_iters = 10  # stochastic passes that score the pool; the published setting is 20
    label = heuristic  # results are <results_dir>/<label>_<run>.npy and a folder of that name
    results_dir = "results"
    runs_dir = "runs"  # Sacred's own record of the run in files, "" for none
    mongo_url = ""  # mongodb://... adds the run to a MongoDB, as Omniboard reads it
    checkpoint = "last"  # which cycles' weights to keep: last, all or none
    device = "auto"  # cpu, cuda:N or mps
    threads = 0  # of the CPU; 0 leaves it to torch. Bitwise repeatable for one number of threads


@ex.main
def main(_config, _run):
    """Learn actively: `cycles` queries, and the test Dice before each and after the last."""
    return learn(_config, _run, _config["label"], _config["start"], _config["cycles"])


@ex.command
def full(_config, _run):
    """Train once on all training labels: the ceiling that every strategy is measured against."""
    return learn(_config, _run, "full", 1.0, 0)


def learn(config, run, label, start, cycles):
    """One run, continued from its ledger if that has begun; returns the last test Dice."""
    check(config)
    parts, place = ex.components, (config["seed"], config["dataset"])
    splits = parts["dataset"].load(rng=generator(*place, "split"))
    if config["dataset"] not in (config["initial"], *run.meta_info["named_configs"]):
        say(f"{config['dataset']} with the small default budget; the published one is `with {config['dataset']} ...`.")
    device = training.prepare(device=config["device"], threads=config["threads"])
