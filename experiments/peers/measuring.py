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
    """Yield, for each size, the seconds of each call on the slowest rank, and what it sent."""
    for nbytes, calls in zip(task["sizes_nbytes"], task["calls"]):
        entries = nbytes // 4
        base = np.random.default_rng(0).standard_normal(entries, dtype=np.float32)
        mine, scratch = base * np.float32(peer.rank + 1), np.empty_like(base)
        reduce = peer.reducer(entries)
        warm_up = min(1, calls - 1)
        seconds = []
        for call in range(calls):
            if call == warm_up:
                before = sent_nbytes_of_hosts(peer)
            np.copyto(scratch, mine)
            peer.gather([])
            start = time.perf_counter()
            total = reduce(scratch)
            elapsed = time.perf_counter() - start
            slowest = max(row[0] for row in peer.gather([elapsed]))
            if call >= warm_up:
                seconds.append(round(slowest, 7))
        sent = [after - earlier for earlier, after in zip(before, sent_nbytes_of_hosts(peer))]
        yield {"nbytes": nbytes, "seconds": seconds,
               "error": largest_error(peer, total, base),
               "sent_nbytes_of_hosts": [round(host / len(seconds)) for host in sent]}


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
        spent = [after - earlier for earlier, after in zip(before, sent_nbytes_of_hosts(peer))]
        sent = spent if sent is None else [old + new for old, new in zip(sent, spent)]
        accuracy = learner.accuracy()
        curve.append([step, round(seconds, 4), max(sent, default=0), round(accuracy, 5)])
    yield {"reached": accuracy >= task["accuracy"], "steps": step, "seconds": round(seconds, 4),
           "accuracy": accuracy, "sent_nbytes_of_hosts": sent,
           "curve": curve, "curve_columns": ["step", "seconds", "largest host's sent bytes", "accuracy"]}


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
    sent = {name.strip(): int(counts.split()[8])
            for name, counts in (line.split(":") for line in lines)}
    return sent.get(INTERFACE, 0)
