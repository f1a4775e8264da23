"""The labelled image that each asked-for one is nearest to, Euclidean in the features at hand: what a query adds to."""

import torch

from experiments.acquisition import needs, querying
from experiments.errors import Refused


def among(state, chosen, cycle, trained):
    """([id of the nearest labelled image, or None], by what, or why there is none) of these positions in train.

    `trained()` brings the weights that asked, those of the cycle before, into the model, and says whether it could.
    """
    nobody, model = [None] * len(chosen), state.components["model"]
    name, layers = state.config["model"], getattr(model, "LAYERS", {})
    layer = "bottleneck" if "bottleneck" in layers else next(reversed(layers), "")
    if not cycle or not state.active.n_labelled:
        return nobody, "no image was labelled when these were asked for"
    if not state.encoder and not (layer and "features" in needs.left(model)):
        return nobody, f"model={name} has no features to compare, encoder=... would give some"
    if not state.encoder and not trained():
        return nobody, "the weights that asked are gone"
    pool = querying.pool_of(state, chosen, cycle - 1, model=lambda: state.model)
    try:
        rows, known = pool.features(layer), pool.labelled.features(layer)
    except Refused as refused:
        return nobody, f"{refused}"
    apart = torch.cdist(rows.flatten(1), known.flatten(1))
    what = f"encoder={state.config['encoder']}" if state.encoder else f"the {layer} of model={name}"
    return [pool.labelled.ids[i] for i in apart.argmin(1).tolist()], f"Euclidean distance of features by {what}"
