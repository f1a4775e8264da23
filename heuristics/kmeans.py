"""k-means: one image for each of n clusters of the pool, the one nearest to its centroid.

Zhdanov 2019, https://arxiv.org/abs/1901.05954, without weights on the points. As an initial set, or whenever nothing
is labelled, it looks through given weights or at plain image statistics; after that at the trained model's features.
With `encoder=` they are a pretrained network's from the start.
"""

import warnings
from pathlib import Path

import numpy as np
from sacred import Ingredient

from experiments.acquisition.ranking import shuffled
from experiments.components.settings import Range
from experiments.errors import Refused

ingredient = Ingredient("kmeans")
NEEDS = ("features",)
NEEDS_MODEL = False


@ingredient.config
def settings():
    layer = "bottleneck"  # whose output is clustered: a name in the model's LAYERS
    grid = 1  # cells on each side that it is pooled to; 1: one vector an image
    pooling = "mean"  # or max
    weights = ""  # safetensors of the same model to look through while nothing is labelled; "": image statistics


ALLOWED = {"grid": Range(least=1), "pooling": ("mean", "max")}


@ingredient.capture
def check(weights):
    if weights and not Path(weights).is_file():
        raise Refused(f"kmeans.weights={weights} is no file: name a checkpoint's .safetensors or leave it empty.")


@ingredient.capture
def select(pool, n, rng, layer, grid, pooling, weights):
    """n positions, that of the largest cluster first."""
    if pool.featured:
        rows = pool.features(layer, grid, pooling)
    elif weights:
        rows = pool.features(layer, grid, pooling, weights)
    else:
        rows = pool.statistics()
    order = np.argsort(pool.ids)
    ties = shuffled([pool.ids[i] for i in order], rng)
    return order[nearest_to_centroids(rows.cpu().numpy()[order], n, int(rng.integers(2**32)), ties)].tolist()


def nearest_to_centroids(rows, n, seed, ties):
    """n row numbers of (N, D), one of each cluster, largest first; too few distinct rows are filled up with copies.

    Of rows as near, and of clusters as large, the one is taken that comes first in `ties`, all row numbers.
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct rows than clusters
        found = KMeans(n, n_init=3, random_state=seed).fit(rows.astype(np.float64))
    distances = np.linalg.norm(rows - found.cluster_centers_[found.labels_], axis=1)
    distances = distances.astype(np.float32)  # two rows are as far from their mean, but for rounding
    closest = ties[np.argsort(distances[ties], kind="stable")]
    _, first, sizes = np.unique(found.labels_[closest], return_index=True, return_counts=True)
    picked = closest[first[np.lexsort((np.argsort(ties)[closest[first]], -sizes))]]
    return [*picked.tolist(), *(i for i in closest.tolist() if i not in picked)][:n]
