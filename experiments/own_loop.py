"""A PyTorch loop of one's own on the Fashion-MNIST subset of this repository, over two sites.

    mpirun -n 4 python -m mpi4py experiments/own_loop.py        half a minute

Prints, epoch by epoch, the loss, the test accuracy, and the bytes that rank 0 has sent over the link.
"""

from pathlib import Path

import torch
from mpi4py import MPI

import isthmus

ROOT = Path(__file__).resolve().parent.parent
EPOCHS, BATCH_SIZE, LEARNING_RATE, SEED = 5, 128, 2e-3, 0


def make_net():
    torch.manual_seed(SEED)
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 16, 3),
        torch.nn.BatchNorm2d(16),
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(2),
        torch.nn.Flatten(),
        torch.nn.Linear(16 * 13 * 13, 10),
    )


def pictures(features):
    return features.unsqueeze(1).float() / 255


def main():
    torch.set_num_threads(1)
    cluster = isthmus.Cluster.from_toml(ROOT / "experiments/two_sites.toml")
    shards = isthmus.ShardSet.open(ROOT / "data/fashion_mnist/train")
    test = isthmus.ShardSet.open(ROOT / "data/fashion_mnist/test")
    model, compressor = make_net(), isthmus.Int8()
    size = sum(each.numel() for each in model.parameters())
    plan = isthmus.plan_shards(
        cluster, shards, isthmus.Workload(size, BATCH_SIZE, compressor=compressor)
    )
    with isthmus.split_tiers(MPI.COMM_WORLD, cluster) as tiers:
        local = isthmus.scatter_shards(tiers, shards, plan)
        shared = isthmus.torch.Shared(model, tiers, compressor=compressor)
        optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE)
        for epoch in range(EPOCHS):
            model.train()
            for features, targets in isthmus.torch.batches(local, SEED, epoch, steps=plan.steps):
                shared.weight = len(targets)
                optimizer.zero_grad()
                if len(targets):
                    loss = torch.nn.functional.cross_entropy(model(pictures(features)), targets)
                    loss.backward()
                else:
                    shared.finish()
                optimizer.step()
            shared.average_buffers()
            if tiers.world.rank == 0:
                sent = shared.sent_nbytes["link"]
                print(f"epoch {epoch + 1}: accuracy {accuracy(model, test):.3f}, {sent:,} bytes")


@torch.no_grad()
def accuracy(model, shards):
    model.eval()
    right = 0
    for shard in range(len(shards.samples)):
        arrays = shards.read(shard)
        scores = model(pictures(torch.from_numpy(arrays["features"])))
        right += int((scores.argmax(1) == torch.from_numpy(arrays["targets"])).sum())
    return right / sum(shards.samples)


if __name__ == "__main__":
    main()
