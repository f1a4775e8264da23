"""TypiClust (TPC_RP): the most typical image of each of the largest clusters that show no labelled image.

Hacohen et al. 2022, https://arxiv.org/abs/2202.02794: k-means with as many clusters as there will be labelled images
on features of length 1; typical is the image whose nearest neighbours are nearest, by the mean of their squared
distances. As in the published code, neighbours are the unlabelled images of the cluster, half of them at most. It drops
clusters of 5 images or fewer, and the first of equally good images wins: here such clusters come last, so that a small
pool can be used up, and the order is random.
"""

import warnings

import numpy as np
import torch
from sacred import Ingredient

from experiments.acquisition.ranking import shuffled
from experiments.components.settings import Range

ingredient = Ingredient("typiclust")
NEEDS = ("features",)
NEEDS_MODEL = False


@ingredient.config
def settings():
    layer = "bottleneck"  # whose features are clustered; with nothing labelled and no weights, image statistics
    weights = ""  # a safetensors file of this model, trained without labels, to look through instead of the current one
    clusters = 500  # at the most, so that they do not become too small
    least = 6  # clusters of fewer images come last; published, they are dropped
    neighbours = 20  # how many of them tell how typical an image is


ALLOWED = {"clusters": Range(least=1), "least": Range(least=0), "neighbours": Range(least=1)}


@ingredient.capture
def select(pool, n, rng, layer, weights, clusters, least, neighbours):
    """n positions: one of each cluster in turn, the largest first of those with the fewest labelled images."""
    order, features, labelled = unit_features(pool, layer, weights)
    features = torch.cat([features, labelled]).cpu().numpy()
    groups = clustered(features, min(len(labelled) + n, clusters), rng)
    return order[typical(features, groups, n, least, neighbours, shuffled([pool.ids[i] for i in order], rng))]


def unit_features(pool, layer, weights):
    """(positions in the order of their ids, their features (N, D) in that order, those of the labelled images (L, D)).

    float64 rows of length 1, of the run's encoder if it has one, of the model with other weights if they are given, of
    the current model once images are labelled, image statistics before.
    """

    def sorted_rows(images):
        rows = images.features(layer, weights=weights) if weights or pool.featured else images.statistics()
        order = np.argsort(images.ids)
        return order, torch.nn.functional.normalize(rows[torch.from_numpy(order).to(rows.device)].double())

    order, features = sorted_rows(pool)
    return order, features, sorted_rows(pool.labelled)[1] if len(pool.labelled) else features[:0]


def clustered(features, k, rng):
    """(N,) the cluster of each row of features (N, D), by k-means, from more than 50 clusters on in small batches."""
    from sklearn.cluster import KMeans, MiniBatchKMeans
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # duplicates: fewer clusters than asked for
        means = (KMeans if k <= 50 else MiniBatchKMeans)(k, n_init="auto", random_state=int(rng.integers(2**31)))
        return means.fit_predict(features)


def typical(features, groups, n, least, neighbours, ties):
    """n of the unlabelled rows of features, the first ones: each the most typical one of its cluster that is left.

    `ties` are the numbers of the unlabelled rows in any order; of equally typical ones, or clusters, it decides.
    """
    sizes = np.bincount(groups)
    covered = np.bincount(groups[len(ties) :], minlength=len(sizes))
    left, place = [ties[groups[ties] == group] for group in range(len(sizes))], np.argsort(ties)
    picked = []
    for _ in range(n):
        waiting = [group for group in range(len(sizes)) if len(left[group])]
        group = min(waiting, key=lambda g: (sizes[g] < least, covered[g], -sizes[g], place[left[g][0]]))
        best = np.argmin(mean_squared_distances(features[left[group]], neighbours))
        picked.append(int(left[group][best]))
        left[group] = np.delete(left[group], best)
        covered[group] += 1
    return picked


def mean_squared_distances(features, neighbours):
    """(N,) of each row to its nearest others: `neighbours` of them, or half of all where that is less.

    Rounded, for two rows that are each other's only neighbour are equally far and must not differ by rounding errors.
    """
    from sklearn.neighbors import NearestNeighbors

    k = min(neighbours, len(features) // 2)
    if not k:
        return np.zeros(len(features))
    return np.square(NearestNeighbors(n_neighbors=k).fit(features).kneighbors()[0]).mean(1).round(12)
