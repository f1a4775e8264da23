"""ProbCover: images whose balls of radius delta cover the most images that no labelled image's ball covers yet.

Yehuda et al. 2022, https://arxiv.org/abs/2205.11320, greedily, on features of length 1. The paper's radius: the
largest with which at least 95 % of all balls are pure, that is hold images of one class only, where k-means clusters
stand for the classes. The paper makes as many clusters as classes, hundreds of images each; an image with a
mask has no class, so that their number follows from the pool's size. Among few images of many clusters most balls hold
nothing but their centre, and a query covers as little as a random one: a line then says so. Balls are open, as in the
published code, which takes the first of equally good images; here they come in random order.
"""

import numpy as np
import torch
from sacred import Ingredient
from tqdm import tqdm

from experiments.acquisition.ranking import shuffled
from experiments.components.settings import Range
from heuristics.typiclust import clustered, unit_features

ingredient = Ingredient("probcover")
NEEDS = ("features",)
NEEDS_MODEL = False


@ingredient.config
def settings():
    layer = "bottleneck"  # whose features are covered; with nothing labelled and no weights, image statistics
    weights = ""  # a safetensors file of this model, trained without labels, to look through instead of the current one
    delta = 0.0  # radius of a ball, features have length 1; 0: the largest that is pure enough
    purity = 0.95  # share of the balls that must be pure; the paper's
    clusters = 0  # kinds of images that a pure ball does not mix; 0: one for every 32 images, 2 to 10


ALLOWED = {
    "delta": Range(least=0, most=2),
    "purity": Range(above=0, most=1),
    "clusters": Range(least=2, zero="what suits the pool's size"),
}


@ingredient.capture
def select(pool, n, rng, layer, weights, delta, purity, clusters):
    """n positions, each the one that covers most; of those that cover as much, and when all is covered, drawn ones."""
    order, features, labelled = unit_features(pool, layer, weights)
    features = torch.cat([features, labelled])
    if not delta:
        kinds = clustered(features.cpu().numpy(), min(clusters or default(len(features)), len(features)), rng)
        delta = purest(features, torch.from_numpy(kinds).to(features.device), purity)
    return order[cover(features, len(order), n, delta, shuffled([pool.ids[i] for i in order], rng))]


def default(images):
    return min(max(images // 32, 2), 10)


def purest(features, kinds, purity):
    """The largest radius with which this share of the open balls about features (N, D) holds only one of the kinds."""
    chunk = at_once(features)
    parts = zip(features.split(chunk), kinds.split(chunk), strict=True)
    other = [torch.cdist(part, features).masked_fill(own[:, None] == kinds, torch.inf).amin(1) for part, own in parts]
    impure = len(features) - int(np.ceil(purity * len(features)))
    return torch.cat(other).sort().values[impure].item()


def cover(features, unlabelled, n, delta, ties):
    """n of the first `unlabelled` rows of features, each covering most of what neither the others nor the rest cover.

    Of those that cover as much it is the one that comes first in `ties`, the numbers of these rows in any order.
    How much each would cover is counted once and then lowered: no graph of neighbours is kept.
    """
    gains = within(features, features, delta)
    say_if_alone(gains, delta)
    bare = torch.ones(len(features), dtype=torch.bool, device=features.device)

    def choose(rows):
        covered = bare & (within(features, rows, delta) > 0)
        gains.sub_(within(features, features[covered], delta))
        bare[covered] = False

    choose(features[unlabelled:])
    picked = []
    for _ in range(n):
        picked.append(int(ties[np.argmax(gains.cpu().numpy()[ties])]))
        choose(features[picked[-1:]])
        gains[picked[-1]] = -1
    return picked


def say_if_alone(sizes, delta):
    """Print a line if at least half of the balls, of which each holds so many images (N,), hold only their centre."""
    share = (sizes == 1).double().mean().item()
    if share >= 0.5:
        tqdm.write(
            f"probcover: {share:.0%} of the balls of radius {delta:.3g} hold only their centre, so that what is asked "
            "for is close to a random choice: set a larger probcover.delta or fewer probcover.clusters."
        )


def within(features, centres, delta):
    """(N,) how many of the centres (M, D) lie in the open ball about each row of features (N, D)."""
    return sum((torch.cdist(features, part) < delta).sum(1) for part in centres.split(at_once(features)))


def at_once(features):
    """Of how many rows the distances to all features are held at a time: those that fill 32 MiB."""
    return max(1, 2**22 // len(features))
