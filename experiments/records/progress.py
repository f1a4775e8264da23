"""What a person sees of a run: a bar with the time left on a terminal; in a log, lines with clock and estimate."""

import sys
from time import monotonic, strftime

from tqdm import tqdm

from experiments.errors.process import stop_if_asked

EVERY = 300  # seconds without a line in a log, after which one says how far the run is


def say(text):
    """Print a line, in a log (stderr is no terminal) with the time of day before it."""
    print(text if sys.stderr.isatty() else f"{strftime('%H:%M:%S')} {text}", flush=True)


class Progress:
    """The bar of a whole run, in pixels passed through the model; lines instead unless stderr is a terminal."""

    def __init__(self, total):
        shape = "{desc} {percentage:3.0f}% |{bar}| {elapsed}<{remaining}"
        self.bar = tqdm(total=total, file=sys.stderr, disable=not sys.stderr.isatty(), bar_format=shape, leave=False)
        self.total, self.done = total, 0
        self.stage, self.note, self.result = "", "", ""
        self.began = self.said = monotonic()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    def close(self):
        """Take the bar away."""
        self.bar.close()

    def start(self, stage):
        """Name what is done now; as `advance`, where a run stops that a signal asks to."""
        stop_if_asked()
        first, self.stage, self.note = not self.stage, stage, ""
        self.bar.set_description_str(stage + self.result)
        if first and self.bar.disable:
            self.line(stage)

    def advance(self, pixels, note=""):
        """Count pixels passed forward (a training step counts three times)."""
        stop_if_asked()
        step = min(pixels, max(0, self.total - self.done))
        self.done, self.note = self.done + step, note or self.note
        self.bar.update(step)
        if note:
            self.bar.set_description_str(f"{self.stage}, {note}{self.result}", refresh=False)
        if self.bar.disable and monotonic() - self.said > EVERY:
            stage = ", ".join(filter(None, [self.stage, self.note]))
            self.line(f"{stage}, {100 * self.done / self.total:.0f} % of the run{self.estimate()}")

    def estimate(self):
        """How long the run has taken and will yet take, for a log; nothing on a terminal, where the bar does."""
        if not self.bar.disable or not self.done:
            return ""
        elapsed = monotonic() - self.began
        left = elapsed * (self.total / self.done - 1)
        return f", {duration(elapsed)} so far" + (f", about {duration(left)} left" if left >= 1 else "")

    def line(self, text):
        """Print one line above the bar, and into the run's captured output."""
        self.bar.clear()
        say(text)
        self.said = monotonic()
        self.bar.refresh()


def duration(seconds):
    """As a person says it: 48 s, 12 min, 3.2 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def plan(config, crop, train, val, test, events=()):
    """The pixels that a run will pass forward, roughly, beyond what the ledger's `events` say is done."""
    images, trainer, evaluation = len(train), config["trainer"], config["evaluation"]
    area = len(train.pixels) / images
    crops = trainer["epochs"] * trainer["draws"] * (crop * crop or area) * config.get("members", 1)
    checks = trainer["epochs"] / trainer["validate_every"]
    fixed = (len(test.pixels) * (evaluation["passes"] + 1) if test else 0) + (len(val.pixels) * checks if val else 0)
    labelled = [min(images, config["start"] + cycle * config["query"]) for cycle in range(config["cycles"] + 1)]
    done = {(event["event"], event["cycle"]) for event in events}
    newest = [n - before for before, n in zip([0, *labelled], labelled, strict=False)]
    taught = labelled if trainer.get("replay", True) else newest
    trained = sum(3 * crops * n + fixed for cycle, n in enumerate(taught) if ("evaluated", cycle) not in done)
    asked = [n for cycle, n in enumerate(labelled[:-1]) if ("queried", cycle) not in done]
    scored = sum(min(images - n, config["pool_size"] or images) for n in asked) * area * config["mc_iters"]
    return trained + scored
