"""Phantom: colon glands in H&E drawn by scikit-image, 80 training and 32 test images in GlaS's own layout.

Nothing to download, and hard where GlaS is: crowded malignant glands, stains, focus, near-duplicates, a rare mode.
"""

import os
import shutil
from pathlib import Path
from uuid import uuid4

import numpy as np
from PIL import Image
from sacred import Ingredient
from tqdm import tqdm

from data.glas import CHANNELS, CLASSES, IGNORE, read_folder  # noqa: F401  a dataset has these constants
from experiments.errors import Refused

MARGIN = 8  # drawn around every image, so that sections of one scene can shift
HEADER = "name,patient ID, grade (GlaS), grade (Sirinukunwattana et al. 2015)"

ingredient = Ingredient("phantom")


@ingredient.config
def settings():
    root = "data/Phantom"  # each drawing lies in its own folder in here, seed_0, seed_1 ...
    seed = 0  # which drawing; apart from the run's seed, so that runs compare on the same images
    crop = 96  # images are 112 to 144 a side: a window smaller than each, for shifts
    folds = 5  # 64 images to learn from, 16 validate
    fold = 0  # which part validates, 0 to folds - 1


@ingredient.capture
def load(rng, root, seed, crop, folds, fold):
    folder = Path(root, f"seed_{seed}")
    if not (isinstance(seed, int) and seed >= 0):
        raise Refused(f"seed of phantom is {seed}: choose a whole number from 0.")
    if not (folder / "Grade.csv").is_file():
        draw_folder(folder, seed)
    return read_folder(folder, rng, 1.0, crop, folds, fold, f"delete {folder}, it will be drawn again")


def draw_folder(folder, seed):
    """Draw beside `folder` and rename: a folder is complete or absent, whichever process drew it first."""
    unfinished = folder.with_name(f".{folder.name}_{uuid4().hex}")
    try:
        unfinished.mkdir(parents=True)
        rows = [HEADER]
        for name, scene in tqdm(plan(seed), desc="drawing phantom", disable=None):  # None: on a terminal only
            image, ids, grade, patient = draw_image(seed, name, scene)
            Image.fromarray(image).save(unfinished / f"{name}.bmp")
            Image.fromarray(ids).save(unfinished / f"{name}_anno.bmp")
            rows.append(f"{name},{patient}, {grade}, {grade}")
        (unfinished / "Grade.csv").write_text("\r".join(rows), newline="")
        os.rename(unfinished, folder)
    except OSError as error:
        if not (folder / "Grade.csv").is_file():
            raise Refused(f"{folder} cannot be drawn ({error}): make room there, or set phantom.root=...") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def plan(seed):
    """(name, scene) of every image: in train, 60 scenes once and 4 as five consecutive sections each."""
    train = np.random.default_rng(seed).permutation([*range(60), *np.repeat(range(60, 64), 5)])
    scenes = {"train": train, "testA": range(64, 84), "testB": range(84, 96)}
    return [(f"{part}_{n}", int(scene)) for part in scenes for n, scene in enumerate(scenes[part], 1)]


def draw_image(seed, name, scene):
    """RGB, gland numbers, grade and patient. Patients 13 to 16, with their stains, are in testB alone."""
    from scipy.ndimage import gaussian_filter
    from skimage.color import combine_stains, rgb_from_hed
    from skimage.segmentation import relabel_sequential

    grade = "mucinous" if scene % 9 == 4 else ("benign", "malignant")[scene % 2]
    patient = 1 + scene * 7 % 12 if scene < 84 else 13 + scene % 4
    anatomy = np.random.default_rng([seed, 0, scene])  # the same in every section of a scene
    stain = np.random.default_rng([seed, 1, patient])
    section = np.random.default_rng([seed, 2, *name.encode()])

    height, width = anatomy.choice([(128, 128), (128, 128), (128, 112), (112, 144)])
    stains, ids = draw_scene(anatomy, grade, (height + 2 * MARGIN, width + 2 * MARGIN))
    top, left = section.integers(MARGIN - 3, MARGIN + 4, size=2)
    window = slice(top, top + height), slice(left, left + width)
    stains = gaussian_filter(stains[window], (*[anatomy.choice([0.4, 0.7, 1.0, 1.7])] * 2, 0))
    stains *= np.array([0.09, 0.07, 0]) * [*stain.uniform(0.65, 1.35, size=2), 1] * section.uniform(0.93, 1.07)
    hues = rgb_from_hed * stain.uniform(0.8, 1.2, size=(3, 3))
    image = combine_stains(stains, hues) * 250 + section.normal(0, 3, size=(height, width, 3))
    ids = relabel_sequential(ids[window])[0].astype(np.uint8)
    return image.clip(0, 255).astype(np.uint8), ids, grade, patient


def draw_scene(rng, grade, size):
    """Concentrations (H, W, 3) of haematoxylin (nuclei), eosin (the rest) and nothing; and gland numbers."""
    y, x = np.mgrid[: size[0], : size[1]]
    tilt = rng.uniform(0, np.pi)
    fibres = np.sin((x * np.cos(tilt) + y * np.sin(tilt)) / 1.5 + 4 * cloud(rng, size, 12))
    eosin = 0.55 + 0.10 * fibres + 0.10 * cloud(rng, size, 5)
    haem = 0.14 + 0.03 * cloud(rng, size, 3)

    count = rng.integers(150, 260) if grade == "mucinous" else rng.integers(70, 160)
    spots = rng.uniform(0, size, size=(count, 2))
    nuclei(rng, haem, spots, tilt + np.pi / 2 + rng.normal(0, 0.4, count), 2.6, 1.0)  # fibroblasts
    for _ in range(rng.integers(0, 3)):  # lymphocytes gather
        spots = rng.normal(rng.uniform(0, size), 9, size=(40, 2))
        nuclei(rng, haem, spots, np.zeros(40), 1.4, 1.4)
    for _ in range(rng.integers(2, 5)):  # vessels and tears: white like a lumen, but not a gland
        tear = rng.random() < 0.5
        hole = blob(rng, size, rng.uniform(0, size), rng.uniform(5, 11), rng.uniform(2, 3) if tear else 1.2, 0.2)
        haem[hole < 1], eosin[hole < 1] = 0.01, 0.03
        if not tear:
            eosin[(hole >= 1) & (hole < 1.35)] = 0.9
            wall = rng.permutation(np.argwhere((hole >= 1.05) & (hole < 1.25)))[:14]
            nuclei(rng, haem, wall, slope(hole)[tuple(wall.T)] + np.pi / 2, 2.4, 0.9)

    ids = np.zeros(size, int)
    share, crowded = rng.uniform(0.24, 0.50), grade == "malignant"
    for number in range(1, 41):
        radius = rng.uniform(13, 25) if crowded else rng.uniform(14, 22)
        outline = blob(rng, size, rng.uniform(0, size), radius, rng.uniform(1, 1.5), 0.5 if crowded else 0.12)
        taken = near(ids > 0, 1 if crowded else 5)
        gland = (outline < 1) & ~taken
        if gland.sum() < (0.6 if crowded else 1) * (outline < 1).sum():
            continue
        ids[gland] = number
        fill = {"benign": fill_benign, "malignant": fill_malignant, "mucinous": fill_mucinous}[grade]
        fill(rng, gland, haem, eosin)
        if (ids > 0).mean() > share:
            break
    return np.stack([haem, eosin, np.zeros(size)], axis=-1).clip(0), ids


def fill_benign(rng, gland, haem, eosin):
    """One row of nuclei at the base, pale mucin above it, a lumen in the middle."""
    depth, texture = inside(gland), cloud(rng, gland.shape, 1.2)
    haem[gland] = 0.20 + 0.05 * texture[gland]
    eosin[gland] = 0.42 + 0.10 * texture[gland]
    goblet = gland & (depth > 4.5) & (texture > 0.2)
    haem[goblet], eosin[goblet] = 0.12, 0.15
    lumen = depth > rng.uniform(8, 13) + cloud(rng, gland.shape, 4)
    haem[lumen], eosin[lumen] = 0.01, 0.04
    base = np.argwhere((depth > 1.5) & (depth < 3.5))
    base = base[rng.random(len(base)) < 0.30]
    nuclei(rng, haem, base, slope(depth)[tuple(base.T)], 2.4, 1.1)


def fill_malignant(rng, gland, haem, eosin):
    """Large nuclei in several rows, several ragged lumens with debris, an outline that fades in places."""
    depth, texture, patches = inside(gland), cloud(rng, gland.shape, 1.2), cloud(rng, gland.shape, 6)
    clear = gland & ((depth > 2.5) | (patches < 0.8))  # elsewhere the stroma shows through
    haem[clear] = 0.30 + 0.06 * texture[clear]
    eosin[clear] = 0.52 + 0.10 * texture[clear]
    lumen = depth + 3 * patches > rng.uniform(8, 13)
    haem[lumen] = 0.03 + 0.25 * (texture[lumen] > 1.2)
    eosin[lumen] = 0.08 + 0.40 * (texture[lumen] > 0.8)
    cells = np.argwhere(clear & ~lumen & (depth > 1))
    cells = cells[rng.random(len(cells)) < 0.11]
    angles = slope(depth)[tuple(cells.T)] + rng.normal(0, 0.5, len(cells))
    nuclei(rng, haem, cells, angles, 2.9, 1.6)


def fill_mucinous(rng, gland, haem, eosin):
    """A pale pool of mucin, a few cells afloat: contrast the other way round."""
    depth, strands = inside(gland), cloud(rng, gland.shape, 3)
    haem[gland] = 0.10 + 0.05 * np.abs(strands[gland])
    eosin[gland] = 0.08 + 0.03 * strands[gland]
    cells = np.argwhere((depth > 5) & (strands > 1.3))
    cells = cells[rng.random(len(cells)) < 0.15]
    nuclei(rng, haem, cells, np.zeros(len(cells)), 1.8, 1.5)


def nuclei(rng, haem, spots, angles, length, width):
    """Dark ellipses of these half-axes at `spots`, each with its own size and depth of stain."""
    dy, dx = np.mgrid[-5:6, -5:6].reshape(2, 1, -1)
    scale = rng.uniform(0.8, 1.2, size=(len(spots), 1))
    rows, columns = (np.rint(axis)[:, None].astype(int) for axis in np.reshape(spots, (-1, 2)).T)
    along = dx * np.cos(angles)[:, None] + dy * np.sin(angles)[:, None]
    across = dy * np.cos(angles)[:, None] - dx * np.sin(angles)[:, None]
    stain = rng.uniform(0.6, 1, size=scale.shape)
    stain = stain * (1.5 - np.hypot(along / length, across / width) ** 2 / scale**2).clip(0, 1)
    rows, columns = rows + dy, columns + dx
    seen = (rows >= 0) & (columns >= 0) & (rows < haem.shape[0]) & (columns < haem.shape[1])
    np.maximum.at(haem, (rows[seen], columns[seen]), stain[seen])


def blob(rng, size, centre, radius, stretch, rough):
    """Distance from `centre` in units of a wobbling ellipse's outline: below 1 inside it."""
    dy, dx = np.mgrid[: size[0], : size[1]] - np.reshape(centre, (2, 1, 1))
    tilt = rng.uniform(0, np.pi)
    along = (dx * np.cos(tilt) + dy * np.sin(tilt)) / np.sqrt(stretch)
    across = (dy * np.cos(tilt) - dx * np.sin(tilt)) * np.sqrt(stretch)
    theta = np.arctan2(across, along)
    wobble = sum(rng.normal() / k * np.cos(k * theta + rng.uniform(0, 6.3)) for k in range(2, 7))
    return np.hypot(along, across) / (radius * (1 + rough * wobble).clip(0.4, 1.6))


def cloud(rng, size, scale):
    """Smooth noise of mean about 0 and deviation 1."""
    from scipy.ndimage import gaussian_filter

    noise = gaussian_filter(rng.standard_normal(size), scale)
    return noise / noise.std()


def inside(mask):
    """Distance to the outline, 0 outside; the edge of the image is no outline."""
    from scipy.ndimage import distance_transform_edt

    return distance_transform_edt(mask)


def near(mask, distance):
    from scipy.ndimage import distance_transform_edt

    return distance_transform_edt(~mask) <= distance if mask.any() else mask


def slope(field):
    """Direction in which `field` grows, in radians from the x axis."""
    return np.arctan2(*np.gradient(field))
