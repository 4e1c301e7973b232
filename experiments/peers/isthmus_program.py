"""isthmus: its allreduce on vectors, and its synchronous training."""

import warnings
from types import SimpleNamespace

import numpy as np
from measuring import read_task, run_task

if __name__ == "__main__":
    from mpi4py import MPI
    from threadpoolctl import threadpool_limits

    import isthmus
    from isthmus.collectives.alike import sums_alike
    from isthmus.compression import COMPRESSORS
    from isthmus.models import Perceptron
    from isthmus.registry import ALGORITHMS
    from isthmus.timing.choice import EXACT, choose_allreduce
    from isthmus.training.loop import State, Training
    from isthmus.training.optimisers.sgd import SGD
    from isthmus.training.recipe import Recipe
    from isthmus.training.strategies.strategy import Member

    class Isthmus:
        """The peer that `measuring` describes."""

        def __init__(self, tiers, program):
            self.tiers, self.program = tiers, program
            self.rank, self.size = tiers.world.rank, tiers.world.size
            self.scale = self.size

        def gather(self, numbers):
            everyone = np.empty((self.size, max(1, len(numbers))))
            self.tiers.world.Allgather(np.array(numbers or [0.0], np.float64), everyone)
            return everyone.tolist()

        def reducer(self, entries, weight=1.0):
            if self.program["algorithm"] == "auto":
                return isthmus.Allreduce(self.tiers, entries, **self.chosen(entries))
            compressor = dict(self.program["compressor"] or {})
            if compressor:
                compressor = COMPRESSORS[compressor.pop("kind")](**compressor)
            return isthmus.Allreduce(
                self.tiers, entries, self.program["algorithm"], compressor or None, weight=weight
            )

        def chosen(self, entries):
            """Return what "auto" takes for exact sums, MPI's own among them where its bits are equal."""
            alike = sums_alike(self.tiers, entries)
            names = [name for name in EXACT if alike or ALGORITHMS[name].own]
            with warnings.catch_warnings():  # beyond what calibration has measured
                warnings.simplefilter("ignore", UserWarning)
                choice = choose_allreduce(self.tiers.cluster, entries, algorithms=names)
            return {"algorithm": choice.best.algorithm, "chunk_nbytes": choice.best.chunk_nbytes}

        def learner(self, task):
            return Learner(self, task)

    class Learner:
        """isthmus' own training, a step at a time."""

        def __init__(self, peer, task):
            train, self.test = (
                isthmus.scatter_shards(
                    peer.tiers,
                    isthmus.ShardSet.open(part["folder"]),
                    SimpleNamespace(shards_of_rank=part["shards_of_rank"]),
                )
                for part in (task["train"], task["test"])
            )
            model = Perceptron(hidden=tuple(task["hidden"]))
            recipe = Recipe(**task["recipe"], optimiser=SGD(momentum=task["momentum"]))
            allreduce = peer.reducer(model.size, weight=float(train.samples))
            self.training = Training(
                peer.tiers, model, train, Member(allreduce), recipe, State.initial(model, recipe)
            )
            self.steps = self.training.steps()

        def make_step(self):
            next(self.steps)

        def accuracy(self):
            return float(self.training.evaluate(self.test)["accuracy"])

    task = read_task()
    cluster = isthmus.Cluster.from_toml(task["cluster"])
    with threadpool_limits(1), isthmus.split_tiers(MPI.COMM_WORLD, cluster) as tiers:
        run_task(Isthmus(tiers, task["program"]), task)
