"""What every peer is measured by: the same vectors, the same clock, the same counters. No MPI here.

A peer is an object with

    rank, size          of the job
    gather(numbers)     every rank's list of floats, in order of rank, on every rank; all wait for all
    reducer(entries)    a function that takes a float32 vector, which it may overwrite, and returns
                        the sum over all ranks; planned for vectors of one length
    scale               what to multiply that by, for those that return a mean
    learner(task)       an object with make_step() and accuracy(), the share of right test images
"""

import json
import os
import sys
import time
from pathlib import Path

import numpy as np

INTERFACE = "uplink"
"""Name of the interface that leads from a site of the testbed into its links."""


def run_task(peer, task):
    """Do what the driver asks for; rank 0 prints each result as a line of JSON."""
    results = {"allreduce": time_allreduce, "train": time_to_accuracy}[task["task"]](peer, task)
    for result in results:
        if peer.rank == 0:
            print(json.dumps(result), flush=True)


def read_task():
    """Return the task in the file that is this program's only argument."""
    return json.loads(Path(sys.argv[1]).read_text())


def time_allreduce(peer, task):
    """Yield, for each size, the seconds of each call on the slowest rank, and what it sent.

    The first of several calls is not counted. What the measuring itself sends is measured, too, and
    taken off; a few hundred bytes of acknowledgements are left.
    """
    for nbytes, calls in zip(task["sizes_nbytes"], task["calls"]):
        base = np.random.default_rng(0).standard_normal(nbytes // 4, dtype=np.float32)
        reduce = peer.reducer(base.size)
        if calls > 1:
            timed_calls(peer, reduce, base, 1)
        seconds, total, sent = timed_calls(peer, reduce, base, max(1, calls - 1))
        _, _, overhead = timed_calls(peer, lambda vector: vector, base, len(seconds))
        yield {
            "nbytes": nbytes,
            "algorithm": getattr(reduce, "algorithm", None),  # which isthmus' "auto" has chosen
            "seconds": seconds,
            "error": largest_error(peer, total, base),
            "sent_nbytes_of_hosts": [
                max(0, round((host - extra) / len(seconds))) for host, extra in zip(sent, overhead)
            ],
        }


def timed_calls(peer, reduce, base, calls):
    """Return the seconds of each call, the last result, and the bytes that each host has sent."""
    mine, scratch = base * np.float32(peer.rank + 1), np.empty_like(base)
    seconds = []
    before = sent_nbytes_of_hosts(peer)
    for _ in range(calls):
        np.copyto(scratch, mine)
        peer.gather([])
        start = time.perf_counter()
        total = reduce(scratch)
        elapsed = time.perf_counter() - start
        seconds.append(round(max(row[0] for row in peer.gather([elapsed])), 7))
    return seconds, total, growth(before, sent_nbytes_of_hosts(peer))


def largest_error(peer, total, base):
    """Return the largest error of the last sum, on any rank, as a share of the largest entry."""
    some = slice(None, None, max(1, base.size // 100_000))
    exact = base[some] * np.float64(peer.size * (peer.size + 1) / 2)
    error = float(np.abs(np.asarray(total)[some] * np.float64(peer.scale) - exact).max())
    return max(row[0] for row in peer.gather([error])) / float(np.abs(exact).max())


def time_to_accuracy(peer, task):
    """Train until the test accuracy is there; yield one result with the whole curve.

    The clock and the counters stand still while the model is evaluated.
    """
    learner, recipe = peer.learner(task), task["recipe"]
    step, seconds, sent, accuracy = 0, 0.0, None, 0.0
    curve = []
    while step < recipe["epochs"] * recipe["steps"] and accuracy < task["accuracy"]:
        before = sent_nbytes_of_hosts(peer)
        start = time.perf_counter()
        for _ in range(min(task["evaluate_every"], recipe["epochs"] * recipe["steps"] - step)):
            learner.make_step()
            step += 1
        seconds += max(row[0] for row in peer.gather([time.perf_counter() - start]))
        spent = growth(before, sent_nbytes_of_hosts(peer))
        sent = spent if sent is None else [old + new for old, new in zip(sent, spent)]
        accuracy = learner.accuracy()
        curve.append([step, round(seconds, 4), max(sent, default=0), round(accuracy, 5)])
    yield {
        "reached": accuracy >= task["accuracy"],
        "steps": step,
        "seconds": round(seconds, 4),
        "accuracy": accuracy,
        "sent_nbytes_of_hosts": sent,
        "curve": curve,
        "curve_columns": ["step", "seconds", "largest host's sent bytes", "accuracy"],
    }


def growth(before, after):
    return [late - early for early, late in zip(before, after)]


def sent_nbytes_of_hosts(peer):
    """Return the bytes that each network namespace of the job has sent so far, headers included.

    All ranks are here when it is read, so nothing is under way. Empty if the job has but one
    namespace: its ranks talk over shared memory or the loopback.
    """
    peer.gather([])
    mine = [os.stat("/proc/self/ns/net").st_ino, link_sent_nbytes()]
    of_host = dict(peer.gather(mine))
    return [int(sent) for sent in of_host.values()] if len(of_host) > 1 else []


def link_sent_nbytes():
    """Return the bytes that this namespace has sent into links, as its interface counts them."""
    lines = Path("/proc/net/dev").read_text().splitlines()[2:]
    sent = {name.strip(): int(counts.split()[8]) for name, counts in (line.split(":") for line in lines)}
    return sent.get(INTERFACE, 0)
