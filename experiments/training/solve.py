"""A head without hidden layers trained to its optimum: multinomial logistic regression with an L2 penalty, by L-BFGS.

L-BFGS: Liu & Nocedal 1989, https://doi.org/10.1007/BF01589116. The strength of the penalty decides on verdicts, so that
held-out images choose it in every cycle: those that validate or, in turns, parts of the labelled ones
(cross-validation, Stone 1974, https://doi.org/10.1111/j.2517-6161.1974.tb00994.x). Test images never do.

A model is solved if its module has `solved`, {"l2": strengths to try, "choose": "validation" or "labelled"}, and
    features(x)     maps of images (B, channels, H, W) in [0, 1]
    standardise(m)  takes the moments of these maps, a list of what `features` gave, for those of its inputs
    coarse(maps)    logits (B, classes, h, w), each for `stride` x `stride` pixels; linear in its weights
"""

import torch

from experiments.acquisition.prediction import floats
from experiments.components.randomness import generator
from experiments.network import checkpoint
from experiments.store import IGNORE
from experiments.training.losses import LOSSES, masked
from experiments.training.trainer import ingredient, validate

FOLDS = 5  # of cross-validation, or as many as there are images
STEPS = 50  # of L-BFGS at most for each strength


@ingredient.capture
def fit(model, train, labelled, val, place, loss, select_by, pseudo=(), advance=lambda pixels, note="": None):
    """Solve the model's head on the labelled and the `pseudo` labelled images of Store `train`.

    Returns what validation saw, {} without, and "solved": the strength chosen, by what, and what each of them reached.
    Without a validation Store labelled images choose; of a single one the largest strength is taken.
    """
    strengths, objective = sorted(model.solved["l2"], reverse=True), LOSSES[loss]
    if val is not None and model.solved["choose"] == "validation":
        parts, by = [([*labelled, *pseudo], val, range(len(val)))], f"{len(val)} validation images"
    else:
        order = generator(*place, "folds").permutation(labelled).tolist()
        folds = [order[k::FOLDS] for k in range(min(FOLDS, len(order)))] if len(order) > 1 else []
        parts = [([i for i in [*order, *pseudo] if i not in fold], train, fold) for fold in folds]
        by = f"{len(order)} labelled images in {len(folds)} folds"
    reached, found = {strength: 0.0 for strength in strengths}, {}
    for k, (known, store, held) in enumerate(parts):
        for strength in solutions(model, train, known, strengths):
            seen = validate(model, store, objective, advance, held)
            reached[strength] += seen.get(select_by, 0.0) / len(parts)
            found[strength] = {name: tensor.clone() for name, tensor in checkpoint.kept(model).items()}
            advance(0, note=f"penalty {strength:g}, {k + 1}/{len(parts)}")
    best = (min if select_by == "loss" else max)(reached, key=reached.get)  # of equals the strongest
    if parts and parts[0][1] is val:  # solved on all labelled images
        checkpoint.load(model, found[best])
    else:
        solved = solutions(model, train, [*labelled, *pseudo], strengths)
        next(strength for strength in solved if strength == best)
    seen = {} if val is None else validate(model, val, objective, advance)
    tried = {f"{strength:g}": value for strength, value in reached.items()}
    return seen | {"solved": {"l2": best, "by": by, select_by: tried}}


def solutions(model, store, known, strengths):
    """Yield each strength, the largest first, when the head of the model is the best for it on these images of a Store.

    From zeros at first, then from the solution before.
    """
    model.eval()
    batches = [
        (model.features(floats(images)), targets(torch.stack([store.mask(i) for i in members]), model))
        for members, images in store.batches(known)
    ]
    model.standardise([maps for maps, _ in batches])
    weights = [p for p in model.parameters() if p.requires_grad]
    total = sum(truth.sum() for _, truth in batches).clamp_min(1)
    with torch.no_grad():
        for weight in weights:
            weight.zero_()
    for strength in strengths:
        solver = torch.optim.LBFGS(weights, max_iter=STEPS, tolerance_change=1e-7, line_search_fn="strong_wolfe")

        def closure(solver=solver, strength=strength):
            solver.zero_grad()
            penalty = strength / 2 * sum(w.square().sum() for w in weights if w.dim() > 1)
            misfit = -sum((model.coarse(m).log_softmax(1) * truth).sum() for m, truth in batches) / total
            (value := misfit + penalty).backward()
            return value

        solver.step(closure)
        yield strength


def targets(masks, model):
    """(B, classes, h, w): the share of each class in the pixels of each cell of the model's coarse logits."""
    height, width = masks.shape[1:]
    masks = torch.nn.functional.pad(masks, (0, -width % model.stride, 0, -height % model.stride), value=IGNORE)
    _, truth = masked(torch.zeros(len(masks), model.classes, *masks.shape[1:], device=masks.device), masks)
    return torch.nn.functional.avg_pool2d(truth, model.stride)
