"""What each rank runs for `epochs.run_epochs`: bring the data, train, and tell how long each took."""

import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np

PATIENCE_SECONDS = 0.5  # more than a number takes over the links

if __name__ == "__main__":
    from mpi4py import MPI
    from threadpoolctl import threadpool_limits

    import isthmus
    from isthmus.benchmarking.options import named_compressor
    from isthmus.links.tiers import tiers_of_file
    from isthmus.models import Perceptron
    from isthmus.training.loop import State, Training
    from isthmus.training.recipe import Recipe
    from isthmus.training.replicas import Replicas
    from isthmus.training.strategies.strategy import Member

    def time_plans(tiers, task):
        """Yield a result for each plan, in turn: the slowest rank's seconds, from one instant on all."""
        shards = isthmus.ShardSet.open(task["data"])
        sees = task["data_site"] in (None, tiers.site_name)
        first = next(iter(task["plans"].values()))
        warm_up = training_of(tiers, task, scatter(tiers, shards, first)).steps()
        for _ in range(3):  # compiles, and opens connections
            next(warm_up)
        tiers.world.Alltoall(np.zeros(tiers.world.size), np.empty(tiers.world.size))
        for name, shards_of_rank in task["plans"].items():
            start = instant(tiers.world)
            local = scatter(tiers, shards if sees else None, shards_of_rank)
            staging = slowest(tiers.world, time.monotonic() - start)
            training = training_of(tiers, task, local)
            start = instant(tiers.world)
            for _ in training.steps():
                pass
            seconds = slowest(tiers.world, time.monotonic() - start)
            yield {
                "plan": name,
                "epochs": task["epochs"],
                "steps": training.state.step,
                "epoch_seconds": seconds / task["epochs"],
                "staging_seconds": staging,
                "samples_of_rank": samples_of(tiers.world, local.samples),
                "parameter_hash": Replicas(training).compare(),
            }

    def scatter(tiers, shards, shards_of_rank):
        return isthmus.scatter_shards(tiers, shards, SimpleNamespace(shards_of_rank=shards_of_rank))

    def training_of(tiers, task, local):
        """Return a training from the same start whatever the plan, held to the cluster file's rates."""
        site, rate = tiers.cluster.sites[tiers.site_index], tiers.cluster.rates[tiers.world.rank]
        model = Perceptron(hidden=tuple(task["hidden"]))
        recipe = Recipe(
            task["epochs"],
            task["steps"],
            task["learning_rate"],
            compare_replicas_every=task["epochs"] * task["steps"] + 1,
        )
        allreduce = isthmus.Allreduce(
            tiers,
            model.size,
            "hierarchical",
            named_compressor(task["compressor"]),
            weight=float(local.samples),
        )
        return Training(
            tiers,
            model,
            local,
            Member(allreduce),
            recipe,
            State.initial(model, recipe),
            lambda samples: site.fixed_seconds + samples / rate,
        )

    def instant(world):
        """Return the instant that it now is on every rank; being on one machine, all read one clock.

        From a barrier ranks would go up to a link's latency apart.
        """
        start = slowest(world, time.monotonic()) + PATIENCE_SECONDS
        time.sleep(max(0.0, start - time.monotonic()))
        return start

    def slowest(world, seconds):
        most = np.empty(1)
        world.Allreduce(np.array([seconds]), most, MPI.MAX)
        return round(float(most[0]), 6)

    def samples_of(world, samples):
        everyone = np.empty(world.size)
        world.Allgather(np.array([float(samples)]), everyone)
        return everyone.astype(int).tolist()

    task = json.loads(Path(sys.argv[1]).read_text())
    with (
        threadpool_limits(1),
        tiers_of_file(MPI.COMM_WORLD, task["cluster"], paced=task["links"] == "paced") as tiers,
    ):
        for result in time_plans(tiers, task):
            if tiers.world.rank == tiers.home:
                print(json.dumps(result), flush=True)
