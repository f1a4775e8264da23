"""Stop advice: a power law found again, an interval that holds what it says, and a run that ends at its validation."""

import shutil

import numpy as np
import pytest
from conftest import events, settings
from PIL import Image

from experiments.errors import Refused
from experiments.records.ledger import finished
from experiments.steps import advice

pytestmark = pytest.mark.usefixtures("single_thread")


def test_a_power_law_is_found_again():
    images = [4, 8, 12, 20]
    values = [1 - 0.6 * n**-0.5 for n in images]
    expected = 0.6 * (20**-0.5 - 24**-0.5)
    assert advice.expected_gain(images, values, 4) == pytest.approx((expected,) * 3, abs=1e-9)


def test_a_curve_that_does_not_rise_promises_nothing():
    gain, low, high = advice.expected_gain([4, 8, 12, 16], [0.7, 0.72, 0.68, 0.7], 4)
    assert abs(gain) < 0.01 and low < 0 < high
    gain, low, high = advice.expected_gain([4, 8, 12], [1.0, 1.0, 1.0], 4)
    assert gain == pytest.approx(0, abs=1e-6) and np.isfinite([low, high]).all()


def test_the_interval_holds_the_true_gain_as_often_as_it_says(table):
    images, rng, inside = np.array([4, 8, 12, 16, 20]), np.random.default_rng(0), 0
    true = 0.6 * (20**-0.4 - 24**-0.4)
    for _ in range(1000):
        error = 0.6 * images**-0.4 * np.exp(rng.normal(0, 0.05, 5))
        _, low, high = advice.expected_gain(images, 1 - error, 4)
        inside += low <= true <= high
    table([f"the interval of the expected gain held the true one in {inside} of 1000 drawn curves"])
    assert 925 <= inside <= 985


def told(values, seconds=()):
    """A ledger whose cycles had these validation values, each query of 4 images, answered in so many seconds."""
    made = [{"event": "start", "headline": "test.miou"}]
    for cycle, value in enumerate(values):
        metrics = {"val.dice": 0.1, "test.miou": 0.99} | ({} if value is None else {"val.miou": value})
        made.append({"event": "evaluated", "cycle": cycle, "images": 4 * cycle, "metrics": metrics})
    masks = {str(n): [{"sha256": "", "seconds": said}] for n, said in enumerate(seconds)}
    return [*made, {"event": "answered", "cycle": 1, "masks": masks}]


def test_it_takes_three_evaluations_with_validation():
    assert advice.after(told([0.2, 0.4, 0.5]), 2, 4) == {}  # the first one had no label
    assert advice.after(told([None, None, 0.4, 0.5]), 3, 4) == {}
    assert advice.after(told([None, 0.3, 0.4, 0.5]), 3, 4).keys() == {"gain", "low", "high"}
    assert "cannot be told" in advice.line({}, "Dice", 4)


def test_the_dataset_s_headline_of_the_last_evaluations_counts_and_never_the_test():
    values = [None, 0.9, 0.3, 0.4, 0.5, 0.55, 0.58]  # the first falls out
    found = advice.after(told(values), 6, 4)
    expected = advice.expected_gain([8, 12, 16, 20, 24], values[2:], 4)
    assert tuple(found.values()) == pytest.approx(expected)


def test_seconds_that_people_told_make_it_a_gain_an_hour():
    found = advice.after(told([None, 0.3, 0.4, 0.5], ["90", "270", "", "ages", "nan"]), 3, 10)
    assert found["hours"] == pytest.approx(0.5) and found["per_hour"] == pytest.approx(2 * found["gain"])
    assert "an hour of drawing" in advice.line(found, "Dice", 10)


def test_a_run_says_it_after_each_cycle_and_keeps_it_in_its_info(smoke, capsys):
    run = smoke(cycles=2)
    said = [line for line in capsys.readouterr().out.splitlines() if "next query" in line]
    assert [("cannot be told" in line) for line in said] == [True, True, False]
    assert "Expected of the next query of 2:" in said[-1] and "% interval)" in said[-1]
    assert run.info["advice"].keys() == {"gain", "low", "high"}


def test_a_run_ends_where_validation_reaches_stop_at_and_goes_on_for_more(smoke, tmp_path, capsys):
    learning = {"start": 8, "unet.width": 4, "trainer.epochs": 8, "trainer.draws": 6, "trainer.validate_every": 4}
    smoke(stop_at=1e-6, **learning)
    assert "Validation reached stop_at=1e-06: the run ends here." in capsys.readouterr().out
    assert [event["event"] for event in events(tmp_path / "results")] == ["start", "evaluated"]
    folder = tmp_path / "results" / "bald_0"
    assert finished(folder, 1, 1e-6) and not finished(folder, 1)
    smoke(stop_at=1.0, **learning)
    assert finished(folder, 1, 1.0) and len(events(tmp_path / "results")) == 4


def test_stop_at_takes_validation_images(phantom_root, tmp_path, experiment):
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    for number, path in enumerate(sorted((phantom_root / "seed_0").glob("train_*[0-9].bmp"))[:6]):
        shutil.copy(path, tmp_path / "images" / f"{number}.bmp")
        mask = np.array(Image.open(path.with_name(path.stem + "_anno.bmp"))) > 0
        Image.fromarray(mask.astype(np.uint8)).save(tmp_path / "masks" / f"{number}.png")
    more = {"dataset": "folder", "folder.root": str(tmp_path), "folder.classes": "background,gland", "folder.val": 0.0}
    tiny = settings(phantom_root, tmp_path / "results", stop_at=0.5, **more)
    del tiny["phantom.root"]
    with pytest.raises(Refused, match=r"stop_at=0.5 asks validation images \(folder has none"):
        experiment.run(config_updates=tiny, named_configs=["smoke"])
    assert not (tmp_path / "results").exists()
