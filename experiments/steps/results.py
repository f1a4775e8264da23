"""What a run shows of its events: logged metrics, arrays, a line for each cycle, its curve and where all that lies."""

import io

from experiments.evaluation import metrics
from experiments.records.files import write
from experiments.records.ledger import reached
from experiments.steps import advice, repeat
from experiments.store import remarks


def publish(state, cycle, event):
    """Write the arrays, log the metrics at step = labelled images, print the cycle's line; returns the headline."""
    for name, value in event["metrics"].items():
        state.run.log_scalar(name, value, event["images"])
    state.run.info["labelled_images"] = event["images"]
    state.ledger.write_arrays()
    headline = state.ledger.headline
    score = event["metrics"].get(headline)
    result = "no foreground in the test images" if state.test else "no test images"
    if score is not None:
        word = metrics.HEADLINES[headline.removeprefix("test.")]
        result = f"test {word} {score:.3f}"
        state.progress.result = f", {word} {score:.3f}"
        curve = [
            e["metrics"][headline] for e in state.ledger.events if e["event"] == "evaluated" and e["cycle"] <= cycle
        ]
        state.run.info |= {"headline": headline, "best": round(max(curve), 3), "last": round(score, 3)}
    done = f"cycle {cycle}/{state.config['cycles']}: {event['images']} images labelled, {result}"
    state.progress.line(done + state.progress.estimate())
    if state.val and state.active.n_unlabelled and state.config["cycles"]:
        advise(state, cycle)
    return score


def publish_audit(state, event):
    """Log what an audit measured at the step of the weights that it measured, and print its line."""
    cycle, found = event["cycle"], event["metrics"]
    for name, value in found.items():
        state.run.log_scalar(name, value, event["images"])
    limits = f" (95 % t interval {found['audit.low']:.3f} to {found['audit.high']:.3f})" if "audit.low" in found else ""
    images = f"{len(event['ids'])} image{'s' * (len(event['ids']) != 1)} drawn at random from its pool"
    line = f"cycle {cycle}/{state.config['cycles']}: audit Dice {found['audit.dice']:.3f}{limits} on {images}"
    state.progress.line(line)


def publish_repeats(state, event):
    """Log how far the masks that a query asked for again agree with the first ones, and print its line."""
    for name, value in event["metrics"].items():
        state.run.log_scalar(name, value, event["images"])
    said = repeat.line(event, state.splits.classes, state.train.foreground)
    state.progress.line(f"cycle {event['cycle']}/{state.config['cycles']}: {said}")


def advise(state, cycle):
    """Say what the next query can be expected to bring, also in Sacred's info."""
    query, word = state.config["query"], metrics.HEADLINES[state.ledger.headline.removeprefix("test.")]
    found = advice.after(state.ledger.events, cycle, query)
    state.run.info["advice"] = {name: round(value, 5) for name, value in found.items()}
    state.progress.line(advice.line(found, word, query))


def enough(state, cycle):
    """Whether validation images say, in a line too, that the run shall end here."""
    found = reached(state.ledger.events, state.config["stop_at"], cycle)
    if found:
        state.progress.line(f"Validation reached stop_at={state.config['stop_at']:g}: the run ends here.")
    return found


def conclude(state):
    """Hand the arrays to the observers and say where the result lies."""
    if not state.active.n_unlabelled and state.config["cycles"]:
        state.progress.line("Every image of the pool is labelled: the run ends here.")
    for line in remarks.unlabelled_classes(state.train, state.splits.classes):
        state.progress.line(line)
    paths = state.ledger.write_arrays()
    for path in paths:
        state.run.add_artifact(str(path), path.name)
    curve = state.ledger.folder.with_name(state.ledger.folder.name + ".npy")
    if curve in paths and state.config["cycles"]:
        state.run.add_artifact(str(draw_curve(state)), "learning_curve.png")
    state.run.info["queries"] = [e for e in state.ledger.events if e["event"] == "queried"]
    state.progress.close()
    print(curve if curve in paths else state.ledger.folder, flush=True)  # without a clock, for scripts


def draw_curve(state):
    """Draw the headline against labelled images as learning_curve.png, as analysis/ draws many; returns its path."""
    from analysis import plots, runs  # pandas and matplotlib take a second to import

    png = io.BytesIO()
    frame = runs.load(state.ledger.folder)
    constant = state.run.info["constant_dice"]
    plots.curves(frame, metric=state.ledger.headline, constant=constant).savefig(png, dpi=100)
    path = state.ledger.folder / "learning_curve.png"
    write(path, png.getvalue())
    return path
