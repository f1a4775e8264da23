"""What a strategy sees: images, predictions, views and features of the pool, the labelled and the validation images.

Nothing here outlives its batch but one row of numbers an image. Only `Annotated` images have masks; the pool is given
functions, not the store, and so has no way to one.
"""

import math
from operator import methodcaller

import numpy as np
import torch

from experiments.acquisition import shards
from experiments.acquisition.prediction import floats, ingredient
from experiments.acquisition.predictor import Predictor
from experiments.errors import Refused


class Images:
    """N images, each at a position 0 .. N - 1, with its id and its image-level group ("" without)."""

    def __init__(self, ids, groups, batches, predictor=None):
        self.ids, self.groups = list(ids), list(groups)
        self._batches, self._predictor = batches, predictor

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
            yield positions, self._predictor.predict(images, [self.ids[i] for i in positions], source)[0]

    def views(self, source, k):
        """Yield (positions, p (k, B, C, H, W), seen (k, B, H, W) bool), unreduced.

        `source` is "dropout" (passes), "tta" (views) or, of a promptable model, "prompts".
        """
        for positions, images in self._batches():
            yield positions, *self._predictor.views(images, [self.ids[i] for i in positions], source, k)

    def features(self, layer, grid=1, pooling="mean", weights="", own=False):
        """(N, D) float32 on the device: what the model's LAYERS[layer] put out in a deterministic pass.

        In a run with an `encoder` they are of that one's deepest map instead, unless the model's `own` are asked for.

        Pooled to grid x grid cells, whatever the size of the image, by "mean" or "max"; the maps of a layer of several
        modules are joined. `weights` names a safetensors file of the same model to look through instead. Raises
        Refused naming an image whose features are not finite.
        """
        return self.gather(methodcaller("_feature_rows", layer, grid, pooling, weights, own))

    def _feature_rows(self, layer, grid, pooling, weights, own):
        """What `features` are, by this process."""
        encoder = None if own else self._encoder

        def maps(images):
            return encoder(floats(images))[-1:] if encoder else self._predictor.maps(images, layer, weights)

        rows = (
            (positions, torch.cat([pooled(m, grid, pooling) for m in maps(images)], 1))
            for positions, images in self._batches()
        )
        return self._rows(rows, "features by the encoder" if encoder else f"layer {layer}")

    def statistics(self, grid=4):
        """(N, D) float32 on the device, without a model: mean, deviation and gradient of each channel in each cell."""
        return self.gather(methodcaller("_statistic_rows", grid))

    def _statistic_rows(self, grid):
        """What `statistics` are, by this process."""
        rows = ((positions, statistics(floats(images), grid)) for positions, images in self._batches())
        return self._rows(rows, "image statistics")

    def gather(self, work, among=()):
        """(N, ...) of `work(images)`, a row for each image; of the positions `among` alone, whose others are 0."""
        return work(self, among=among) if among else work(self)

    @property
    def _encoder(self):
        return getattr(self._predictor, "encoder", None)

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

    def __init__(self, ids, groups, batches, predictor=None, mask=None):
        super().__init__(ids, groups, batches, predictor)
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
    names the values of the masks. `shared(pool, work, among)` gathers rows that others compute, see shards.py.
    """

    def __init__(self, ids, groups, batches, predictor=None, labelled=None, validation=None, cycle=0, memory=None,
                 scorers=None, learner=None, race=False, classes=(), cycles=1, annotated=(), shared=None):  # fmt: skip
        super().__init__(ids, groups, batches, predictor)
        self.labelled, self.validation = labelled or Annotated([], [], tuple), validation or Annotated([], [], tuple)
        self.cycle, self.memory, self.learner, self.race = cycle, {} if memory is None else memory, learner, race
        self.classes, self.cycles = tuple(classes), cycles
        self.annotated = tuple(annotated) or (True,) * len(self.ids)  # whether a mask exists, which is not shown
        self.passes = np.zeros(len(self.ids), dtype=int)  # how many passes have seen each image
        self._scorers, self._noted, self._shared = scorers or {}, {}, shared

    def predictions(self, source="", passes=0, among=()):
        """As of any Images; also from other than mc_iters `passes`, and of the positions `among` alone."""
        for positions, images in self._batches(among) if among else self._batches():
            prediction, made = self._predictor.predict(images, [self.ids[i] for i in positions], source, passes)
            self.passes[positions] = made
            for name, score in self._scorers.items() if not source else ():
                self._note(name, positions, score(prediction))
            yield positions, prediction

    def _note(self, name, positions, values):
        if name not in self._noted:
            self._noted[name] = values.new_full((len(self),), torch.nan)
        self._noted[name][positions] = values

    def gather(self, work, among=()):
        return self._shared(self, work, among) if self._shared and len(self) else super().gather(work, among)

    gather.__doc__ = Images.gather.__doc__

    def _take(self, positions, answer):
        """Know of these positions what another process has found, an Answer of shards.py."""
        self.passes[positions] = np.where(answer.passes, answer.passes, self.passes[positions])
        for name, values in answer.noted.items():
            self._note(name, positions, torch.from_numpy(values))

    @property
    def featured(self):
        """Whether `features` say something: an encoder gives them, or a model that images were labelled for."""
        return bool(self._encoder or len(self.labelled))

    @property
    def mc_iters(self):
        return self._predictor.mc_iters

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
              noise, flip, model=None, frame=None, layers=None, needs=(), encoder=None, labelled=(),
              val=None, advance=lambda pixels: None, elsewhere=None, **more):  # fmt: skip
    """The Pool of these images of a Store, with its `labelled` ones and those of the Store `val`.

    `model` is a function that gives the trained module; without it there are images but no predictions. `frame` gives
    the module with whatever weights, enough to look through weights from a file. `encoder`, where it is given, gives
    the maps that `features` are of, and needs no training. `elsewhere(shards, work)` yields, where it is given, (number
    of a shard, its Answer) in any order, for about `elsewhere.count` shards [indices]. `more` are arguments of Pool.
    """
    augmentation = {"rotation": rotation, "noise": noise, "flip": flip}
    predictor = model and Predictor(
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
        first=store.foreground.start,
        encoder=encoder,
        advance=advance,
    )

    def shown(store, indices):
        indices = list(indices)
        position = {index: i for i, index in enumerate(indices)}

        def batches(among=()):
            for members, images in store.batches([indices[i] for i in among] or indices, batch):
                yield [position[i] for i in members], images

        return [store.ids[i] for i in indices], [store.groups[i] for i in indices], batches, predictor

    def annotated(store, indices):
        indices = list(indices)
        return Annotated(*shown(store, indices), mask=lambda position: store.mask(indices[position]))

    def shared(pool, work, among):
        position = {index: i for i, index in enumerate(indices)}
        parts = shards.cut([*store.parts([indices[i] for i in among] or indices, batch)], store.sizes, elsewhere.count)
        rows = None
        for number, answer in elsewhere(parts, work):
            positions = [position[index] for index in parts[number]]
            if rows is None:
                rows = answer.rows.new_zeros(len(pool), *answer.rows.shape[1:])
            rows[positions] = answer.rows
            pool._take(positions, answer)
            advance(
                sum(math.prod(store.sizes[i]) * max(1, k) for i, k in zip(parts[number], answer.passes, strict=True))
            )
        return rows.to(store.device)

    return Pool(
        *shown(store, indices),
        shared=shared if elsewhere else None,
        labelled=annotated(store, labelled),
        validation=val and annotated(val, range(len(val))),
        cycle=place[-1],
        race=race,
        **more,
    )
