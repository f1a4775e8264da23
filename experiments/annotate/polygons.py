"""Masks as polygons with holes along the edges of pixels, and back, exact: a pixel belongs to what its centre lies in.

x runs right and y down, in pixels from the upper left corner of the image: pixel (row, column) is the square from
(column, row) to (column + 1, row + 1).
"""

from collections import defaultdict

import numpy as np
from scipy import ndimage
from skimage.measure import find_contours

from experiments.errors import BadData

FAR = 1e6  # a coordinate beyond is none of an image
MOST = 50_000_000  # crossings of edges with rows of pixels, of one polygon


def traced(mask):
    """The polygons of a mask (H, W) bool, one for each part joined by edges: lists of rings, outline first.

    A ring is an (N, 2) int array of corners (x, y), the first not repeated; none touches itself.
    """
    parts = np.pad(ndimage.label(mask)[0], 1)
    found = defaultdict(list)
    for contour in find_contours((parts > 0).astype(np.float32), 0.5, fully_connected="low"):
        middle = contour[:-1]  # of edges between a pixel of the mask and one that is not
        following = np.roll(middle, -1, 0)
        across, across_next = middle % 1 == 0.5, following % 1 == 0.5
        turned = np.where(across, middle, following)
        corners = np.where(across == across_next, (middle + following) / 2, turned) - 0.5
        steps = np.diff(corners, axis=0, append=corners[:1])
        corners = corners[(steps != np.roll(steps, 1, 0)).any(1)]
        sides = (f(middle[0]).astype(int) for f in (np.floor, np.ceil))
        part = max(parts[row, column] for row, column in sides)
        found[part] += apart(corners[:, ::-1].astype(int))
    return [sorted(rings, key=area, reverse=True) for rings in found.values()]


def apart(ring):
    """The rings of a ring that may touch itself in corners."""
    if len(np.unique(ring, axis=0)) == len(ring):
        return [ring]
    rings, way, place = [], [], {}
    for corner in map(tuple, ring.tolist()):
        if corner in place:
            start = place[corner]
            rings.append(np.array(way[start:]))
            for gone in way[start:]:
                del place[gone]
            del way[start:]
        place[corner] = len(way)
        way.append(corner)
    return [*rings, np.array(way)]


def area(ring):
    """The area within a ring (N, 2), in pixels."""
    x, y = ring.T
    return abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2


def paint(mask, rings, value):
    """Set `mask` (H, W) to a value where an odd number of rings, lists of (x, y), lies around the centre of a pixel.

    Returns how many pixels these are. Raises BadData, without a file's name, for what is no ring near the image.
    """
    height, width = mask.shape
    rings = [points(ring) for ring in rings]
    left, top = (int(side) for side in np.floor(np.min([ring.min(0) for ring in rings], 0)).clip(0, (width, height)))
    right, end = (int(side) for side in np.ceil(np.max([ring.max(0) for ring in rings], 0)).clip(0, (width, height)))
    crossed = np.zeros((end - top, right - left + 1), np.uint8)
    for x, y in (ring.T for ring in rings):
        beside, below = np.roll(x, -1), np.roll(y, -1)
        first, last = (np.ceil(f(y, below) - 0.5).clip(top, end).astype(int) for f in (np.minimum, np.maximum))
        count = last - first
        if count.sum() > MOST:
            raise BadData("a polygon crosses the image too often")
        edge = np.repeat(np.arange(len(x)), count)
        row = np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count) + first[edge]
        along = (row + 0.5 - y[edge]) / (below - y)[edge]
        column = np.ceil(x[edge] + along * (beside - x)[edge] - 0.5).clip(left, right).astype(int)
        np.add.at(crossed, (row - top, column - left), 1)
    inside = np.bitwise_xor.accumulate(crossed & 1, axis=1)[:, :-1].astype(bool)
    mask[top:end, left:right][inside] = value
    return int(inside.sum())


def points(ring):
    """A ring as (N, 2) float64."""
    try:
        found = np.array([(float(point[0]), float(point[1])) for point in ring])
    except (TypeError, ValueError, IndexError, KeyError, OverflowError):
        raise BadData("a polygon is no list of x and y") from None
    if len(found) < 3 or not np.isfinite(found).all() or np.abs(found).max() > FAR:
        raise BadData("a polygon has fewer than 3 points, or some far outside of its image")
    return found
