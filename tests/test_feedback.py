"""What error feedback is for: few bits a step, and yet the loss that dense float32 ends with."""

from pathlib import Path

import numpy as np
import pytest
from clusters import cluster_of
from threadpoolctl import threadpool_limits

import isthmus
from isthmus.models import Perceptron

TRAIN = Path(__file__).resolve().parent.parent / "data/fashion_mnist/train"
MODEL = Perceptron(784, (), 10)
STEPS = 400


def images(rank):
    """Return 400 images of clothes and their classes, other ones on each rank."""
    import h5py
    import hdf5plugin  # noqa: F401 (the shards' filter)

    paths = sorted(TRAIN.glob("*.h5"))[2 * rank : 2 * rank + 2]
    parts = []
    for path in paths:
        with h5py.File(path) as file:
            parts.append((file["features"][:], file["targets"][:]))
    features, targets = (np.concatenate(part)[:400] for part in zip(*parts))
    return features, targets.astype(int)


def last_loss(comm, tiers, compressor, error_feedback):
    """Return the loss after gradient descent on all images, the rate falling to zero."""
    features, targets = images(comm.rank)
    parameters, gradient = MODEL.initial(0), np.empty(MODEL.size, "f4")
    allreduce = isthmus.Allreduce(
        tiers, MODEL.size, compressor=compressor, error_feedback=error_feedback
    )
    for step in range(STEPS):
        MODEL.gradient(parameters, features, targets, gradient)
        rate = 0.02 * (1 - step / STEPS)
        parameters -= np.float32(rate / len(targets)) * allreduce(gradient)
    losses = np.empty(comm.size)
    mine = MODEL.gradient(parameters, features, targets, gradient) / len(targets)
    comm.Allgather(np.array([mine]), losses)
    return losses.mean()


@pytest.mark.ranks(2)
@pytest.mark.slow
def test_with_feedback_few_bits_end_where_dense_does_and_without_it_not(comm):
    cluster = isthmus.Cluster(cluster_of(1, 1))
    with threadpool_limits(1), isthmus.split_tiers(comm, cluster) as tiers:
        dense = last_loss(comm, tiers, None, False)
        assert dense < 1
        for compressor in (
            isthmus.OneBit(),
            isthmus.TopK(0.01),
            isthmus.TopK(0.01, "threshold"),
            isthmus.TopK(0.02, bits=2),
        ):
            assert last_loss(comm, tiers, compressor, True) == pytest.approx(dense, rel=0.005)
        for compressor in (isthmus.OneBit(), isthmus.TopK(0.01)):
            assert last_loss(comm, tiers, compressor, False) > 1.05 * dense
