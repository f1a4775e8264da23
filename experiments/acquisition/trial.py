"""A trial of the chosen components on one image, before anything is trained: what is wrong is said with its file."""

from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from experiments.acquisition.prediction import moments
from experiments.components import ROOT, broken
from experiments.errors import Refused
from experiments.network.device import memory_explained, ran_out_of_memory

PASSES, SIDE = 3, 16  # of the made-up predictions that a map is tried on


def check(config, parts, splits):
    """Raise Refused naming the file of a dataset, model or heuristic whose first result is not what it promises.

    The Splits are described. No mask of the training images is opened.
    """
    with memory_explained(lambda: "reading the images"):
        image = try_dataset(parts["dataset"], splits)
        refuse_large_crop(config["dataset"], splits, image)
    height, width = (splits.crop, splits.crop) if splits.crop else image.shape[:2]
    with memory_explained(lambda: "training"):
        try_model(parts["model"], config["model"], splits, (height, width))
    with memory_explained(lambda: "scoring the pool"):
        for part in dict.fromkeys(parts.values()):
            if hasattr(part, "uncertainty"):
                try_map(part, len(splits.classes))


def try_dataset(dataset, splits):
    """The first training image (H, W, channels) uint8."""
    channels, classes = splits.channels, splits.classes
    if not (isinstance(channels, int) and channels > 0):
        wrong(dataset, f"CHANNELS is {channels!r}, not the number of an image's channels")
    if isinstance(classes, str) or len(classes) < 2:
        wrong(dataset, f"CLASSES is {classes!r}, not the names of the background and of other classes")
    if not splits.train or len(splits.train) == 0:
        wrong(dataset, "load gives no training images")
    image = splits.train.read_image(splits.train.items[0].image)
    expect(dataset, "read_image", image, f"(H, W, {channels})", 3, last=channels)
    for split in splits.val, splits.test:  # their masks are anybody's to see
        if split:
            item = split.items[0]
            mask, shape = split.read_mask(item.mask), split.read_image(item.image).shape[:2]
            expect(dataset, "read_mask", mask, "(H, W)", 2)
            if mask.shape != shape:
                wrong(dataset, f"the mask of {item.id} is {mask.shape}, its image {shape}")
            break
    return image


def expect(dataset, function, array, shape, dimensions, last=None):
    """Refuse what is not a uint8 array of so many dimensions."""
    if not isinstance(array, np.ndarray):
        wrong(dataset, f"{function} gives a {type(array).__name__}, not a numpy array {shape} uint8")
    if array.dtype != np.uint8 or array.ndim != dimensions or (last and array.shape[-1] != last):
        wrong(dataset, f"{function} gives {array.shape} {array.dtype}, not {shape} uint8")


def refuse_large_crop(name, splits, image):
    """Refuse a training window more than twice as long as every image: three quarters of it would be padding."""
    largest = 0
    for index in range(len(splits.train) if splits.crop else 0):
        height, width = (image if index == 0 else splits.train[index]).shape[:2]
        largest = max(largest, height, width)
        if 2 * largest >= splits.crop:
            return
    if splits.crop:
        about = f"{name}.crop={splits.crop} is more than twice the longest side of a training image, {largest}"
        raise Refused(f"{about}: choose at most {2 * largest}, or 0 for whole images.")


def try_model(file, name, splits, size):
    """Build the model once and let it see one blank window of this size; torch's generator stays as it was."""
    classes, channels = len(splits.classes), splits.channels
    for constant in ("MEAN", "STD"):
        values = getattr(file, constant)
        if any(value != (constant == "STD") for value in values) and len(values) not in (1, channels):
            wrong(file, f"{constant} has {len(values)} values for {channels} channels")
    with torch.random.fork_rng(devices=[]), explained("model", name):
        model = file.build(channels=channels, classes=classes).eval()
        with torch.no_grad():
            logits = model(torch.zeros(1, channels, *size))
    expected = [(1, given, *size) for given in ((2, 1) if classes == 2 else (classes,))]  # 1: of the foreground alone
    if not isinstance(logits, torch.Tensor):
        wrong(file, f"the model gives a {type(logits).__name__}, not logits (B, classes, H, W)")
    if tuple(logits.shape) not in expected:
        wrong(file, f"the model gives {tuple(logits.shape)}, not logits (B, classes, H, W) = {expected[0]}")
    if not logits.isfinite().all():
        wrong(file, "the untrained model gives logits that are not finite")
    modules = dict(model.named_modules())
    for layer, paths in getattr(file, "LAYERS", {}).items():
        for path in [paths] if isinstance(paths, str) else paths:
            if path not in modules:
                wrong(file, f"LAYERS[{layer!r}] names {path}, and the model has no such module")


def try_map(heuristic, classes):
    """Ask for the map of two made-up images."""
    name = heuristic.ingredient.path
    drawn = torch.Generator().manual_seed(0)
    passes = [(torch.randn(2, classes, SIDE, SIDE + 1, generator=drawn), None) for _ in range(PASSES)]
    with torch.inference_mode(), explained("heuristic", name):
        found = heuristic.uncertainty(moments(passes, ["a", "b"], getattr(heuristic, "NEEDS", ())))
    expected = (2, SIDE, SIDE + 1)
    if not isinstance(found, torch.Tensor):
        wrong(heuristic, f"uncertainty gives a {type(found).__name__}, not a map (B, H, W)")
    if tuple(found.shape) != expected:
        wrong(heuristic, f"uncertainty gives {tuple(found.shape)}, not a map (B, H, W) = {expected}")
    if not found.is_floating_point() or not found.isfinite().all():
        wrong(heuristic, "uncertainty gives values that are no finite floats")


@contextmanager
def explained(entry, name):
    """Name the file and line of what a component raises."""
    try:
        yield
    except Refused:
        raise
    except Exception as error:
        if ran_out_of_memory(error):
            raise
        raise broken(error, entry, name) from error


def wrong(module, what):
    file = Path(module.__file__)
    file = file.relative_to(ROOT) if file.is_relative_to(ROOT) else file
    raise Refused(f"{file}: {what}. Mend it, CONTRIBUTING.md says what such a file promises.")
