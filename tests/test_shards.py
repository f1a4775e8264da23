"""A pool that is cut between its batches, and computed in shards by whichever process, has the bits that it has whole.

The workers of a real Ray cluster are in test_ray.py.
"""

from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from multiprocessing import get_context

import cloudpickle
import numpy as np
import pytest
from conftest import SMALL, ledger_bytes

from experiments.acquisition import shards
from experiments.errors import Refused
from experiments.store import Store

SIZES = [(64, 48), (32, 32), (64, 64)]
STRATEGIES = {
    "bald": {},
    "entropy": {"prediction.masks": "balanced", "prediction.race": True},
    "tta": {},
    "badge": {},
    "herding": {},
    "learning_loss": {},
}


@pytest.mark.parametrize("size", [0, 3, 8])
def test_a_shard_has_the_batches_that_it_was_cut_from(size):
    store = object.__new__(Store)
    store.device, rng = None, np.random.default_rng(size)
    store.device = type("", (), {"type": "cpu"})
    for n in (1, 7, 40):
        store.sizes = [SIZES[k] for k in rng.integers(0, 3, n)]
        indices = rng.permutation(n)[: n - n // 3].tolist()
        whole = [*store.parts(indices, size)]
        for count in (1, 2, 5, 100):
            parts = shards.cut(whole, store.sizes, count)
            assert [batch for part in parts for batch in store.parts(part, size)] == whole
            assert len(parts) <= count and sorted(sum(parts, [])) == sorted(indices)


@pytest.fixture(scope="module")
def process():
    """A process that knows nothing of the runs of this one."""
    with ProcessPoolExecutor(1, get_context("spawn")) as started:
        yield started


def from_bytes(asked, weights, work, *shard):
    """What a worker of Ray does."""
    from experiments.steps.shard import compute

    return compute(asked, weights, cloudpickle.loads(work), *shard)


@pytest.fixture
def sharded(smoke, monkeypatch):
    """sharded(elsewhere, **updates): one run whose pool is computed in four shards, the last one first."""
    from experiments.records import cluster as joined
    from experiments.steps import cluster, shard

    def run(process=None, wrong=0, **updates):
        class Shards(cluster.Workers):
            count, seen = 4, []

            def __call__(self, parts, work):
                self.seen.append(len(parts))
                work = cloudpickle.dumps(work)
                for number in reversed(range(len(parts))):
                    if process is None:
                        yield number, self.here(parts[number], cloudpickle.loads(work))
                        continue
                    asked, store = shard.asked_of(self.state), self.state.train
                    ids, sums = ([of[index] for index in parts[number]] for of in (store.ids, store.sums))
                    sums = [number + wrong for number in sums]
                    given = asked, cluster.weights_of(self.model()), work, self.cycle, ids, sums
                    yield number, process.submit(from_bytes, *given).result()

        monkeypatch.setattr(joined, "check", lambda address, typed: None)
        monkeypatch.setattr(cluster, "Workers", Shards)
        smoke(ray="auto", **updates)
        assert Shards.seen and min(Shards.seen) > 1
        monkeypatch.undo()

    return run


def table(tmp_path, results, heuristic):
    return (tmp_path / results / f"{heuristic}_0" / "queries" / "cycle_000.csv").read_bytes()


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """Where the runs leave their first cycle for one another."""
    return str(tmp_path_factory.mktemp("first"))


@pytest.mark.parametrize("heuristic", STRATEGIES)
def test_shards_change_no_bit(smoke, sharded, tmp_path, first, heuristic):
    more = STRATEGIES[heuristic] | {"heuristic": heuristic, "shared_dir": first}
    smoke(to="whole", **more)
    sharded(to="parts", **more)
    assert ledger_bytes(tmp_path / "parts", heuristic) == ledger_bytes(tmp_path / "whole", heuristic)
    assert table(tmp_path, "parts", heuristic) == table(tmp_path, "whole", heuristic)


@pytest.mark.parametrize("heuristic, more", [("bald", {}), ("coreset", {"model": "frozen"} | SMALL["frozen"])])
def test_another_process_computes_the_same_bits(smoke, sharded, process, tmp_path, first, heuristic, more):
    more = more | {"heuristic": heuristic, "shared_dir": first}
    smoke(to="whole", **more)
    sharded(process, to="parts", **more)
    assert ledger_bytes(tmp_path / "parts", heuristic) == ledger_bytes(tmp_path / "whole", heuristic)
    assert table(tmp_path, "parts", heuristic) == table(tmp_path, "whole", heuristic)


def test_a_worker_that_sees_other_images_or_makes_other_numbers_is_refused(sharded, process, first, monkeypatch):
    from experiments.steps import shard

    with pytest.raises(Refused, match="reads another image train_.*: all machines read the same folder"):
        sharded(process, wrong=1, shared_dir=first)
    asked_of = shard.asked_of
    monkeypatch.setattr(shard, "asked_of", lambda state: asked_of(state).replace('"torch": "', '"torch": "0.'))
    with pytest.raises(Refused, match="would compute with other versions than this machine: make them alike"):
        sharded(process, to="others", shared_dir=first)


def test_what_no_worker_computes_is_said(smoke, monkeypatch, capsys):
    from experiments.records import cluster

    monkeypatch.setattr(cluster, "check", lambda address, typed: None)
    smoke(ray="auto", heuristic="random")
    assert "heuristic=random asks for no shards: ray=auto had nothing to compute." in capsys.readouterr().out


@pytest.mark.skipif(find_spec("ray") is not None, reason="Ray is installed")
def test_without_ray_it_is_one_line(smoke):
    with pytest.raises(Refused, match="^ray=local needs Ray: pip install -r requirements-cluster.txt$"):
        smoke(ray="local")
