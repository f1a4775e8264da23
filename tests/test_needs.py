"""What a strategy needs and the model or the dataset has not is said before training, with who has it."""

from types import SimpleNamespace

import pytest

from experiments.acquisition import needs
from experiments.components import defaults, load
from experiments.errors import Refused

GROUPED, PLAIN = (SimpleNamespace(groups=groups) for groups in (["a", "b"], ["", ""]))
BARE = SimpleNamespace(__name__="models.bare")  # a model without LAYERS
CHOSEN = {"heuristic": "bald", "batch": "top", "initial": "random", "dataset": "glas", "model": "unet"}


def check(train=GROUPED, val=GROUPED, model=None, layer=None, classes=("background", "gland"), noted=(), **chosen):
    chosen = CHOSEN | chosen
    parts = {entry: load(entry, name) for entry, name in chosen.items() if entry != "model"}
    parts["model"] = model or load("model", "unet")
    config = chosen | {"model": "bare" if model else "unet", "noted": noted}
    with pytest.MonkeyPatch.context() as patch:
        for entry in ("heuristic", "batch", "initial"):
            settings = defaults(parts[entry].ingredient)
            config[chosen[entry]] = settings | ({"layer": layer} if layer and "layer" in settings else {})
            for function in parts[entry].ingredient.captured_functions:
                patch.setattr(function, "config", config[chosen[entry]])
        needs.check(config, parts, SimpleNamespace(train=train, val=val, classes=classes))


@pytest.mark.parametrize(
    "chosen", [{"heuristic": "random_balanced"}, {"batch": "balanced"}, {"initial": "stratified"}], ids=str
)
def test_groups(chosen):
    check(**chosen)
    (entry, name) = next(iter(chosen.items()))
    with pytest.raises(Refused, match=f"{entry}={name} needs image-level groups and dataset=glas has none"):
        check(**chosen, train=PLAIN)


@pytest.mark.parametrize(
    "chosen",
    [
        {"heuristic": "coreset"},
        {"heuristic": "learning_loss"},
        {"heuristic": "kmeans"},
        {"batch": "diverse"},
        {"batch": "diverse_groups"},
    ],
    ids=str,
)
def test_features(chosen):
    check(**chosen)
    (entry, name) = next(iter(chosen.items()))
    said = f"{entry}={name} needs features of a model's layers .*: model=.*unet has them"
    with pytest.raises(Refused, match=said):
        check(**chosen, model=BARE)


def test_an_initial_set_of_image_statistics_needs_no_features():
    check(initial="kmeans", model=BARE)
    check(initial="typiclust", model=BARE)


def test_validation_images():
    check(heuristic="crc")
    with pytest.raises(Refused, match="heuristic=crc needs validation images and dataset=glas has none"):
        check(heuristic="crc", val=None)


@pytest.mark.parametrize("name", ["ams", "edge_entropy", "mask_discrepancy"])
def test_a_foreground_against_a_background(name):
    check(heuristic=name)
    said = f"heuristic={name} needs a class called background and dataset=glas has none: dataset=.*isic2017.* has them"
    with pytest.raises(Refused, match=said):
        check(heuristic=name, classes=("sky", "building"))


def test_noted_scores_need_it_too():
    check(noted=["ams"])
    with pytest.raises(Refused, match="noted=ams needs a class called background"):
        check(noted=["ams"], classes=("sky", "building"))


def test_a_layer_that_the_model_has_not():
    with pytest.raises(Refused, match="coreset.layer=botleneck is no layer of .*unet. Did you mean bottleneck.* There"):
        check(heuristic="coreset", layer="botleneck")


def test_a_cold_start_needs_a_heuristic_that_needs_no_model():
    check(heuristic="random", initial="none")
    with pytest.raises(Refused, match="heuristic=bald needs predictions before any training"):
        check(heuristic="bald", initial="none")
