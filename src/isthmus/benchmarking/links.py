"""Links and sites' networks as they are, beside what the cluster file says of them.

Between the leaders of every two sites with a link, and between neighbours inside each site: ping-pong
by size, half the round trip counts; then a stream of messages each way, and both ways at once. One
pair speaks at a time.
"""

import math
import time

import numpy as np

from isthmus.benchmarking.options import sizes_nbytes
from isthmus.benchmarking.spread import spread_of
from isthmus.errors import ClusterError
from isthmus.links.agreement import broadcast_json, require
from isthmus.links.world import all_gather, barrier, broadcast

STREAM_NBYTES = 60 * 1024
"""Bytes of a message of a stream: under the size at which MPI over TCP asks before it sends."""
FEWEST, MOST = 16, 512
"""Messages of a stream: as many as the file says fit in a quarter of the seconds allowed."""


def bench_links(tiers, options, tell, keep):
    """Measure every pair of neighbours; return a result for each size and each stream, on every rank.

    `tell(line)` is called for each result, and `keep(results)` with all so far. Collective. Raises
    ClusterError on every rank where there is nothing to measure.
    """
    results, chosen = [], pairs(tiers.cluster)
    require(
        tiers.world,
        chosen,
        ClusterError,
        f"{tiers.cluster.source}: one site of one rank has no "
        "links to measure; name a cluster file of more",
    )
    for first, second in chosen:
        ways = [_way(tiers.cluster, first, second), _way(tiers.cluster, second, first)]
        facts = {"benchmark": "links", "links": options.links, **_names(tiers.cluster, first, second)}
        tell(
            f"# {facts['source']} rank {first} - {facts['target']} rank {second}, {options.links} links"
        )
        tell(f"# {'nbytes':>11} {'median us':>11} {'least us':>11} {'most us':>11} {'file us':>11}")
        for nbytes in sizes_nbytes(options.smallest_nbytes, options.largest_nbytes):
            seconds = half_round_trips(tiers.world, first, second, nbytes, options)
            expected = sum(latency + nbytes / rate for latency, rate in ways) / 2
            results.append(
                facts
                | {
                    "kind": "ping-pong",
                    "nbytes": nbytes,
                    "repetitions": len(seconds),
                    "median_seconds": float(np.median(seconds)),
                    "seconds_spread": spread_of(seconds),
                    "file_seconds": expected,
                }
            )
            keep(results)
            tell(
                f"  {nbytes:11d} "
                + " ".join(
                    f"{1e6 * each:11.1f}"
                    for each in (np.median(seconds), min(seconds), max(seconds), expected)
                )
            )
        for result in streams(tiers, first, second, ways, options):
            results.append(facts | result)
            keep(results)
            tell(
                f"# {result['kind']:17} rank {result['ranks'][0]} > {result['ranks'][1]}: "
                f"{result['bytes_per_second'] / 1e6:.4g} MB/s, "
                f"file {_megabytes(result['file_bytes_per_second'])} MB/s"
            )
    return results


def pairs(cluster):
    """Return the pairs of cluster ranks: leaders of linked sites, then neighbours inside sites."""
    leaders = [
        tuple(cluster.ranks_of_site(name)[0] for name in (link.source, link.target))
        for link in cluster.links
    ]
    once = dict.fromkeys(tuple(sorted(pair)) for pair in leaders)
    inside = [(rank, rank + 1) for name in cluster.names for rank in cluster.ranks_of_site(name)[:-1]]
    return [*once, *inside]


def half_round_trips(world, first, second, nbytes, options):
    """Return float64[repetitions] on every rank: half the seconds there and back of `nbytes` bytes."""
    buffer = np.zeros(nbytes, np.uint8)

    def there_and_back():
        start = time.perf_counter()
        if world.rank == first:
            world.Send(buffer, second)
            world.Recv(buffer, second)
        elif world.rank == second:
            world.Recv(buffer, first)
            world.Send(buffer, first)
        return (time.perf_counter() - start) / 2

    barrier(world)
    there_and_back()
    warm = broadcast_json(world, there_and_back(), first)
    repetitions = int(np.clip(options.seconds / (2 * warm), 2, options.repetitions))
    barrier(world)
    seconds = np.array([there_and_back() for _ in range(repetitions)])
    broadcast(world, seconds, first)
    return seconds


def streams(tiers, first, second, ways, options):
    """Yield a result for the stream each way, and for each way while both flow.

    ways: latency and bytes per second of both by the file. The least half of a round trip of next to
    nothing is taken off the seconds of a stream: what is left is bytes by rate.
    """
    empty_seconds = min(half_round_trips(tiers.world, first, second, 4, options))
    ends, messages = [(first, second), (second, first)], [_messages(*way, options) for way in ways]
    repetitions = min(options.repetitions, 5)
    for kind, flowing in (("one way", [[0]]), ("one way", [[1]]), ("both ways at once", [[0, 1]])):
        for numbers in flowing:
            count = min(messages[number] for number in numbers)
            rates = []
            incoming = np.zeros((count, STREAM_NBYTES), np.uint8)
            for _ in range(repetitions + 1):
                seconds = _stream(tiers.world, [ends[number] for number in numbers], incoming)
                rates.append(
                    [count * STREAM_NBYTES / max(each - empty_seconds, 1e-9) for each in seconds]
                )
            for number, of_way in zip(numbers, zip(*rates[1:])):
                yield {
                    "kind": kind,
                    **_names(tiers.cluster, *ends[number]),
                    "messages": count,
                    "message_nbytes": STREAM_NBYTES,
                    "repetitions": repetitions,
                    "bytes_per_second": float(np.median(of_way)),
                    "bytes_per_second_spread": spread_of(of_way),
                    "file_bytes_per_second": _finite(ways[number][1]),
                }


def _stream(world, flowing, incoming):
    """Return the seconds until all messages of each (source, target) are there, on every rank."""
    outgoing = np.zeros(STREAM_NBYTES, np.uint8)
    barrier(world)
    start = time.perf_counter()
    arriving = [
        world.Irecv(message, source)
        for source, target in flowing
        if world.rank == target
        for message in incoming
    ]
    sent = [
        world.Isend(outgoing, target)
        for source, target in flowing
        if world.rank == source
        for _ in incoming
    ]
    for request in arriving:
        request.Wait()
    own = time.perf_counter() - start
    for request in sent:
        request.Wait()
    seconds = all_gather(world, np.array([own]))
    return [float(seconds[target][0]) for _, target in flowing]


def _way(cluster, source, target):
    """Return latency in seconds and bytes per second from one rank to another, by the file."""
    names = [cluster.names[cluster.site_of_rank[rank]] for rank in (source, target)]
    route = cluster.route(*names)
    if not route:
        network = cluster.sites[cluster.site_of_rank[source]].network
        return network.latency_seconds, network.bytes_per_second
    return sum(link.latency_seconds for link in route), min(link.bytes_per_second for link in route)


def _messages(latency_seconds, bytes_per_second, options):
    rate = min(bytes_per_second, 1e12)
    return int(np.clip(options.seconds / 4 * rate / STREAM_NBYTES, FEWEST, MOST))


def _names(cluster, source, target):
    return {
        "source": cluster.names[cluster.site_of_rank[source]],
        "target": cluster.names[cluster.site_of_rank[target]],
        "ranks": [source, target],
    }


def _finite(rate):
    """Return `rate`, or None where the file does not limit it: JSON has no infinity."""
    return rate if math.isfinite(rate) else None


def _megabytes(rate):
    return "unlimited" if rate is None else f"{rate / 1e6:.4g}"
