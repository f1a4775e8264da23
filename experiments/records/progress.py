"""What a person sees of a run: one bar with the time left on a terminal, one plain line a cycle in a log."""

import sys

from tqdm import tqdm

from experiments.command_line.process import stop_if_asked


class Progress:
    """The bar of a whole run, in pixels passed through the model; nothing is drawn unless stderr is a terminal."""

    def __init__(self, total):
        shape = "{desc} {percentage:3.0f}% |{bar}| {elapsed}<{remaining}"
        self.bar = tqdm(total=total, file=sys.stderr, disable=not sys.stderr.isatty(), bar_format=shape, leave=False)
        self.stage, self.result = "", ""

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.bar.close()

    def start(self, stage):
        """Name what is done now; as `advance`, where a run stops that a signal asks to."""
        stop_if_asked()
        self.stage = stage
        self.bar.set_description_str(stage + self.result)

    def advance(self, pixels, note=""):
        """Count pixels passed forward (a training step counts three times)."""
        stop_if_asked()
        self.bar.update(min(pixels, max(0, self.bar.total - self.bar.n)) if not self.bar.disable else 0)
        if note:
            self.bar.set_description_str(f"{self.stage}, {note}{self.result}", refresh=False)

    def line(self, text):
        """Print one line above the bar, and into the run's captured output."""
        self.bar.clear()
        print(text, flush=True)
        self.bar.refresh()


def plan(config, crop, train, val, test):
    """The pixels that a run will pass forward, roughly: what the bar counts up to."""
    images, trainer, evaluation = len(train), config["trainer"], config["evaluation"]
    area = len(train.pixels) / images
    crops = trainer["epochs"] * trainer["draws"] * (crop * crop or area)
    checks = trainer["epochs"] / trainer["validate_every"]
    fixed = (len(test.pixels) * (evaluation["passes"] + 1) if test else 0) + (len(val.pixels) * checks if val else 0)
    labelled = [min(images, config["start"] + cycle * config["query"]) for cycle in range(config["cycles"] + 1)]
    scored = sum(min(images - n, config["pool_size"] or images) for n in labelled[:-1]) * area * config["mc_iters"]
    return sum(3 * crops * n + fixed for n in labelled) + scored
