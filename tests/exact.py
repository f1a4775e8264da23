"""Any model's file, small, in float64 or not: what test_ranks has both ranks build."""

from sacred import Ingredient

from experiments.components import configure, defaults, load

ingredient = Ingredient("exact")
MEAN, STD = (0.0,) * 3, (1.0,) * 3
SMALL = {
    "lite": {"weights": "none", "width": 4},
    "monai": {"width": 4},
    "modunet": {"width": 4},
    "unet": {"width": 2},
}


@ingredient.config
def settings():
    name = "unet"  # noqa: F841
    double = True  # noqa: F841


@ingredient.capture
def build(channels, classes, name, double):
    file = load("model", name)
    configure(file, {name: defaults(file.ingredient) | SMALL.get(name, {})})
    model = file.build(channels=channels, classes=classes)
    model.mean, model.std = getattr(model, "mean", file.MEAN), getattr(model, "std", file.STD)
    return model.double() if double else model
