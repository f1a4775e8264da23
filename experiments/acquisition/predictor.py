"""The current model at work on one batch of images: where every prediction, view and feature map comes from."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property

import torch

from experiments.acquisition import views
from experiments.acquisition.prediction import floats, moments, pass_keys, predict, two_sided
from experiments.errors import Refused
from experiments.network.checkpoint import load, refuse_not_finite, unpack
from experiments.network.layers import layer_outputs
from experiments.network.ready import members_of
from experiments.store.reading import MAX_WEIGHTS, regular


@dataclass
class Predictor:
    """A trained model with what its passes depend on."""

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
    first: int = 1  # the first class that is foreground
    encoder: Callable | None = None  # a pretrained network: (B, channels, H, W) in [0, 1] to maps, the deepest last
    advance: Callable = lambda pixels: None
    others: dict = field(default_factory=dict)  # models with other weights, by path

    def predict(self, images, ids, source, passes=0):
        """(Prediction, number of passes)."""
        source = source or ("dropout" if self.dropout else "deterministic")
        k = 1 if source == "deterministic" else passes or self.mc_iters
        self.advance(images[..., 0].numel() * k)
        if source == "tta":
            found = moments(self._augmented(images, ids, k), ids, self.needs)
        else:
            keys = None if source == "deterministic" else pass_keys(self.place, "score", ids, k)
            found = predict(self.network, images, ids, keys, self.needs, self.balanced)
        return found._replace(first=self.first), k

    def views(self, images, ids, source, k):
        """(p (k, B, C, H, W) probabilities, seen (k, B, H, W) bool); "prompts" give as many as the model has views."""
        self.advance(images[..., 0].numel() * k)
        if source == "tta":
            passes = self._augmented(images, ids, k)
        elif source == "prompts":
            with torch.inference_mode():
                passes = [(logits, None) for logits in self.network.prompted(floats(images))]
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
        model = members_of(self._other(weights) if weights else self.model())[0].eval()
        with torch.inference_mode(), layer_outputs(model, self.layers[layer]) as maps:
            model(floats(images))
            return [made.float() for made in maps()]

    def _augmented(self, images, ids, k):
        return views.augmented(self.network, floats(images), ids, self.place, k, **self.augmentation)

    @cached_property
    def network(self):
        from experiments.network.inference import Network  # needs torch at once

        return Network(self.model(), self.compiled, self.precision, self.mc_chunk)

    def _other(self, weights):
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        if weights not in self.others:
            model = deepcopy(members_of(self.frame())[0])
            try:
                state = unpack(load_file(regular(weights, MAX_WEIGHTS)))[0]
                load(model, state)
            except (OSError, SafetensorError, RuntimeError) as error:
                reason = str(error).splitlines()[0]
                raise Refused(
                    f"{weights} holds no weights of this run's model ({reason}): name another file."
                ) from error
            refuse_not_finite(state, f"The weights in {weights}", "name another file")
            self.others[weights] = model
        return self.others[weights]
