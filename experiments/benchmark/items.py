"""Reading: every image is decoded once, when the Store is made; beside decoding it again each time."""

import tempfile
from collections import deque
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from experiments.benchmark import peers, timing, work
from experiments.benchmark.report import Row
from experiments.store import Item, Split, Store, decode
from experiments.training import augment, trainer

OPTIONS = {
    "rounds": (5, "all variants once in each"),
    "images": (8, "in the folder"),
    "height": (522, "pixels of an image, as in GlaS"),
    "width": (775, "pixels of an image, as in GlaS"),
    "crop": (416, "pixels a side of a crop, as in GlaS"),
}


def run(options, device):
    """(rows, notes)."""
    with tempfile.TemporaryDirectory() as folder:
        write(folder, work.draw(options.images, options.height, options.width))
        split, count = counted(folder)
        store = Store(split, device)
        store.label(range(len(store)))
        at_the_start, first, second = count(), epoch(store, 0, count), epoch(store, 1, count)
        times = timing.rounds(variants(split, store, options, device), options.rounds, device)
    n = options.images
    stored, decoded = times["Store"], times["decode"]
    rows = [
        Row("files decoded when the Store is made", at_the_start, ""),
        Row("files decoded in the first epoch", first, ""),
        Row("files decoded in the second epoch", second, "", target="<= 0"),
        timing.seconds("image from the Store", stored),
        timing.seconds("image decoded from PNG", decoded),
        timing.ratio("image: Store faster than PNG", decoded, stored, ">= 50"),
        timing.seconds("image and mask as a crop, augmented by AskMask", times["crops"]),
        timing.seconds("image and mask as a crop, augmented by baselines", times["baselines"]),
        timing.ratio("crop: AskMask faster than baselines", times["baselines"], times["crops"], ">= 8"),
    ]
    return rows, [
        f"{n} images of {options.width} x {options.height} and their masks; crops of {options.crop}; {options.rounds} "
        "rounds. An image from the Store is the Store's own memory, as scoring sees it. The baselines' are decoded too."
    ]


def write(folder, pairs):
    for number, (image, mask) in enumerate(pairs):
        Image.fromarray(image).save(Path(folder, f"{number}.png"))
        Image.fromarray(mask).save(Path(folder, f"{number}_mask.png"))


def counted(folder):
    """(Split of the PNG files in a folder, function that says how many files it has decoded so far)."""
    calls = []

    def read(mode, path):
        calls.append(path)
        return decode(path, "PNG", mode)

    names = sorted(path.stem for path in Path(folder).glob("*.png") if "_" not in path.stem)
    items = [Item(name, Path(folder, f"{name}.png"), Path(folder, f"{name}_mask.png")) for name in names]
    return Split(items, partial(read, "RGB"), partial(read, "L")), lambda: len(calls)


def epoch(store, number, count):
    """How many files one epoch of training decodes; the network is the smallest there is."""
    before, side = count(), min(32, *min(store.sizes))
    _, model = work.models(1, store.device)
    with work.configured(trainer.ingredient, epochs=1, draws=1, loss="linear"), work.configured(augment.ingredient):
        trainer.fit(model, store, list(range(len(store))), None, (*work.PLACE[:2], number), side)
    return count() - before


def variants(split, store, options, device):
    """{name: (function, units)}, a unit being an image."""
    n, crop, rng = len(store), options.crop, np.random.default_rng(0)
    pictures = peers.pictures([(store.image(i).cpu().numpy(), store.mask(i).cpu().numpy()) for i in range(n)])
    shown = torch.arange(n, device=device)
    with work.configured(augment.ingredient):
        drawn = {name: values.to(device) for name, values in augment.draw(n=n, rng=rng).items()}

    def augmented():
        images, masks = augment.crops(store, shown, drawn, crop, crop)
        return augment.colour(images, augment.inside(store, shown, drawn, crop, crop), drawn["factors"]), masks

    return {
        "Store": (lambda: deque(store.batches(range(n), 1), maxlen=0), n),  # seen and let go, as in scoring
        "decode": (lambda: deque((decode(item.image, "PNG", "RGB") for item in split.items), maxlen=0), n),
        "crops": (augmented, n),
        "baselines": (lambda: [peers.training_item(*pair, crop, rng) for pair in pictures], n),
    }
