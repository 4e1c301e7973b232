"""Allreduces as the OSU micro-benchmarks time them: by size, the slowest rank counts.

A result is one size, algorithm and compressor: after calls to warm up, every repetition starts
at one instant and lasts until the last rank has the mean. Beside the seconds stand the model's, the
bound that no exact allreduce over the narrowest link beats, and the bytes between sites: counted at the
send calls, by the formula, and on a testbed by its interfaces: "sent bytes" of the site that sends
most, headers included, which between two sites is what crosses the cut.
"""

import hashlib

import numpy as np

from isthmus.benchmarking.bounds import bound_seconds
from isthmus.benchmarking.options import named_compressor, sizes_nbytes
from isthmus.benchmarking.spread import spread_of
from isthmus.collectives.allreduce import Allreduce
from isthmus.errors import ReplicaError
from isthmus.links.agreement import from_root, gather_json, require
from isthmus.links.common_clock import CommonClock
from isthmus.links.world import barrier, maximum
from isthmus.testbed import own_counters
from isthmus.timing.time_model import predict_allreduce

HEADER = (
    f"# {'nbytes':>11} {'median ms':>11} {'least ms':>11} {'most ms':>11} {'model ms':>11} "
    f"{'bound ms':>11} {'cut bytes':>11} {'sent bytes':>11} {'times':>6}"
)


def bench_collectives(tiers, options, tell, keep):
    """Measure every size x algorithm x compressor; return a result each, the same on every rank.

    `tell(line)` is called for each result, and `keep(results)` with all so far. Collective. Raises
    ReplicaError on every rank if ranks end with different bits.
    """
    results = []
    for algorithm, named in options.combinations:
        tell(
            f"# allreduce {algorithm}, compressor {named}, {tiers.world.size} ranks on "
            f"{len(tiers.cluster.sites)} sites, {options.links} links"
        )
        tell(HEADER)
        for nbytes in sizes_nbytes(options.smallest_nbytes, options.largest_nbytes):
            results.append(measure(tiers, options, algorithm, named, nbytes))
            keep(results)
            tell(row(results[-1]))
    return results


def measure(tiers, options, algorithm, named, nbytes):
    """Return the result of one size: medians over repetitions of the slowest rank's seconds."""
    world, size, compressor = tiers.world, nbytes // 4, named_compressor(named)
    allreduce = Allreduce(tiers, size, algorithm, compressor)
    vector = np.random.default_rng(world.rank).standard_normal(size, dtype=np.float32)
    clock = CommonClock(world)
    own = [_timed(clock, allreduce, vector)[0]]
    first = _slowest(world, own)[0]
    if first < 2 * options.seconds:  # else the call to warm up counts: it is seconds of the link
        own = []
    repetitions = int(np.clip(options.seconds / first, 2 - len(own), options.repetitions))
    if 10 * first < options.seconds:
        _timed(clock, allreduce, vector)
    sent_before, carried_before = allreduce.sent_to_sites.copy(), _carried(tiers)
    for _ in range(repetitions):
        seconds, mean = _timed(clock, allreduce, vector)
        own.append(seconds)
    carried = _per_call(_carried(tiers), carried_before, repetitions)
    check_same_bits(world, mean, algorithm, named, nbytes)
    seconds = _slowest(world, own)
    counted = allreduce.sent_to_sites - sent_before
    predicted = predict_allreduce(tiers.cluster, size, algorithm=algorithm, compressor=compressor)
    cut = _cut(tiers, counted, repetitions * allreduce.predicted_to_sites(), repetitions)
    return {
        "benchmark": "collectives",
        "algorithm": algorithm,
        "compressor": named,
        "nbytes": nbytes,
        "ranks": world.size,
        "links": options.links,
        "repetitions": len(own),
        "median_seconds": float(np.median(seconds)),
        "seconds_spread": spread_of(seconds),
        "seconds": seconds.tolist(),
        "predicted_seconds": predicted.seconds,
        "bound_seconds": bound_seconds(tiers.cluster, nbytes, compressor),
        "cut": cut,
        "interface_nbytes": carried,
        "same_bits": True,
    }


def check_same_bits(world, mean, algorithm, named, nbytes):
    """Raise ReplicaError on every rank unless all of them hold the same bits."""
    digests = gather_json(world, hashlib.sha256(mean).hexdigest())
    require(
        world,
        digests[world.rank] == digests[0],
        ReplicaError,
        f"allreduce {algorithm} with compressor {named} of {nbytes} bytes: ranks end with different "
        "bits; please report",
    )


def row(result):
    """Return a result as a line of the table."""
    spread = result["seconds_spread"]
    milliseconds = (
        result["median_seconds"],
        spread["least"],
        spread["most"],
        result["predicted_seconds"],
        result["bound_seconds"],
    )
    cut = max((way["counted_nbytes"] for way in result["cut"]), default="-")
    sites = (result["interface_nbytes"] or {}).values()
    sent = max((round(site["sent_nbytes"]) for site in sites), default="-")
    return (
        f"  {result['nbytes']:11d} "
        + " ".join(f"{1e3 * each:11.3f}" for each in milliseconds)
        + f" {cut:>11} {sent:>11} {result['repetitions']:6d}"
    )


def _timed(clock, allreduce, vector):
    """Return the seconds of one call that all ranks start together, and its mean."""
    start = clock.start()
    mean = allreduce(vector)
    return clock.clock() - start, mean


def _slowest(world, own_seconds):
    """Return float64[repetitions] on every rank: the slowest rank's seconds of each."""
    return maximum(world, own_seconds)


def _cut(tiers, counted, predicted, calls):
    """Return bytes a call from each site to each other one, at the send calls and by the formula.

    Sites between which nothing goes are left out; so is what MPI sends to peers that it does not tell.
    """
    rows = np.array(gather_json(tiers.world, np.stack([counted, predicted], axis=1).tolist()))
    names, site_of_rank = tiers.cluster.names, np.array(tiers.cluster.site_of_rank)
    return [
        {
            "source": names[i],
            "target": names[j],
            "counted_nbytes": int(nbytes[0]) // calls,
            "formula_nbytes": int(nbytes[1]) // calls,
        }
        for i in range(len(names))
        for j in range(len(names))
        if i != j and (nbytes := rows[site_of_rank == i, j].sum(axis=0)).any()
    ]


def _carried(tiers):
    """Return the testbed's counters, the same on every rank, or None off a testbed."""
    barrier(tiers.world)
    return from_root(tiers.world, own_counters, tiers.home)


def _per_call(after, before, calls):
    """Return site -> bytes sent and received a call, as interfaces counted them, or None."""
    return after and {
        site: {key: (after[site][key] - before[site][key]) / calls for key in after[site]}
        for site in after
    }
