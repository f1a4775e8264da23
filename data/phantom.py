"""Phantom: colon glands in H&E drawn by scikit-image, 80 training and 32 test images in GlaS's own layout.

Nothing to download, hard as GlaS is: crowded malignant glands, stains, focus, near-duplicates, a rare mode.
"""

import os
import shutil
from pathlib import Path
from uuid import uuid4

import numpy as np
from PIL import Image
from sacred import Ingredient
from tqdm import tqdm

from data.glas import BEFORE, CHANNELS, CLASSES, HAS, HEADLINE, IGNORE, read_folder  # noqa: F401  a dataset has these
from experiments.components.settings import Range
from experiments.errors import Refused

MARGIN = 8  # drawn around every image, so that sections of one scene can shift
HEADER = "name,patient ID, grade (GlaS), grade (Sirinukunwattana et al. 2015)"

ingredient = Ingredient("phantom")


@ingredient.config
def settings():
    root = "data/Phantom"  # each drawing lies in its own folder in here, seed_0, seed_1 ...
    seed = 0  # which drawing; apart from the run's seed, so that runs compare on the same images
    crop = 80  # images are 112 to 144 a side: a window smaller than each, for shifts
    folds = 5  # about 64 images to learn from, 16 validate
    fold = 0  # which part validates, 0 to folds - 1
    split = "patients"  # keeps each patient's images, near-duplicate sections among them, in one part; or "images"


ALLOWED = {"seed": Range(least=0), "crop": Range(least=0), "folds": Range(least=2), "fold": Range(least=0)}


@ingredient.capture
def load(rng, root, seed, crop, folds, fold, split):
    folder = Path(root, f"seed_{seed}")
    if not (isinstance(seed, int) and seed >= 0):
        raise Refused(f"seed of phantom is {seed}: choose a whole number from 0.")
    if not os.path.exists(folder / "Grade.csv"):
        draw_folder(folder, seed)
    return read_folder(folder, rng, 1.0, crop, folds, fold, split, f"delete {folder}, it will be drawn again")


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
            reason = f"{folder} cannot be drawn ({error})"
            raise Refused(f"{reason}: remove what lies there, or set phantom.root=...") from error
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
    stains *= np.array([0.09, 0.07, 0]) * stain.uniform(0.65, 1.35, size=3) * section.uniform(0.93, 1.07)
    hues = rgb_from_hed * stain.uniform(0.8, 1.2, size=(3, 3))
    image = combine_stains(stains, hues) * 250 + section.normal(0, 3, size=(height, width, 3))
    ids = relabel_sequential(ids[window])[0].astype(np.uint8)
    return image.clip(0, 255).astype(np.uint8), ids, grade, patient


def draw_scene(rng, grade, size):
    """Concentrations (H, W, 3) of haematoxylin (nuclei), eosin (the rest) and nothing; and gland numbers."""
    from scipy.ndimage import distance_transform_edt

    haem, eosin = draw_stroma(rng, grade, size)
    ids = place_glands(rng, grade, size)
    depth = distance_transform_edt(ids > 0)
    wall = rng.uniform(8, 13, ids.max() + 1)[ids]  # from outline to lumen, another thickness in each gland
    {"benign": fill_benign, "malignant": fill_malignant, "mucinous": fill_mucinous}[grade](
        rng, depth, wall, haem, eosin
    )
    return np.stack([haem, eosin, np.zeros(size)], axis=-1).clip(0), ids


def draw_stroma(rng, grade, size):
    """Wavy collagen with its nuclei, vessels and tears."""
    y, x = np.mgrid[: size[0], : size[1]]
    tilt = rng.uniform(0, np.pi)
    fibres = np.sin((x * np.cos(tilt) + y * np.sin(tilt)) / 1.5 + 4 * cloud(rng, size, 12))
    eosin = 0.55 + 0.10 * fibres + 0.10 * cloud(rng, size, 5)
    haem = 0.14 + 0.03 * cloud(rng, size, 3)
    count = rng.integers(70, 160) * (2 if grade == "mucinous" else 1)
    fibroblasts = rng.uniform(0, size, size=(count, 2))
    nuclei(rng, haem, fibroblasts, tilt + np.pi / 2 + rng.normal(0, 0.4, count), 2.6, 1.0)
    for _ in range(rng.integers(0, 4)):
        lymphocytes = rng.normal(rng.uniform(0, size), 9, size=(60, 2))
        nuclei(rng, haem, lymphocytes, np.zeros(60), 1.4, 1.4)
    for _ in range(rng.integers(2, 5)):  # white like a lumen, yet no gland
        tear = rng.random() < 0.5
        stretch = rng.uniform(2, 3) if tear else 1.2
        hole = blob(rng, size, rng.uniform(0, size), rng.uniform(5, 11), stretch, 0.2)
        haem[hole < 0], eosin[hole < 0] = 0.01, 0.03
        if not tear:
            eosin[(hole >= 0) & (hole < 3)] = 0.9
            wall = some(rng, (hole > 0.5) & (hole < 2.5), 0.12)
            nuclei(rng, haem, wall, slope(hole, wall) + np.pi / 2, 2.4, 0.9)
    return haem, eosin


def place_glands(rng, grade, size):
    """Number the glands from 1: malignant ones lobed and back to back, others round with stroma between."""
    gap, rough = (1.2, 0.5) if grade == "malignant" else (5, 0.12)
    ids, share = np.zeros(size, int), rng.uniform(0.22, 0.46)
    free = np.full(size, np.inf)  # distance to the nearest gland
    while (ids > 0).mean() < share:
        radius = rng.uniform(13, 24)
        spots = np.argwhere(free > gap + radius * (0.8 if grade == "malignant" else 1.15))
        if not len(spots):
            break
        outline = blob(rng, size, rng.choice(spots), radius, rng.uniform(1, 1.5), rough)
        ids[(outline < 0) & (free > gap)] = ids.max() + 1
        free = np.minimum(free, outline)
    return ids


def fill_benign(rng, depth, wall, haem, eosin):
    """One row of nuclei at the base, pale mucin above it, a lumen in the middle."""
    texture, gland = cloud(rng, depth.shape, 1.2), depth > 0
    haem[gland] = 0.20 + 0.05 * texture[gland]
    eosin[gland] = 0.42 + 0.10 * texture[gland]
    goblets = (depth > 4.5) & (texture > 0.2)
    haem[goblets], eosin[goblets] = 0.12, 0.15
    lumen = depth > wall + cloud(rng, depth.shape, 4)
    haem[lumen], eosin[lumen] = 0.01, 0.04
    base = some(rng, (depth > 1.5) & (depth < 3.5), 0.30)
    nuclei(rng, haem, base, slope(depth, base), 2.4, 1.1)


def fill_malignant(rng, depth, wall, haem, eosin):
    """Large nuclei in several rows, ragged lumens with debris, an outline that fades in places."""
    texture, patches = cloud(rng, depth.shape, 1.2), cloud(rng, depth.shape, 6)
    gland = (depth > 0) & ((depth > 2.5) | (patches < 0.8))  # elsewhere the stroma shows through
    haem[gland] = 0.30 + 0.06 * texture[gland]
    eosin[gland] = 0.52 + 0.10 * texture[gland]
    lumen = (depth > 3) & (depth + 3 * patches > wall)
    haem[lumen] = 0.03 + 0.25 * (texture[lumen] > 1.2)
    eosin[lumen] = 0.08 + 0.40 * (texture[lumen] > 0.8)
    cells = some(rng, gland & ~lumen & (depth > 1), 0.10)
    nuclei(rng, haem, cells, slope(depth, cells) + rng.normal(0, 0.5, len(cells)), 2.9, 1.6)


def fill_mucinous(rng, depth, wall, haem, eosin):
    """A pale pool of mucin, a few cells afloat: contrast the other way round."""
    strands, gland = cloud(rng, depth.shape, 3), depth > 0
    haem[gland] = 0.10 + 0.08 * np.abs(strands[gland])
    eosin[gland] = 0.10 + 0.05 * strands[gland]
    cells = some(rng, (depth > wall / 2) & (strands > 1), 0.15)
    nuclei(rng, haem, cells, np.zeros(len(cells)), 1.8, 1.5)


def nuclei(rng, haem, spots, angles, length, width):
    """Dark ellipses of these half-axes at `spots`, each with its own size and depth of stain."""
    dy, dx = np.mgrid[-5:6, -5:6].reshape(2, 1, -1)
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    scale, stain = rng.uniform((0.8, 0.6), (1.2, 1), size=(len(spots), 2)).T[..., None]
    radius = np.hypot((dx * cos + dy * sin) / length, (dy * cos - dx * sin) / width) / scale
    rows, columns = np.rint(spots).astype(int).T[..., None] + np.stack([dy, dx])
    seen = (rows >= 0) & (columns >= 0) & (rows < haem.shape[0]) & (columns < haem.shape[1])
    np.maximum.at(haem, (rows[seen], columns[seen]), (stain * (1.5 - radius**2).clip(0, 1))[seen])


def blob(rng, size, centre, radius, stretch, rough):
    """Distance to the outline of a wobbling ellipse along the ray from `centre`, negative inside."""
    dy, dx = np.mgrid[: size[0], : size[1]] - np.reshape(centre, (2, 1, 1))
    tilt = rng.uniform(0, np.pi)
    around = np.linspace(-np.pi, np.pi, 121)
    waves = rng.normal(size=(2, 5, 1)) / [[2], [3], [4], [5], [6]]
    turns = np.outer(range(2, 7), around)
    wobble = (waves[0] * np.cos(turns) + waves[1] * np.sin(turns)).sum(axis=0)
    ellipse = np.hypot(np.cos(around - tilt) / np.sqrt(stretch), np.sin(around - tilt) * np.sqrt(stretch))
    outline = radius * (1 + rough * wobble).clip(0.4, 1.6) / ellipse
    return np.hypot(dy, dx) - np.interp(np.arctan2(dy, dx), around, outline)


def cloud(rng, size, scale):
    """Smooth noise of mean about 0 and deviation 1."""
    from scipy.ndimage import gaussian_filter

    noise = gaussian_filter(rng.standard_normal(size), scale, truncate=2.5)
    return noise / noise.std()


def some(rng, mask, share):
    """Coordinates (n, 2) of this share of the pixels in `mask`."""
    return np.argwhere(mask & (rng.random(mask.shape) < share))


def slope(field, spots):
    """Direction at `spots` in which `field` grows, in radians from the x axis."""
    return np.arctan2(*np.gradient(field))[tuple(spots.T)]
