"""What a run says before it begins: what is about to be done and on what, and what looking at nothing would score."""

from experiments.acquisition import needs
from experiments.components import PRESETS
from experiments.evaluation import evaluation, metrics
from experiments.records.progress import say
from experiments.training import weights


def say_plan(config, run, components, splits, test, classes, made):
    """Say what is about to be done and on what, and what an answer that looks at nothing would score."""
    threads = f"{made['threads']} thread" + "s" * (made["threads"] != 1)
    ranks = f" in each of {made['ranks']} processes" if "ranks" in made else ""
    say(f"On {made['device']}, {threads}{ranks}, {made['precision']}.")
    sizes = ", ".join(f"{len(split)} {name}" for name, split in zip(splits._fields, splits[:3], strict=False) if split)
    queries = f"{config['cycles']} cycles of {config['query']}" if config["cycles"] else "no queries"
    say(f"{sizes} images; {config['label']} run {config['run']} starts with {config['start']}, {queries}.")
    if (PRESETS / f"{config['dataset']}.yaml").exists() and config["dataset"] not in run.meta_info["named_configs"]:
        say(f"This is a small budget; the published one is `with {config['dataset']}`.")
    if weights.whole(components["model"]):
        left = "no augmentation" if needs.solved(components["model"]) else "of augment only flip and rotate"
        say(f"{config['model']} keeps features of whole images: no crops, and {left}.")
    if getattr(components["heuristic"], "JOINT", False):
        say(f"{config['heuristic']} trains the model too: its first Dice is not paired with others'.")
    if config["encoder"]:
        say(f"encoder={config['encoder']}: strategies compare features of its deepest map, whatever layer they name.")
    if test:
        constant = evaluation.constant_answer(test, classes, measure=splits.headline)
        run.info["constant_dice"] = constant
        if constant is None:
            what = f"None of the {len(test)} test images has a pixel of a foreground class"
            say(f"{what}: Dice and IoU cannot be measured, only accuracy and calibration.")
        else:
            word = metrics.HEADLINES[splits.headline]
            say(f"Calling every test pixel foreground would give {word} {constant:.3f}.")
