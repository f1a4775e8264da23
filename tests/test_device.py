"""What `experiments.device` says of this machine, of one that computes wrongly, and of ones that lack something."""

import json

import pytest
import torch

from experiments import device

pytestmark = pytest.mark.usefixtures("single_thread")
FINE = {"correct": True, "threads": 2, "cores": 2}
WHOLE = {"card": False, "cuda": "", "mps": False, "compiler": True, "apple": False}
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(device, "SECONDS", 0.0)
    monkeypatch.setattr(device, "SIZE", 32)


def test_the_cpu_computes_as_it_does_in_double_precision(capsys):
    assert device.main(["--device", "cpu", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["place"] == "cpu" and found["correct"] and found["difference"]["forward"] < 1e-5
    assert min(found["images_per_second"].values()) > 0
    assert found["versions"]["torch"].startswith(torch.__version__) and len(found["sources"]) == 64


def test_people_get_one_screen(capsys):
    assert device.main(["--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) < 15 and max(map(len, lines)) < 200
    assert [line.split()[0] for line in lines[:6]] == "device check training scoring versions sources".split()


def test_a_device_that_computes_wrongly_is_told_from_a_right_one():
    from experiments.components import configure, load

    file = load("model", "unet")
    configure(file, {})
    right, wrong = device.built(file, CPU), device.built(file, CPU)
    assert max(device.compared(right, wrong, CPU).values()) < 1e-5
    with torch.no_grad():
        next(p for p in wrong.parameters() if p.dim() == 4).mul_(1.2)
    apart = device.compared(right, wrong, CPU)
    assert min(apart.values()) > device.CLOSE


@pytest.mark.parametrize(
    ("found", "there", "said"),
    [
        ({"correct": False}, {}, "set device=cpu"),
        ({}, {"card": True}, "torch a CPU build: pip install"),
        ({}, {"card": True, "cuda": "13.0"}, "CUDA_VISIBLE_DEVICES"),
        ({}, {"apple": True}, "Apple chip"),
        ({}, {"compiler": False}, "install g++"),
        ({"threads": 8}, {}, "set threads=2"),
    ],
)
def test_what_is_off_has_a_line_with_its_fix(found, there, said):
    [line] = device.advice(FINE | found, CPU, WHOLE | there)
    assert said in line


def test_nothing_is_said_where_nothing_is_off():
    assert device.advice(FINE, CPU, WHOLE) == []
    assert "PYTORCH_ENABLE_MPS_FALLBACK" in device.advice(FINE, torch.device("mps"), WHOLE | {"mps": True})[0]
