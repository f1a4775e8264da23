"""NIfTI slices: volumes of any folder of images and one of masks, as slices across an axis.

The layout is that of the Medical Segmentation Decathlon, Antonelli et al. 2022, https://doi.org/10.1038/s41467-022-30695-9

Terms: those of the volumes. Needs `pip install nibabel==5.4.2`. Item.source is the volume, whose slices keep their
order; distances count in the unit of the files' own spacing, mm as a rule.
"""

import zlib
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from PIL import Image
from sacred import Ingredient

from data._pairs import natural
from data._slices import ALLOWED as SLICES
from data._slices import as_bytes, as_classes, check_classes, hold_out, joined, package, slice_of
from experiments.components.randomness import generator
from experiments.components.settings import Range
from experiments.errors import BadData, Refused
from experiments.store import IGNORE, Item  # noqa: F401  a dataset has IGNORE
from experiments.store.reading import MAX_WEIGHTS, regular, resized

CLASSES, CHANNELS, HAS = (), 1, ("validation",)  # classes are settings: load gives them
HEADLINE = "class_dice"  # many a slice holds no foreground, so the pixels of all count together
VOLUMES = True
LARGEST = 2**31  # voxels of a volume
ENDINGS = (".nii", ".nii.gz")

ingredient = Ingredient("nifti_slices")


@ingredient.config
def settings():
    root = "data/NIfTI"  # what the two folders lie in
    images = "imagesTr"  # the volumes' folder, "." for root itself
    masks = "labelsTr"  # the masks' folder, which may be the same
    image_ending = ".nii.gz"  # behind the name that a volume shares with its mask; nnU-Net's: _0000.nii.gz
    mask_ending = ".nii.gz"  # _seg.nii.gz where images and masks lie together
    classes = ["background", "foreground"]  # names of the mask's values, the background first
    values = []  # the mask's values in the order of the classes, as [0, 1, 2, 4]; [] are 0, 1, 2 ...
    axis = 2  # slices are across this axis of the files: 0, 1 or 2
    channel = 0  # which volume of a file of several (4-D)
    black = 0.0  # the value that is shown as 0, with white: -160 and 240 show the soft tissue of a CT
    white = 0.0  # and as 255; where both are 0 each volume has its own, by percentile
    percentile = 0.5  # from this to 100 - this of a volume's values, as MRI needs
    resize = 1.0  # 0.5 halves both sides of every slice
    empty = "keep"  # drop: slices without foreground leave the pool, for which its masks are read
    val = 0.2  # share of the slices that validates, whole volumes
    test = 0.2  # share that tests, the same volumes in every run
    crop = 0  # side of the training window in pixels after resizing; 0 trains on whole slices


ALLOWED = SLICES | {
    "axis": Range(least=0, most=2),
    "channel": Range(least=0),
    "percentile": Range(least=0, below=50),
    "resize": Range(above=0, most=4),
}


@ingredient.capture
def load(rng, root, images, masks, image_ending, mask_ending, classes, values, axis, channel, black, white, percentile,
         resize, empty, val, test, crop):  # fmt: skip
    package("nibabel", "5.4.2", "nifti_slices")
    check_classes("nifti_slices", classes, values)
    if black > white:
        raise Refused(f"nifti_slices.black={black} is above nifti_slices.white={white}.")
    pairs = list_volumes(Path(root, images), Path(root, masks), image_ending, mask_ending)
    items = [item for name, *paths in pairs for item in slices_of(name, *paths, axis, resize)]
    image = partial(read_image, lru_cache(2)(grey_volume), (axis, channel, black, white, percentile), resize)
    mask = partial(read_mask, lru_cache(2)(mask_volume), (axis, channel, tuple(classes), tuple(values)))
    reads = {"read_image": image, "read_mask": partial(mask, resize=resize), "read_original": partial(mask, resize=1)}
    pool, tests = hold_out(items, test, generator("nifti_slices", "test"), "nifti_slices", "test")
    train, validation = hold_out(pool, val, rng, "nifti_slices", "val")
    return joined(train, validation, tests, reads, empty, crop=crop, classes=tuple(classes))


def list_volumes(images, masks, image_ending, mask_ending):
    """(name, image, mask) of every volume, 2 before 10. Raises Refused where one is missing."""
    for folder, ending, what in ((images, image_ending, "images"), (masks, mask_ending, "masks")):
        if not ending.endswith(ENDINGS):
            raise Refused(f"nifti_slices: {what} end in {ending!r}, which is no NIfTI file's ending, .nii or .nii.gz.")
        if not folder.is_dir():
            raise Refused(f"{folder} is no folder: put the {what} there, or set nifti_slices.root=... and .{what}=...")
    found, truth = ({str(p.relative_to(folder)).removesuffix(ending): p for p in folder.rglob(f"*{ending}")}
                    for folder, ending in ((images, image_ending), (masks, mask_ending)))  # fmt: skip
    if image_ending != mask_ending and images.resolve() == masks.resolve():  # _seg.nii.gz ends in .nii.gz too
        found = {name: path for name, path in found.items() if path not in truth.values()}
    names = sorted((name for name in found if not Path(name).name.startswith(".")), key=lambda name: natural((name,)))
    if not names:
        raise Refused(f"{images} holds no *{image_ending}: put the volumes there, or set nifti_slices.image_ending=...")
    lone = [name for name in names if name not in truth]
    if lone:
        raise Refused(
            f"{len(lone)} of {len(names)} volumes have no mask, as {found[lone[0]]} in {masks}: put {lone[0]}"
            f"{mask_ending} there, or set nifti_slices.image_ending=... and mask_ending=..."
        )
    return [(name, found[name], truth[name]) for name in names]


def slices_of(name, image, mask, axis, resize):
    """An Item for each slice of a volume across an axis, from the header."""
    header, shape = opened(image).header, opened(image).shape
    if opened(mask).shape[:3] != shape[:3]:
        raise BadData(f"{mask} is an array of {opened(mask).shape}, its image of {shape}: replace the mask.")
    zooms = [float(abs(zoom)) or 1.0 for zoom in header.get_zooms()[:3]]
    spacing = (zooms.pop(axis), *(zoom / resize for zoom in zooms))
    for k in range(shape[axis]):
        number = f"{k:04}"
        yield Item(f"{name}_{number}", image / number, mask / number, source=name, spacing=spacing)


def opened(path):
    """The nibabel image of a file, of which nothing but the header is read. Raises BadData."""
    import nibabel

    try:
        found = nibabel.load(regular(path, MAX_WEIGHTS))
    except (OSError, ValueError, EOFError, zlib.error, nibabel.filebasedimages.ImageFileError) as error:
        raise BadData(f"{path} cannot be read as a NIfTI volume ({error}): replace the file.") from error
    if len(found.shape) not in (3, 4) or min(found.shape) < 1 or np.prod(found.shape, dtype=float) > LARGEST:
        raise BadData(f"{path} is an array of {found.shape}: a volume has three axes and at most {LARGEST} voxels.")
    return found


def volume(path, axis, channel):
    """(slices, H, W) of a file's values, scaled as its header says."""
    found = opened(path)
    if len(found.shape) == 4 and channel >= found.shape[3]:
        raise BadData(f"{path} has {found.shape[3]} volumes, counted from 0: set nifti_slices.channel=0.")
    try:
        whole = np.asanyarray(found.dataobj[..., channel] if len(found.shape) == 4 else found.dataobj)
    except (OSError, ValueError, EOFError, zlib.error) as error:
        raise BadData(f"{path} cannot be read as a NIfTI volume ({error}): replace the file.") from error
    return np.moveaxis(whole, axis, 0)


def grey_volume(path, axis, channel, black, white, percentile):
    values = volume(path, axis, channel)
    if black == white == 0 and np.isfinite(values).all():
        black, white = np.percentile(values, [percentile, 100 - percentile])
    return as_bytes(values, black, white, path)


def mask_volume(path, axis, channel, classes, values):
    many = len(opened(path).shape) == 4
    return as_classes(volume(path, axis, channel if many else 0), values, classes, path)


def read_image(kept, how, resize, path):
    """(H, W, 1) uint8."""
    plane = slice_of(kept, path, *how)
    return np.array(resized(Image.fromarray(np.ascontiguousarray(plane)), resize, smooth=True))[..., None]


def read_mask(kept, how, path, resize):
    plane = slice_of(kept, path, *how)
    return np.array(resized(Image.fromarray(np.ascontiguousarray(plane)), resize, smooth=False))
