"""The contact sheet: a row for each split and group, classes in their colours, shares that add up."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.preview import __main__ as sheet
from experiments.errors import Refused
from experiments.store import IGNORE, Item, Split, Splits

CLASSES = ("background", "road", "car")


def split(masks, groups=None):
    items = [Item(str(n), n, n, group=groups[n] if groups else "") for n in range(len(masks))]
    return Split(items, lambda n: np.full((*masks[n].shape, 3), 100, np.uint8), lambda n: masks[n])


def stripes(height=20, width=30):
    mask = np.zeros((height, width), np.uint8)
    mask[5:10], mask[10:15], mask[15:] = 1, 2, IGNORE
    return mask


def test_a_row_for_each_split_and_group():
    three = split([stripes()] * 3, ["b", "a", "b"])
    rows = list(sheet.groups(Splits(three, None, split([stripes()]), 0)))
    assert [(part, group, positions) for part, group, _, positions in rows] == [
        ("train", "a", [1]),
        ("train", "b", [0, 2]),
        ("test", "", [0]),
    ]


def test_sizes_and_shares_of_a_row_are_those_of_its_masks():
    whole = split([stripes(), stripes(), stripes(40, 30)])
    pairs, counts, sizes = sheet.row_of(whole, [0, 1, 2], 2)
    assert len(pairs) == 2 and sizes == {(20, 30): 2, (40, 30): 1}
    assert counts.sum() == 2 * 600 + 1200 and counts[1] == 3 * 150
    assert sheet.apart(list(range(10)), 3) == [0, 3, 6] and sheet.apart([4, 5], 3) == [4, 5]


def test_classes_are_tinted_and_outlined_but_the_background():
    image, mask = np.full((20, 30, 3), 100, np.uint8), stripes()
    made = sheet.overlaid(image, mask, ["#ffffff", (0, 255, 0), "#0000ff"], {0})
    assert (made[:5] == 100).all()
    assert made[7, 7].tolist() == [70, 146, 70] and made[5, 7].tolist() == [0, 255, 0]  # inside; at the outline
    assert made[7, 0].tolist() == [70, 146, 70], "the image's end is no outline"
    assert made[12, 7].tolist() == [70, 70, 146] and made[17, 7].tolist() == [70, 70, 70]
    assert (image == 100).all()


@pytest.mark.parametrize("channels", [1, 5])
def test_any_number_of_channels_and_classes_is_drawn(channels):
    classes = tuple(f"class {n}" for n in range(30))
    mask = (np.arange(600).reshape(20, 30) % 30).astype(np.uint8)
    part = Split([Item("a", 0, 0)], lambda n: np.zeros((20, 30, channels), np.uint8), lambda n: mask)
    png = sheet.preview("$drawn$ <\udce4>", Splits(part, None, None, 0), classes)
    assert Image.open(io.BytesIO(png)).size[0] > 800


def test_a_mask_of_another_size_names_the_doctor():
    part = Split([Item("a", 0, Path("a.png"))], lambda n: np.zeros((9, 9, 3), np.uint8), lambda path: stripes())
    with pytest.raises(Refused, match="a.png .* data.doctor"):
        sheet.preview("it", Splits(part, None, None, 0), CLASSES)


def test_the_command_draws_the_phantom(phantom_root, tmp_path, capsys):
    assert sheet.main(["phantom", f"phantom.root={phantom_root}", "-o", str(tmp_path / "p.png")]) == 0
    assert capsys.readouterr().out.split()[-1] == str(tmp_path / "p.png")
    with Image.open(tmp_path / "p.png") as image:
        pixels = np.array(image.convert("RGB")).reshape(-1, 3)
    orange = (abs(pixels.astype(int) - sheet.rgb(sheet.class_colour(1))).max(1) < 3).mean()
    assert 0.002 < orange < 0.3, "the legend, the bars and the outlines are in the colour of the gland"


def test_classes_that_are_settings_are_drawn_too(tmp_path, capsys):
    for n in range(6):
        for place, pixels in (("images", np.full((20, 30, 3), 40 * n, np.uint8)), ("masks", stripes())):
            (tmp_path / place).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / place / f"{n}.png")
    line = [str(tmp_path), "folder.values=0:background,1:cell,2:vessel,255:ignore", "-o", str(tmp_path / "p.png")]
    assert sheet.main(line) == 0
    with Image.open(tmp_path / "p.png") as drawn:
        assert drawn.size[0] > 400
