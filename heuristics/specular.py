"""SR-ILS, an initial set by specular reflections: images by the area of their brightest spots.

AL-MGS (https://github.com/lkf-Labs/AL-MGS), for infrared images of meibomian glands: pixels brighter than a threshold,
closed with the 5 x 5 ellipse of OpenCV, counted. It takes the largest areas, or as for MGD-1K a quarter each of the
largest and the smallest of both eyelids, which are image-level groups here.
"""

import numpy as np
from sacred import Ingredient

from experiments.acquisition import selection
from experiments.acquisition.ranking import ranking
from experiments.components.settings import Range
from experiments.errors import Refused

ingredient = Ingredient("specular")
NEEDS_MODEL = False
ELLIPSE = np.array([[0, 0, 1, 0, 0], [1, 1, 1, 1, 1], [1, 1, 1, 1, 1], [1, 1, 1, 1, 1], [0, 0, 1, 0, 0]], dtype=bool)


@ingredient.config
def settings():
    threshold = 0.6  # brighter is a reflection, of 0 to 1; published are .6 for MGD-1K and .8 for MG-203
    order = "largest"  # the largest areas, or "quota": as many largest as smallest of every image-level group


ALLOWED = {"threshold": Range(least=0, most=1), "order": ("largest", "quota")}


@ingredient.capture
def select(pool, n, rng, threshold, order):
    """n positions. Raises Refused if quotas are asked for and the dataset has no groups."""
    if order == "quota" and not any(pool.groups):
        raise Refused("specular.order=quota needs image-level groups and this dataset has none: use largest.")
    areas = np.empty(len(pool))
    for positions, images in pool.images():
        areas[positions] = [area(image, threshold) for image in gray(images.cpu().numpy())]
    selection.say_if_equal("specular", areas)
    return ranking(areas, pool.ids, rng)[:n] if order == "largest" else quotas(areas, pool, n, rng)


def gray(images):
    """(B, H, W, channels) uint8 -> (B, H, W) uint8: ITU-R 601 luma of RGB, rounded, otherwise the channels' mean."""
    weights = [0.299, 0.587, 0.114] if images.shape[-1] == 3 else [1 / images.shape[-1]] * images.shape[-1]
    return (images @ np.array(weights)).round().astype(np.uint8)


def area(image, threshold):
    """Pixels of the reflections in a gray image (H, W) uint8, small gaps in them filled."""
    from scipy.ndimage import binary_dilation, binary_erosion

    grown = binary_dilation(image / 255 > threshold, ELLIPSE)
    return binary_erosion(grown, ELLIPSE, border_value=1).sum()


def quotas(areas, pool, n, rng):
    """n positions, equally many of the largest of each group, then of its smallest.

    What does not divide goes to the largest, groups in the order of their names; what a small group lacks is made up
    by the largest of all.
    """
    orders = [ranking(areas, pool.ids, rng), ranking(-areas, pool.ids, rng)]
    parts = [(order, group) for order in orders for group in sorted(set(pool.groups))]
    picked = {}
    for k, (order, group) in enumerate(parts):
        quota = n // len(parts) + (k < n % len(parts))
        picked |= dict.fromkeys([i for i in order if pool.groups[i] == group and i not in picked][:quota])
    return [*(picked | dict.fromkeys(orders[0]))][:n]
