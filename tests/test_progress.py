"""What a log says of a run while it goes on, and what is said where memory runs out."""

import re
import sys

import numpy as np
import pytest
import torch
from conftest import ledger_bytes

from data import glas
from experiments import store
from experiments.errors import Refused
from experiments.evaluation import metrics
from experiments.network.device import ran_out_of_memory
from experiments.records import progress
from experiments.records.progress import Progress, duration, plan
from experiments.training import augment
from heuristics import bald

CLOCK = r"\d\d:\d\d:\d\d "


@pytest.fixture
def clock(monkeypatch):
    """What time it is, in seconds: clock.now."""

    class Clock:
        now = 1000.0

    monkeypatch.setattr(progress, "monotonic", lambda: Clock.now)
    return Clock


def test_a_log_says_when_how_far_and_how_long(capsys, clock):
    with Progress(1000) as bar:
        bar.start("cycle 0/3, training on 4")
        assert bar.estimate() == ""  # nothing is known yet
        clock.now += 720
        bar.advance(200)
        bar.line("cycle 0/3: 4 images labelled" + bar.estimate())
        clock.now += 2880
        bar.advance(10**9)
        bar.line("cycle 3/3: 16 images labelled" + bar.estimate())
    first, heartbeat, cycle, also, last = capsys.readouterr().out.splitlines()
    assert re.fullmatch(CLOCK + "cycle 0/3, training on 4", first)
    assert heartbeat.endswith("cycle 0/3, training on 4, 20 % of the run, 12 min so far, about 48 min left")
    assert re.fullmatch(CLOCK + "cycle 0/3: 4 images labelled, 12 min so far, about 48 min left", cycle)
    assert also.endswith("100 % of the run, 60 min so far") and last.endswith("16 images labelled, 60 min so far")


def test_a_long_cycle_is_heard_of_now_and_then(capsys, clock):
    """Whatever the number of steps: at most one line in EVERY seconds."""
    with Progress(10**6) as bar:
        bar.start("cycle 0/3, training on 4")
        for step in range(1000):
            clock.now += 1
            bar.advance(10, note=f"epoch {step // 100 + 1}/10")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + 1000 // (progress.EVERY + 1)
    assert ", training on 4, epoch 4/10, 0 % of the run, 5 min so far, about " in lines[1]


def test_a_terminal_has_a_bar_and_no_clocks(capsys, clock, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with Progress(1000) as bar:
        bar.start("cycle 0/3, training on 4")
        clock.now += 10**4
        bar.advance(200, note="epoch 1/2")
        bar.line("cycle 0/3: 4 images labelled" + bar.estimate())
        assert bar.bar.n == 200
    printed = capsys.readouterr()
    assert printed.out == "cycle 0/3: 4 images labelled\n" and "training on 4" in printed.err


def test_durations():
    assert [duration(s) for s in (0.4, 89, 90, 720, 5399, 11520)] == [
        "0 s",
        "89 s",
        "2 min",
        "12 min",
        "90 min",
        "3.2 h",
    ]


def test_what_is_done_is_not_waited_for_again():
    """As if the run began where the ledger ends."""

    class Images(list):
        pixels = range(100)

    config = {"start": 2, "query": 2, "cycles": 2, "pool_size": 0, "mc_iters": 3}
    config |= {"trainer": {"epochs": 2, "draws": 1, "validate_every": 1}, "evaluation": {"passes": 1}}
    images = Images(range(10))  # of 10 pixels each
    cycle = [3 * 2 * 10 * n + 200 + 200 for n in (2, 4, 6)]  # training; testing; validation
    pool = [(10 - n) * 10 * 3 for n in (2, 4)]
    assert plan(config, 0, images, images, images) == sum(cycle) + sum(pool)
    events = [{"event": "start", "cycle": 0}, {"event": "evaluated", "cycle": 0}]
    assert plan(config, 0, images, images, images, events) == sum(cycle[1:]) + sum(pool)
    events += [{"event": "queried", "cycle": 0}, {"event": "evaluated", "cycle": 1}]
    assert plan(config, 0, images, images, images, events) == cycle[2] + pool[1]


def test_every_line_of_a_log_but_the_result_has_a_clock(smoke, tmp_path, capsys):
    smoke()
    *lines, result = capsys.readouterr().out.splitlines()
    assert len(lines) >= 6 and all(re.match(CLOCK, line) for line in lines)
    assert result == str(tmp_path / "results" / "bald_0.npy")
    assert re.search(
        r"cycle 0/1: 2 images labelled, test Dice \S+, \d+ s so far(, about \d+ s left)?$", "\n".join(lines), re.M
    )
    assert b"so far" not in ledger_bytes(tmp_path / "results")


# ---- memory


def far_too_much(*args, **kwargs):
    """What torch's allocator on a CPU really raises."""
    return torch.empty(2**50)


def far_too_much_of_numpy(*args, **kwargs):
    return np.empty(2**50)


@pytest.mark.parametrize("allocate", [far_too_much, far_too_much_of_numpy])
def test_the_errors_of_allocators_are_known(allocate):
    with pytest.raises((RuntimeError, MemoryError)) as error:
        allocate()
    assert ran_out_of_memory(error.value)
    assert not ran_out_of_memory(RuntimeError("shapes differ")) and not ran_out_of_memory(ValueError("out of memory"))


@pytest.mark.parametrize("allocate", [far_too_much, far_too_much_of_numpy])
@pytest.mark.parametrize(
    ("module", "name", "said"),
    [
        (glas, "decode", ["reading the images", "resize"]),
        (augment, "crops", ["cycle 0/1, training on 2", "trainer.batch"]),
        (store.Store, "batches", ["cycle 0/1, training on 2", "trainer.batch"]),
        (metrics, "calibration_bins", ["cycle 0/1, testing", "evaluation.batch"]),
        (bald, "uncertainty", ["scoring the pool", "prediction.batch"]),
    ],
)
def test_memory_that_runs_out_is_one_line(smoke, monkeypatch, module, name, said, allocate):
    monkeypatch.setattr(module, name, allocate)
    with pytest.raises(Refused) as refused:
        smoke()
    text = str(refused.value)
    assert "\n" not in text and all(word in text for word in ["Memory ran out", *said]), text


def test_another_error_stays_what_it_is(smoke, monkeypatch):
    monkeypatch.setattr(metrics, "calibration_bins", lambda *args: torch.zeros(2) + torch.zeros(3))
    with pytest.raises(RuntimeError, match="must match the size"):
        smoke()
