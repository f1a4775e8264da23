"""A GPU computes what a CPU does: masks to the bit, scores to its rounding, compiled or not; runs go on undisturbed."""

import copy
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from conftest import ledger_bytes
from test_prediction import keep_mask

from experiments.acquisition.prediction import pass_keys, predict
from experiments.benchmark import work
from experiments.evaluation import evaluation
from experiments.network.device import fast_at_bfloat16
from experiments.network.dropout import turn
from experiments.network.inference import Network
from experiments.training import augment, trainer

if not torch.cuda.is_available():
    pytest.skip("no GPU that torch can use", allow_module_level=True)

CPU, GPU = torch.device("cpu"), torch.device("cuda:0")
POOL, PASSES, BEST = 64, 20, 10
OWN = ("ignore:.torch.jit:DeprecationWarning", "ignore:The CUDA Graph is empty")  # of torch while it compiles
TORCHS_OWN = pytest.mark.filterwarnings(*OWN)


@pytest.fixture(scope="module")
def pairs():
    return work.draw(POOL, 64, 64)


@pytest.fixture(scope="module")
def models(pairs):
    """{device: one trained model}."""
    model = work.models(4, GPU)[1]
    with fast(epochs=4, precision="float32"):
        trainer.fit(model, work.store_of(pairs, GPU), list(range(16)), None, work.PLACE, 64)
    return {GPU: model, CPU: copy.deepcopy(model).to(CPU)}


@contextmanager
def fast(**updates):
    """The trainer has these settings, augmentation its defaults."""
    settings = {"draws": 2, "batch": 8} | updates
    with work.configured(trainer.ingredient, **settings), work.configured(augment.ingredient):
        yield


def bald(pairs, model, device, compiled=False, precision="float32", **settings):
    pool = work.pool_of(work.store_of(pairs, device), Network(model, compiled, precision), PASSES, **settings)
    return work.bald_scores(pool)


@pytest.fixture(scope="module")
def right(pairs, models):
    """BALD of the pool by the CPU."""
    return bald(pairs, models[CPU], CPU)


@pytest.mark.parametrize("shape", [(2, 16, 20, 33), (3, 5, 7, 9)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_masks_are_those_of_a_cpu_to_the_bit(shape, dtype):
    keys = pass_keys(work.PLACE, "score", range(shape[0]), 1)[0]
    ours, theirs = (
        [keep_mask(keys.to(d), layer, torch.zeros(shape, dtype=dtype, device=d), 0.1).cpu() for layer in range(11)]
        for d in (GPU, CPU)
    )
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert 0.8 < torch.stack(ours).bool().float().mean() < 1


def test_a_turn_is_that_of_a_cpu():
    assert [turn(k / 7, GPU).item() for k in range(7)] == [turn(k / 7, CPU).item() for k in range(7)]


@pytest.mark.parametrize("batch", [0, 5])
def test_bald_is_that_of_a_cpu(pairs, models, right, batch):
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        found = bald(pairs, models[GPU], GPU, batch=batch)
        balanced = bald(pairs, models[GPU], GPU, batch=batch, masks="balanced")
    assert np.abs(found - right).max() < 1e-5 < np.ptp(right) / 100
    assert np.abs(balanced - bald(pairs, models[CPU], CPU, masks="balanced")).max() < 1e-5


def test_float32_as_a_run_has_it(pairs, models, right, table):
    """With cuDNN's TensorFloat-32, whose products have 10 bits."""
    found = bald(pairs, models[GPU], GPU)
    table([f"float32 as a run has it: BALD within {np.abs(found - right).max():.1e} nats of a CPU's"])
    assert np.abs(found / right - 1).mean() < 0.01


@pytest.mark.skipif(not fast_at_bfloat16(GPU), reason="this GPU has no fast bfloat16")
def test_bfloat16_picks_the_images_of_float32(pairs, models, right, table):
    found = bald(pairs, models[GPU], GPU, precision="bfloat16")
    both = {*np.argsort(-found)[:BEST].tolist()} & {*np.argsort(-right)[:BEST].tolist()}
    error = np.abs(found / right - 1)
    table(
        [f"bfloat16: BALD off by {error.mean():.2%} on average, {error.max():.2%} at most, {len(both)} of {BEST} picks"]
    )
    assert error.mean() < 0.01 and error.max() < 0.05 and len(both) >= BEST - 2


@TORCHS_OWN
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_compiled_scores_are_those_of_the_network_itself(pairs, models, precision):
    """Batches of two sizes, a second look at the first ones, other weights: a captured graph has its own memory."""
    model = copy.deepcopy(models[GPU])
    pairs, atol = pairs[:13] + work.draw(3, 48, 48), 1e-5 if precision == "float32" else 2e-3
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        for masks in ("independent", "balanced", "independent"):
            found = [bald(pairs, model, GPU, compiled, precision, masks=masks, batch=5) for compiled in (True, False)]
            np.testing.assert_allclose(*found, atol=atol)
        with torch.no_grad():
            model.head.weight.mul_(2)
        others = [bald(pairs, model, GPU, compiled, precision, batch=5) for compiled in (True, False)]
    np.testing.assert_allclose(*others, atol=atol)
    assert np.abs(others[0] - found[0]).max() > 10 * atol


@TORCHS_OWN
@pytest.mark.parametrize("compiled", [False, True])
def test_a_step_of_training_is_that_of_a_cpu(pairs, compiled):
    """To a fifth: before batch norm gradients cancel, so that two and one thread of a CPU are 7 % apart."""
    moved = {}
    for device in (GPU, CPU):
        model, store = work.models(4, device)[1], work.store_of(pairs, device)
        before = {name: tensor.cpu().clone() for name, tensor in model.state_dict().items()}
        settings = dict(epochs=1, draws=1, batch=16, precision="float32", optimizer="sgd", lr=0.01)
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            with fast(**settings, compiled=compiled and device == GPU):
                trainer.fit(model, store, list(range(16)), None, work.PLACE, 64)
        moved[device] = {name: tensor.cpu() - before[name] for name, tensor in model.state_dict().items()}
    for name, change in moved[CPU].items():
        if change.is_floating_point() and change.norm() > 1e-4:
            assert (moved[GPU][name] - change).norm() < 0.2 * change.norm(), name


def test_images_that_do_not_fit_on_the_card_train_and_score_the_same(pairs, models, monkeypatch):
    pairs = pairs[:12] + work.draw(4, 48, 48)  # some smaller than the crop, which are padded
    held = work.store_of(pairs, GPU)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0, 0))
    beside = work.store_of(pairs, GPU)
    assert (held.pixels.device, beside.pixels.device) == (GPU, CPU)
    rows = torch.arange(16, device=GPU)
    with fast():
        drawn = {k: v.to(GPU) for k, v in augment.draw(n=16, rng=np.random.default_rng(0)).items()}
    for store in (held, beside):
        assert augment.inside(store, rows, drawn, 64, 64).device == GPU
    for ours, theirs in zip(
        augment.crops(beside, rows, drawn, 64, 64), augment.crops(held, rows, drawn, 64, 64), strict=True
    ):
        assert ours.device == GPU and torch.equal(ours, theirs)
    with fast(epochs=1):
        trainer.fit(copy.deepcopy(models[GPU]), beside, list(range(16)), beside, work.PLACE, 64)
    found = [work.bald_scores(work.pool_of(store, Network(models[GPU]), 3)) for store in (held, beside)]
    np.testing.assert_array_equal(*found)
    with work.configured(evaluation.ingredient):
        held, beside = (evaluation.evaluate(models[GPU], store, work.PLACE, 2)[0] for store in (held, beside))
    assert held == beside


def test_a_batch_beyond_the_cards_memory_is_halved(models):
    images = torch.randint(256, (64, 256, 256, 3), dtype=torch.uint8, device=GPU)
    ids, keys = [f"{i}" for i in range(64)], pass_keys(work.PLACE, "score", range(64), 2)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        whole = predict(Network(models[GPU]), images, ids, keys).mean
    total = torch.cuda.get_device_properties(GPU).total_memory
    torch.cuda.empty_cache()
    network = Network(models[GPU])
    try:
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved(GPU) + 2**29) / total)
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            parts = predict(network, images, ids, keys).mean
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert network.mc_chunk == 1  # it did run out
    torch.testing.assert_close(parts, whole, atol=1e-4, rtol=1e-4)


@pytest.fixture
def repeatable():
    yield {"trainer.deterministic": True, "device": "cuda:0"}
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("loss", ["dice_ce", "linear"])
def test_a_run_that_goes_on_is_that_of_an_undisturbed_one(smoke, tmp_path, repeatable, loss):
    repeatable |= {"trainer.loss": loss}
    for to in ("one", "two"):
        smoke(to=to, cycles=2, **repeatable)
    smoke(to="three", cycles=1, **repeatable)
    smoke(to="three", cycles=2, **repeatable)
    assert ledger_bytes(tmp_path / "one") == ledger_bytes(tmp_path / "two") == ledger_bytes(tmp_path / "three")
