"""The document's trainer in a PyTorch loop of one's own, over cloud and edge.

    mpirun -n 4 python -m mpi4py experiments/cases/digits_loop.py        once the digits are packed

Prints the accuracy on the held-out digits, and the bytes over the link: counted, and by the formula.
"""

import json
from pathlib import Path

import torch
from mpi4py import MPI

import isthmus

HERE = Path(__file__).resolve().parent
DIGITS = HERE.parent.parent / "runs/cases/case_1_distributed_trainer/digits"
BATCH_SIZE, EPOCHS, LEARNING_RATE, SEED = 32, 10, 0.001, 0  # as in the document
PIXEL_MEAN, PIXEL_DEVIATION = 5.0, 6.0


def main():
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
    cluster, compressor = isthmus.Cluster.from_toml(HERE / "cloud_edge.toml"), isthmus.Int8()
    shards = isthmus.ShardSet.open(DIGITS)
    size = sum(each.numel() for each in model.parameters())
    plan = isthmus.plan_shards(
        cluster, shards, isthmus.Workload(size, BATCH_SIZE, compressor=compressor)
    )
    with isthmus.split_tiers(MPI.COMM_WORLD, cluster) as tiers:
        local = isthmus.scatter_shards(tiers, shards, plan)
        shared = isthmus.torch.Shared(model, tiers.paced(), compressor=compressor)
        optimizer = torch.optim.Adam(model.parameters(), LEARNING_RATE)
        steps = 0
        for epoch in range(EPOCHS):
            for features, targets in isthmus.torch.batches(local, SEED, epoch, steps=plan.steps):
                shared.weight = len(targets)
                optimizer.zero_grad()
                if len(targets):
                    loss = torch.nn.functional.cross_entropy(model(scaled(features)), targets)
                    loss.backward()
                else:
                    shared.finish()
                optimizer.step()
                steps += 1
        if tiers.world.rank == 0:
            sent, once = shared.sent_nbytes["link"], shared.predicted_nbytes()["link"]
            print(json.dumps(told(model) | {"sent": sent, "predicted": steps * once}))


def scaled(features):
    return (features - PIXEL_MEAN) / PIXEL_DEVIATION


@torch.no_grad()
def told(model):
    """Return loss and accuracy on the held-out digits."""
    held_out = isthmus.ShardSet.open(DIGITS / "validation")
    arrays = [held_out.read(number) for number in range(len(held_out.samples))]
    features, targets = (
        torch.cat([torch.from_numpy(each[name]) for each in arrays]) for name in held_out.arrays
    )
    scores = model(scaled(features))
    loss = torch.nn.functional.cross_entropy(scores, targets).item()
    return {"loss": loss, "accuracy": (scores.argmax(1) == targets).float().mean().item()}


if __name__ == "__main__":
    main()
