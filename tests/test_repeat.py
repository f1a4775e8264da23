"""Repeats: drawn at random, without a say in what is trained on; agreement by hand, within and between annotators."""

import csv
import json
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import answer, asked, events
from PIL import Image
from scipy import stats

from experiments.errors import AwaitingLabels, Refused
from experiments.records.compare import refuse_other_ids
from experiments.records.stored_records import measured
from experiments.steps import repeat
from experiments.store import IGNORE

pytestmark = pytest.mark.usefixtures("single_thread")


def said_of(place, **rows):
    """Write answers.csv: {name: (annotator, seconds)}."""
    with open(place / "labels" / "answers.csv", "w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["file", "annotator", "seconds"])
        lines.writerows([f"{name}.png", *words] for name, words in rows.items())


def at(seed, cycle):
    return seed, "phantom", cycle


def test_people_draw_some_masks_twice_and_the_first_ones_count(lab, truth, tmp_path, capsys):
    results, share = tmp_path / "results", {"repeat": 0.5}
    with pytest.raises(AwaitingLabels, match="2 of 2 masks are awaited"):
        lab(**share)
    assert "repeat=0.5: no earlier query brought a mask to ask for again." in capsys.readouterr().out
    first, names = asked(results, "cycle_000")
    answer(truth, first, names)
    said_of(first, **{name: ("Ann", 60) for name in names})
    with pytest.raises(AwaitingLabels, match="3 of 3 masks are awaited"):
        lab(**share)
    place, (*new, twice) = asked(results, "cycle_001")
    *others, image = json.loads((place / "manifest.json").read_text())["images"]
    assert twice in names and image["repeat"] and not any("repeat" in other for other in others)
    assert not {"prediction", "uncertainty"} & image.keys() and image["nearest"] is None
    assert all(other["nearest"] in {"im_2", "im_3", *names} for other in others)
    page = (place / "index.html").read_text()
    assert page.count("again, for how far two drawings agree") == 1 and page.count("nearest labelled image: im_") == 2
    answer(truth, place, new)
    with pytest.raises(AwaitingLabels, match="1 of 3 masks are awaited"):
        lab(**share)
    drawn = np.array(Image.open(truth / "truth" / f"{twice}.png"))
    other = np.roll(drawn, 9, axis=1)
    other[:8] = IGNORE
    Image.fromarray(other).save(place / "labels" / f"{twice}.png")
    said_of(place, **{twice: ("Bob", 30)})
    capsys.readouterr()
    assert lab(**share).status == "COMPLETED"
    said = capsys.readouterr().out
    both = drawn[8:], other[8:]
    dice = 2 * (both[0] & both[1]).sum() / sum(mask.sum() for mask in both)
    assert f"1 mask asked for again: Dice with the first {dice:.3f}, between annotators {dice:.3f} of 1" in said
    found = events(results, "entropy")
    (event,) = (event for event in found if event["event"] == "repeated")
    assert event["cycle"] == 1 and event["ids"] == [twice] and event["by"] == ["between"] and event["images"] == 4
    assert event["metrics"] == {"repeat.dice": pytest.approx(dice), "repeat.between": pytest.approx(dice)}
    answered = [event for event in found if event["event"] == "answered"]
    assert answered[-1]["masks"] == {} and answered[-1]["again"][twice][0]["seconds"] == "30"
    (record, *_) = (results / "entropy_0" / "sacred").glob("*.json")
    assert [row["metrics"].get("repeat.dice") for row in measured(record)] == [None, pytest.approx(dice), None]
    Image.fromarray(drawn).save(place / "labels" / f"{twice}.png")  # thought better of it
    assert lab(**share).status == "COMPLETED"
    assert f"{twice} was asked for again and drawn anew" in capsys.readouterr().out
    later = events(results, "entropy")
    assert [event for event in later if event["event"] != "answered"] == [e for e in found if e["event"] != "answered"]
    assert later[-1]["again"].keys() == {twice} and later[-1]["masks"] == {}


def test_an_oracle_agrees_with_itself_and_repeats_change_nothing_else(smoke, longer, tmp_path, capsys):
    smoke(cycles=2, repeat=0.5)
    assert (
        "Dice with the first 1.000; the dataset has one mask of each, which agrees with itself"
        in capsys.readouterr().out
    )
    found, without = events(tmp_path / "results"), events(longer)
    (event,) = (event for event in found if event["event"] == "repeated")
    assert event["metrics"] == {"repeat.dice": 1.0} and event["by"] == ["dataset"]
    queried = [event for event in found if event["event"] == "queried"]
    assert "repeats" not in queried[0] and queried[1].pop("repeats") == event["ids"]
    assert event["ids"][0] in [query["id"] for query in queried[0]["queries"]]
    assert [event for event in found[1:] if event["event"] != "repeated"] == without[1:]


def test_agreement_counts_where_both_drew():
    first = torch.tensor([[0, 1, 1, 2, IGNORE, 1]], dtype=torch.uint8)
    second = torch.tensor([[0, 1, 2, 2, 1, IGNORE]], dtype=torch.uint8)
    values = repeat.agreement(first, second, 3)
    assert values.tolist() == pytest.approx([1, 2 / 3, 2 / 3])
    assert values.tolist() == repeat.agreement(second, first, 3).tolist()
    assert repeat.agreement(first, torch.full_like(first, IGNORE), 3).isnan().all()
    nobody = torch.full((1, 2), torch.nan, dtype=torch.float64)
    assert repeat.means(nobody, ["within"], slice(1, IGNORE)) == {}
    told = {"by": ["within"], "metrics": {}, "per_image": {"dice": [[None, None]]}}
    assert "nothing was drawn in common" in repeat.line(told, ["background", "gland"], slice(1, IGNORE))


def test_who_drew_both_masks_is_told_apart():
    ann, bob, nobody = {"annotator": "Ann"}, {"annotator": "Bob"}, {}
    pairs = [(ann, ann), (ann, bob), (ann, nobody), (None, bob), (ann, None)]
    by = [repeat.between(*pair) for pair in pairs]
    assert by == ["within", "between", "", "", "dataset"]
    values = torch.tensor([[1.0, 0.9], [1.0, 0.5], [1.0, 0.7]], dtype=torch.float64)
    found = repeat.means(values, by[:3], slice(1, IGNORE))
    assert found == {"repeat.dice": pytest.approx(0.7), "repeat.within": 0.9, "repeat.between": 0.5}
    told = repeat.line(
        {"by": by[:3], "metrics": found, "per_image": {"dice": values.tolist()}}, ["a", "b"], slice(0, IGNORE)
    )
    assert "(a 1.000, b 0.700), within an annotator 0.900 of 1, between annotators 0.500 of 1; answers.csv does" in told


def test_every_mask_is_drawn_equally_often_and_once():
    ids, drawn = [f"im_{number}" for number in range(20)], []
    asks = [{"event": "queried", "cycle": 0, "queries": [{"id": id} for id in ids]}]
    state = SimpleNamespace(config={"repeat": 0.1, "query": 20}, ledger=SimpleNamespace(events=asks))
    state.train = SimpleNamespace(split=SimpleNamespace(items=[SimpleNamespace(mask="there")]))
    for seed in range(2000):
        state.at = partial(at, seed)
        drawn += repeat.draw(state, 1)
    counts = [drawn.count(id) for id in ids]
    assert sum(counts) == 4000 and stats.chisquare(counts).pvalue > 0.01
    state.ledger.events = [*asks, {"event": "queried", "cycle": 1, "queries": [], "repeats": ids[:19]}]
    assert repeat.draw(state, 2) == ids[19:]


def test_a_repeat_of_no_mask_is_refused(smoke, tmp_path):
    with pytest.raises(Refused, match="repeat=0.1 of a query of 4 is no mask: make query larger, or leave repeat out"):
        smoke(repeat=0.1, query=4)
    path = tmp_path / "ledger.jsonl"
    asks = [{"queries": [{"id": "a"}]}, {"queries": [], "repeats": ["b"]}]
    with pytest.raises(Refused, match="line 2 .*'b' is asked for again and was not before"):
        refuse_other_ids(path, asks, ["a", "b"])
