"""A step whose computing hides its allreduce: buckets that are polled beside a thread that sends them.

    mpirun -n 4 python -m mpi4py experiments/overlap.py
    isthmus testbed run experiments/overlap.toml -- \\
        python -m mpi4py experiments/overlap.py experiments/overlap.toml

Four ranks at two sites, a paced link of 100 Mbit/s and 10 ms, int8, a million entries in eight
buckets, between which each rank multiplies matrices on one core. Computing takes half, once and twice
as long as the allreduce. Prints medians of the slowest rank's seconds and what they are of
max(computing, allreduce), and leaves a line of JSON each in data/measurements/overlap.jsonl.
With a cluster file it takes the links that there are, where compiled code sends, and leaves
overlap_testbed.jsonl; overlap.toml has a rank a site, so that two cores hold all that computes.

    polled     Allreduce.start(bucket) from the computing loop, then finish(): what isthmus does
    thread     a thread of its own calls start and finish (MPI_THREAD_MULTIPLE)
    of_a_core  seconds that this thread runs, in rank 0, whatever else the machine does
    possible   what a link would take of which no core knows: the last bucket begins when all is computed
"""

import json
import queue
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from mpi4py import MPI
from threadpoolctl import threadpool_limits

import isthmus
from isthmus.provenance import process_provenance
from isthmus.timing.time_model import overlapped_seconds
from isthmus.vectors import chunk_slices

RESULTS = Path(__file__).resolve().parent.parent / "data/measurements"
SIZE, BUCKETS, REPETITIONS = 1_000_000, 8, 15
RATIOS = (0.5, 1, 2)  # computing, in seconds of the allreduce alone
TWO_SITES = {
    "site": [
        {
            "name": tier,
            "tier": tier,
            "ranks": 2,
            "samples_per_second": 1e4,
            "network": {"latency_seconds": 1e-5, "bytes_per_second": 1e9},
        }
        for tier in ("cloud", "edge")
    ],
    "link": [{"between": ["cloud", "edge"], "latency_seconds": 0.01, "bytes_per_second": 12.5e6}],
}


def median_seconds(comm, steps):
    """Return name -> the median over repetitions of the slowest rank's seconds in a step.

    steps: name -> function. They take turns, for a machine's speed changes; the first is not counted.
    """
    seconds = np.empty((REPETITIONS + 1, len(steps)))
    for row in seconds:
        for number, step in enumerate(steps.values()):
            comm.Barrier()
            start = time.perf_counter()
            step()
            row[number] = time.perf_counter() - start
    comm.Allreduce(MPI.IN_PLACE, seconds, MPI.MAX)
    return dict(zip(steps, np.median(seconds[1:], axis=0).tolist()))


def polled(reduce, vector, parts, compute):
    """Return a step that starts each bucket from the computing loop."""

    def step():
        for part in parts:
            compute()
            reduce.start(vector[part])
        reduce.finish()

    return step


@contextmanager
def by_thread(reduce, vector, parts, compute):
    """Give a step whose buckets a thread of its own starts and finishes, and the list of what that has
    had of a core by the end of each, in seconds."""
    jobs, ends, busy = queue.Queue(), queue.Queue(), []

    def serve():
        while (part := jobs.get()) is not None:
            reduce.start(vector[part])
            if part is parts[-1]:
                reduce.finish()
                ends.put(time.thread_time())

    def step():
        for part in parts:
            compute()
            jobs.put(part)
        busy.append(ends.get())

    server = threading.Thread(target=serve)
    server.start()
    yield step, busy
    jobs.put(None)
    server.join()


def measure(comm, tiers):
    """Yield a result for each ratio of computing to the allreduce."""
    vector = np.random.default_rng(comm.rank).standard_normal(SIZE, dtype=np.float32)
    matrix = vector[:90_000].reshape(300, 300)
    whole = isthmus.Allreduce(tiers, SIZE, compressor=isthmus.Int8())
    parts = chunk_slices(0, SIZE, SIZE // BUCKETS)
    reduce = isthmus.Allreduce(tiers, SIZE, compressor=isthmus.Int8(), buckets=parts)
    alone = {
        "allreduce": lambda: whole(vector),
        "products": lambda: [matrix @ matrix for _ in range(50)],
    }
    alone = median_seconds(comm, alone)
    for ratio in RATIOS:
        products = max(1, round(ratio * alone["allreduce"] / BUCKETS / (alone["products"] / 50)))

        def compute(products=products):
            for _ in range(products):
                matrix @ matrix

        def compute_all(compute=compute):
            for _ in parts:
                compute()

        steps = {
            "computing": compute_all,
            "allreduce": lambda: whole(vector),
            "in_turn": lambda compute=compute_all: (compute(), whole(vector)),
            "polled": polled(reduce, vector, parts, compute),
        }
        with by_thread(reduce, vector, parts, compute) as (steps["thread"], busy):
            seconds = median_seconds(comm, steps)
        seconds["of_a_core"] = float(np.median(np.diff(busy)))
        least = max(seconds["computing"], seconds["allreduce"])
        ready = [seconds["computing"] * number / BUCKETS for number in range(1, BUCKETS + 1)]
        seconds["possible"] = overlapped_seconds(ready, [seconds["allreduce"] / BUCKETS] * BUCKETS)[-1]
        yield {
            "ratio": ratio,
            "seconds": seconds,
            "repetitions": REPETITIONS,
            "of_the_longer": {
                name: seconds[name] / least for name in ("in_turn", "polled", "thread", "possible")
            },
        }


def main():
    comm, paths = MPI.COMM_WORLD, sys.argv[1:]
    cluster = isthmus.Cluster.from_toml(paths[0]) if paths else isthmus.Cluster(TWO_SITES)
    with threadpool_limits(1), isthmus.split_tiers(comm, cluster) as tiers:
        results = list(measure(comm, tiers if paths else tiers.paced()))
    if comm.rank == 0:
        lines = [result | process_provenance() for result in results]
        path = RESULTS / ("overlap_testbed.jsonl" if paths else "overlap.jsonl")
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        for result in results:
            print(
                " ".join(f"{name} {1e3 * value:.1f} ms" for name, value in result["seconds"].items()),
                " ".join(f"{name} {value:.2f} x" for name, value in result["of_the_longer"].items()),
                sep="; of the longer: ",
                flush=True,
            )


if __name__ == "__main__":
    main()
