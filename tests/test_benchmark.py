"""The benchmark computes what it says, refuses to time what differs, and runs; no test depends on a time."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from experiments.benchmark import __main__, items, peers, race, report, score, select, timing, work
from experiments.benchmark.report import Row
from experiments.benchmark.timing import Time
from experiments.errors import Refused
from experiments.store import Store
from experiments.training.losses import LOSSES

pytestmark = pytest.mark.usefixtures("single_thread")
TINY = {
    "score": "--images 3 --compared 2 --size 32 --width 1 --passes 3 --rounds 1 --bfloat16 "
    "--race --pool 8 --query 2 --side 32 --trials 1 --epochs 1",
    "train": "--images 2 --size 32 --width 2 --narrow 1 --draws 2 --batch 2 --rounds 1",
    "items": "--images 2 --height 40 --width 60 --crop 32 --rounds 1",
    "select": "--pool 200 --large 600 --query 5 --features 8 --rounds 1",
    "cycle": "--width 1 --crop 32 --epochs 1 --draws 2 --passes 2 --rounds 1",
    "scale": "--small 10 --size 32 --width 1 --passes 2 --batch 8",
}


def run(command, *more, threads="1"):
    return __main__.main([command, *TINY[command].split(), "--threads", threads, "--device", "cpu", *more])


def rows_of(capsys):
    printed = capsys.readouterr()
    return {row["what"]: row for row in json.loads(printed.out)["rows"]}


# ---- numbers


def test_ratio_is_of_each_round():
    above = [Time(6, 3), Time(10, 5), Time(9, 8)]
    below = [Time(2, 3), Time(2, 1), Time(9, 4)]
    row = timing.ratio("x", above, below, ">= 3")
    assert (row.value, row.low, row.high, row.cpu) == (3, 1, 5, 2)  # ratios 3, 5, 1 and 1, 5, 2: no ratio of medians
    assert row.verdict == "met"


def test_seconds_and_rates_of_a_unit():
    times = [Time(2, 1), Time(4, 8), Time(5, 2)]
    assert timing.seconds("x", times)[1:6] == (4, "s", 2, 5, 2)
    assert timing.rate("x", times, "GB/s")[1:6] == (1 / 4, "GB/s", 1 / 5, 1 / 2, 1 / 2)
    assert timing.together(times, times[::-1]) == [Time(7, 3), Time(8, 16), Time(7, 3)]


def test_arithmetic_is_counted_and_set_against_the_peak():
    layer = torch.nn.Conv2d(3, 5, 3, padding=1)
    assert timing.gflop(layer, torch.zeros(2, 3, 16, 16)) * 1e9 == 2 * (2 * 16 * 16) * (3 * 5 * 9)
    run, work = timing.product(torch.device("cpu"), "bfloat16")
    assert run().shape == (1024, 1024) and run().dtype == torch.bfloat16 and work * 1e9 == 2 * 1024**3
    row = timing.share("x", 6, [Time(2, 3), Time(4, 8)], [Time(0.1, 0.2), Time(0.5, 0.4)])
    assert (row.low, row.high, row.cpu) == pytest.approx((6 * 0.1 / 2, 6 * 0.5 / 4, (6 * 0.2 / 3 + 6 * 0.4 / 8) / 2))


def test_rounds_divide_by_units_and_shuffle(monkeypatch):
    calls = []
    variants = {name: (lambda name=name: calls.append(name), 4) for name in "abc"}
    monkeypatch.setattr(timing, "once", lambda function, device: Time(8 + 0 * (function() or 0), 4, 2))
    times = timing.rounds(variants, 4, torch.device("cpu"))
    assert calls[:3] == list("abc")  # to warm up
    orders = [tuple(calls[start : start + 3]) for start in range(3, 15, 3)]
    assert all(sorted(order) == list("abc") for order in orders) and len(set(orders)) > 1
    assert times == {name: [Time(2, 1, 2)] * 4 for name in "abc"}


@pytest.mark.parametrize(
    ("target", "value", "verdict"),
    [("<= 2", 2, "met"), ("<= 2", 2.1, "missed"), (">= 2", 2, "met"), (">= 2", 1.9, "missed"), ("", 9, "")],
)
def test_verdict(target, value, verdict):
    assert Row("x", value, "x", target=target).verdict == verdict


def test_a_target_that_cannot_be_measured_is_missed():
    assert Row("x", math.nan, "x", target="<= 2").verdict == Row("x", math.nan, "x", target=">= 2").verdict == "missed"


def test_peak_counts_the_work_alone(monkeypatch):
    """Neither what the parent holds nor what the child gets ready."""
    held = np.ones(300 * 2**20, dtype=np.uint8)
    length, peak = timing.peak_of(allocate, 50)
    assert length == 50 * 2**20 < len(held)
    assert 45 <= peak <= 80


def allocate(mebibytes):
    ready = np.ones(100 * 2**20, dtype=np.uint8)
    return lambda: len(np.ones(mebibytes * 2**20, dtype=np.uint8)) + 0 * len(ready)


def test_a_large_pool_shows_the_drawn_images_again(monkeypatch):
    few = work.draw(3, 8, 9)
    monkeypatch.setattr(work, "DIFFERENT", 2)
    shown = work.draw(5, 8, 9)
    assert [next(n for n, pair in enumerate(few) if (pair[0] == image).all()) for image, _ in shown] == [0, 1, 0, 1, 0]


# ---- peers


def test_bald_of_the_baselines():
    """One pixel that two certain passes disagree on, one that they agree on, one where both are torn."""
    first, second = [[40, 40, 0], [-40, -40, 0]], [[-40, 40, 0], [40, -40, 0]]
    logits = np.stack([first, second], -1)[None, :, None]
    assert peers.bald(logits)[0, 0] == pytest.approx([math.log(2), 0, 0], abs=1e-12)


def test_loss_of_the_baselines_is_linear():
    logits, masks = torch.randn(3, 2, 5, 7), torch.randint(0, 2, (3, 5, 7))
    assert peers.linear(logits, masks).item() == pytest.approx(LOSSES["linear"](logits, masks.byte()).mean().item())


def test_training_item_moves_image_and_mask_together(monkeypatch):
    monkeypatch.setattr(peers, "jitter", lambda image, rng: image)
    mask = (np.random.default_rng(0).random((40, 50)) < 0.5).astype(np.uint8)
    picture = Image.fromarray(np.repeat(255 * mask[..., None], 3, 2))
    seen = set()
    for seed in range(12):
        x, y = peers.training_item(picture, Image.fromarray(mask), 24, np.random.default_rng(seed))
        assert x.shape == (3, 24, 24) and torch.equal(x[1], y.float())
        seen.add(y.numpy().tobytes())
    assert len(seen) == 12


def test_jitter_leaves_the_grey_of_hue():
    """Grey has no hue and no saturation: its three channels stay alike."""
    grey = Image.fromarray(np.full((4, 4, 3), 90, dtype=np.uint8))
    jittered = [np.array(peers.jitter(grey, np.random.default_rng(seed))) for seed in range(8)]
    assert all(np.ptp(image) == 0 for image in jittered) and len({image[0, 0, 0] for image in jittered}) > 3


def test_dice_of_the_baselines():
    """A model that calls the left half foreground, of a mask that is the upper half: 2 * 1/4 / (1/2 + 1/2)."""

    class Left(torch.nn.Module):
        def forward(self, x):
            left = (torch.arange(x.shape[-1]) < x.shape[-1] // 2).float().expand(len(x), 1, *x.shape[2:])
            return torch.cat([1 - left, left], 1)

    mask = np.zeros((8, 8), dtype=np.uint8)
    mask[:4] = 1
    pair = peers.pictures([(np.zeros((8, 8, 3), np.uint8), mask)])
    assert peers.baselines_test(Left(), pair, 2, torch.device("cpu")) == pytest.approx(0.5)


def test_baselines_learn_and_keep_the_best():
    pairs = peers.pictures(work.draw(3, 40, 40))
    plain, _ = work.models(2, torch.device("cpu"))
    model = peers.always_dropping(plain)
    before = peers.linear(model(peers.to_tensor(pairs[0][0])[None]), peers.foreground(pairs[0][1])[None]).item()
    peers.baselines_fit(model, pairs, pairs, 6, 4, 4, 32, torch.device("cpu"))
    after = peers.linear(model(peers.to_tensor(pairs[0][0])[None]), peers.foreground(pairs[0][1])[None]).item()
    assert after < before


# ---- the gate


@pytest.mark.parametrize(
    ("module", "name"), [(peers, "baselines_scores"), (work, "bald_scores"), (peers, "baal_scores")]
)
def test_nothing_is_timed_when_one_variant_is_broken(module, name, monkeypatch, capsys):
    """By 2e-6 nats; of baal only the mode with copies."""
    right = getattr(module, name)

    def broken(*arguments, **options):
        return right(*arguments, **options) + (2e-6 if options.get("copies", True) else 0)

    monkeypatch.setattr(module, name, broken)
    monkeypatch.setattr(timing, "rounds", lambda *a: pytest.fail("was timed"))
    assert run("score") == 1
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1 and "nothing is timed" in printed.err


def test_the_gate_sees_other_masks(monkeypatch, capsys):
    right = score.pass_keys
    monkeypatch.setattr(score, "pass_keys", lambda place, *rest: right((1, *place[1:]), *rest))
    monkeypatch.setattr(timing, "rounds", lambda *a: pytest.fail("was timed"))
    assert run("score") == 1
    assert "nothing is timed" in capsys.readouterr().err


def test_scores_that_are_no_numbers_do_not_agree():
    with pytest.raises(Refused, match="one is nan away"):
        score.agree(np.zeros(2), {"one": np.array([0, np.nan])})


def test_nothing_is_timed_when_picks_differ(monkeypatch, capsys):
    monkeypatch.setattr(select, "k_centre", lambda rows, n: select.pairwise(rows, n)[::-1])
    assert run("select") == 1
    assert "k-centre picks" in capsys.readouterr().err


def test_pairwise_picks_the_farthest():
    assert select.pairwise(torch.tensor([[0.0], [1], [10], [4]]), 3) == [0, 2, 3]


# ---- decoding


def test_decodes_are_counted(tmp_path):
    items.write(tmp_path, work.draw(3, 40, 40))
    split, count = items.counted(tmp_path)
    assert (len(split), count()) == (3, 0)
    assert split[1].shape == split[1].shape == (40, 40, 3) and count() == 2
    store = Store(split, "cpu")
    assert count() == 5
    store.label([0, 2])
    assert count() == 7
    assert items.epoch(store, 0, count) == 0


# ---- commands


def test_table_and_figure(tmp_path, capsys):
    assert run("items", "--plot", str(tmp_path / "ratios.png")) == 0
    printed = capsys.readouterr().out
    assert "image: Store faster than PNG" in printed
    lines = [line for line in printed.splitlines() if " <= " in line or " >= " in line]
    assert len(lines) == 3 and all(line.split()[-1] in ("met", "missed") for line in lines)
    with Image.open(tmp_path / "ratios.png") as figure:
        assert figure.size[0] > 400


@pytest.mark.parametrize(
    ("command", "row", "target"),
    [
        ("score", "race: recall of the best 2", ">= 0.97"),
        ("train", "width 2, bare step / AskMask", ">= 0.95"),
        ("items", "image: Store faster than PNG", ">= 50"),
        ("select", "k-centre faster than the full matrix, N = 200", ">= 30"),
        ("cycle", "AskMask faster than baselines: the whole cycle", ">= 1.25"),
        ("scale", "N = 1,000: memory", ""),
    ],
)
def test_command(command, row, target, capsys, monkeypatch):
    monkeypatch.setattr(race, "REFERENCE", 5)
    monkeypatch.setattr(timing, "peak_of", lambda function, *arguments: (function(*arguments)(), 7.0))
    if command == "select":
        pytest.importorskip("heuristics.coreset")
    assert run(command, "--json") == 0
    found = rows_of(capsys)
    assert found[row]["target"] == target
    assert all(
        row["value"] >= 0 and (row["verdict"] in ("met", "missed")) == bool(row["target"]) for row in found.values()
    )
    if command == "items":
        assert [found[f"files decoded {when}"]["value"] for when in ("when the Store is made", "in the first epoch",
                                                                     "in the second epoch")] == [4, 0, 0]  # fmt: skip


def test_a_device_that_the_peers_lack_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(__main__.trainer, "prepare", lambda **settings: torch.device("mps"))
    assert __main__.main(["score"]) == 1
    assert "--device cpu" in capsys.readouterr().err


def test_table_lines_up():
    lines = report.table([Row("a", 1234.5, "s", 1, 2, 3, "<= 2"), Row("bcd", 0.5, "x")]).splitlines()
    assert lines[1].startswith("a      1234  s") and lines[1].endswith("<= 2    missed")
    assert lines[2].split() == ["bcd", "0.500", "x"]
