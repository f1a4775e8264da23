"""The contact sheet of a prediction: images with their masks' outlines, suspicious and uncertain ones first."""

import numpy as np

from experiments.acquisition import pictures
from experiments.components import load
from experiments.store.reading import pixels

SHOWN = 24  # images on the sheet


def contact_sheet(results, found, rows):
    """PNG bytes of the first of these rows of the table."""
    part_of = load("dataset", "folder")
    images, masks, titles = [], [], []
    for row in rows[:SHOWN]:
        path, page, count = found[row["id"]]
        image = pixels(path, page)
        images.append(shown(image))
        masks.append(pixels(results.mask_of(row["id"]), indices=True).astype(np.uint8))
        titles.append(f"{row['id']}\n{float(row['uncertainty']):.3f} nats {row['suspicious']}".rstrip())
    more = f" of {len(rows)}" if len(rows) > SHOWN else ""
    heading = f"{len(images)}{more} masks; suspicious ones first, then by their uncertainty"
    return pictures.queries(images, [None] * len(images), titles, predicted=masks, heading=heading)


def shown(image):
    """An image of any channels and 8 or 16 bits as (H, W, 1 or 3) uint8 to look at."""
    image = image[..., None] if image.ndim == 2 else image
    image = image[..., :3] if image.shape[-1] >= 3 else image[..., :1]
    return image if image.dtype == np.uint8 else (image / max(image.max(), 1) * 255).astype(np.uint8)
