"""The notebooks run on a real study and on the least there can be, and their pairs are in step; what they call."""

import json
import os
import shutil
import subprocess
import sys
from functools import partial

import jupytext
import nbformat
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, events, settings
from scipy import stats
from sklearn.metrics.pairwise import cosine_similarity

from analysis import calibration, plots, provenance, runs, statistics
from analysis.execute import NOTEBOOKS, execute
from analysis.features import features, thumbnails
from experiments.errors import Refused

FIGURES = {"calibration": 2, "cost": 1, "heuristics_compared": 2, "learning_curves": 2, "query_provenance": 5}


@pytest.fixture(scope="session")
def study(tmp_path_factory, longer, phantom_root, experiment):
    """bald and random, runs 0 and 1, cycles=2, and full. Do not write."""
    results = shutil.copytree(longer, tmp_path_factory.mktemp("study") / "results")
    for heuristic, run in (("random", 0), ("bald", 1), ("random", 1)):
        updates = settings(phantom_root, results, cycles=2, heuristic=heuristic, run=run)
        experiment.run(config_updates=updates, named_configs=["smoke"])
    experiment.run("full", config_updates=settings(phantom_root, results), named_configs=["smoke"])
    return results


def outputs(notebook):
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def text(notebook):
    return "".join(output.get("text", "") for output in outputs(notebook))


def pictures(notebook):
    return sum("image/png" in output.get("data", {}) for output in outputs(notebook))


@pytest.mark.parametrize("name", FIGURES)
def test_every_notebook_runs_on_a_study(name, study, phantom_root):
    notebook = execute(NOTEBOOKS / f"{name}.ipynb", study, ASKMASK_DATA=str(phantom_root))
    assert not [output for output in outputs(notebook) if output["output_type"] == "error"]
    assert not [output["text"] for output in outputs(notebook) if output.get("name") == "stderr"]
    assert pictures(notebook) == FIGURES[name]


def test_single_runs_are_not_compared(study, tmp_path):
    """As `make demo` leaves them: one run of each."""
    for label in ("bald_0", "random_0"):
        shutil.copytree(study / label, tmp_path / label)
        shutil.copy(study / f"{label}.npy", tmp_path)
    notebook = execute(NOTEBOOKS / "heuristics_compared.ipynb", tmp_path)
    assert "phantom: Two runs are needed" in text(notebook)
    assert pictures(notebook) == 0


def test_provenance_goes_on_without_scores_and_weights(study, tmp_path):
    results = shutil.copytree(study, tmp_path / "results")
    shutil.rmtree(results / "random_0" / "checkpoint")
    notebook = execute(NOTEBOOKS / "query_provenance.ipynb", results, ASKMASK_RUN="random_0")
    assert "did not look at predictions" in text(notebook)
    assert "does not hold the weights of cycle 2" in text(notebook)
    assert pictures(notebook) == 3  # what was asked for in two cycles, and the draws


@pytest.mark.parametrize("name", FIGURES)
def test_pairs_are_in_step(name):
    """CONTRIBUTING.md says how: the .py is edited, the .ipynb is made from it and holds no output."""
    source, made = jupytext.read(NOTEBOOKS / f"{name}.py"), nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    assert [(c.cell_type, c.source) for c in made.cells] == [(c.cell_type, c.source) for c in source.cells]
    assert made.metadata.jupytext.formats == "ipynb,py:percent"
    assert not outputs(made) and not any(cell.get("execution_count") for cell in made.cells)


def test_no_notebook_is_untested():
    assert {path.stem for path in NOTEBOOKS.glob("*.*")} == set(FIGURES)


def test_every_figure_is_introduced():
    """By what to read in it and what not to conclude."""
    for name in FIGURES:
        cells = jupytext.read(NOTEBOOKS / f"{name}.py").cells
        drawing = [i for i, cell in enumerate(cells) if cell.cell_type == "code" and "display(" in cell.source]
        assert drawing
        for i in drawing:
            assert cells[i - 1].cell_type == "markdown" and "not" in cells[i - 1].source.split()


def test_the_kernel_is_this_interpreter(tmp_path, monkeypatch):
    spec = tmp_path / "kernels" / "python3" / "kernel.json"
    spec.parent.mkdir(parents=True)
    spec.write_text(json.dumps({"argv": ["false"], "display_name": "another", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    cells = [nbformat.v4.new_code_cell("import sys; print(sys.executable)")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "which.ipynb")
    assert text(execute(tmp_path / "which.ipynb", tmp_path)).strip() == sys.executable


def test_make_notebooks_says_in_one_line_what_is_missing(tmp_path):
    command = [sys.executable, "-m", "analysis.execute", str(tmp_path)]
    plain = {k: v for k, v in os.environ.items() if k != "PYTHONWARNINGS"}
    done = subprocess.run(command, cwd=ROOT, env=plain, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("calibration: Refused: ") and "Traceback" not in done.stderr


def test_mean_curve_of_equal_costs_is_scipys_interval():
    rng = np.random.default_rng(0)
    heights = rng.random((4, 3))
    frame = pd.concat([pd.DataFrame({"run": r, "images": [4, 8, 12], "test.dice": heights[r]}) for r in range(4)])
    mean = plots.mean_curve(frame)
    low, high = stats.t.interval(0.95, 3, loc=heights.mean(0), scale=heights.std(0, ddof=1) / 2)
    np.testing.assert_allclose(mean[["low", "mean", "high"]], np.stack([low, heights.mean(0), high], axis=1))
    assert mean["images"].tolist() == [4, 8, 12]


def test_mean_curve_reads_runs_off_between_their_points():
    """y = x and y = 3 x, at other costs each: their mean is 2 x wherever both were measured."""
    one = pd.DataFrame({"run": 0, "pixels": [10, 20, 40], "test.dice": [10.0, 20.0, 40.0]})
    other = pd.DataFrame({"run": 1, "pixels": [15, 35, 50], "test.dice": [45.0, 105.0, 150.0]})
    mean = plots.mean_curve(pd.concat([one, other]), cost="pixels")
    assert mean["pixels"].tolist() == [15, 20, 35, 40]
    np.testing.assert_allclose(mean["mean"], [30, 40, 70, 80])
    assert plots.mean_curve(one, cost="pixels")[["low", "high"]].isna().all(axis=None)


def test_bands_take_three_runs(study):
    two = runs.load(study)
    three = pd.concat([two, two[two["run"] == 0].assign(run=2)])
    bands = [len(plots.curves(frame).axes[0].collections) for frame in (two, three)]
    assert bands == [0, 2]
    with pytest.raises(Refused, match="share label and run"):
        plots.curves(pd.concat([two, two]))


def test_differences_are_those_that_were_compared(study):
    """A mark for each pair and one for their mean; a run that ended elsewhere is not among them."""
    frame = runs.load(study)
    shorter = frame[(frame["run"] == 0) & (frame["cycle"] < 2)].assign(run=7)
    ends = statistics.endpoints(pd.concat([frame, shorter]))
    table = statistics.compare(pd.concat([frame, shorter]))
    axis = plots.differences(ends, table).axes[0]
    assert [note.get_text() for note in axis.texts] == ["0", "1"]
    marks = [line.get_xdata()[0] for line in axis.lines if line.get_marker() in "oD" and len(line.get_xdata()) == 1]
    assert marks[2] == pytest.approx(np.mean(marks[:2])) and marks[2] == table["difference"][1]


def test_constant_is_what_the_run_printed(smoke, tmp_path):
    record = smoke(runs_dir=str(tmp_path / "runs"), cycles=0)
    assert runs.constant_dice(tmp_path / "results", "phantom") == record.info["constant_dice"]
    assert runs.constant_dice(tmp_path / "results", "glas") is None
    assert runs.constant_dice(tmp_path / "nowhere", "phantom") is None


def test_ece_of_the_bins_is_the_logged_one(study):
    ece = calibration.ece(calibration.load(study)).set_index(["label", "run", "cycle", "kind"])["ece"]
    for label, run in (("bald", 0), ("random", 1), ("full", 0)):
        for event in (e for e in events(study, label, run) if e["event"] == "evaluated"):
            place = (label, run, event["cycle"])
            assert ece[(*place, "averaged passes")] == pytest.approx(event["metrics"]["test.ece"])
            assert ece[(*place, "single pass")] == pytest.approx(event["metrics"]["test.deterministic_ece"])


def test_ranks_are_the_ledgers(study):
    pool = provenance.pools(study / "bald_0")
    picks = provenance.picks(pool)
    asked = [(e["cycle"], q) for e in events(study) if e["event"] == "queried" for q in e["queries"]]
    assert picks["id"].tolist() == [query["id"] for _, query in asked]
    assert picks["rank by score"].tolist() == [query["rank"] + 1 for _, query in asked]
    first = pool[pool["cycle"] == 0].set_index("id")
    ranks = pd.Series(stats.rankdata(-first["entropy"], "min"), first.index)
    assert picks.loc[picks["cycle"] == 0, "rank by entropy"].tolist() == ranks[picks["id"][:2]].tolist()
    assert picks["of"].tolist() == [14, 14, 12, 12]
    assert provenance.choose(study).name == "bald_0" and not provenance.noted(provenance.pools(study / "random_0"))


def test_ids_stay_as_they_are(tmp_path):
    (tmp_path / "queries").mkdir()
    table = "id,group,picked,score,entropy\nNA,,0,,nan\n007,null,,,1e-3\n"
    (tmp_path / "queries" / "cycle_012.csv").write_text(table)
    pool = provenance.pools(tmp_path)
    assert pool[["id", "group"]].to_numpy().tolist() == [["NA", ""], ["007", "null"]]
    assert pool["entropy"].tolist() == [pytest.approx(np.nan, nan_ok=True), 1e-3] and pool["cycle"].eq(12).all()
    picks = provenance.picks(pool)
    assert picks["id"].tolist() == ["NA"] and picks["rank by entropy"].isna().all() and picks["of"].tolist() == [2]


def test_features_are_the_bottlenecks_means(study, phantom_root):
    """Against the network by hand: no patching, no hook, one image at a time."""
    import torch
    from PIL import Image
    from safetensors.torch import load_file

    from models.unet import UNet

    ids, found, small = features(study / "bald_1", root=str(phantom_root), device="cpu")
    unet = UNet(3, 2, width=2).eval()
    unet.load_state_dict(load_file(study / "bald_1" / "checkpoint" / "cycle_002.safetensors"))
    for i in (0, 7, 15):
        image = np.array(Image.open(phantom_root / "seed_0" / f"{ids[i]}.bmp").convert("RGB"))
        with torch.inference_mode():
            x = unet.first(torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255)
            for down in unet.downs:
                x = down(x)
        np.testing.assert_allclose(found[i], x.mean((2, 3))[0], rtol=1e-4, atol=1e-6)
        assert small[i].mean() == pytest.approx(image.mean(), rel=0.02)
        height, width = (side // 16 for side in image.shape[:2])
        if not any(side % 16 for side in image.shape[:2]):
            blocks = image.mean(-1).reshape(16, height, 16, width).mean((1, 3))
            np.testing.assert_allclose(small[i], blocks.ravel(), rtol=1e-5)
    assert found.shape == (16, 64)


def test_features_of_other_images_are_refused(study, phantom_root, tmp_path):
    root = shutil.copytree(phantom_root, tmp_path / "Phantom")
    ids, *_ = features(study / "bald_0", root=str(root), device="cpu")
    shutil.copy(root / "seed_0" / f"{ids[0]}.bmp", root / "seed_0" / f"{ids[1]}.bmp")
    with pytest.raises(Refused, match="are not those that"):
        features(study / "bald_0", root=str(root), device="cpu")
    with pytest.raises(Refused, match="holds no run"):
        features(tmp_path / "nothing")


def test_redundancy_is_the_mean_over_pairs_of_centred_features():
    """Features far from 0, as a ReLU's are, make all images alike unless they are centred."""
    rng = np.random.default_rng(0)
    vectors = rng.random((6, 4)) + 100
    vectors[5] = vectors[4] + (vectors[4] - vectors.mean(0)) * 1e-9
    thumbnails = rng.random((6, 50))
    thumbnails[1] = 3 * thumbnails[0] + 7  # brighter, and the same picture
    ids = list("abcdef")
    table = partial(pd.DataFrame, columns=["cycle", "id", "picked"])
    pool = table(
        [(0, id, ids.index(id) if id in "abc" else np.nan) for id in ids] + [(1, "e", 0), (1, "f", 1), (1, "d", np.nan)]
    )
    found = provenance.redundancy(pool, ids, vectors, thumbnails)
    scaled = (vectors - vectors.mean(0)) / vectors.std(0)
    pairs = cosine_similarity(scaled[:3])[np.triu_indices(3, 1)]
    assert found["similarity"].tolist() == pytest.approx([pairs.mean(), 1])
    every = cosine_similarity(scaled)[np.triu_indices(6, 1)].mean()
    assert found["expected"][0] == pytest.approx(every, abs=0.03) and every < 0.1
    assert (found["low"] <= found["expected"]).all() and (found["expected"] <= found["high"]).all()
    assert found["copies"].tolist() == [2, 0] and found["copies_expected"][1] == 0
    with pytest.raises(Refused, match="asked for z"):
        provenance.redundancy(table([(0, "z", 0), (0, "a", 1)]), ids, vectors, thumbnails)


def test_near_copies_of_the_drawings():
    """Consecutive sections of one drawn scene are told from other scenes, without any model."""
    import torch

    from data.phantom import draw_image

    scenes = [60, 60, 60, 61, 61, *range(8)]
    drawn = [draw_image(0, f"train_{n}", scene)[0] for n, scene in enumerate(scenes)]
    small = torch.cat([thumbnails(torch.from_numpy(image)[None]) for image in drawn]).numpy()
    unit = provenance._unit(small - small.mean(0), centred=True)
    np.testing.assert_array_equal(unit @ unit.T > provenance.NEAR, np.equal.outer(scenes, scenes))
    assert provenance.near_copies(unit) == 5


@pytest.mark.parametrize("table", ["id,picked\na,0\n", 'id,group,picked,score\n"a', "id,group,picked,score\na,b,c,d\n"])
def test_a_damaged_table_of_a_query_is_one_line(tmp_path, table):
    (tmp_path / "queries").mkdir()
    (tmp_path / "queries" / "cycle_000.csv").write_text(table)
    with pytest.raises(Refused, match="cycle_000.csv is damaged") as refused:
        provenance.pools(tmp_path)
    assert "\n" not in str(refused.value)


def test_a_method_looks_the_same_whatever_else_is_drawn(study):
    """random grey, full black, and no two of the known heuristics alike."""
    frame = runs.load(study)

    def colour(frame):
        axis = plots.curves(frame).axes[0]
        return {line.get_label().partition(" ")[0]: line.get_color() for line in axis.lines}

    alone = {**colour(frame[frame["label"] == "bald"]), **colour(frame[frame["label"] == "random"])}
    more = pd.concat([frame, frame[frame["label"] == "bald"].assign(label="a_first_in_the_alphabet")])
    assert colour(more).items() >= alone.items()
    assert (
        alone["random"] == plots.GREY and colour(frame)["all"] == "black" and plots.style("full")["color"] == "#000000"
    )
    looks = [(style["color"], style["marker"]) for style in map(plots.style, plots.KNOWN)]
    assert len(set(looks)) == len(plots.KNOWN) >= 35 and plots.GREY not in {colour for colour, _ in looks}
    assert plots.style("mine") == plots.style("mine")
    averaged, single = plots.style("bald, averaged passes"), plots.style("bald, single pass")
    assert averaged["color"] == single["color"] and averaged["linestyle"] != single["linestyle"]


def test_the_penalty_matrix_is_a_heat_map_also_of_two_methods():
    table = pd.DataFrame([[0, 0.5], [0.0, 0]], index=["bald", "random"], columns=["bald", "random"])
    axis, bar = plots.matrix(table, most=1).axes
    assert [text.get_text() for text in axis.texts] == ["–", "0.50", "0.00", "–", "0.00", "0.50"]
    assert axis.images[0].get_clim() == (0, 1) and "share of budgets" in bar.get_ylabel()


def test_reliability_is_square_and_whole(study):
    figure = calibration.reliability(calibration.load(study))
    figure.draw_without_rendering()
    for axis in figure.axes:
        assert axis.get_xlim() == axis.get_ylim() and axis.get_aspect() == 1
        assert not any(marks.get_clip_on() for marks in axis.collections)
        lowest = min(line.get_ydata().min() for line in axis.lines[1:])
        assert axis.get_ylim()[0] <= lowest


def test_an_unfinished_run_spoils_no_figure(study, tmp_path, capsys):
    """Neither curves nor calibration nor the verdict's table: all read the same runs."""
    results = shutil.copytree(study, tmp_path / "results")
    whole = [runs.load(results), calibration.load(results)]
    ledger = results / "random_1" / "ledger.jsonl"
    lines = ledger.read_text().splitlines(True)
    ledger.write_text("".join(lines[:3]))
    for name in ("random_1.npy", "random_1/budget.npy", "random_1/dice.npy"):
        np.save(results / name, np.load(results / name)[:1])
    [path] = (results / "random_1").glob("sacred/*.json")
    path.write_text(path.read_text().replace('"COMPLETED"', '"RUNNING"'))
    capsys.readouterr()
    for frame, load in zip(whole, (runs.load, calibration.load), strict=True):
        left = frame[(frame["label"] != "random") | (frame["run"] != 1)].reset_index(drop=True)
        pd.testing.assert_frame_equal(load(results), left)
        assert capsys.readouterr().out == "run 1 of random is going on (2 of 6 images): left out.\n"
    assert "run 1 of random is going on" in text(execute(NOTEBOOKS / "cost.ipynb", results))
