"""What all benchmarks work on: drawn images, one U-Net for peers and AskMask alike, settings without a run."""

from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch

from experiments.acquisition import prediction, selection
from experiments.acquisition.pool import open_pool
from experiments.components import defaults, load
from experiments.network.ready import make_ready
from experiments.store import Item, Split, Store

PLACE = (0, "benchmark", 0)
DIFFERENT = 256  # drawn images
UNET, BALD, TOP = load("model", "unet"), load("heuristic", "bald"), load("batch", "top")


def draw(n, height, width, seed=0):
    """n pairs of an image (height, width, 3) and a mask (height, width), uint8: discs of any contrast on noise.

    There are at most DIFFERENT ones, again and again: no speed depends on it, and drawing takes longer than scoring.
    """
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    pairs = []
    for _ in range(min(n, DIFFERENT)):
        mask = np.zeros((height, width), dtype=np.uint8)
        for _ in range(rng.integers(1, 4)):
            y, x, radius = rng.random(3) * (height, width, min(height, width) / 3)
            mask |= (rows - y) ** 2 + (columns - x) ** 2 < radius**2
        image = 100 + rng.uniform(10, 90) * mask[..., None] + 30 * rng.standard_normal((height, width, 3), np.float32)
        pairs.append((image.clip(0, 255).astype(np.uint8), mask))
    return [pairs[number % DIFFERENT] for number in range(n)]


def store_of(pairs, device):
    """A labelled Store of these pairs."""
    named = {f"{number:06}": pair for number, pair in enumerate(pairs)}
    items = [Item(id, Path(id), Path(id)) for id in named]
    store = Store(Split(items, lambda path: named[path.name][0], lambda path: named[path.name][1]), device)
    store.label(range(len(items)))
    return store


def models(width, device):
    """(a plain U-Net, the same weights made ready for AskMask); batch norm has seen some images."""
    torch.manual_seed(0)
    plain = UNET.UNet(3, 2, width)
    images = torch.from_numpy(np.stack([image for image, _ in draw(4, 64, 64)]))
    with torch.no_grad():
        plain.train()(prediction.floats(images).contiguous())
    return plain.to(device).eval(), ready(plain, device)


def ready(plain, device):
    """A copy of a plain model as AskMask runs it."""
    return make_ready(deepcopy(plain), UNET.MEAN, UNET.STD, device)[0]


def pool_of(store, network, passes, place=PLACE, scorers=None, **settings):
    """A Pool of all images of a Store, seen through a Network that is made before anything is timed."""
    with configured(prediction.ingredient, **settings):
        pool = open_pool(store, range(len(store)), place, passes, model=lambda: network.model, scorers=scorers)
    pool._predictor.network = network  # otherwise made at the first batch, anew for each pool
    return pool


def bald_scores(pool):
    """(N,) mean BALD."""
    return selection.score(BALD, pool, np.random.default_rng(0))


@contextmanager
def configured(ingredient, **updates):
    """The captured functions of an ingredient have these settings, else defaults, as in a run of Sacred's."""
    values = defaults(ingredient) | updates
    assert values.keys() == defaults(ingredient).keys()
    before = [function.config for function in ingredient.captured_functions]
    for function in ingredient.captured_functions:
        function.config = values
    try:
        yield
    finally:
        for function, config in zip(ingredient.captured_functions, before, strict=True):
            function.config = config
