"""The pool of a run scored by the workers of a Ray cluster, in shards that are computed again where one is lost.

Weights are sent, and ids of images, which each worker reads itself: `shard.py`.
"""

import sys
from collections import Counter

import torch

from experiments.acquisition import querying, shards
from experiments.components import ROOT
from experiments.errors import Refused
from experiments.errors.process import stop_if_asked
from experiments.network import checkpoint
from experiments.records import cluster
from experiments.records.progress import say

EACH = 4  # shards for each worker: so little waits for the last one, and so little is lost with one
LOSSES = 3  # workers that a shard may lose before it is computed by the run itself


def weights_of(model):
    """The bytes of what training can change of a model, as a safetensors file has them."""
    from safetensors.torch import save  # needs torch at once

    return save({name: tensor.cpu().contiguous() for name, tensor in checkpoint.kept(model).items()})


class Workers:
    """Where the rows of a cycle's pool are computed, as `open_pool` takes it; `model()` gives the trained one."""

    def __init__(self, state, cycle, model):
        self.state, self.cycle, self.model = state, cycle, model
        self.address, self.cpus, self.remote = state.config["ray"], torch.get_num_threads(), None
        self.asked = ""  # what shard.py must know of the run, once there are shards

    @property
    def count(self):
        """How many shards suit the cluster as it is now, which is joined."""
        self.join()
        import ray

        has = ray.cluster_resources()
        fit = int(has.get("GPU", 0)) if self.gpus else int(has.get("CPU", 0) // self.cpus)
        if not fit:
            say(f"No machine of the cluster has {self.cpus} CPUs and {self.gpus} GPUs yet: waiting for one.")
        return EACH * max(1, fit)

    def join(self):
        """Join the cluster and send the weights, once."""
        if self.remote:
            return
        weights = weights_of(self.model())
        cluster.join(self.address, f"ray={self.address}", store=cluster.STORE + 2 * len(weights))
        import ray

        from experiments.steps.shard import asked_of  # needs torch at once

        def begin(root, work, asked, weights, *shard):  # by value, as it is nested: no machine has to know the project
            sys.path.insert(0, root)
            from experiments.errors import Refused
            from experiments.steps.shard import compute

            try:
                # code, as all that Ray sends, from this run alone: it opens once the project can be imported
                return compute(asked, weights, ray.cloudpickle.loads(work), *shard)
            except Refused as error:
                return str(error)

        self.gpus = int(self.state.train.device.type == "cuda")
        self.weights, self.asked = ray.put(weights), asked_of(self.state)
        self.remote = ray.remote(max_retries=0, num_cpus=self.cpus, num_gpus=self.gpus)(begin)

    def __call__(self, parts, work):
        """Yield (number, Answer) of the shards `parts` [indices in `train`] as they end. Raises Refused as they do."""
        import ray

        store, sent = self.state.train, ray.cloudpickle.dumps(work)
        say(f"Ray: {sum(map(len, parts))} images in {len(parts)} shards.")

        def begin(number):
            ids, sums = ([of[index] for index in parts[number]] for of in (store.ids, store.sums))
            return self.remote.remote(str(ROOT), sent, self.asked, self.weights, self.cycle, ids, sums)

        going, lost = {begin(number): number for number in range(len(parts))}, Counter()
        try:
            while going:
                stop_if_asked()
                for task in ray.wait(list(going), timeout=cluster.POLL)[0]:
                    number = going.pop(task)
                    answer = self.answer_of(task)
                    if answer is None:
                        lost[number] += 1
                        again = lost[number] < LOSSES
                        way = "again" if again else "by the run itself"
                        say(f"Ray: a worker was lost, and shard {number} of {len(parts)} is computed {way}.")
                        if again:
                            going[begin(number)] = number
                            continue
                        answer = self.here(parts[number], work)
                    yield number, answer
        finally:
            for task in going:
                ray.cancel(task)

    def answer_of(self, task):
        """The Answer of a task that has ended, None of one whose worker was lost. Raises Refused."""
        import ray

        try:
            answer = ray.get(task)
        except ray.exceptions.RayTaskError as error:  # as on a machine without the project
            raise Refused(f"ray={self.address}: {str(error).strip().splitlines()[-1]}") from error
        except ray.exceptions.RayError:
            return None
        if isinstance(answer, str):
            raise Refused(f"ray={self.address}: {answer}")
        return answer

    def here(self, part, work):
        """The Answer of a shard by this process."""
        return shards.answer(querying.pool_of(self.state, part, self.cycle, model=self.model), work)
