"""How long things take, in seconds, term by term: the model that plans are made with.

Pure functions of numbers (L latency in seconds, B bytes per second, n bytes, p ranks, m chunks).
The formulas are those of alpha-beta models (Thakur, Rabenseifner and Gropp 2005, "Optimization of
collective communication operations in MPICH"), widened by compression and by links that share.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from isthmus.compression.chunks import WIRE_NBYTES, chunk_entries
from isthmus.compression.dense import Dense
from isthmus.planning.host_copies import copy_seconds_of_chunks, copy_seconds_of_exact
from isthmus.planning.pipes import halving_seconds, tree_seconds

ALGORITHMS = ("mpi", "ring", "tree", "recursive", "hierarchical")


@dataclass(frozen=True)
class Workload:
    """What one epoch asks of a cluster.

    size: entries of the gradient, float32. buckets: slices of it in the order in which they are
    started; () is one, the whole. chunk_nbytes: most bytes of a wire of "hierarchical". batch_size:
    samples of a step, all ranks together. sample_nbytes: bytes of a sample where shards are given as
    counts alone. data_site: name of the site where the shards lie; None where every rank sees them.
    """

    size: int = 0
    batch_size: int = 256
    algorithm: str = "hierarchical"
    compressor: Any = None
    sample_nbytes: float = 0.0
    data_site: str | None = None
    buckets: tuple[slice, ...] = ()
    chunk_nbytes: int = WIRE_NBYTES


@dataclass(frozen=True)
class AllreduceTime:
    """Predicted seconds of one allreduce, from the arrival of the last rank.

    Each field is the time for which its stage is what the others wait for, so that they add up to
    `seconds`: the slowest stage counts with all its chunks, the others with one. copy_seconds: from a
    GPU's memory to the host's and back, of what is sent and received; 0 where no site has GPUs.
    """

    reduce_seconds: float = 0.0
    encode_seconds: float = 0.0
    copy_seconds: float = 0.0
    links_seconds: float = 0.0
    decode_seconds: float = 0.0
    broadcast_seconds: float = 0.0

    @classmethod
    def of_two(cls, seconds, copy_seconds):
        """Make one of the seconds to the sum and the seconds from there to every rank."""
        return cls(reduce_seconds=seconds[0], broadcast_seconds=seconds[1], copy_seconds=copy_seconds)

    @property
    def seconds(self):
        return sum(self.terms.values())

    @property
    def terms(self):
        """Stage -> seconds."""
        return {"reduce": self.reduce_seconds, "encode": self.encode_seconds,
                "copy": self.copy_seconds, "links": self.links_seconds, "decode": self.decode_seconds,
                "broadcast": self.broadcast_seconds}


def predict_allreduce(cluster, size, *, algorithm, compressor=None, chunk_nbytes=WIRE_NBYTES):
    """Return the AllreduceTime of a float32 vector of `size` entries.

    chunk_nbytes: most bytes of a wire of "hierarchical".

    Raises ValueError for an algorithm that does not exist, or that cannot use the compressor.
    """
    if algorithm not in ALGORITHMS:
        raise ValueError(f"algorithm must be one of {', '.join(ALGORITHMS)}, not {algorithm!r}")
    if compressor is not None and algorithm != "hierarchical":
        raise ValueError(f"algorithm {algorithm!r} sends exact float32: a compressor needs "
                         "algorithm='hierarchical'")
    if size == 0 or cluster.size == 1:
        return AllreduceTime()
    if algorithm == "hierarchical":
        return _hierarchical(cluster, size, compressor or Dense(), compressor is not None, chunk_nbytes)
    adds = _slowest(cluster, "add_bytes_per_second")
    copies = copy_seconds_of_exact(cluster, algorithm, 4 * size)
    if algorithm == "tree":
        return AllreduceTime.of_two(tree_seconds(cluster, size, adds), copies)
    if algorithm == "recursive":
        return AllreduceTime.of_two(halving_seconds(cluster, size, adds), copies)
    ring = ring_seconds(*_ring_hops(cluster), 4 * size, adds)
    if algorithm == "ring":
        return AllreduceTime.of_two(ring, copies)
    latency, rate = _worst_route(cluster)
    return AllreduceTime(copy_seconds=copies, links_seconds=min(
        sum(ring), recursive_seconds(cluster.size, 4 * size, latency, rate)))


def compute_seconds(samples, samples_per_second, fixed_seconds=0.0):
    """Return fixed + samples / rate; ranks run side by side, so a tier takes the maximum."""
    return np.asarray(fixed_seconds) + np.asarray(samples) / np.asarray(samples_per_second)


def narrow_link_bound_seconds(nbytes, latency_seconds, bytes_per_second, wire_share=1.0):
    """Return L + n b / B: no exact allreduce over one link is faster, whatever p.

    wire_share: bytes on the wire for one byte of the vector (b).
    """
    return latency_seconds + nbytes * wire_share / bytes_per_second


def ring_seconds(latency_seconds, bytes_per_second, nbytes, add_bytes_per_second=math.inf):
    """Return the seconds of a ring's reduce-scatter and of its all-gather.

    latency_seconds, bytes_per_second: float[p], of the way from rank i to rank i + 1. A rank starts
    a step when it has what the step before brought it; a link carries one part after another. On a
    uniform ring this is 2 (p - 1) (L + n / (p B)) and the additions (Patarasuk and Yuan 2009); with
    one slow link it is less than 2 (p - 1) times that link's time, because a part crosses it once a
    lap.
    """
    latency, rate = np.broadcast_arrays(np.asarray(latency_seconds, float),
                                        np.asarray(bytes_per_second, float))
    ranks = latency.size
    part = nbytes / max(ranks, 1)
    ready, free, halves = np.zeros(ranks), np.zeros(ranks), []
    for add_seconds in (part / add_bytes_per_second, 0.0):
        for _ in range(ranks - 1):
            free = np.maximum(ready, free) + part / rate
            ready = np.maximum(ready, np.roll(free + latency, 1)) + add_seconds
        halves.append(float(ready.max(initial=0.0)))
    return halves[0], halves[1] - halves[0]


def recursive_seconds(ranks, nbytes, latency_seconds, bytes_per_second):
    """Return 2 log2(p) L + 2 (p - 1) / p n / B: recursive halving and doubling."""
    return (2 * math.ceil(math.log2(ranks)) * latency_seconds
            + 2 * (ranks - 1) / ranks * nbytes / bytes_per_second)


def overlapped_seconds(ready_seconds, seconds):
    """Return when each of m buckets is done: f_b = max(r_b, f_(b-1)) + t_b."""
    done, last = [], 0.0
    for ready, duration in zip(ready_seconds, seconds):
        last = max(ready, last) + duration
        done.append(last)
    return done


def steps_per_epoch(samples, batch_size):
    """Return K, the same on every rank: whole steps of about `batch_size` samples together."""
    return max(1, round(samples / batch_size))


def staging_seconds(cluster, nbytes_of_rank, data_site):
    """Return max over shared pipes of bytes / B: the fluid bound for bringing shards to ranks.

    data_site: name of the site where the shards lie; None: every rank sees them, nothing moves.
    """
    if data_site is None:
        return 0.0
    load, rate = {}, {}
    nbytes_of_site = np.bincount(cluster.site_of_rank, nbytes_of_rank, minlength=len(cluster.sites))
    for name, nbytes in zip(cluster.names, nbytes_of_site.tolist()):
        for link in cluster.route(data_site, name):
            load[link.pipe] = load.get(link.pipe, 0.0) + nbytes
            rate[link.pipe] = link.bytes_per_second
    return max((load[pipe] / rate[pipe] for pipe in load), default=0.0)


def _ring_hops(cluster):
    """Return latency and rate from each rank to the next, ranks in cluster order."""
    latency, rate = [], []
    sites = cluster.site_of_rank
    for here, there in zip(sites, (*sites[1:], sites[0])):
        route = cluster.route(cluster.names[here], cluster.names[there])
        network = cluster.sites[here].network
        latency.append(sum(link.latency_seconds for link in route) if route
                       else network.latency_seconds)
        rate.append(min(link.bytes_per_second for link in route) if route
                    else network.bytes_per_second)
    return latency, rate


def _worst_route(cluster):
    """Return the largest latency and the smallest rate between any two neighbouring ranks."""
    latency, rate = _ring_hops(cluster)
    return max(latency), min(rate)


def _slowest(cluster, rate):
    return min(getattr(site, rate) for site in cluster.sites)


@dataclass(frozen=True)
class Stages:
    """What one hierarchical allreduce asks of a cluster: seconds by stage and by way over the links.

    first, each: stage -> seconds of the first chunk, of every other chunk; rest: how many others.
    ways: (first chunk, every other chunk) of each crossing of the links, up and down; none on one
    site. wire_nbytes: what a leader sends in a crossing, all chunks.
    """

    first: dict
    each: dict
    rest: float
    ways: tuple
    wire_nbytes: float

    @property
    def interval(self):
        """Seconds of the leader's own work on a chunk: done by one thread, it counts as one stage."""
        return sum(self.each.values())


def hierarchical_stages(cluster, size, compressor, encodes, chunk_nbytes=WIRE_NBYTES):
    """Return the Stages of a vector of `size` entries in wires of `compressor`."""
    entries = min(size, chunk_entries(compressor, size, chunk_nbytes))
    rest = (size - entries) / entries
    up, down = _chains(cluster, 4 * entries)
    wire = compressor.wire_nbytes(entries)
    copy = copy_seconds_of_chunks(cluster, 4 * entries, wire)
    first = {"reduce": up[0], "encode": 0.0, "copy": copy[0], "links": 0.0, "decode": 0.0,
             "broadcast": down[0]}
    each = {"reduce": up[1], "copy": copy[1], "broadcast": down[1]}
    sites, ways, wire_nbytes = len(cluster.sites), (), 0.0
    if sites > 1:
        # A hub of three sites or more adds, encodes once more, and decodes what it has encoded.
        wires, encodings = (2, 1) if sites == 2 else (sites, 2)
        if encodes:
            first["encode"] = 4 * entries / _slowest(cluster, "encode_bytes_per_second") * encodings
        first["decode"] = 4 * entries / _slowest(cluster, "decode_bytes_per_second") * wires / 2
        # The leader with most peers hands a wire to each of them and takes one from each.
        first["encode"] += (sites - 1) * max(site.message_seconds for site in cluster.sites)
        each |= {"encode": first["encode"], "decode": first["decode"]}
        ways = tuple(_crossing(routes, wire) for routes in link_routes(cluster))
        wire_nbytes = wire * (1 + rest)
    return Stages(first, each, rest, ways, wire_nbytes)


def _hierarchical(cluster, size, compressor, encodes, chunk_nbytes):
    """Pipeline of chunks: every stage once, then the slowest stage for all other chunks.

    Two sites cross once, both ways at the same time; more, up to the hub and down again.
    """
    stages = hierarchical_stages(cluster, size, compressor, encodes, chunk_nbytes)
    terms, slowest = dict(stages.first), stages.each
    links = 0.0
    if len(cluster.sites) == 2:
        terms["links"], links = max(stages.ways)
    elif stages.ways:
        terms["links"] = sum(first for first, _ in stages.ways)
        links = max(each for _, each in stages.ways)
    if links >= stages.interval:
        slowest = {"links": links}
    for name, seconds in slowest.items():
        terms[name] += stages.rest * seconds
    return AllreduceTime(**{f"{name}_seconds": seconds for name, seconds in terms.items()})


def _chains(cluster, chunk_nbytes):
    """Return (first chunk, every other chunk) of the slowest site's reduce and broadcast."""
    up, down = [(0.0, 0.0)], [(0.0, 0.0)]
    for site in cluster.sites:
        if site.ranks > 1:
            each = site.message_seconds + chunk_nbytes / site.network.bytes_per_second
            hop = each + site.network.latency_seconds
            add = chunk_nbytes / site.add_bytes_per_second
            up.append(((site.ranks - 1) * (hop + add), each + add))
            down.append(((site.ranks - 1) * hop, each))
    return max(up), max(down)


def link_routes(cluster):
    """Return the routes of all other sites to the hub, and those from the hub to them."""
    hub = cluster.names[cluster.hub]
    others = [name for name in cluster.names if name != hub]
    return ([cluster.route(name, hub) for name in others],
            [cluster.route(hub, name) for name in others])


def _crossing(routes, wire_nbytes):
    """Return (first chunk, every other chunk) of a wire on each of `routes` at the same time."""
    load = {}
    for link in (link for route in routes for link in route):
        load[link.pipe] = load.get(link.pipe, 0.0) + wire_nbytes / link.bytes_per_second
    return max(sum(link.latency_seconds for link in route)
               + max(load[link.pipe] for link in route) for route in routes), max(load.values())
