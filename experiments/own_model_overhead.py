"""What a PyTorch model costs in the main job beside the same model in a plain loop of PyTorch.

    python experiments/own_model_overhead.py
    mpirun -n 4 python -m mpi4py experiments/own_model_overhead.py

The same batches in the same order, the same update (SGD with momentum, dense): a step of `isthmus
train` (`Training.steps`), and a step of a user's own loop. On one rank that loop has isthmus nowhere; on
several, in one site, it has `isthmus.torch.Shared`. Turns of both alternate, so that a busy machine
slows both; the ratio is the median of the turns' ratios. Adds a line to
data/measurements/own_model_overhead.jsonl.
"""

import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch
from mpi4py import MPI

import isthmus
from isthmus.json_text import dumps
from isthmus.links.world import barrier, maximum
from isthmus.models.own import make_own
from isthmus.provenance import process_provenance
from isthmus.shards.batches import LocalSamples
from isthmus.training.loop import State, Training
from isthmus.training.recipe import Recipe
from isthmus.training.strategies import Synchronous
from isthmus.training.strategies.sums import Sums

HERE = Path(__file__).resolve().parent
TURNS, STEPS, BATCH = 7, 10, 64
LEARNING_RATE, MOMENTUM = 0.05, 0.9


def samples(rank):
    """Return as many images of Fashion-MNIST as a rank has in a turn, other ones on each."""
    shards = isthmus.ShardSet.open(HERE.parent / "data/fashion_mnist/train")
    names = list(shards.arrays)
    arrays = {name: [] for name in names}
    needed = -(-STEPS * BATCH // shards.samples[0])
    for number in range(rank * needed, (rank + 1) * needed):
        for name in names:
            arrays[name] += list(shards.pieces(number, name))
    return LocalSamples({name: np.concatenate(parts)[: STEPS * BATCH] for name, parts in arrays.items()})


def job(tiers, local):
    """Return a generator that makes the steps of the main job, without end."""
    model = make_own("my_models:make_net", {}, folder=HERE, inputs=(1, 28, 28), threads=1)
    model.try_out(*local.arrays.values())
    recipe = Recipe(epochs=10**6, steps=STEPS, learning_rate=LEARNING_RATE)
    state = State.initial(model, recipe, np)
    sums = Sums(tiers, model.size, weight=float(local.samples), like=state.parameters)
    member = Synchronous().join(sums, recipe.total_steps)
    return Training(tiers, model, local, member, recipe, state).steps()


def own_loop(tiers, local):
    """Return a generator that makes the steps of a user's own loop, without end."""
    sys.path.insert(0, str(HERE))
    from my_models import make_net

    torch.manual_seed(0)
    net = make_net().train()
    if tiers.world.size > 1:
        isthmus.torch.Shared(net, tiers, weight=local.samples, buckets=1)
    optimiser = torch.optim.SGD(net.parameters(), LEARNING_RATE, MOMENTUM)
    epoch = 0
    while True:
        for features, targets in local.batches(steps=STEPS, epoch=epoch):
            values = torch.from_numpy(features).float().mul_(1 / 255).sub_(0.5)[:, None]
            optimiser.zero_grad()
            loss = torch.nn.functional.cross_entropy(net(values), torch.from_numpy(targets).long())
            loss.backward()
            optimiser.step()
            loss.item()
            yield
        epoch += 1


def seconds_a_step(world, steps):
    """Return the seconds of a step, from a turn of them, on the slowest rank."""
    barrier(world)
    start = time.perf_counter()
    for _ in range(STEPS):
        next(steps)
    return float(maximum(world, [time.perf_counter() - start])[0]) / STEPS


def main(comm):
    local = samples(comm.rank)
    one_site = {"name": "here", "tier": "cloud", "ranks": comm.size, "samples_per_second": 1e4}
    with isthmus.split_tiers(comm, isthmus.Cluster({"site": [one_site]})) as tiers:
        loops = {"job": job(tiers, local), "own": own_loop(tiers, local)}
        for steps in loops.values():
            seconds_a_step(tiers.world, steps)  # warm
        turns = [
            {name: seconds_a_step(tiers.world, loops[name]) for name in order}
            for order in [("job", "own"), ("own", "job")] * TURNS
        ]
    ratios = sorted(turn["job"] / turn["own"] for turn in turns)
    found = {
        "ratio": statistics.median(ratios),
        "quartiles": [ratios[len(ratios) // 4], ratios[3 * len(ratios) // 4]],
        "seconds_a_step": {name: statistics.median(turn[name] for turn in turns) for name in loops},
        "ranks": comm.size,
        "batch": BATCH,
        "turns": len(turns),
        "torch": torch.__version__,
    }
    if comm.rank:
        return
    print(dumps(found, indent=1))
    with open(HERE.parent / "data/measurements/own_model_overhead.jsonl", "a", encoding="utf-8") as file:
        file.write(dumps(found | process_provenance()) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(MPI.COMM_WORLD)
