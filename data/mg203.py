"""MG-203: 203 infrared images of eyelids, the meibomian glands as a mask, in the folders of MGD-1K.

AL-MGS, https://github.com/lkf-Labs/AL-MGS

Terms: not public, its authors may be asked. 163 images (000 to 162) to train, of which a fold validates, and 40 (163 to
202) to test, which validated as well in the published code.
"""

from sacred import Ingredient

from data.mgd1k import ALLOWED, CHANNELS, CLASSES, HAS, HEADLINE, read_folder  # noqa: F401  a dataset has these
from experiments.store import IGNORE  # noqa: F401  a dataset has this

ingredient = Ingredient("mg203")


@ingredient.config
def settings():
    root = "data/MG-203"  # train/img, train/label, test/img, test/label, train.txt, test.txt
    height = 176  # of every image; 352 as published, 0 keeps the files'
    width = 368  # 736 as published
    crop = 0  # side of the training window in pixels; 0 trains on whole images
    folds = 8  # one of 8 parts of train validates
    fold = 0  # which part validates, 0 to folds - 1


@ingredient.capture
def load(rng, root, height, width, crop, folds, fold):
    remedy = "ask the authors of https://github.com/lkf-Labs/AL-MGS, and put train|test / img | label / 000.png there"
    return read_folder("mg203", root, rng, height, width, crop, folds, fold, remedy)
