"""A step whose computing hides its allreduce: buckets that are polled beside a thread that sends them.

    mpirun -n 4 python -m mpi4py experiments/overlap.py [real]

Four ranks at two sites, a paced link of 100 Mbit/s and 10 ms, int8, a million entries in eight
buckets, between which each rank multiplies matrices on one core. Computing takes half, once and twice
as long as the allreduce. Prints medians of the slowest rank's seconds and what they are of
max(computing, allreduce), and leaves a line of JSON each in data/measurements/overlap.jsonl.
With `real` it takes the links that there are, where compiled code sends, and overlap_real.jsonl.

    polled     Allreduce.start(bucket) from the computing loop, then finish(): what isthmus does
    thread     a thread of its own calls start and finish (MPI_THREAD_MULTIPLE)
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


def median_seconds(comm, step):
    """Return the median over repetitions of the slowest rank's seconds; the first is not counted."""
    seconds = np.empty(REPETITIONS + 1)
    for number in range(seconds.size):
        comm.Barrier()
        start = time.perf_counter()
        step()
        seconds[number] = time.perf_counter() - start
    comm.Allreduce(MPI.IN_PLACE, seconds, MPI.MAX)
    return float(np.median(seconds[1:]))


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
    """Give a step whose buckets a thread of its own starts and finishes."""
    jobs, ends = queue.Queue(), queue.Queue()

    def serve():
        while (part := jobs.get()) is not None:
            reduce.start(vector[part])
            if part is parts[-1]:
                ends.put(reduce.finish())

    def step():
        for part in parts:
            compute()
            jobs.put(part)
        ends.get()

    server = threading.Thread(target=serve)
    server.start()
    yield step
    jobs.put(None)
    server.join()


def measure(comm, tiers):
    """Yield a result for each ratio of computing to the allreduce."""
    vector = np.random.default_rng(comm.rank).standard_normal(SIZE, dtype=np.float32)
    matrix = vector[:90_000].reshape(300, 300)
    whole = isthmus.Allreduce(tiers, SIZE, compressor=isthmus.Int8())
    parts = chunk_slices(0, SIZE, SIZE // BUCKETS)
    reduce = isthmus.Allreduce(tiers, SIZE, compressor=isthmus.Int8(), buckets=parts)
    allreduce_seconds = median_seconds(comm, lambda: whole(vector))
    product_seconds = median_seconds(comm, lambda: [matrix @ matrix for _ in range(50)]) / 50
    for ratio in RATIOS:
        products = max(1, round(ratio * allreduce_seconds / BUCKETS / product_seconds))

        def compute(products=products):
            for _ in range(products):
                matrix @ matrix

        def compute_all(compute=compute):
            for _ in parts:
                compute()

        seconds = {
            "computing": median_seconds(comm, compute_all),
            "allreduce": allreduce_seconds,
            "in_turn": median_seconds(comm, lambda compute=compute_all: (compute(), whole(vector))),
            "polled": median_seconds(comm, polled(reduce, vector, parts, compute)),
        }
        with by_thread(reduce, vector, parts, compute) as step:
            seconds["thread"] = median_seconds(comm, step)
        least = max(seconds["computing"], seconds["allreduce"])
        yield {
            "ratio": ratio,
            "seconds": seconds,
            "repetitions": REPETITIONS,
            "of_the_longer": {name: seconds[name] / least for name in ("in_turn", "polled", "thread")},
        }


def main():
    comm, real = MPI.COMM_WORLD, sys.argv[1:] == ["real"]
    with threadpool_limits(1), isthmus.split_tiers(comm, isthmus.Cluster(TWO_SITES)) as tiers:
        results = list(measure(comm, tiers if real else tiers.paced()))
    if comm.rank == 0:
        lines = [result | process_provenance() for result in results]
        path = RESULTS / ("overlap_real.jsonl" if real else "overlap.jsonl")
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
