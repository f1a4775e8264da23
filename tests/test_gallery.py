"""The gallery shows what each strategy would ask for next of one trained model: the very query that the run makes."""

import shutil

import numpy as np
import pytest
from conftest import events, settings
from PIL import Image

from analysis.gallery import Row, disputed, look, main, pool_of, usable
from experiments.components import load
from experiments.errors import Refused
from experiments.predict.opened import open_run

pytestmark = pytest.mark.usefixtures("single_thread")


def test_its_picks_are_the_runs_next_query(undisturbed, phantom_root, experiment, tmp_path):
    shutil.copytree(undisturbed, tmp_path / "results")
    run = open_run(tmp_path / "results" / "bald_0", "cpu")
    opened, *_ = pool_of(run, str(phantom_root))
    row, ids = look(run, "bald", opened), opened().ids
    more = settings(phantom_root, tmp_path / "results", cycles=2)
    experiment.run(config_updates=more, named_configs=["smoke"])
    *_, query = (event for event in events(tmp_path / "results") if event["event"] == "queried")
    assert query["cycle"] == 1 and len(query["queries"]) == 2
    assert [ids[i] for i in row.picked][:2] == [q["id"] for q in query["queries"]]
    assert [row.scores[i] for i in row.picked][:2] == [q["score"] for q in query["queries"]]


def test_the_picture_has_a_row_for_each_strategy_that_can(undisturbed, phantom_root, tmp_path, capsys):
    line = [str(undisturbed / "bald_0"), "--data", str(phantom_root), "--device", "cpu", "-o", str(tmp_path / "g.png")]
    assert main([*line, "--heuristics", "entropy,tta,coreset,random,crc"]) == 0
    assert "crc is left out: " in capsys.readouterr().out  # it takes more annotated images
    with Image.open(tmp_path / "g.png") as picture:
        assert picture.height == pytest.approx(100 * (1.5 * 5 + 0.9), abs=2)
    with pytest.raises(Refused, match="no heuristic 'entrop'. Did you mean entropy"):
        main([*line, "--heuristics", "entrop"])
    line[2] = str(phantom_root / "elsewhere")
    with pytest.raises(Refused):
        main(line)


def test_strategies_that_train_and_lists_are_not_in_it():
    known = usable()
    assert {"bald", "entropy", "coreset", "random"} <= set(known)
    assert not {"learning_loss", "vaal", "given", "first", "none"} & set(known)


def test_the_images_shown_are_those_that_the_maps_rank_most_differently():
    entropy = load("heuristic", "entropy")
    scores = {"a": [3.0, 2, 1, 0], "b": [0.0, 2, 1, 3]}
    rows = [Row(name, entropy, np.array(of), [], None) for name, of in scores.items()]
    assert disputed(rows, 2) == [0, 3]
    assert disputed(rows[:1], 2) == [0, 1]
