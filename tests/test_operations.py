"""Operations on crops: image and mask stay aligned, no label is invented, each row depends on its own numbers alone."""

import numpy as np
import pytest
import torch
from conftest import ROOT, events
from PIL import Image, ImageEnhance
from scipy.ndimage import gaussian_filter
from skimage.transform import EuclideanTransform, ProjectiveTransform, SimilarityTransform
from skimage.transform import warp as warped

from experiments.components import settings
from experiments.errors import Refused
from experiments.store import IGNORE
from experiments.training import operations

EACH = {
    "rotate": [15],
    "translate": [0.3],
    "scale": [0.5, 1.8],
    "affine": [20, 0.2, 0.6, 1.5],
    "resize": [0.6, 2],
    "perspective": [0.3],
    "colour": [0.4, 0.4, 0.4, 0.1],
    "gamma": [0.5, 2],
    "noise": [0.05, 0.1],
    "blur": [0.5, 2],
    "motion_blur": [5],
    "sharpen": [0, 3],
    "clahe": [4],
}
ALL = [
    *([name, 0.5, *EACH[name]] for name in list(EACH)[:8]),
    ["noise", 0.5, 0.01, 0.02],
    ["one_of", 0.9, *([name, *EACH[name]] for name in ("blur", "motion_blur", "sharpen", "clahe"))],
]
LABELS = (0, 3, 200)  # averages of them are labels that nothing has
COLOURS = {0: 0.2, 3: 0.8, 200: 0.5}


def drawn_grid(n=6, side=(60, 84), cell=12):
    """Crops in cells of one colour a class, with a void corner: (x (n, 3, H, W), masks)."""
    rows, columns = np.mgrid[: side[0], : side[1]]
    masks = np.array(LABELS)[(rows // cell + 2 * (columns // cell)) % 3]
    masks[:9, :9] = IGNORE
    x = np.vectorize({**COLOURS, IGNORE: 0.0}.get)(masks)
    x = torch.from_numpy(np.repeat(x[None, None], 3, 1).repeat(n, 0)).float()
    return x, torch.from_numpy(masks.astype(np.uint8)).expand(n, *side).clone()


def run(listed, x, masks, inside=None, seed=0, rows=None):
    """What the operations make of these crops; `rows` are those of the numbers drawn that belong to them."""
    drawn = operations.draw.__wrapped__(len(masks) if rows is None else 6, np.random.default_rng(seed), listed)
    drawn = drawn if rows is None else {name: values[rows] for name, values in drawn.items()}
    return operations.apply.__wrapped__(x, masks, inside, drawn, listed)


def test_every_operation_is_tried_here():
    assert EACH.keys() == operations.KINDS.keys()


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", operations.MOVES)
def test_what_moves_takes_the_mask_along(name, seed):
    """Well inside a cell of the new mask the image has that class's colour; what nothing lies on is 0 and IGNORE."""
    x, masks = drawn_grid()
    found, labels = run([[name, 1.0, *EACH[name]]], x, masks, seed=seed)
    assert labels.dtype == torch.uint8 and not torch.equal(labels, masks)
    assert set(labels.unique().tolist()) <= {*LABELS, IGNORE}
    flat = labels.float()[:, None]
    most, least = (torch.nn.functional.max_pool2d(sign * flat, 5, 1, 2)[:, 0] * sign for sign in (1, -1))
    whole = most == least
    whole[:, [0, -1]], whole[..., [0, -1]] = False, False  # what is beyond the border is blended in there
    even = whole & (labels != IGNORE)
    assert even.float().mean() > 0.1
    for number, colour in COLOURS.items():
        shown = found.movedim(1, -1)[even & (labels == number)]
        torch.testing.assert_close(shown, torch.full_like(shown, colour), atol=1e-4, rtol=0)
    assert (found.movedim(1, -1)[whole & (labels == IGNORE)] == 0).all()


@pytest.mark.parametrize("name", operations.LOOKS)
def test_what_changes_colours_leaves_the_mask_and_where_nothing_is(name):
    x, masks = drawn_grid()
    inside = torch.ones_like(masks, dtype=torch.bool)
    inside[:, 50:] = False
    found, labels = run([[name, 1.0, *EACH[name]]], x, masks, inside)
    assert torch.equal(labels, masks) and found.is_contiguous(memory_format=torch.channels_last)
    assert (found[:, :, 50:] == 0).all() and found.min() >= 0 and found.max() <= 1
    changed = (found - x).abs().amax((1, 2, 3)) > 0.001
    assert changed.all() and not torch.equal(found[0], found[1]) or name == "clahe"  # which draws nothing


def test_noise_is_normal_and_gamma_is_a_power():
    x, masks = torch.full((6, 3, 50, 60), 0.5), torch.zeros(6, 50, 60, dtype=torch.uint8)
    noise = run([["noise", 1.0, 0.05, 0.05]], x, masks)[0] - x
    assert noise.std((1, 2, 3)).sub(0.05).abs().max() < 0.002 and noise.mean((1, 2, 3)).abs().max() < 0.002
    assert (noise.abs() > 0.1).float().mean() == pytest.approx(0.0455, abs=0.006)
    correlated = torch.corrcoef(noise.flatten(1)).fill_diagonal_(0)
    assert correlated.abs().max() < 0.05  # no two crops have the same noise
    x = torch.rand(6, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    found = run([["gamma", 1.0, 2.0, 2.0]], x, masks[:, :5, :7])[0]
    torch.testing.assert_close(found, x**2)


def moved(x, matrix):
    """The image (H, W) by skimage under this matrix, bilinear."""
    return warped(x.double().numpy(), ProjectiveTransform(matrix.double().numpy()).inverse, order=1)


@pytest.mark.parametrize("name", operations.MOVES)
def test_skimage_moves_an_image_in_the_same_way(name):
    x = torch.from_numpy(gaussian_filter(np.random.default_rng(1).random((1, 1, 40, 56)), (0, 0, 2, 2))).float()
    u = torch.rand(1, operations.DRAWN, generator=torch.Generator().manual_seed(2))
    matrix = operations.MATRIX[name](u, 40, 56, *EACH[name])
    found = operations.warp(x, torch.zeros(1, 40, 56), torch.ones(1, 40, 56), matrix)
    expected, inner = moved(x[0, 0], matrix[0]), moved(torch.ones(40, 56), matrix[0]) > 0.999
    assert inner.mean() > 0.2
    np.testing.assert_allclose(found[0][0, 0].numpy()[inner], expected[inner], atol=1e-4)
    assert (found[2][0].numpy()[inner]).all()


def test_matrices_are_what_their_numbers_say():
    u = torch.tensor([[0.75, 1.0, 0.5, 1.0, 0, 0, 0, 0]])
    middle = (55 / 2, 39 / 2)

    def about(transform):
        shift = SimilarityTransform(translation=middle)
        return (shift.inverse + transform + shift).params

    turned = operations.MATRIX["rotate"](u, 40, 56, 20)[0].double().numpy()
    assert min(abs(turned - about(EuclideanTransform(rotation=np.deg2rad(angle)))).max() for angle in (10, -10)) < 1e-4
    shifted = operations.MATRIX["translate"](u, 40, 56, 0.25)[0].double().numpy()
    np.testing.assert_allclose(shifted, SimilarityTransform(translation=(0.25 * 56, 0)).params, atol=1e-4)
    scaled = operations.MATRIX["scale"](u, 40, 56, 0.5, 2.0)[0].double().numpy()
    np.testing.assert_allclose(scaled, about(SimilarityTransform(scale=2)), atol=1e-4)
    corner = operations.MATRIX["perspective"](torch.ones(1, 8), 40, 56, 0.25)[0].double().numpy()
    ends = ProjectiveTransform(corner)([[0, 0], [55, 39]])
    np.testing.assert_allclose(ends, [[0.25 * 55, 0.25 * 39], [0.75 * 55, 0.75 * 39]], atol=1e-3)


def test_a_resize_up_shows_a_window_of_the_image_and_a_resize_down_all_of_it():
    x, masks = torch.ones(40, 3, 30, 42), torch.zeros(40, 30, 42, dtype=torch.uint8)
    larger = run([["resize", 1.0, 1.3, 2.0]], x, masks)[1]
    assert (larger == 0).all()
    smaller = run([["resize", 1.0, 0.5, 0.5]], x, masks)[1]
    seen = (smaller == 0).sum((1, 2))
    assert ((seen - 15 * 21).abs() <= 21 + 15).all()  # whole, wherever it lies
    assert len({tuple(row) for row in (smaller == 0).float().argmax(1).amax(1, keepdim=True).tolist()}) > 5


def test_scipy_and_pillow_agree_on_blur_and_sharpness():
    rng = np.random.default_rng(3)
    pixels = rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)
    x = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
    u = torch.zeros(1, operations.DRAWN)
    blurred = operations.blur(x, u, 1.5, 1.5)[0].permute(1, 2, 0).numpy()
    expected = gaussian_filter(pixels / 255, (1.5, 1.5, 0), mode="nearest", radius=(5, 5, 0))
    np.testing.assert_allclose(blurred, expected, atol=1e-5)
    sharp = operations.sharpen(x, u, 0.3, 0.3)[0].permute(1, 2, 0).numpy() * 255
    pillow = np.asarray(ImageEnhance.Sharpness(Image.fromarray(pixels)).enhance(0.3))
    assert np.abs(sharp - pillow).max() <= 2


def test_clahe_raises_contrast_where_there_is_little():
    x = 0.5 + 0.02 * torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    assert operations.clahe(x, None, 4).std() > 3 * x.std()


def test_a_chance_is_a_share_of_the_crops_and_one_of_several_is_done():
    x, masks = torch.full((4000, 1, 3, 3), 0.5), torch.zeros(4000, 3, 3, dtype=torch.uint8)
    listed = [["one_of", 0.6, ["gamma", 2, 2], ["gamma", 3, 3], ["gamma", 4, 4]]]
    found = run(listed, x, masks)[0][:, 0, 0, 0]
    shares = {value: (found - value).abs().lt(1e-4).float().mean().item() for value in (0.5, 0.25, 0.125, 0.0625)}
    assert sum(shares.values()) == 1
    assert list(shares.values()) == pytest.approx([0.4, 0.2, 0.2, 0.2], abs=0.025)


def test_a_crop_is_the_same_in_any_company_and_torchs_generator_has_no_part():
    x, masks = drawn_grid()
    x = x * torch.rand(x.shape, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    found, labels = run(ALL, x, masks)
    torch.manual_seed(2)
    for rows in ([5, 0], [3]):
        alone, mask = run(ALL, x[rows], masks[rows], rows=rows)
        torch.testing.assert_close(alone, found[rows], atol=1e-6, rtol=0)
        assert torch.equal(mask, labels[rows])
    torch.manual_seed(1)
    assert torch.equal(torch.random.get_rng_state(), state)
    run(ALL, x, masks)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_no_operations_change_nothing_and_take_no_number():
    rng = np.random.default_rng(0)
    assert operations.draw.__wrapped__(5, rng, []) == {} and rng.random() == np.random.default_rng(0).random()
    x, masks = drawn_grid()
    found, labels = operations.apply.__wrapped__(x, masks, None, {}, [])
    assert found is x and labels is masks


@pytest.mark.parametrize(
    ("listed", "said"),
    [
        ([["gama", 0.5, 1, 2]], "Did you mean gamma?"),
        (["gamma"], "gamma takes low, high, not []"),
        ([["gamma", 0.5, 1]], "gamma takes low, high, not [1]"),
        ([["gamma", 0.0, 1, 2]], "chance of gamma must be above 0 and at most 1, not 0"),
        ([["gamma", 0.5, 0, 2]], "low of gamma must be above 0"),
        ([["noise", 0.5, "a", 2]], "low of noise takes float, not"),
        ([["noise", True, 1, 2]], "chance of noise takes float"),
        ([["rotate", 1, 200]], "degrees of rotate must be at least 0 and at most 180, not 200"),
        ([["motion_blur", 1, 4]], "must be odd, not 4"),
        ([["one_of", 0.5, ["blur", 1, 1], "noise"]], "noise takes low, high"),
        ([["one_of", 0.5]], "holds ['one_of', 0.5]"),
        ([["one_of", 0.5, ["one_of", ["blur", 1, 1]]]], "holds"),
        ([[]], "holds []"),
        ([{"gamma": 1}], "holds {'gamma': 1}"),
        ([3], "holds 3"),
    ],
)
def test_a_wrong_operation_is_refused_in_one_line(listed, said):
    with pytest.raises(Refused) as refused:
        operations.check.__wrapped__(listed)
    assert said in str(refused.value) and "\n" not in str(refused.value) and "augment.operations" in str(refused.value)


def test_a_refused_operation_leaves_nothing_behind(smoke, tmp_path):
    with pytest.raises(Refused, match="Did you mean noise"):
        smoke(**{"augment.operations": [["noice", 0.5, 0, 1]]})
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    "path", sorted((ROOT / "experiments/presets").glob("augment_*.yaml")), ids=lambda path: path.stem
)
def test_published_augmentations_are_settings_that_exist(path):
    listed = settings.read(path)["augment"]
    known = operations.augment.ingredient
    assert listed.keys() <= {*operations.augment.ALLOWED, "flip", "rotate", "operations"} and known.path == "augment"
    operations.check.__wrapped__(listed.get("operations", []))


def test_a_resumed_run_with_all_operations_equals_an_undisturbed_one(smoke, tmp_path):
    """Stopped behind a cycle and gone on in another process's stead."""
    how = {"augment.operations": ALL, "heuristic": "random", "cycles": 1}
    smoke(to="whole", **how)
    smoke(to="parts", **how | {"cycles": 0})
    torch.rand(3)
    smoke(to="parts", **how)
    found = [[e for e in events(tmp_path / name, "random") if e["event"] == "evaluated"] for name in ("whole", "parts")]
    assert found[0] == found[1] and len(found[0]) == 2
