"""Learned strategies: by hand, on sets where the answer is plain, and as part of runs that are cut off and go on."""

import math
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import events, ledger_bytes
from scipy import stats
from test_heuristics import drawn_passes, of_passes, pixel
from test_training import SIDE, make_model, make_store, same, scripted, weights

from experiments.acquisition.pool import Pool
from experiments.acquisition.predictor import Predictor
from experiments.components import defaults
from experiments.errors import Refused
from experiments.network.checkpoint import hash_weights, pack, unpack
from experiments.network.layers import layer_outputs
from experiments.records.ledger import Ledger
from experiments.store import IGNORE, Store
from experiments.training import augment, learned, trainer
from experiments.training.losses import LOSSES
from heuristics import ceal, entropy, learning_loss, least_confidence, margin, vaal
from models.unet import LAYERS

pytestmark = pytest.mark.usefixtures("single_thread")
CPU = torch.device("cpu")
PLACE = (0, "discs", 0)


@pytest.fixture
def attach(monkeypatch):
    """attach(module, ...): its captured functions get these settings, else defaults."""

    def attach(module, **updates):
        values = defaults(module.ingredient) | updates
        assert values.keys() == defaults(module.ingredient).keys()
        for function in module.ingredient.captured_functions:
            monkeypatch.setattr(function, "config", values)

    attach(augment)
    attach(trainer, epochs=2, draws=2, batch=4, lr=0.01, validate_every=1, precision="float32")
    return attach


def strategy(heuristic, model, unlabelled=(), place=PLACE):
    paths = LAYERS["encoder"] if hasattr(heuristic, "loss") else []
    learner = learned.prepare(heuristic, model, paths, 3, place, CPU)
    return learned.Strategy(heuristic, learner, paths, unlabelled, place)


def fit(model, train, val=None, labelled=(0, 1), **more):
    return trainer.fit(model, train, list(labelled), val, PLACE, SIDE, **more)


# ---- learning_loss


@pytest.mark.parametrize(
    ("predictions", "losses", "margin", "expected"),
    [
        ([0, 0, 0, 0], [4, 3, 2, 1], 1.0, 1),
        ([2, 0, 0, 0], [4, 3, 2, 1], 1.0, 1 / 2),  # of the pairs (4, 1) and (3, 2) the first is right
        ([2, 5, 0, 0], [4, 3, 2, 1], 1.0, 0),
        ([2, 5, 0, 0], [1, 2, 3, 4], 1.0, (3 + 6) / 2),
        ([2, 5, 0, 0], [1, 2, 3, 4], 0.0, (2 + 5) / 2),
        ([0.25, 5, 0, 0], [4, 3, 2, 1], 0.0, 0),
        ([0.25, 5, 0, 0], [4, 3, 2, 1], 1.0, 0.75 / 2),
        ([1, 0], [3, 3], 1.0, 2),  # a tie counts as the second having the larger loss
        ([2, 0, 100], [4, 3, 50], 1.0, 0),  # the odd one is left out
        ([7], [3], 1.0, 0),
    ],
)
def test_ranking_loss_by_hand(predictions, losses, margin, expected):
    got = learning_loss.ranking_loss(torch.tensor(predictions).float(), torch.tensor(losses).float(), margin)
    assert got.item() == pytest.approx(expected)


@pytest.mark.parametrize("n", [2, 8, 9])
def test_ranking_loss_is_torchs_over_the_pairs_of_the_paper(n):
    drawn = torch.Generator().manual_seed(n)
    predictions, losses = torch.randn(n, generator=drawn), torch.rand(n, generator=drawn)
    half = n // 2
    i, j = torch.arange(half), 2 * half - 1 - torch.arange(half)
    sign = (losses[i] - losses[j]).sign()
    expected = torch.nn.functional.margin_ranking_loss(predictions[i], predictions[j], sign, margin=0.3)
    torch.testing.assert_close(learning_loss.ranking_loss(predictions, losses, 0.3), expected)


@pytest.mark.parametrize(("done", "felt"), [(0.0, True), (0.5, True), (0.6, False), (0.9, False)])
def test_the_model_feels_the_ranking_loss_in_a_share_of_the_training_and_the_targets_never(attach, done, felt):
    attach(learning_loss)
    learner = learning_loss.prepare(channels=3, widths=[5, 2], rng=None)
    maps = [torch.rand(4, width, 6, 3, requires_grad=True) for width in (5, 2)]
    losses = torch.rand(4, requires_grad=True)
    learning_loss.loss(learner=learner, maps=maps, losses=losses, done=done).backward()
    assert [m.grad is not None for m in maps] == [felt, felt] and losses.grad is None
    assert all(p.grad is not None for p in learner.parameters())


def test_weight_scales_the_ranking_loss(attach):
    attach(learning_loss)
    learner = learning_loss.prepare(channels=3, widths=[4], rng=None)
    given = dict(learner=learner, maps=[torch.rand(4, 4, 3, 3)], losses=torch.rand(4), done=0)
    assert learning_loss.loss(**given, weight=3.0).item() == pytest.approx(3 * learning_loss.loss(**given).item())


def test_the_module_learns_which_image_has_the_larger_loss(attach):
    attach(learning_loss, lr=0.05)
    torch.manual_seed(0)
    learner = learning_loss.prepare(channels=3, widths=[3, 4], rng=None)

    def batch(n):
        maps = [torch.rand(n, width, 5, 6) for width in (3, 4)]
        return maps, (maps[0][:, 1] - 2 * maps[1][:, 3, :, :5].permute(0, 2, 1)[:, :5].mean((1, 2), keepdim=True)).mean(
            (1, 2)
        )

    for _ in range(300):
        maps, losses = batch(16)
        learning_loss.loss(learner=learner, maps=maps, losses=losses, done=1.0).backward()
        learning_loss.step(learner=learner)
    maps, losses = batch(200)
    predicted = learning_loss.predicted(learner, torch.cat([m.mean((2, 3)) for m in maps], 1))
    assert stats.spearmanr(predicted.detach(), losses).statistic > 0.8


def test_each_optimizer_steps_its_own_parameters_once_a_batch(attach, monkeypatch):
    attach(learning_loss)
    model, _ = make_model()
    taught, made = strategy(learning_loss, model), []
    real = trainer.make_optimizer
    monkeypatch.setattr(trainer, "make_optimizer", lambda *a, **more: made.append(real(*a, **more)) or made[-1])
    before, counted, step = weights(taught.learner), [], taught.learner.optimizer.step
    monkeypatch.setattr(taught.learner.optimizer, "step", lambda: counted.append(step()))
    fit(model, make_store([0, 1, 2]), labelled=(0, 1, 2), strategy=taught)
    assert len(counted) == 2 * math.ceil(3 * 2 / 4)
    held = {id(p) for group in made[0][0].param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters()}
    own = {id(p) for group in taught.learner.optimizer.param_groups for p in group["params"]}
    assert own == {id(p) for p in taught.learner.parameters()} and not own & held
    assert not same(weights(taught.learner), before)


def test_the_prediction_for_an_image_is_that_of_its_maps_means(attach):
    attach(learning_loss)
    model, _ = make_model()
    taught, image = strategy(learning_loss, model), torch.randint(256, (1, 48, 40, 3), dtype=torch.uint8)
    predictor = Predictor(lambda: model, lambda: model, LAYERS, PLACE, 1, {})
    pool = Pool(["a"], [""], lambda: [([0], image)], predictor, learner=taught.learner.eval())
    with layer_outputs(model.eval(), LAYERS["encoder"]) as maps, torch.no_grad():
        model(image.permute(0, 3, 1, 2) / 255)
        expected = learning_loss.predicted(taught.learner, torch.cat([m.mean((2, 3)) for m in maps()], 1))
    np.testing.assert_allclose(learning_loss.score(pool=pool, rng=None), expected.numpy(), rtol=1e-4)


def test_a_learner_that_saw_the_maps_goes_back_to_the_best_epoch_with_the_model(attach, monkeypatch):
    attach(learning_loss)
    attach(trainer, epochs=4, draws=2, batch=4, lr=0.01, validate_every=1, precision="float32")
    model, _ = make_model()
    taught, seen = strategy(learning_loss, model), []
    scripted(monkeypatch, model, loss=[3, 1, 2, 4])
    validate = trainer.validate
    monkeypatch.setattr(trainer, "validate", lambda *a: seen.append(weights(taught.learner)) or validate(*a))
    fit(model, make_store([0, 1]), make_store([5]), strategy=taught)
    assert same(weights(taught.learner), seen[1]) and not same(seen[1], seen[3])


# ---- vaal


def small(attach, **updates):
    attach(vaal, **({"size": 16, "width": 4, "latent": 8} | updates))


def drawn(low, high, n=6, side=32, seed=0):
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.uniform(low, high, (n, 3, side, side)).astype(np.float32))


def make_vaal(seed=0):
    torch.manual_seed(seed)
    return vaal.prepare(channels=3, widths=[], rng=np.random.default_rng(seed))


def test_the_divergence_is_torchs_per_dimension_whatever_the_batch():
    mean, log_variance = torch.randn(5, 7), torch.randn(5, 7)
    normal = torch.distributions.Normal(mean, (log_variance / 2).exp())
    expected = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0, 1)).mean()
    torch.testing.assert_close(vaal.divergence(mean, log_variance), expected)
    twice = vaal.divergence(mean.repeat(2, 2), log_variance.repeat(2, 2))
    torch.testing.assert_close(twice, expected)


def test_the_discriminator_is_to_call_the_labelled_1_and_the_others_0(attach):
    small(attach)
    learner, x = make_vaal().eval(), drawn(0, 1, side=16)
    odds = learner["discriminator"](vaal.latent_means(learner, x))[:, 0]
    softplus = torch.nn.functional.softplus
    expected = softplus(-odds[:2]).mean() + softplus(odds[2:]).mean()
    loss = vaal.discriminator_loss(learner, x, 2)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert all(p.grad is None for p in learner["encoder"].parameters())
    for _ in range(20):
        vaal.update(learner, learner.optimizer, vaal.discriminator_loss(learner, x, 2))
    assert vaal.discriminator_loss(learner, x, 2) < loss


def test_the_vae_learns_to_have_all_images_called_labelled(attach):
    """Its target is 1 for both: it raises the odds of every image, and trains no discriminator."""
    small(attach, lr=1e-3)
    learner, x = make_vaal(), drawn(0, 1, side=16)

    def odds():
        return learner["discriminator"](vaal.latent_means(learner, x)).detach()[:, 0]

    before, judge = odds(), weights(learner["discriminator"])
    for _ in range(5):
        vaal.update(learner, learner.vae_optimizer, vaal.vae_loss(learner, x, 0.0, 10.0))
    assert (odds() > before).all() and same(weights(learner["discriminator"]), judge)


def test_the_vae_loss_is_the_sum_of_its_three_parts(attach):
    small(attach)
    learner, x = make_vaal().eval(), drawn(0, 1, side=16)

    def loss(beta, adversary):
        learner.rng = np.random.default_rng(3)
        return vaal.vae_loss(learner, x, beta, adversary)

    hidden = learner["encoder"](x)
    divergence = vaal.divergence(learner["mean"](hidden), learner["log_variance"](hidden))
    deceived = torch.nn.functional.softplus(-learner["discriminator"](learner["mean"](hidden))).mean()
    torch.testing.assert_close(loss(2.0, 0.0) - loss(0.0, 0.0), 2 * divergence, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(loss(0.0, 3.0) - loss(0.0, 0.0), 3 * deceived, atol=1e-6, rtol=1e-4)
    learner["log_variance"].weight.data.zero_()
    learner["log_variance"].bias.data.fill_(-100)  # no noise
    decoded = learner["decoder"](learner["mean"](hidden))
    torch.testing.assert_close(loss(0.0, 0.0), (decoded - x).square().mean())


def trained_on_dark(steps=60):
    learner = make_vaal()
    for k in range(steps):
        vaal.step(learner=learner, labelled=drawn(0, 0.4, seed=k), unlabelled=drawn(0.6, 1, seed=1000 + k))
    return learner.eval()


def test_images_unlike_the_labelled_ones_come_first(attach):
    """Labelled images are dark, those of the pool mostly bright: the discriminator tells them apart."""
    small(attach)
    learner = trained_on_dark()
    images = torch.cat([drawn(0, 0.4, 20, seed=7), drawn(0.6, 1, 20, seed=8)])
    shown = images.mul(255).byte().permute(0, 2, 3, 1)
    order = np.random.default_rng(1).permutation(40)
    pool = Pool([f"im{i}" for i in order], [""] * 40, lambda: [(range(40), shown[order])], learner=learner)
    scores = vaal.score(pool=pool, rng=None)
    bright = order >= 20
    assert stats.mannwhitneyu(scores[bright], scores[~bright]).statistic / 400 > 0.95
    told = (learner["discriminator"](vaal.latent_means(learner, vaal.shrunk(images, 16)))[:, 0] < 0).numpy()
    assert (told == (np.arange(40) >= 20)).mean() > 0.75


def test_vaal_repeats_and_its_noise_comes_from_its_own_draws(attach):
    small(attach)
    one = weights(trained_on_dark(2))
    torch.rand(5)
    assert same(one, weights(trained_on_dark(2)))


@pytest.mark.parametrize(
    ("length", "window", "expected"),
    [(10, 10, [0]), (10, 20, [0]), (20, 10, [0, 10]), (25, 10, [0, 8, 15]), (11, 10, [0, 1])],
)
def test_windows_are_the_fewest_that_cover_a_length(length, window, expected):
    assert vaal.starts(max(length, window), window) == expected


def test_windows_of_images_and_zeros_beyond_them():
    x = torch.arange(2 * 3 * 5 * 4).view(2, 3, 5, 4)
    seen = vaal.windows(x, 3, 6)
    assert seen.shape == (4, 3, 3, 6) and (seen[..., 4:] == 0).all()
    assert torch.equal(seen[2, :, :, :4], x[1, :, :3]) and torch.equal(seen[3, :, :, :4], x[1, :, 2:])


def test_an_image_is_scored_by_windows_as_large_as_the_crops(attach):
    """An image of four equal quarters has the score of one of them."""
    small(attach)
    learner, quarter = trained_on_dark(2), drawn(0, 1, 1, seed=3).mul(255).byte().permute(0, 2, 3, 1)
    assert learner.window.tolist() == [32, 32]
    scores = [
        vaal.score(pool=Pool(["a"], [""], lambda image=image: [([0], image)], learner=learner), rng=None)[0]
        for image in (quarter, quarter.repeat(1, 2, 2, 1))
    ]
    assert scores[0] == pytest.approx(scores[1], rel=1e-5)


def test_the_crops_of_the_pool_leave_the_training_of_the_model_as_it_is(attach):
    """The same weights bit for bit, the labelled crops as they are, the pool's drawn from unlabelled images alone."""
    small(attach)
    plain, seen = make_model()[0], []
    fit(plain, make_store(range(5)))
    model, _ = make_model()
    watcher = SimpleNamespace(
        prepare=vaal.prepare, step=lambda learner, labelled, unlabelled: seen.append((labelled, unlabelled))
    )
    store = make_store(range(5), labelled=[0, 1])
    store.image(4).fill_(255)
    fit(model, store, strategy=strategy(watcher, model, [4]))
    assert same(weights(model), weights(plain))
    assert len(seen) == 2 and all(a.shape == b.shape == (4, 3, SIDE, SIDE) for a, b in seen)
    assert all(0 <= crops.min() and crops.max() <= 1 for pair in seen for crops in pair)
    assert (store.mask(4) == IGNORE).all()
    for _, unlabelled in seen:
        assert (unlabelled.amax((2, 3)) - unlabelled.amin((2, 3)) < 1e-6).all()  # the white image, coloured
    assert not torch.equal(seen[0][1], seen[1][1])


def test_an_empty_pool_teaches_vaal_nothing_and_learning_loss_all_the_same(attach):
    small(attach)
    attach(learning_loss)
    for heuristic, learns in ((vaal, False), (learning_loss, True)):
        model, _ = make_model()
        taught = strategy(heuristic, model)
        before = weights(taught.learner)
        fit(model, make_store([0, 1]), strategy=taught)
        assert same(weights(taught.learner), before) != learns


# ---- the engine


def test_a_learner_is_the_same_for_a_cycle_and_touches_no_other_draw(attach):
    small(attach)
    model, _ = make_model()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one = strategy(vaal, model).learner
    assert torch.equal(torch.rand(3), expected)
    assert same(weights(one), weights(strategy(vaal, model).learner))
    assert not same(weights(one), weights(strategy(vaal, model, place=(0, "discs", 1)).learner))


def test_a_checkpoint_is_unpacked_as_it_was_packed():
    model, learner = torch.nn.Linear(2, 3), torch.nn.Linear(3, 1)
    own, more = unpack(pack(model, learner))
    assert same(own, model.state_dict()) and same(more, learner.state_dict())
    assert own.keys() == model.state_dict().keys() and more.keys() == learner.state_dict().keys()
    assert pack(model, None).keys() == own.keys()


# ---- ceal


def bits(p):
    return -sum(x * math.log2(x) for x in p if x)


@pytest.mark.parametrize(
    ("p", "threshold", "expected"),
    [
        ((0.9, 0.1), 0.47, 0),  # 0.469 bits, which are 0.325 nats
        ((0.9, 0.1), 0.46, IGNORE),
        ((0.1, 0.9), 0.47, 1),
        ((0.1, 0.9), 0.33, IGNORE),
        ((0.5, 0.5), 1.0, IGNORE),
        ((0.0, 0.0, 1.0), 1e-9, 2),
        ((0.2, 0.3, 0.5), 1.5, 2),  # 1.485 bits
        ((0.2, 0.3, 0.5), 1.4, IGNORE),
    ],
)
def test_a_pixel_of_less_entropy_than_the_threshold_is_taken_as_it_is(p, threshold, expected):
    assert (bits(p) < threshold) == (expected != IGNORE)
    got = ceal.confident(torch.tensor(p).view(1, -1, 1, 1), threshold)
    assert got.dtype == torch.uint8 and got.shape == (1, 1, 1) and got.item() == expected


def labels(attach, cycle, **updates):
    """What ceal makes of images whose pixels have 0.011, 0.025 and 1 bit."""
    attach(ceal, **updates)
    p = torch.tensor([0.999, 0.9975, 0.5]).view(3, 1, 1, 1)
    prediction, sources = of_passes(torch.cat([p, 1 - p], 1)[None]), []
    predictor = SimpleNamespace(predict=lambda images, ids, source, *rest: sources.append(source) or (prediction, 1))
    found = list(ceal.pseudo_labels(pool=Pool("abc", "   ", lambda: [([2, 0, 1], None)], predictor, cycle=cycle)))
    assert sources == ["deterministic"] * len(found)
    return [masks.flatten().tolist() for positions, masks in found if positions == [2, 0, 1]]


def test_the_threshold_falls_with_every_query_until_nothing_is_labelled(attach):
    assert labels(attach, 0) == [[0, 0, IGNORE]]
    assert labels(attach, 1) == [[0, 0, IGNORE]]  # .025685
    assert labels(attach, 2) == [[0, IGNORE, IGNORE]]  # .02387
    assert labels(attach, 8) == [[0, IGNORE, IGNORE]]  # .01298
    assert labels(attach, 10) == [[IGNORE] * 3]  # .00935
    assert labels(attach, 16) == []  # below 0
    assert labels(attach, 16, decay=0.0) == [[0, 0, IGNORE]]


def test_criteria_are_the_heuristics_of_these_names():
    prediction = of_passes(drawn_passes()[1])
    for name, heuristic in (("least_confidence", least_confidence), ("margin", margin), ("entropy", entropy)):
        torch.testing.assert_close(
            ceal.uncertainty(prediction=prediction, criterion=name), heuristic.uncertainty(prediction)
        )
    three = pixel((0.2, 0.5, 0.3))
    got = [ceal.uncertainty(prediction=three, criterion=name).item() for name in ceal.CRITERIA]
    assert got == pytest.approx([0.5, 0.8, bits((0.2, 0.5, 0.3)) * math.log(2)])


@pytest.mark.parametrize(("share", "added"), [(1.0, 6), (0.5, 2), (0.0, 0), (9.0, 6)])
def test_pseudo_labelled_crops_are_added_to_the_labelled_ones_up_to_a_share(attach, monkeypatch, share, added):
    """Two labelled images in 2 draws each and 3 others: at most 6 crops, or the share of 4."""
    shown, crops = [], augment.crops
    monkeypatch.setattr(augment, "crops", lambda store, indices, *a: shown.append(indices) or crops(store, indices, *a))
    attach(trainer, epochs=1, draws=2, batch=4, precision="float32")
    added = min(added, round(share * 4))
    fit(make_model()[0], make_store(range(5)), labelled=(0, 2), pseudo=[1, 3, 4], pseudo_crops=share)
    counts = torch.cat(shown).bincount(minlength=5)
    assert counts[[0, 2]].tolist() == [2, 2] and counts.sum() == 4 + added and counts.max() == 2
    assert [len(part) for part in shown] == [len(part) for part in np.array_split(range(4 + added), len(shown))]


# ---- whole runs

TINY = {"vaal": {"size": 16, "width": 4}, "ceal": {"threshold": 2.0}, "learning_loss": {"lr": 0.01}}


@pytest.fixture(scope="module")
def finished(tmp_path_factory, phantom_root, experiment):
    """finished(heuristic): the results folder of an undisturbed run with two queries. Do not write."""
    from conftest import settings

    made = {}

    def finished(heuristic):
        if heuristic not in made:
            made[heuristic] = tmp_path_factory.mktemp(heuristic)
            updates = {"heuristic": heuristic, heuristic: TINY[heuristic], "cycles": 2, "checkpoint": "all"}
            experiment.run(config_updates=settings(phantom_root, made[heuristic], **updates), named_configs=["smoke"])
        return made[heuristic]

    return finished


def checkpoint(results, label, cycle):
    from safetensors.torch import load_file

    return load_file(results / f"{label}_0" / "checkpoint" / f"cycle_{cycle:03d}.safetensors")


@pytest.mark.parametrize("heuristic", TINY)
def test_a_run_that_crashes_after_every_event_ends_as_one_that_does_not(
    smoke, finished, tmp_path, monkeypatch, heuristic
):
    class Crash(Exception):
        pass

    def append(book, *args, **values):
        real(book, *args, **values)
        raise Crash

    expected, real, crashes = finished(heuristic), Ledger.append, 0
    monkeypatch.setattr(Ledger, "append", append)
    while crashes < 10:
        try:
            smoke(cycles=2, heuristic=heuristic, **{heuristic: TINY[heuristic]})
            break
        except Crash:
            crashes += 1
    assert crashes == 6
    assert ledger_bytes(tmp_path / "results", heuristic) == ledger_bytes(expected, heuristic)
    assert same(checkpoint(tmp_path / "results", heuristic, 2), checkpoint(expected, heuristic, 2))


def test_a_run_that_dies_before_an_evaluation_is_written_still_has_the_weights_that_it_went_on_from(
    smoke, finished, tmp_path, monkeypatch
):
    real = Ledger.append

    def append(book, event, cycle=0, **values):
        if (event, cycle) == ("evaluated", 1):
            raise KeyboardInterrupt
        return real(book, event, cycle, **values)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Ledger, "append", append)
        smoke(cycles=2, heuristic="ceal", ceal=TINY["ceal"])
    smoke(cycles=2, heuristic="ceal", ceal=TINY["ceal"])
    assert ledger_bytes(tmp_path / "results", "ceal") == ledger_bytes(finished("ceal"), "ceal")


def test_vaal_and_ceal_start_as_every_other_strategy_and_learning_loss_says_that_it_does_not(
    smoke, finished, longer, capsys
):
    first = events(longer)[1]
    for heuristic in ("vaal", "ceal"):
        event = events(finished(heuristic), heuristic)[1]
        assert event["metrics"] == first["metrics"] and event["per_image"] == first["per_image"]
        own, more = unpack(checkpoint(finished(heuristic), heuristic, 0))
        assert hash_weights(own) == first["weights"] and bool(more) == (heuristic == "vaal")
    joint = events(finished("learning_loss"), "learning_loss")[1]
    assert joint["weights"] != first["weights"]
    capsys.readouterr()
    for heuristic, said in (("learning_loss", True), ("vaal", False), ("ceal", False)):
        smoke(heuristic=heuristic, to=heuristic, cycles=0, **{heuristic: TINY[heuristic]})
        assert ("its first Dice is not paired with others'" in capsys.readouterr().out) == said


def test_a_lost_checkpoint_of_a_learner_is_trained_again(smoke, finished, tmp_path):
    shutil.copytree(finished("learning_loss"), tmp_path / "results")
    folder = tmp_path / "results" / "learning_loss_0"
    lines = (folder / "ledger.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "ledger.jsonl").write_bytes(b"".join(lines[:4]))  # up to the second evaluation
    (folder / "checkpoint" / "cycle_001.safetensors").unlink()
    smoke(cycles=2, heuristic="learning_loss", learning_loss=TINY["learning_loss"])
    assert ledger_bytes(tmp_path / "results", "learning_loss") == b"".join(lines)


def test_pseudo_labels_need_the_last_weights(smoke, finished, tmp_path):
    with pytest.raises(Refused, match="heuristic=ceal goes on from saved weights: set checkpoint=last"):
        smoke(heuristic="ceal", checkpoint="none")
    shutil.copytree(finished("ceal"), tmp_path / "results")
    folder = tmp_path / "results" / "ceal_0"
    lines = (folder / "ledger.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "ledger.jsonl").write_bytes(b"".join(lines[:3]))
    (folder / "checkpoint" / "cycle_000.safetensors").unlink()
    with pytest.raises(Refused, match="weights of cycle 0 .* are gone"):
        smoke(cycles=2, heuristic="ceal", ceal=TINY["ceal"])


def test_pseudo_labels_are_there_in_training_and_nowhere_else(smoke, monkeypatch, tmp_path, capsys):
    """All pixels are sure enough here: every image that is left of the pool is trained on, but never paid for."""
    seen, stores, real = [], [], trainer.fit

    def fit(model, train, labelled, *rest, pseudo=(), **more):
        stores.append(train)
        masked = [i for i in range(len(train)) if (train.mask(i) != IGNORE).any()]
        assert sorted([*labelled, *pseudo]) == masked
        assert all((train.mask(i) != IGNORE).all() and train.mask(i).max() <= 1 for i in pseudo)
        seen.append((len(labelled), len(pseudo)))
        if len(seen) == 3:
            raise KeyboardInterrupt
        return real(model, train, labelled, *rest, pseudo=pseudo, **more)

    monkeypatch.setattr(trainer, "fit", fit)
    with pytest.raises(KeyboardInterrupt):
        smoke(cycles=2, heuristic="ceal", ceal={"threshold": 2.0})
    assert seen == [(2, 0), (4, 12), (6, 10)]
    assert "cycle 1/2: 12 of 12 images pseudo-labelled" in capsys.readouterr().out
    store = stores[0]
    assert sum(bool((store.mask(i) != IGNORE).any()) for i in range(len(store))) == 6  # the labelled ones, after all
    for event in events(tmp_path / "results", "ceal")[1::2]:
        assert event["images"] + event["pool"] == 16
        assert event["pixels"] == sum(store.mask(i).numel() for i in labelled_first(store, tmp_path, event["images"]))
    table = (tmp_path / "results/ceal_0/queries/cycle_001.csv").read_text().splitlines()
    assert len(table) == 1 + 12  # the next query looks at them as at any other


def labelled_first(store, tmp_path, count):
    asked = [q["id"] for e in events(tmp_path / "results", "ceal") for q in e.get("queries", [])]
    return [store.ids.index(id) for id in asked[:count]]


def test_pseudo_labels_teach_in_the_cycles_after_the_first(smoke, finished, tmp_path):
    smoke(cycles=2, heuristic="ceal", ceal=TINY["ceal"] | {"pseudo_crops": 0.0})
    without, taught = events(tmp_path / "results", "ceal"), events(finished("ceal"), "ceal")
    assert without[1]["weights"] == taught[1]["weights"] and without[2]["queries"] == taught[2]["queries"]
    assert without[3]["weights"] != taught[3]["weights"]


@pytest.mark.parametrize("heuristic", TINY)
def test_no_mask_of_the_pool_is_opened(smoke, monkeypatch, tmp_path, heuristic):
    opened, real = [], Store._open_mask
    monkeypatch.setattr(Store, "_open_mask", lambda store, i: opened.append(store.ids[i]) or real(store, i))
    smoke(cycles=1, heuristic=heuristic, **{heuristic: TINY[heuristic]})
    found = events(tmp_path / "results", heuristic)
    paid = [q["id"] for e in found for q in e.get("queries", [])]
    assert len(paid) == 4 and opened[-4:] == paid
    assert len(opened) == 5 + 4 + len(paid)  # those of the validation and the test come first


def test_a_checkpoint_with_a_learner_can_be_looked_through_for_features(finished):
    """Features of other weights: those of the model in it."""
    model, _ = make_model()
    path = finished("vaal") / "vaal_0" / "checkpoint" / "cycle_001.safetensors"
    own, _ = unpack(checkpoint(finished("vaal"), "vaal", 1))
    image = torch.randint(256, (1, 48, 48, 3), dtype=torch.uint8)
    predictor = Predictor(lambda: model, lambda: model, LAYERS, PLACE, 1, {})
    got = predictor.maps(image, "bottleneck", str(path))
    model.load_state_dict(own)
    assert torch.equal(
        got[0], Predictor(lambda: model, lambda: model, LAYERS, PLACE, 1, {}).maps(image, "bottleneck")[0]
    )


def test_losses_take_a_crop_without_any_pseudo_label():
    """A crop may miss all the pixels that were sure: it must not spoil the step."""
    logits = torch.randn(2, 2, 8, 8, requires_grad=True)
    masks = torch.full((2, 8, 8), IGNORE, dtype=torch.uint8)
    masks[0, :4] = 1
    for loss in LOSSES.values():
        value = loss(logits, masks).mean()
        value.backward()
        assert value.isfinite() and logits.grad.isfinite().all() and (logits.grad[1] == 0).all()
