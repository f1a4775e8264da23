"""A trial of the chosen components on one image, before anything is trained: what is wrong is said with its file."""

from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from experiments.acquisition.prediction import floats, moments
from experiments.components import ROOT, broken
from experiments.errors import Refused
from experiments.network.device import memory_explained, ran_out_of_memory
from experiments.network.layers import layer_outputs
from experiments.network.ready import make_ready, train
from experiments.records.progress import say
from experiments.store import look

PASSES, SIDE = 3, 16  # of the made-up predictions that a map is tried on
SEEN, TRAINED = 192, 128  # pixels of a side that a model is tried on, and tries to train on


def check(config, parts, splits):
    """Raise Refused naming the file of a dataset, model or heuristic whose first result is not what it promises.

    The Splits are described. No mask of the training images is opened.
    """
    with memory_explained(lambda: "reading the images"):
        image = try_dataset(parts["dataset"], splits)
        refuse_large_crop(config["dataset"], splits, image)
    height, width = (splits.crop, splits.crop) if splits.crop else image.shape[:2]
    with memory_explained(lambda: "training"):
        stochastic = try_model(parts["model"], config["model"], splits, image, (height, width))
        if "encoder" in parts:
            try_encoder(parts["encoder"], config["encoder"], splits)
    with memory_explained(lambda: "scoring the pool"):
        for part in dict.fromkeys(parts.values()):
            if hasattr(part, "uncertainty"):
                compares = try_map(part, len(splits.classes))
                if compares and not stochastic and config["members"] == 1:
                    refuse_equal_passes(part.ingredient.path, config["model"], config.get(config["model"], {}))


def try_dataset(dataset, splits):
    """The first training image (H, W, channels) uint8."""
    channels, classes = splits.channels, splits.classes
    if not (isinstance(channels, int) and channels > 0):
        wrong(dataset, f"CHANNELS is {channels!r}, not the number of an image's channels")
    if isinstance(classes, str) or len(classes) < 2:
        wrong(dataset, f"CLASSES is {classes!r}, not the names of the background and of other classes")
    if not splits.train or len(splits.train) == 0:
        wrong(dataset, "load gives no training images")
    image = look(splits.train.read_image, splits.train.items[0].image)
    expect(dataset, "read_image", image, f"(H, W, {channels})", 3, last=channels)
    for split in splits.val, splits.test:  # their masks are anybody's to see
        if split:
            item = split.items[0]
            mask, shape = look(split.read_mask, item.mask), look(split.read_image, item.image).shape[:2]
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


def try_model(file, name, splits, image, window):
    """Let a model, built for this alone, see the image (H, W, channels) uint8 and train on two blank windows.

    Says what it draws by itself, and if no part of it can be shared by the passes. Returns whether its passes differ.
    torch's generator stays as it was.
    """
    from experiments.network.dropout import sites  # defines a module, so it needs torch at once
    from experiments.network.folding import traced

    classes, channels = len(splits.classes), splits.channels
    with torch.random.fork_rng(devices=[]), explained("model", name):
        model = file.build(channels=channels, classes=classes)
        for constant in ("MEAN", "STD"):
            values = getattr(model, constant.lower(), getattr(file, constant))
            if any(value != (constant == "STD") for value in values) and len(values) not in (1, channels):
                wrong(file, f"{constant} has {len(values)} values for {channels} channels")
        if not any(p.requires_grad for p in model.parameters()):
            wrong(file, "the model has no parameter that is trained")
        model, _ = make_ready(model, file.MEAN, file.STD, torch.device("cpu"))
        with layer_outputs(model, known_layers(file, model)) as maps:
            try_answers(file, model.eval(), floats(torch.from_numpy(part_of(image))[None]), classes)
            maps()
        train(model)
        state = torch.get_rng_state()
        try_answers(file, model, torch.zeros(2, channels, *(min(side, TRAINED) for side in window)), classes)
        alone = not torch.equal(state, torch.get_rng_state())
    if sites(model) and traced(model.eval()) is None:
        say(f"model={name} cannot be looked into by torch.fx: every stochastic pass computes the whole network.")
    if alone:
        say(f"model={name} draws by functions of its own while it trains: stochastic passes leave that out.")
    return bool(sites(model))


def try_encoder(file, name, splits):
    """Let the encoder of a model's file look at a blank image. torch's generator stays as it was."""
    from experiments.network.remembered import remember  # defines a module, so it needs torch at once

    with torch.random.fork_rng(devices=[]), explained("model", name):
        remember(file, splits.channels, len(splits.classes), memory=0, deepest=True)


def known_layers(file, model):
    """The paths of all LAYERS of a model's file; refuses one that the model has not."""
    modules, known = dict(model.named_modules()), []
    for layer, paths in getattr(file, "LAYERS", {}).items():
        for path in [paths] if isinstance(paths, str) else paths:
            if path not in modules:
                wrong(file, f"LAYERS[{layer!r}] names {path}, and the model has no such module")
            known.append(path)
    return known


def part_of(image):
    """The upper left of an image, of sides with the same remainders, for large ones take long on a CPU."""
    height, width = (min(side, SEEN + side % SEEN) for side in image.shape[:2])
    return np.ascontiguousarray(image[:height, :width])


def try_answers(file, model, x, classes):
    """Refuse what the model gives for x (B, channels, H, W) unless it is finite logits of that size."""
    state = torch.get_rng_state()
    with torch.no_grad():
        given = model(x)
    if model.training and isinstance(given, list):
        if not all(isinstance(part, tuple) and len(part) == 2 for part in given):
            wrong(file, "the model, while training, gives a list that is not of (weight, logits)")
        answers = [logits for _, logits in given]
    else:
        answers = [given]
    if not model.training and not torch.equal(state, torch.get_rng_state()):
        wrong(file, "the model draws random numbers when it is not training: let modules of dropout do it")
    size = len(x), *x.shape[2:]
    expected = [(size[0], made, *size[1:]) for made in ((2, 1) if classes == 2 else (classes,))]  # 1: foreground alone
    for logits in answers:
        if not isinstance(logits, torch.Tensor):
            wrong(file, f"the model gives a {type(logits).__name__}, not logits (B, classes, H, W)")
        if tuple(logits.shape) not in expected:
            wrong(file, f"the model gives {tuple(logits.shape)}, not logits (B, classes, H, W) = {expected[0]}")
        if not logits.isfinite().all():
            wrong(file, "the untrained model gives logits that are not finite")


def refuse_equal_passes(heuristic, model, settings):
    """Say how the model gets dropout, if one of its settings is its probability."""
    way = next((f"set {model}.{key} above 0" for key in ("p", "dropout") if key in settings), "give its file dropout")
    why = f"heuristic={heuristic} compares stochastic passes, and model={model} has no dropout to make them differ"
    raise Refused(f"{why}: {way}, train members=5 of it, or use another heuristic, as entropy.")


def try_map(heuristic, classes):
    """Ask for the map of two made-up images; returns whether it is the same everywhere after a single pass."""
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
    if getattr(heuristic, "SOURCE", ""):
        return False
    with torch.inference_mode():
        once = heuristic.uncertainty(moments(passes[:1], ["a", "b"], getattr(heuristic, "NEEDS", ())))
    return bool((once.amax() - once.amin() < 1e-5) & (found.amax() - found.amin() > 1e-5))


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
