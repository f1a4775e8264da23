"""Choosing a batch: k-centre beside the full matrix of distances, stochastic groups beside loops over the images."""

import numpy as np
import torch

from experiments.acquisition.pool import Pool
from experiments.benchmark import timing
from experiments.components import load
from experiments.components.randomness import uniform
from experiments.errors import Refused

OPTIONS = {
    "rounds": (5, "all variants once in each"),
    "pool": (10_000, "images, few enough for a matrix of all distances"),
    "large": (200_000, "images, far too many for it"),
    "query": (20, "images to pick"),
    "features": (512, "numbers an image"),
}


def run(options, device):
    """(rows, notes)."""
    generator = torch.Generator().manual_seed(0)
    large = torch.randn(options.large, options.features, generator=generator).to(device)
    rows, scores = large[: options.pool].clone(), np.random.default_rng(0).random(options.large)
    pool = Pool([f"image {i}" for i in range(options.large)], [""] * options.large, tuple)
    n = options.query
    gate("k-centre", k_centre(rows, n), pairwise(rows, n))
    gate("stochastic", groups(scores, pool, n), loops(scores, pool.ids, n))
    work = {
        "k-centre": (lambda: k_centre(rows, n), 1),
        "matrix": (lambda: pairwise(rows, n), 1),
        "k-centre, large": (lambda: k_centre(large, n), 1),
        "reading": timing.reading(large),
        "groups": (lambda: groups(scores, pool, n), 1),
        "loops": (lambda: loops(scores, pool.ids, n), 1),
    }
    return rows_of(timing.rounds(work, options.rounds, device), options, large.nbytes / 1e9), [
        f"{options.features} features an image, {n} picks, {options.rounds} rounds. Picks were the same as the plain "
        "form's. Reading is the sum of all features once; k-centre has to read them once for each pick."
    ]


def rows_of(times, options, gigabytes):
    n, large = f"{options.pool:,}", f"{options.large:,}"
    reads = [timing.Time(*(gigabytes * options.query * value for value in time)) for time in times["reading"]]
    ratio = timing.ratio
    return [
        timing.rate("memory read", times["reading"], "GB/s"),
        timing.seconds(f"k-centre, N = {n}", times["k-centre"]),
        timing.seconds(f"k-centre by the full matrix, N = {n}", times["matrix"]),
        ratio(f"k-centre faster than the full matrix, N = {n}", times["matrix"], times["k-centre"], ">= 30"),
        timing.seconds(f"k-centre, N = {large}", times["k-centre, large"]),
        ratio(f"k-centre / reading once a pick, N = {large}", times["k-centre, large"], reads, "<= 2"),
        timing.seconds(f"stochastic groups, N = {large}", times["groups"]),
        ratio(f"stochastic groups faster than loops, N = {large}", times["loops"], times["groups"]),
    ]


def gate(name, ours, plain):
    if ours != plain:
        raise Refused(f"{name} picks {ours}, its plain form {plain}: nothing is timed.")


def k_centre(rows, n):
    coreset = load("heuristic", "coreset")
    return coreset.k_centre(rows, rows[:0], n, coreset.squared_euclidean)


def pairwise(rows, n):
    """Picks by the matrix of all distances, in numpy; the first row is the first pick."""
    rows = rows.cpu().numpy()
    squares = (rows**2).sum(1)
    distances = np.sqrt((squares[:, None] + squares - 2 * rows @ rows.T).clip(0))
    picked = [0]
    while len(picked) < n:
        nearest = distances[:, picked].min(1)
        nearest[picked] = -1
        picked.append(int(nearest.argmax()))
    return picked


def groups(scores, pool, n):
    rng = np.random.default_rng(0)
    stochastic = load("batch", "stochastic")
    return stochastic.pick(scores, pool, n, rng, size=0, resample=False, groups=0, reduction="mean")


def loops(scores, ids, n):
    """The best of disjoint groups by Python's own loops."""
    salt = int(np.random.default_rng(0).integers(2**63))
    numbers = [float(uniform(salt, [id])[0]) for id in ids]
    order = sorted(range(len(ids)), key=numbers.__getitem__)
    drawn = [order[start : start + n] for start in range(0, len(ids) - n + 1, n)]
    best = max(drawn, key=lambda group: sum(scores[i] for i in group) / n)
    return sorted(best, key=lambda i: -scores[i])
