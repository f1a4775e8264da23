"""What a strategy sees: images, predictions, views and features of the pool, the labelled and the validation images.

Nothing here outlives its batch but one row of numbers an image. Only `Annotated` images have masks; the pool is given
functions, not the store, and so has no way to one.
"""

from collections.abc import Callable
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch

from experiments import views
from experiments.errors import Refused
from experiments.prediction import floats, ingredient, moments, pass_keys, predict, two_sided


@dataclass
class Eyes:
    """The current model at work on one batch of images: what every source of predictions and features comes from."""

    model: Callable  # () -> the trained module, brought back only if somebody looks
    frame: Callable  # () -> the module with any weights, to which others can be given
    layers: dict  # the model file's LAYERS
    place: tuple  # (seed, dataset, cycle)
    mc_iters: int
    augmentation: dict  # rotation, noise, flip
    dropout: bool = True
    balanced: bool = False
    compiled: bool = False
    precision: str = "float32"
    mc_chunk: int = 0
    needs: tuple = ()
    advance: Callable = lambda pixels: None
    others: dict = field(default_factory=dict)  # models with other weights, by path

    def predict(self, images, ids, source, passes=0):
        """(Prediction, number of passes)."""
        source = source or ("dropout" if self.dropout else "deterministic")
        k = 1 if source == "deterministic" else passes or self.mc_iters
        self.advance(images[..., 0].numel() * k)
        if source == "tta":
            return moments(self._augmented(images, ids, k), ids, self.needs), k
        keys = None if source == "deterministic" else pass_keys(self.place, "score", ids, k)
        return predict(self.network, images, ids, keys, self.needs, self.balanced), k

    def views(self, images, ids, source, k):
        """(p (k, B, C, H, W) probabilities, seen (k, B, H, W) bool)."""
        self.advance(images[..., 0].numel() * k)
        if source == "tta":
            passes = self._augmented(images, ids, k)
        else:
            passes = self.network.passes(floats(images), pass_keys(self.place, "score", ids, k), self.balanced)
            passes = ((logits, None) for logits in passes)
        with torch.inference_mode():
            p, seen = zip(*((two_sided(logits.float()).softmax(1), seen) for logits, seen in passes), strict=True)
            p = torch.stack(p)
            return p, torch.ones_like(p[:, :, 0], dtype=torch.bool) if seen[0] is None else torch.stack(seen)

    def maps(self, images, layer, weights=""):
        """The outputs (B, D, h, w) of a layer's modules in one deterministic pass."""
        self.advance(images[..., 0].numel())
        model = self._other(weights) if weights else self.model()
        model.eval()
        with torch.inference_mode(), watched(model, self.layers[layer]) as maps:
            model(floats(images))
            return [made.float() for made in maps()]

    def _augmented(self, images, ids, k):
        return views.augmented(self.network, floats(images), ids, self.place, k, **self.augmentation)

    @cached_property
    def network(self):
        from experiments.inference import Network  # needs torch at once

        return Network(self.model(), self.compiled, self.precision, self.mc_chunk)

    def _other(self, weights):
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        from experiments.learned import parted  # which looks at layers with what is below

        if weights not in self.others:
            model = deepcopy(self.frame())
            try:
                model.load_state_dict(parted(load_file(weights))[0])
            except (OSError, SafetensorError, RuntimeError) as error:
                reason = str(error).splitlines()[0]
                raise Refused(
                    f"{weights} holds no weights of this run's model ({reason}): name another file."
                ) from error
            self.others[weights] = model
        return self.others[weights]


@contextmanager
def watched(model, paths):
    """A function that gives what these modules (one path or several) put out in the last forward, in their order."""
    paths, made = [paths] if isinstance(paths, str) else paths, {}
    hooks = [
        model.get_submodule(path).register_forward_hook(lambda m, i, out, path=path: made.__setitem__(path, out))
        for path in paths
    ]
    try:
        yield lambda: [made[path] for path in paths]
    finally:
        for hook in hooks:
            hook.remove()


class Images:
    """N images, each at a position 0 .. N - 1, with its id and its image-level group ("" without)."""

    def __init__(self, ids, groups, batches, eyes=None):
        self.ids, self.groups = list(ids), list(groups)
        self._batches, self._eyes = batches, eyes

    def __len__(self):
        return len(self.ids)

    def images(self):
        """Yield (positions, images (B, H, W, channels) uint8 on the device), every image once."""
        for positions, images in self._batches():
            yield positions, images.clone()  # a batch of one is the Store's own memory

    def predictions(self, source=""):
        """Yield (positions, Prediction), every image once.

        `source` is "dropout" (mc_iters stochastic passes), "deterministic" (one pass) or "tta" (mc_iters views);
        empty follows the setting prediction.dropout.
        """
        for positions, images in self._batches():
            yield positions, self._eyes.predict(images, [self.ids[i] for i in positions], source)[0]

    def views(self, source, k):
        """Yield (positions, p (k, B, C, H, W), seen (k, B, H, W) bool): "dropout" passes or "tta" views, unreduced."""
        for positions, images in self._batches():
            yield positions, *self._eyes.views(images, [self.ids[i] for i in positions], source, k)

    def features(self, layer, grid=1, pooling="mean", weights=""):
        """(N, D) float32 on the device: what the model's LAYERS[layer] put out in a deterministic pass.

        Pooled to grid x grid cells, whatever the size of the image, by "mean" or "max"; the maps of a layer of several
        modules are joined. `weights` names a safetensors file of the same model to look through instead. Raises
        Refused naming an image whose features are not finite.
        """
        rows = (
            (positions, torch.cat([pooled(m, grid, pooling) for m in self._eyes.maps(images, layer, weights)], 1))
            for positions, images in self._batches()
        )
        return self._rows(rows, f"layer {layer}")

    def statistics(self, grid=4):
        """(N, D) float32 on the device, without a model: mean, deviation and gradient of each channel in each cell."""
        rows = ((positions, statistics(floats(images), grid)) for positions, images in self._batches())
        return self._rows(rows, "image statistics")

    def _rows(self, batches, what):
        table = None
        for positions, rows in batches:
            if table is None:
                table = rows.new_empty(len(self), rows.shape[1])
            table[positions] = rows
        if table is None:
            return torch.empty(0, 0)
        for position in (~table.isfinite().all(1)).nonzero().flatten().tolist():
            raise Refused(f"The {what} of image {self.ids[position]} are not finite: no features to compare.")
        return table


class Annotated(Images):
    """Images whose masks were paid for: the labelled ones, or those that validate."""

    def __init__(self, ids, groups, batches, eyes=None, mask=None):
        super().__init__(ids, groups, batches, eyes)
        self._mask = mask

    def masks(self, positions):
        """(B, H, W) uint8 class numbers or IGNORE, of equally large images as `images()` yields them together."""
        return torch.stack([self._mask(position) for position in positions])


class Pool(Images):
    """The unlabelled images.

    `labelled` and `validation` (empty without) are Annotated. `cycle` counts the queries before this one, of `cycles`
    in the whole run. `memory`, a dict of JSON values, is saved with the query that it belongs to. `learner` is what a
    learned strategy's `prepare` made. `scorers` {name: function from a Prediction to (B,)} are noted as the heuristic
    looks at predictions of the default source, the ones that the heuristics of these names would look at. `classes`
    names the values of the masks.
    """

    def __init__(self, ids, groups, batches, eyes=None, labelled=None, validation=None, cycle=0, memory=None,
                 scorers=None, learner=None, race=False, classes=(), cycles=1):  # fmt: skip
        super().__init__(ids, groups, batches, eyes)
        self.labelled, self.validation = labelled or Annotated([], [], tuple), validation or Annotated([], [], tuple)
        self.cycle, self.memory, self.learner, self.race = cycle, {} if memory is None else memory, learner, race
        self.classes, self.cycles = tuple(classes), cycles
        self.passes = np.zeros(len(self.ids), dtype=int)  # how many passes have seen each image
        self._scorers, self._noted = scorers or {}, {}

    def predictions(self, source="", passes=0, among=()):
        """As of any Images; also from other than mc_iters `passes`, and of the positions `among` alone."""
        for positions, images in self._batches(among) if among else self._batches():
            prediction, made = self._eyes.predict(images, [self.ids[i] for i in positions], source, passes)
            self.passes[positions] = made
            for name, score in self._scorers.items() if not source else ():
                values = score(prediction)
                if name not in self._noted:
                    self._noted[name] = values.new_full((len(self),), torch.nan)
                self._noted[name][positions] = values
            yield positions, prediction

    @property
    def mc_iters(self):
        return self._eyes.mc_iters

    def views(self, source, k):
        for positions, p, seen in super().views(source, k):
            self.passes[positions] = k
            yield positions, p, seen

    views.__doc__ = Images.views.__doc__

    def noted(self):
        """{name: (N,) float64} scores of the default predictions made so far, NaN where there were none."""
        return {name: values.cpu().numpy().astype(np.float64) for name, values in self._noted.items()}


def pooled(maps, grid, pooling):
    """(B, D, h, w) -> (B, D * grid * grid)."""
    pool = {"mean": torch.nn.functional.adaptive_avg_pool2d, "max": torch.nn.functional.adaptive_max_pool2d}
    return pool[pooling](maps, grid).flatten(1)


def statistics(x, grid):
    """(B, 3 * channels * grid ** 2): mean, standard deviation and mean gradient of each channel in each cell."""
    mean, square = (torch.nn.functional.adaptive_avg_pool2d(v, grid) for v in (x, x.square()))
    steps = [torch.nn.functional.pad(x.diff(dim=axis).abs(), pad) for axis, pad in ((2, (0, 0, 0, 1)), (3, (0, 1)))]
    gradient = torch.nn.functional.adaptive_avg_pool2d(steps[0].hypot(steps[1]), grid)
    return torch.cat([mean, (square - mean.square()).clamp_min(0).sqrt(), gradient], 1).flatten(1)


@ingredient.capture
def open_pool(store, indices, place, mc_iters, batch, mc_chunk, dropout, masks, race, compiled, precision, rotation,
              noise, flip, model=None, frame=None, layers=None, needs=(), labelled=(), val=None,
              advance=lambda pixels: None, **more):  # fmt: skip
    """The Pool of these images of a Store, with its `labelled` ones and those of the Store `val`.

    `model` is a function that gives the trained module; without it there are images but no predictions. `frame` gives
    the module with whatever weights, enough to look through weights from a file. `more` are arguments of Pool.
    """
    augmentation = {"rotation": rotation, "noise": noise, "flip": flip}
    eyes = model and Eyes(
        model,
        frame or model,
        layers or {},
        place,
        mc_iters,
        augmentation,
        dropout,
        balanced=masks == "balanced",
        compiled=compiled,
        precision=precision,
        mc_chunk=mc_chunk,
        needs=needs,
        advance=advance,
    )

    def shown(store, indices):
        indices = list(indices)
        position = {index: i for i, index in enumerate(indices)}

        def batches(among=()):
            for members, images in store.batches([indices[i] for i in among] or indices, batch):
                yield [position[i] for i in members], images

        return [store.ids[i] for i in indices], [store.groups[i] for i in indices], batches, eyes

    def annotated(store, indices):
        indices = list(indices)
        return Annotated(*shown(store, indices), mask=lambda position: store.mask(indices[position]))

    return Pool(
        *shown(store, indices),
        labelled=annotated(store, labelled),
        validation=val and annotated(val, range(len(val))),
        cycle=place[-1],
        race=race,
        **more,
    )
