"""What a person sees of a run: one bar with the time left on a terminal, one plain line a cycle in a log."""

import sys

from tqdm import tqdm


class Progress:
    """The bar of a whole run, in pixels passed through the model; nothing is drawn unless stderr is a terminal."""

    def __init__(self, total):
        shape = "{desc} {percentage:3.0f}% |{bar}| {elapsed}<{remaining}"
        self.bar = tqdm(total=total, file=sys.stderr, disable=not sys.stderr.isatty(), bar_format=shape, leave=False)
        self.stage = ""

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.bar.close()

    def start(self, stage):
        """Name what is done now."""
        self.stage = stage
        self.bar.set_description_str(stage)

    def advance(self, pixels, note=""):
        """Count pixels passed forward (a training step counts three times)."""
        self.bar.update(min(pixels, max(0, self.bar.total - self.bar.n)) if not self.bar.disable else 0)
        if note:
            self.bar.set_description_str(f"{self.stage}, {note}", refresh=False)

    def line(self, text):
        """Print one line above the bar, and into the run's captured output."""
        self.bar.clear()
        print(text, flush=True)
        self.bar.refresh()


def plan(labelled, pool, areas, epochs_pixels, query, cycles, passes, test_passes):
    """Expected pixels of a run's passes, for the bar alone: `areas` are mean pool, validation and test pixels."""
    total = 0
    for cycle in range(cycles + 1):
        count = min(labelled + cycle * query, labelled + pool)
        total += 3 * epochs_pixels * count + areas["test"] * test_passes + areas["val"]
        if cycle < cycles:
            total += areas["pool"] * max(pool - cycle * query, 0) * passes
    return total
