"""CamVid with void as its twelfth class, learnt and counted as the others, as SegAL has it.

SegAL, https://github.com/tech-sketch/SegAL

The files and settings are those of `dataset=camvid`, whose terms and citation hold.
"""

from sacred import Ingredient

from data import camvid
from data.camvid import ALLOWED, CHANNELS, HAS, HEADLINE, read_folder  # noqa: F401  a dataset has these
from experiments.store import IGNORE  # noqa: F401  a dataset has this

CLASSES = (*camvid.CLASSES, "void")

ingredient = Ingredient("camvid12")


@ingredient.config
def settings():
    root = "data/CamVid"  # train, trainannot, val, valannot, test, testannot and their lists train.txt ...
    height = 180  # of every frame; the published size is 360, 0 keeps the files'
    width = 240  # the published size is 480
    crop = 0  # side of the training window in pixels; 0 trains on whole frames


@ingredient.capture
def load(rng, root, height, width, crop):
    return read_folder("camvid12", root, height, width, crop, {})
