"""What no plan of whole shards can beat, beyond the linear programme."""

import heapq

import numpy as np

from isthmus.planning.programme.classes import classes_of


def makespan_bound(problem, relaxed_seconds):
    """Return the largest of the relaxation and of three valid cuts, in seconds."""
    if not problem.sizes.size:
        return float(problem.fixed_seconds.max())
    return float(
        max(
            relaxed_seconds,
            problem.fixed_seconds.max(),
            _largest_shard(problem),
            _two_of_the_largest(problem),
            _whole_units(problem, relaxed_seconds),
        )
    )


def _largest_shard(problem):
    """A shard is somewhere: no sooner than on the rank that may hold it and is first done with it."""
    largest = np.zeros(len(problem.places))
    np.maximum.at(largest, problem.place_of_shard, problem.sizes)
    used = np.bincount(problem.place_of_shard, minlength=largest.size) > 0
    alone = problem.fixed_seconds + problem.seconds_per_unit * largest[:, None]
    return np.where(problem.places, alone, np.inf).min(axis=1)[used].max(initial=0)


def _two_of_the_largest(problem):
    """Of the p + 1 largest shards two are on one rank (pigeonhole)."""
    if problem.sizes.size <= problem.ranks:
        return 0.0
    largest = -np.sort(-np.partition(problem.sizes, -problem.ranks - 1)[-problem.ranks - 1 :])
    return problem.seconds_of(largest[-1] + largest[-2]).min()


def _whole_units(problem, seconds):
    """With sizes that are multiples of one unit, a rank holds a whole number of units by any time.

    The least T at which these whole numbers add up to the load, found by stepping through the times
    at which one rank's number grows.
    """
    unit = _common_unit(problem.sizes)
    if unit is None:
        return seconds
    needed = round(problem.load / unit)
    most = np.full(problem.ranks, np.inf)
    ratio = problem.nbytes.sum() / problem.load
    if ratio and np.allclose(problem.nbytes, problem.sizes * ratio, rtol=1e-12, atol=0):
        most = np.floor(problem.storage / (unit * ratio) + 1e-9)
    step = problem.seconds_per_unit * unit
    whole = np.minimum(np.floor(np.maximum(seconds - problem.fixed_seconds, 0) / step + 1e-9), most)
    missing = needed - int(whole.sum())
    if missing > 4 * problem.ranks + 100:  # far from the relaxation: limits that this cut ignores
        return seconds
    following = [
        (problem.fixed_seconds[r] + (whole[r] + 1) * step[r], r)
        for r in range(problem.ranks)
        if whole[r] < most[r]
    ]
    heapq.heapify(following)
    while missing > 0 and following:
        seconds, rank = heapq.heappop(following)
        missing -= 1
        whole[rank] += 1
        if whole[rank] < most[rank]:
            heapq.heappush(
                following, (problem.fixed_seconds[rank] + (whole[rank] + 1) * step[rank], rank)
            )
    return seconds


def _common_unit(sizes):
    """Return the greatest common divisor of whole `sizes`, or None."""
    if not (np.rint(sizes) == sizes).all() or sizes.max() > 2**53 or not sizes.any():
        return None
    return float(np.gcd.reduce(sizes[classes_of(sizes)[1]].astype(np.int64)))
