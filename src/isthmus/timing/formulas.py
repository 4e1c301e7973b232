"""The formulas of the time model: pure functions of numbers and arrays, which are broadcast.

L latency in seconds, one way; B bytes per second; n bytes; p ranks; m chunks or buckets; K steps.
Those without a source in their docstring follow from what they say.
"""

import math

import numpy as np


def compute_seconds(samples, samples_per_second, fixed_seconds=0.0):
    """Return fixed + samples / rate; ranks run side by side, so a tier takes the maximum."""
    return np.asarray(fixed_seconds) + np.asarray(samples) / np.asarray(samples_per_second)


def waiting_seconds(seconds_of_rank):
    """Return how long each rank waits for the slowest: max_j T_j - T_i.

    Communication is charged from the moment the last rank arrives, so this is no part of it.
    """
    seconds = np.asarray(seconds_of_rank, float)
    return seconds.max(axis=-1, keepdims=True) - seconds


def chain_seconds(
    ranks, nbytes, latency_seconds, bytes_per_second, message_seconds=0.0, add_bytes_per_second=math.inf
):
    """Return (first, each): a chunk's seconds along a chain of ranks, and those that every other adds.

    first = (p - 1) (o + L + n / B + n / A), each = o + n / B + n / A: o, the rank's own time for a
    message, A, the rate of adding, infinite on the way down. One rank needs none.
    """
    each = (
        message_seconds
        + nbytes / np.asarray(bytes_per_second)
        + nbytes / np.asarray(add_bytes_per_second)
    )
    hops = np.asarray(ranks) - 1
    return hops * (each + latency_seconds), np.where(hops > 0, each, 0.0)


def pipelined_seconds(first_seconds, each_seconds, chunks):
    """Return sum_s first_s + (m - 1) max_s each_s: m chunks through stages s that work side by side.

    first_seconds, each_seconds: float[..., stages], of the first chunk and of every other one.
    """
    first, each = np.asarray(first_seconds, float), np.asarray(each_seconds, float)
    return first.sum(axis=-1) + np.maximum(np.asarray(chunks) - 1, 0) * each.max(axis=-1, initial=0.0)


def narrow_link_bound_seconds(nbytes, latency_seconds, bytes_per_second, wire_share=1.0):
    """Return L + n b / B: no exact allreduce over one link is faster, whatever p.

    wire_share: bytes on the wire for one byte of the vector (b).
    """
    return latency_seconds + nbytes * wire_share / bytes_per_second


def ring_seconds(
    latency_seconds,
    bytes_per_second,
    nbytes,
    add_bytes_per_second=math.inf,
    sustained_bytes_per_second=math.inf,
):
    """Return the seconds of a ring's reduce-scatter and of its all-gather.

    latency_seconds, bytes_per_second: float[..., p], of the way from rank i to rank i + 1. A rank starts
    a step when it has what the step before brought it; a link carries one part after another, at
    `sustained_bytes_per_second` if that is less than for one part alone. On a uniform ring this is
    2 (p - 1) (L + n / (p B)) and the additions (Patarasuk and Yuan 2009); with one slow link it is less
    than 2 (p - 1) times that link's time, because a part crosses it once a lap.
    """
    latency, rate = np.broadcast_arrays(
        np.asarray(latency_seconds, float), np.asarray(bytes_per_second, float)
    )
    ranks = latency.shape[-1]
    part = nbytes / max(ranks, 1)
    alone = latency + part / rate
    each = part / np.minimum(rate, sustained_bytes_per_second)
    ready, came, halves = np.zeros(latency.shape), np.full(latency.shape, -math.inf), []
    behind = np.arange(ranks) - 1
    for add_seconds in (part / add_bytes_per_second, 0.0):
        for _ in range(ranks - 1):
            came = np.maximum(ready + alone, came + each)
            ready = np.maximum(ready, came[..., behind]) + add_seconds
        halves.append(ready.max(axis=-1, initial=0.0))
    return halves[0], halves[1] - halves[0]


def recursive_seconds(ranks, nbytes, latency_seconds, bytes_per_second):
    """Return 2 log2(p) L + 2 (p - 1) / p n / B: recursive halving and doubling.

    Thakur, Rabenseifner and Gropp 2005, "Optimization of collective communication operations in MPICH".
    """
    ranks = np.asarray(ranks)
    return (
        2 * np.ceil(np.log2(ranks)) * latency_seconds
        + 2 * (ranks - 1) / ranks * nbytes / bytes_per_second
    )


def overlapped_seconds(ready_seconds, seconds):
    """Return when each of m buckets is done: f_b = max(r_b, f_(b-1)) + t_b."""
    done, last = [], 0.0
    for ready, duration in zip(ready_seconds, seconds):
        last = max(ready, last) + duration
        done.append(last)
    return done


def period_seconds(computing_seconds, round_trip_seconds, beyond=None):
    """Return the seconds from one step to the next where sites go on as soon as they have the sum.

    computing_seconds t, round_trip_seconds r (to the hub and back; 0 for the hub): float64[sites]. A
    site's next step does not wait until the others have the sum, so what a link takes is hidden where
    its ends are ready at different times. In a tree with one hub max_s t_s + r_s: the hub computes
    while the others' wires travel. Two sites exchange directly, and what one waits too long the other
    waits too little: max(t_1, t_2, (t_1 + t_2 + r) / 2). So do the two halves of a tree with two sites
    at its top; beyond: bool[sites], those of the half where the hub is not, whose way to the hub leads
    over that exchange. It is the largest mean of a cycle: Baccelli, Cohen, Olsder and Quadrat 1992,
    "Synchronization and linearity", theorem 3.23. Never more than max_s t_s + max_s r_s in a star, or
    max_s t_s + r / 2 for two: that is what steps take which all sites begin together.
    """
    computing, trips = np.asarray(computing_seconds, float), np.asarray(round_trip_seconds, float)
    if computing.size == 2:
        return float(max(computing.max(), (computing.sum() + trips.sum()) / 2))
    if beyond is None or not np.any(beyond):
        return float((computing + trips).max())
    here, there = (computing + trips)[~beyond].max(), (computing + trips)[beyond].max()
    return float(max(here, there - trips[beyond].min(), (here + there) / 2))


def steps_per_epoch(samples, batch_size):
    """Return K, the same on every rank: whole steps of about `batch_size` samples together."""
    return max(1, round(samples / batch_size))


def local_steps_seconds(steps, local_steps, local_seconds, exchange_seconds):
    """Return K T_local + ceil(K / H) T_sync: K steps, with an exchange after every H-th and the last.

    Stich 2019, "Local SGD converges fast and communicates little". H = 1 is an epoch of synchronous
    steps.
    """
    steps = np.asarray(steps)
    return steps * local_seconds + np.ceil(steps / local_steps) * exchange_seconds
