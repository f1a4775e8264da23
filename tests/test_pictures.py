"""Pictures and tables of queries: any maps and names, alike after a kill, honest where weights are gone."""

import csv
import io
import json
import shutil
import warnings

import numpy as np
import pytest
import torch
from conftest import ledger_bytes
from matplotlib.text import Text
from PIL import Image

from analysis import provenance
from experiments.acquisition import pictures, querying, selection
from experiments.acquisition.pool import Pool
from experiments.acquisition.prediction import Prediction
from experiments.records.cells import harmless, meant

EXTREMES = {
    "negative": lambda r: -r.random((12, 16)),
    "zero": lambda r: np.zeros((12, 16)),
    "constant": lambda r: np.full((12, 16), -3.5),
    "huge": lambda r: r.choice([-3e38, 3e38], (12, 16)),
    "infinite": lambda r: r.choice([-np.inf, np.nan, np.inf, 0.5], (12, 16)),
    "nowhere a number": lambda r: np.full((12, 16), np.nan),
    "one pixel": lambda r: np.eye(16)[:12] * (np.arange(16) == 3),
    "float16": lambda r: r.random((12, 16)).astype(np.float16),
}


def opened(png):
    with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
        return np.asarray(image.convert("RGB"))


def colours_of(monkeypatch, *args, **kwargs):
    """The picture drawn, and the (least, most) of its colours."""
    seen, real = [], pictures.limits
    monkeypatch.setattr(pictures, "limits", lambda maps: seen.append(real(maps)) or seen[-1])
    return opened(pictures.queries(*args, **kwargs)), seen[0]


@pytest.mark.parametrize("name", EXTREMES)
def test_any_map_can_be_drawn(name, monkeypatch):
    map = EXTREMES[name](np.random.default_rng(0))
    image = np.zeros((12, 16, 3), dtype=np.uint8)
    picture, (low, high) = colours_of(monkeypatch, [image, image], [map, map], ["a", "b"])
    assert np.isfinite([low, high]).all() and low < high
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 20


def test_the_scale_is_that_of_the_maps():
    rng = np.random.default_rng(0)
    below = -1 - rng.random((50, 50))
    assert pictures.limits([below]) == pytest.approx((-2, -1), abs=0.02)  # not up to 0
    below[3, 4] = 1e6  # one wild pixel does not darken all others
    assert pictures.limits([below])[1] < 0
    few = np.zeros((50, 50))
    few[0, 0] = 2
    assert pictures.limits([few]) == (0, 2)
    assert pictures.limits([]) == (0, 1)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_images_of_any_size_and_any_name(count):
    """Masks without a class or without anything known, a grey image, a long name, one of no Unicode, one in Chinese."""
    sizes = [(20, 30), (31, 17), (6, 90), (1, 1), (700, 20)][:count]
    images = [np.full((*size, 1 + 2 * (k % 2)), 99, dtype=np.uint8) for k, size in enumerate(sizes)]
    masks = [np.zeros(size, dtype=np.uint8) for size in sizes]
    masks[0][3:9, 4:20], masks[0][10:12] = 2, 255
    masks[-1][:] = 255 if count > 1 else masks[-1]
    titles = ["$x$\n\udcff", "a" * 60, "\u8111\u90e8\tx", "", "e"][:count]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture = opened(pictures.queries(images, [None] * count, titles, masks, masks, "heading", "bald, nats"))
    assert picture.shape[1] == pytest.approx({1: 320, 2: 640, 5: 960}[count], abs=2)  # 5 are 3 and 2


def test_outlines_follow_the_masks():
    """Orange around what is predicted, blue around what is true, on the image; nothing without masks."""
    image, mask = np.full((60, 60, 3), 128, dtype=np.uint8), np.zeros((60, 60), dtype=np.uint8)
    mask[20:40, 20:40] = 1

    def area(*outlines):
        """Pixels of each colour, without those of the legend at the bottom."""
        picture = opened(pictures.queries([image], [None], ["x"], *outlines))[:-45].astype(int)
        return [int((abs(picture - colour).sum(-1) < 12).sum()) for colour in ([230, 159, 0], [0, 114, 178])]

    assert area() == [0, 0]
    orange, blue = area([mask])
    assert orange > 300 and blue == 0  # a square of about 100 pixels a side on the screen
    assert all(found > 150 for found in area([mask], [np.roll(mask, 10, 0)]))
    assert area([np.zeros_like(mask)]) == [0, 0]


@pytest.mark.parametrize(
    ("count", "size", "factor"),
    [(1, (60, 200), -2.5e-4), (1, (200, 60), 1), (4, (130, 194), 3e37), (8, (60, 60), 3e-3)],
)
def test_all_words_of_a_picture_stand_in_it(count, size, factor, monkeypatch):
    """Of the longest titles and of numbers of any size, and no title on an image."""
    seen, real = [], pictures.png_of
    monkeypatch.setattr(pictures, "png_of", lambda figure: seen.append(figure) or real(figure))
    image, mask = np.zeros((*size, 3), np.uint8), np.eye(*size, dtype=np.uint8)
    maps = [factor * np.random.default_rng(0).random(size)] * count
    title = "\n".join(["m" * 20, "mean expected_entropy 0.000111 nats", "rank 1 of 57, benign", "Dice 0.882"])
    masks = [mask] * count
    pictures.queries([image] * count, maps, [title] * count, masks, masks, "heading", "expected_entropy, nats")
    [figure] = seen
    renderer, edges = figure.canvas.get_renderer(), figure.bbox.padded(1)
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text()]
    boxes = [text.get_window_extent(renderer) for text in texts]
    assert all((box.min >= edges.min).all() and (box.max <= edges.max).all() for box in boxes) and len(boxes) > count
    images = [axis.get_window_extent(renderer) for axis in figure.axes if axis.images]
    titles = [text.get_window_extent(renderer).padded(-1) for text in texts if text.get_text() == title]
    assert len(images) == 2 * len(titles) == 2 * count
    assert not any(box.overlaps(other) for box in titles for other in images)


# ---- a run's pictures


def folder_of(results, label="bald"):
    return results / f"{label}_0" / "queries"


def bytes_of(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def killed(results, to, event, label="bald"):
    """A copy of a run whose ledger ends with that event, as a kill behind it leaves it."""
    shutil.copytree(results, to)
    book = to / f"{label}_0" / "ledger.jsonl"
    lines = book.read_bytes().splitlines(keepends=True)
    last = next(k for k, line in enumerate(lines) if (e := json.loads(line))["event"] == event and e["cycle"] == 0)
    book.write_bytes(b"".join(lines[: last + 1]))
    return folder_of(to, label)


@pytest.fixture(scope="module")
def kept(tmp_path_factory, phantom_root, experiment):
    """The results folder of a finished bald run that kept the weights of all cycles. Do not write."""
    from conftest import settings

    results = tmp_path_factory.mktemp("kept")
    experiment.run(config_updates=settings(phantom_root, results, checkpoint="all"), named_configs=["smoke"])
    return results


def test_every_query_has_two_pictures(kept, experiment):
    assert set(bytes_of(folder_of(kept))) == {"cycle_000.csv", "cycle_000.png", "cycle_000_answer.png"}


@pytest.mark.parametrize("lost", [["cycle_000.png", "cycle_000_answer.png"], ["cycle_000_answer.png"]])
@pytest.mark.parametrize("checkpoint", ["all", "none"])
def test_a_resumed_run_has_the_same_pictures(kept, smoke, tmp_path, lost, checkpoint):
    """Also where no weights are kept: they are trained again, before the masks are there."""
    queries = killed(kept, tmp_path / "results", "queried")
    for name in lost:
        (queries / name).unlink()
    if checkpoint == "none":
        shutil.rmtree(queries.parent / "checkpoint")
    smoke(checkpoint=checkpoint)
    assert bytes_of(queries) == bytes_of(folder_of(kept))
    assert ledger_bytes(tmp_path / "results") == ledger_bytes(kept)


def test_a_picture_says_that_its_weights_are_gone(kept, smoke, tmp_path, monkeypatch):
    """Those of a cycle behind which the run has gone on are not trained again for a picture."""
    shutil.copytree(kept, tmp_path / "results")
    queries = folder_of(tmp_path / "results")
    (queries.parent / "checkpoint" / "cycle_000.safetensors").unlink()
    for path in queries.glob("*.png"):
        path.unlink()
    said, real = [], pictures.queries
    monkeypatch.setattr(pictures, "queries", lambda *args: said.append(args) or real(*args))
    smoke(checkpoint="all")
    assert len(said) == 2 and len(list(queries.glob("*.png"))) == 2
    for _, maps, titles, predicted, _, heading, _ in said:
        assert "weights of this cycle are gone" in heading and predicted is None and maps == [None] * 2
        assert not any("Dice" in title for title in titles)
    assert [true is None for *_, true, _, _ in said] == [True, False]


def test_what_the_pictures_say(kept, smoke, tmp_path, monkeypatch, phantom_root):
    """Place, id, score with its name and unit, rank, group, and the Dice of the prediction that asked, by hand."""
    queries = killed(kept, tmp_path / "results", "queried")
    for path in queries.glob("*.png"):
        path.unlink()
    said, real = [], pictures.queries
    monkeypatch.setattr(pictures, "queries", lambda *args: said.append(args) or real(*args))
    smoke(checkpoint="all")
    event = json.loads(ledger_bytes(kept).splitlines()[2])
    asked, (_, maps, titles, predicted, none, heading, measure) = event["queries"], said[0]
    assert none is None and heading == "bald, run 0, cycle 0: 2 images asked for" and measure == "bald, nats"
    for place, (query, title, map) in enumerate(zip(asked, titles, maps, strict=True), 1):
        first, score, rank = title.splitlines()
        assert first == f"{place}. {query['id']}" and score == f"mean bald {query['score']:.3g} nats"
        assert rank.startswith(f"rank {place} of 14, ") and map.mean() == pytest.approx(query["score"], abs=1e-6)
    *_, titles, predicted, true, heading, _ = said[1]
    for query, title, found, mask in zip(asked, titles, predicted, true, strict=True):
        with Image.open(phantom_root / "seed_0" / f"{query['id']}_anno.bmp") as file:
            assert np.array_equal(mask, np.asarray(file) > 0)
        both = ((found == 1) & (mask == 1)).sum()
        assert title.splitlines()[-1] == f"Dice of the prediction {2 * both / ((found == 1).sum() + mask.sum()):.3f}"


@pytest.mark.parametrize("heuristic", ["random", "coreset"])
def test_without_a_map_there_are_outlines(heuristic, smoke, tmp_path, monkeypatch):
    said, real = [], pictures.queries
    monkeypatch.setattr(pictures, "queries", lambda *args: said.append(args) or real(*args))
    smoke(heuristic=heuristic)
    for _, maps, _, predicted, *_ in said:
        assert maps == [None] * 2 and all(mask.max() <= 1 for mask in predicted)
    assert len(said) == 2


def test_a_heuristic_whose_map_is_negative_runs(smoke, tmp_path, monkeypatch):
    """-(what the model is sure of) is as good a map as any: picture, table and picks."""
    from heuristics import least_confidence

    monkeypatch.setattr(least_confidence, "uncertainty", lambda prediction: -prediction.mean.amax(1))
    smoke(heuristic="least_confidence", **{"prediction.race": True, "mc_iters": 4})
    queries = folder_of(tmp_path / "results", "least_confidence")
    rows = provenance.pools(queries.parent)
    assert rows["score"].lt(0).all() and len(list(queries.glob("*.png"))) == 2
    assert rows.loc[rows["picked"].notna(), "score"].min() >= rows.loc[rows["picked"].isna(), "score"].max()


@pytest.mark.parametrize("name", ["foreground", "boundary"])
def test_an_image_without_a_region_is_least_wanted_of_a_negative_map(name):
    """0 would be more than any image with that region could have."""
    mean = torch.zeros(2, 2, 4, 4)
    mean[:, 0], mean[0, 1, :2] = 0.5, 0.9
    u = -1 - torch.arange(32.0).view(2, 4, 4) / 32
    blank = torch.ones(2, 4, 4)
    prediction = Prediction(["a", "b"], mean, mean, mean, blank, blank, blank.bool())
    some, nothing = selection.reducer(name)(u, prediction).tolist()
    assert nothing == u[1].min() and some > nothing
    assert selection.reducer(name)(-u, prediction)[1] == 0


# ---- tables


FORMULAS = ["=HYPERLINK(1)", "+1+1", "-2+3", "@SUM(1)", "\tx", "\rx", "'quoted", "'=x", "train_1", "", "007"]


def test_no_text_of_a_table_is_a_formula_and_all_read_back(tmp_path):
    pool = Pool([f"{k}" for k in range(len(FORMULAS))], FORMULAS, tuple)
    pool.ids = [name or "empty" for name in FORMULAS]
    scores = np.linspace(-1, 1, len(FORMULAS))
    data = querying.table(pool, [{"id": "=HYPERLINK(1)"}], scores)
    rows = list(csv.DictReader(io.StringIO(data.decode(), newline="")))
    for row in rows:
        assert not row["id"].startswith(("=", "+", "-", "@", "\t", "\r"))
        assert not row["group"].startswith(("=", "+", "-", "@", "\t", "\r"))
    assert [float(row["score"]) for row in rows] == scores.tolist() and rows[0]["picked"] == "0"
    assert rows[8]["id"] == "train_1"  # what is harmless stays as it is
    (tmp_path / "queries").mkdir()
    (tmp_path / "queries" / "cycle_000.csv").write_bytes(data)
    read = provenance.pools(tmp_path)
    assert read["id"].tolist() == pool.ids and read["group"].tolist() == FORMULAS
    assert all(meant(harmless(name)) == name for name in FORMULAS)
