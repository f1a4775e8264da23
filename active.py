"""Active learning for semantic segmentation, one experiment: `python active.py with heuristic=bald run=3`.

Label a few images, train, test, ask for the masks that the heuristic wants most, and again.
"""

import json
import os
from pathlib import Path

from experiments.acquisition import prediction, querying, selection
from experiments.components.experiment import SelectiveExperiment
from experiments.components.settings import Range
from experiments.errors import Refused
from experiments.evaluation import evaluation
from experiments.records.ledger import CEILING
from experiments.records.observers import observers
from experiments.records.sacred_record import keep_output
from experiments.steps import begin, loop, results, turns
from experiments.training import augment, operations, ranks, trainer, weights


def check(config, components, command):
    """Refuse at once what could only fail later, before anything is written."""
    empty = getattr(components["initial"], "EMPTY", False)
    if config["start"] == 0 and not empty:
        raise Refused("start must be at least 1, not 0: only initial=none starts without labels.")
    if empty and command == "full":
        raise Refused(f"full trains on every label: leave out initial={config['initial']}.")
    if config["label"].casefold() == CEILING["label"] and command != "full":
        raise Refused(f"label={config['label']} is what the command full calls its results: choose another label.")
    if config["checkpoint"] == "none" and weights.continues_weights(config, components["heuristic"]):
        who = "trainer.warm_start" if config["trainer"]["warm_start"] else f"heuristic={config['heuristic']}"
        raise Refused(f"{who} goes on from saved weights: set checkpoint=last.")
    if not config["trainer"]["replay"] and not config["trainer"]["warm_start"]:
        raise Refused("trainer.replay=False forgets all earlier labels with the weights: set trainer.warm_start=True.")
    ranks.check(config, components)
    members = config["members"]
    if members > 1 and hasattr(components["heuristic"], "prepare"):
        raise Refused(f"heuristic={config['heuristic']} learns beside one model: leave out members={members}.")
    for name, section, passes in (
        ("mc_iters", "prediction", config["mc_iters"]),
        ("evaluation.passes", "evaluation", config["evaluation"]["passes"]),
    ):
        if config[section]["dropout"] and passes < members:
            raise Refused(f"{name}={passes} passes cannot be shared by members={members}: set {name}={members}.")
    if not config["label"] or any(mark in config["label"] for mark in "/\\\0"):
        raise Refused(f"label names a file, so it cannot be {config['label']!r}.")
    evaluation.check()
    operations.check()
    for component in components.values():
        if hasattr(component, "check"):
            component.check()
    race = config["prediction"]["race"]
    selection.check(components["heuristic"], components["batch"], querying.reduction(config), race)
    selection.scorers(config["noted"])
    if command in ("main", "full", *turns.EVENTS):
        begin.check({**config, **CEILING} if command == "full" else config, components, ex.usual())
    if command in turns.EVENTS:
        turns.check(begin.folder_of(config), config["cycles"], config["stop_at"], command)


ex = SelectiveExperiment(
    "askmask",
    ingredients=[trainer.ingredient, augment.ingredient, prediction.ingredient, evaluation.ingredient],
    fractions=("start", "query", "pool_size"),
    optional={"encoder": "model"},
    check=check,
    observe=observers,
    begun=begin.begun,
)


@ex.config
def settings():
    heuristic = "bald"  # which images to ask for: a file in heuristics/
    batch = "top"  # how scores become a query: a file in heuristics/batches/
    initial = "random"  # the first labelled images: a file in heuristics/ that needs no model
    dataset = "glas" if os.path.isdir("data/GlaS") else "phantom"  # a file in data/; phantom needs no download
    model = "unet"  # a file in models/
    encoder = ""  # a pretrained file in models/ whose features strategies compare; "" for those of the trained model
    members = 1  # models trained in each cycle, an ensemble: they share the passes that score and test
    run = 0  # repetition: run 3 of every heuristic starts from the same images and weights
    seed = run  # what all randomness is derived from
    start = 4  # labelled images at the beginning, or their share of the training set
    query = 4  # images to label in each cycle, or their share of the training set
    cycles = 2  # queries; there is one evaluation more
    stop_at = 0.0  # validation Dice, or the dataset's own headline, at which the run ends before that; 0: never
    pool_size = 0  # look only at this many images of the pool in each cycle, drawn anew, or their share; 0: at all
    audit = 0.0  # share of each query drawn at random; on it the model that asked is measured before it learns from it
    repeat = 0.0  # beside each query, this share of it asks again for masks of earlier ones: how far people agree
    noted = ["entropy", "expected_entropy", "bald", "variance"]  # scores of the same passes kept beside the heuristic's
    mc_iters = 10  # stochastic passes that score the pool; the published setting is 20
    label = heuristic  # results are <results_dir>/<label>_<run>.npy and a folder of that name
    results_dir = "results"
    runs_dir = "runs"  # Sacred's own record of the run in files, "" for none
    cache_dir = ""  # keeps decoded images there, from which later runs on the same data take them; "" for none
    mongo_url = ""  # mongodb://... adds the run to a MongoDB, as Omniboard reads it
    tensorboard_dir = ""  # TensorBoard's event files as well; needs tensorboardX
    tags = ""  # words, with commas between, to find the run by in Omniboard; `-c "..."` adds a note
    shared_dir = ""  # a folder in which runs that begin alike leave their first cycle for one another, "" for none
    ray = ""  # a Ray cluster that scores the pool in shards: its address, auto, or local for its own; "" for none
    study = ""  # sha256 of the study file that asked for this run, which its ledger then holds
    checkpoint = "last"  # which cycles' weights to keep: last, all or none
    resume = "same"  # anyway: go on with other versions, sources or devices than the run began with, which is recorded
    device = "auto"  # cpu, cuda:N or mps
    threads = 0  # of the CPU, 0 leaves it to torch; results are bitwise repeatable for one number of threads


ALLOWED = {
    "run": Range(least=0, most=2**32 - 1),
    "seed": Range(least=0, most=2**32 - 1),
    "start": Range(least=0),
    "query": Range(least=1),
    "cycles": Range(least=0),
    "stop_at": Range(above=0, most=1, zero="never"),
    "pool_size": Range(least=0),
    "audit": Range(least=0, below=1),
    "repeat": Range(least=0, below=1),
    "mc_iters": Range(least=1),
    "members": Range(least=1, most=100),
    "checkpoint": ("last", "all", "none"),
    "resume": ("same", "anyway"),
    "threads": Range(least=1, most=1024, zero="what torch takes"),
}


@ex.command(unobserved=True)
def save_config(_config):
    """Write every setting of a run to config.json: `with config.json` makes it again."""
    try:
        Path("config.json").write_text(json.dumps(_config, indent=2, sort_keys=True) + "\n")
    except OSError as error:
        raise Refused(f"config.json cannot be written here ({error.strerror}).") from error
    print("config.json")


@ex.main
def main(_config, _run):
    """Learn actively: `cycles` queries, tested before each and after the last."""
    return learn(_config, _run)


@ex.command
def full(_config, _run):
    """Train once on all training labels: the ceiling that every strategy is measured against."""
    return learn({**_config, **CEILING}, _run)


@ex.command
def train(_config, _run):
    """One step of `main`: the next training and its test, where `query` was the last step or none was."""
    return learn(_config, _run, "train")


@ex.command
def query(_config, _run):
    """One step of `main`: ask for the next images, with a page that shows them, where `train` was the last step."""
    return learn(_config, _run, "query")


def learn(config, run, step=""):
    """One run, gone on with where its ledger ends; returns the last test Dice, None without test images.

    With a `step`, train or query, it goes on by that one alone; raises Paused or AwaitingLabels if more are to come.
    """
    with keep_output(run), begin.prepare(config, run, ex.components, ex.usual()) as state:
        only = step and (step, turns.number(step, state.ledger.events))
        queries = loop.initial(state)
        for cycle in range(config["cycles"] + 1):
            loop.label(state, queries, cycle)
            dice = loop.train_and_test(state, cycle)
            if cycle == config["cycles"] or not state.active.n_unlabelled or results.enough(state, cycle):
                break
            if only == ("train", cycle):
                raise turns.after_training(state, cycle)
            queries = loop.query(state, cycle)
            if only == ("query", cycle):
                raise turns.after_query(state, queries, cycle)
        results.conclude(state)
        return dice


if __name__ == "__main__":
    with ranks.together() as first:
        if first:
            ex.run_commandline()
