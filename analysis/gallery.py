"""What strategies look at, side by side: `python -m analysis.gallery results/bald_3 -o gallery.png`.

Every heuristic looks at the same pool through the same trained model, that of the run's last checkpoint: a row each,
its map on the images that the heuristics disagree about most, and beside it what it would ask for first.
"""

import argparse
import io
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from experiments.acquisition import needs, pictures, prediction, querying, selection
from experiments.acquisition.pool import open_pool
from experiments.components import configure, load, names
from experiments.components.randomness import generator
from experiments.errors import Refused
from experiments.errors.process import one_line_errors
from experiments.predict.opened import open_run, splits_of
from experiments.records.files import write
from experiments.records.progress import say
from experiments.store import Store, foreground

SHOWN, PICKS = 3, 4  # columns of maps and of picks
SIDE = 1.5  # inches of a picture
UNLIKE = ("given", "first", "none")  # what is chosen by no strategy


def main(line):
    """Run the command; returns the exit code. Raises Refused."""
    options = parse(line)
    run = open_run(options.run, options.device)
    chosen = options.heuristics.split(",") if options.heuristics else usable()
    pool, store, indices = pool_of(run, options.data)
    rows = [row for name in chosen if (row := look(run, name, pool))]
    if not rows:
        raise Refused("None of these heuristics can look at this run: name others with --heuristics.")
    write(Path(options.output), draw(run, rows, store, indices))
    print(options.output)
    return 0


def usable():
    """The names of all heuristics that look at a model which others trained."""
    found = []
    for name in names("heuristic"):
        module = load("heuristic", name)
        if name not in UNLIKE and not hasattr(module, "prepare"):
            found.append(name)
    return sorted(found, key=lambda name: (not hasattr(load("heuristic", name), "uncertainty"), name))


def pool_of(run, root):
    """(function that opens the Pool anew for some needs, Store of the training images, positions of the pool in it)."""
    splits = splits_of(run, root)
    train = Store(splits.train, run.device, classes=splits.classes)
    if train.fingerprint != run.events[0]["data"][0]:
        raise Refused("The images there are not those that the run learnt from: say where those are with --data.")
    val = splits.val and Store(splits.val, run.device, classes=splits.classes)
    if val:
        val.label(range(len(val)))
    position = {id: i for i, id in enumerate(train.ids)}
    labelled = [position[id] for id in run.labelled()]
    train.label(labelled)
    indices = [i for i in range(len(train)) if i not in set(labelled)]
    if not indices:
        raise Refused("The run has labelled every image: there is no pool left to look at.")
    parts = [load(entry, name) for entry in ("heuristic", "batch") for name in names(entry)]
    for part in (prediction, *parts):
        configure(part, run.settings)

    def opened(some=indices, **more):
        return open_pool(
            train, some, run.place, run.settings["mc_iters"], layers=run.layers, labelled=labelled, val=val,
            classes=splits.classes, cycles=run.place[-1] + 1, model=lambda: run.model, **more,
        )  # fmt: skip

    return opened, train, indices


class Row:
    """What one heuristic thinks of a pool."""

    def __init__(self, name, module, scores, picked, maps):
        self.name, self.module, self.scores, self.picked, self.maps = name, module, scores, picked, maps


def look(run, name, opened):
    """The Row of a heuristic with its default settings, or those of the run; None, said in a line, if it cannot."""
    module = load("heuristic", name)
    pool_needs = getattr(module, "NEEDS", ())
    pool = opened(needs=pool_needs)
    try:
        for need in needs.wanted("heuristic", module, load("initial", "random")):
            given = {"groups": any(pool.groups), "validation": len(pool.validation)}
            given["background"] = foreground(pool.classes).start
            if not given.get(need, True):
                raise Refused(f"it needs {needs.MEANS[need]}")
        how = querying.reduction(run.settings | {"heuristic": name})
        picked, scores = selection.select(module, load("batch", "top"), pool, PICKS, generator(*run.place), how)
        return Row(name, module, scores, picked, lambda some: maps(module, opened(some, needs=pool_needs)))
    except Refused as reason:
        say(f"{name} is left out: {str(reason).rstrip('.')}.")
        return None


def maps(module, pool):
    """The heuristic's map (H, W) of each image of a small pool, None for a heuristic that has none."""
    found = [None] * len(pool)
    if hasattr(module, "uncertainty"):
        for positions, seen in pool.predictions(selection.source(module)):
            for position, map in zip(positions, module.uncertainty(seen).cpu().numpy(), strict=True):
                found[position] = map
    return found


def disputed(rows, count):
    """Positions of the images whose ranks differ most between the heuristics with maps; the first ones without."""
    seeing = [row for row in rows if hasattr(row.module, "uncertainty")]
    ranks = [np.argsort(np.argsort(-row.scores)) for row in seeing]
    if len(ranks) < 2:
        return list(range(count))
    return np.argsort(-np.std(ranks, axis=0), kind="stable")[:count].tolist()


def draw(run, rows, store, indices):
    """PNG bytes."""
    shown = disputed(rows, min(SHOWN, len(indices)))
    columns = len(shown) + PICKS
    figure = Figure(figsize=(2.1 + SIDE * columns, SIDE * (len(rows) + 1) + 0.9), dpi=100, layout="constrained")
    axes = figure.subplots(len(rows) + 1, columns + 1, squeeze=False, width_ratios=[2.1, *[SIDE] * columns])
    for axis in axes.flat:
        axis.set_axis_off()
    for column, position in enumerate(shown):
        thumbnail(axes[0, column + 1], store, indices[position])
        axes[0, column + 1].set_title(short(store.ids[indices[position]]), fontsize=8, parse_math=False)
    words(axes[0, 0], "the images", "that the strategies\ndisagree about most")
    axes[0, len(shown) + 1].text(0, 0.5, "what each would\nask for first", fontsize=10, va="center", weight="bold")
    for row, line in zip(rows, axes[1:], strict=True):
        unit = getattr(row.module, "UNIT", "")
        kind = "a score an image" if row.scores is not None else "a set of images"
        words(line[0], row.name, unit if hasattr(row.module, "uncertainty") else f"no map:\n{kind}")
        drawn = row.maps([indices[position] for position in shown])
        scale = pictures.limits([map for map in drawn if map is not None])
        for axis, position, map in zip(line[1:], shown, drawn, strict=False):
            if map is not None:
                axis.imshow(pictures.finite(map), cmap="viridis", vmin=scale[0], vmax=scale[1])
            if row.scores is not None:
                rank = int((row.scores > row.scores[position]).sum()) + 1
                axis.set_title(f"rank {rank} of {len(indices)}", fontsize=8)
        for axis, position in zip(line[len(shown) + 1 :], row.picked, strict=False):
            thumbnail(axis, store, indices[position])
            axis.set_title(short(store.ids[indices[position]]), fontsize=8, parse_math=False)
    learnt = f"{len(run.labelled())} labelled images, {len(indices)} in the pool"
    figure.suptitle(f"One model, {len(rows)} strategies: {run.settings['dataset']}, {learnt}", fontsize=12)
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return out.getvalue()


def thumbnail(axis, store, index):
    image = store.image(index).cpu().numpy()
    step = -(-max(image.shape[:2]) // 200)
    image = image[::step, ::step]
    axis.imshow(image[..., :3] if image.shape[-1] >= 3 else image[..., 0], cmap="gray")


def words(axis, name, more):
    axis.text(0, 0.55, name, fontsize=11, weight="bold", va="bottom", parse_math=False, clip_on=False)
    axis.text(0, 0.5, more, fontsize=9, va="top", parse_math=False, clip_on=False)


def short(text, most=16):
    return text if len(text) <= most else f"…{text[1 - most :]}"


def parse(line):
    about, _, more = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(prog="python -m analysis.gallery", description=f"{about}\n\n{more}")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("run", metavar="RUN", help="the folder of a run, as results/bald_3")
    parser.add_argument("-o", "--output", default="gallery.png", metavar="FILE", help="the PNG (gallery.png)")
    parser.add_argument("--heuristics", default="", metavar="A,B", help="which, as entropy,coreset (all that can)")
    parser.add_argument("--data", default="", metavar="ROOT", help="where the run's dataset lies (its default)")
    parser.add_argument("--device", default="auto", help="cpu, cuda:N or mps (auto)")
    return parser.parse_args(line)


if __name__ == "__main__":
    with one_line_errors():
        sys.exit(main(sys.argv[1:]))
