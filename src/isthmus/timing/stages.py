"""The stages of a hierarchical allreduce: what each chunk costs inside sites and between them."""

import math
from collections import Counter
from dataclasses import dataclass

import numpy as np

from isthmus.cluster.aggregation_tree import AggregationTree
from isthmus.compression.chunks import SITE_ENTRIES, WIRE_NBYTES, chunk_entries, link_chunk_nbytes
from isthmus.compression.dense import Dense
from isthmus.timing.cores import least_interval
from isthmus.timing.formulas import chain_seconds


@dataclass(frozen=True)
class Stages:
    """What one hierarchical allreduce asks of a cluster: seconds by stage and by way over the links."""

    first: dict  # stage -> seconds of the first chunk
    each: dict  # stage -> seconds of every other chunk
    rest: float  # how many other chunks there are
    ways: (
        tuple  # up and down the edge above each site but the hub: (first, each), float64[sites - 1] both
    )
    tree: AggregationTree
    wire_nbytes: float  # what a leader sends in a crossing, all chunks

    @property
    def interval(self):
        """Seconds of the leader's own work on a chunk: done by one thread, it counts as one stage."""
        return sum(self.each.values())

    @property
    def links(self):
        """(First chunk, every other chunk) on the links, where all sites send at the same time.

        Two sites cross once, both ways at once; more, up the tree and down again, but between two at
        the top once.
        """
        ways = [(float(first.max()), float(each.max())) for first, each in self.ways]
        if len(self.tree.parents) == 2:
            return max(ways)
        up, down = (self.tree.along(first, sum) for first, _ in self.ways)
        first, partner = float(up.max() + down.max()), self.tree.partner
        if partner is not None:
            beyond = self.tree.beyond
            there, back = up[partner], down[partner]  # of the edge between the two
            own, other = up[~beyond].max(), up[beyond].max() - there
            first = max(
                max(own, other + there) + down[~beyond].max(),
                max(other, own + back) + down[beyond].max() - back,
            )
        return float(first), max(each for _, each in ways)

    @property
    def round_trip_seconds(self):
        """float64[sites]: what the links take from each site to the hub and back; 0 for the hub."""
        (first_up, up), (first_down, down) = self.ways
        others = self.rest if self.links[1] >= self.interval else 0.0
        firsts, halves, across = first_up + first_down, [up, down], 0.0
        if (partner := self.tree.partner) is not None:
            # An exchange at the top is a way there and a way back, with all chunks each.
            edge = partner - (partner > self.tree.hub)
            across = firsts[edge] + others * (up[edge] + down[edge])
            firsts, *halves = (
                np.where(np.arange(up.size) == edge, 0.0, each) for each in (firsts, *halves)
            )
        upwards, downwards = (self.tree.along(each, max) for each in halves)
        # The sum comes down while the rest goes up: only what is slower than that adds to it.
        behind = np.maximum(0.0, downwards - up.max())
        below = self.tree.along(firsts, sum) + others * (upwards + behind)
        return below + across * self.tree.beyond

    @property
    def pipe_seconds(self):
        """Seconds that the busiest pipe needs for all it carries in a step."""
        return (1 + self.rest) * max(float(each.max()) for _, each in self.ways)


@dataclass(frozen=True)
class Work:
    """What sites and leaders do on a chunk whatever their tree, in seconds."""

    entries: int  # of a chunk
    chunks: float  # as many as the vector has, no whole number
    wire_nbytes: int  # of a chunk, without what wrappers add
    reduce: tuple  # (first chunk, every other chunk) of the slowest site
    broadcast: tuple
    encode: float = 0.0
    decode: float = 0.0  # of a wire, added or not
    message: float = 0.0
    of_site: tuple = ()  # (encode, decode) of each

    @classmethod
    def of(cls, cluster, size, compressor, encodes, chunk_nbytes):
        """Return the Work on a vector of `size` entries in wires of `compressor`."""
        entries = min(size, chunk_entries(compressor, size, chunk_nbytes))
        up, down = _chains(cluster, 4 * entries)
        reduce = up[0] + overhead_seconds(cluster, "hierarchical"), up[1]
        coding = ()
        if len(cluster.sites) > 1:
            # All leaders at once, so the slowest counts.
            both = [coding_seconds(site, compressor, size, encodes) for site in cluster.sites]
            of_site = [(entries / size * one, entries / size * two / 2) for one, two in both]
            message = max(site.message_seconds for site in cluster.sites)
            coding = *map(max, zip(*of_site)), message, tuple(of_site)
        return cls(entries, size / entries, compressor.wire_nbytes(entries), reduce, down, *coding)


def hierarchical_stages(cluster, size, compressor, encodes, chunk_nbytes=None):
    """Return the Stages of a vector of `size` entries in wires of `compressor`.

    chunk_nbytes: most bytes of a wire; None: as the links are.
    """
    chunk_nbytes = chunk_nbytes or link_chunk_nbytes(cluster.links)
    tree = cluster.tree if compressor.portable else cluster.tree.with_one_at_the_top()
    return stages_of(cluster, tree, Work.of(cluster, size, compressor, encodes, chunk_nbytes))


def stages_of(cluster, tree, work):
    """Return the Stages of that Work over a tree of the cluster's sites."""
    rest, sites, ways, wire_nbytes = work.chunks - 1, len(tree.parents), (), 0.0
    copy = copy_seconds_of_chunks(cluster, 4 * work.entries, work.wire_nbytes, tree)
    first = {
        "reduce": work.reduce[0],
        "encode": 0.0,
        "copy": copy[0],
        "links": 0.0,
        "decode": 0.0,
        "broadcast": work.broadcast[0],
    }
    each = {"reduce": work.reduce[1], "copy": copy[1], "broadcast": work.broadcast[1]}
    if sites > 1:
        handed, added = _wires(tree)
        # What comes down is decoded once more, but where two sites have added what they exchanged.
        last = 0 if sites == 2 else 1
        first["encode"] = work.encode * tree.quantisations + _on_the_way(tree, handed) * work.message
        first["decode"] = work.decode * (_on_the_way(tree, added) + last)
        each["encode"] = work.encode * min(tree.quantisations, 2) + max(handed) * work.message
        each["decode"] = work.decode * (max(added) + last)
        message_nbytes = work.wire_nbytes + cluster.overhead_nbytes
        wire_nbytes = message_nbytes * work.chunks
        ways = crossings(link_routes(cluster, tree), message_nbytes, wire_nbytes)
        of_leader = [
            encode + decode * (wires + last) for (encode, decode), wires in zip(work.of_site, added)
        ]
        each = _stretched(cluster, each, 4 * work.entries, of_leader)
    return Stages(first, each, rest, ways, tree, wire_nbytes)


def _stretched(cluster, each, chunk_nbytes, coding_seconds):
    """Return the stages of every other chunk, all as much longer as the ranks of a host get in each
    other's way."""
    piece = min(chunk_nbytes, 4 * SITE_ENTRIES)
    work = [
        (
            site.message_seconds + chunk_nbytes / site.network.line(piece)[1],
            chunk_nbytes / site.add_bytes_per_second,
        )
        for site in cluster.sites
    ]
    own = sum(each.values())
    factor = max(1.0, least_interval(cluster, work, coding_seconds) / own) if own else 1.0
    return {stage: factor * seconds for stage, seconds in each.items()}


def _wires(tree):
    """Return, by site: how many wires it hands on, but to its parent, and how many it adds up."""
    tops = [site for site in (tree.hub, tree.partner) if tree.partner is not None]
    children = [len(below) for below in tree.children]
    handed = [count + (site in tops) for site, count in enumerate(children)]
    # At the top the other's and its own.
    return handed, [count + 2 * (site in tops) for site, count in enumerate(children)]


def _on_the_way(tree, numbers):
    """Return the largest sum of the sites' `numbers` on a way to the top."""
    sums = list(numbers)
    for site in tree.downwards:
        parent = tree.parents[site]
        sums[site] += 0 if parent is None else sums[parent]
    return max(sums)


def site_sum_terms(cluster, size):
    """Return stage -> seconds of a sum inside each site, of the slowest: no link is used."""
    if size == 0 or all(site.ranks == 1 for site in cluster.sites):
        return {}
    entries = min(size, chunk_entries(Dense(), size, WIRE_NBYTES))
    rest = (size - entries) / entries
    up, down = _chains(cluster, 4 * entries)
    return {
        "reduce": up[0] + rest * up[1] + overhead_seconds(cluster, "hierarchical"),
        "broadcast": down[0] + rest * down[1],
    }


def overhead_seconds(cluster, algorithm):
    """Return what an allreduce takes whatever its size, as calibration found it on as many ranks."""
    found = cluster.calibration
    return found.overhead_seconds.get(algorithm, 0.0) if found and found.ranks == cluster.size else 0.0


def coding_seconds(site, compressor, size, encodes=True):
    """Return the seconds to encode `size` entries, and to decode and add the wires of two sites.

    From the site's table of the compressor, or else of its class; without one from the site's rates,
    which count as nothing where they were not measured. Those are of the run's own compressor, so
    float32 that is only copied to a wire (`encodes` is false) counts as nothing too.
    """
    named = {coding.compressor: coding for coding in site.coding}
    kind = f"{type(compressor).__name__}("
    table = named.get(repr(compressor)) or next(
        (coding for name, coding in named.items() if name.startswith(kind)), None
    )
    if table is None:
        encode = 4 * size / site.encode_bytes_per_second if encodes else 0.0
        return encode, 4 * size / site.decode_bytes_per_second
    table.warn_outside(4 * size)
    more = max(1.0, 4 * size / table.nbytes[-1])
    encode, decode = (
        more * float(np.interp(4 * size, table.nbytes, seconds))
        for seconds in (table.encode_seconds, table.decode_seconds)
    )
    return encode, 2 * decode


def _chains(cluster, chunk_nbytes):
    """Return (first chunk, every other chunk) of the slowest site's reduce and broadcast."""
    up, down = [(0.0, 0.0)], [(0.0, 0.0)]
    for site in cluster.sites:
        # Inside a site a long chunk goes in several messages.
        latency, rate = site.network.line(min(chunk_nbytes, 4 * SITE_ENTRIES))
        for way, adds in ((up, site.add_bytes_per_second), (down, math.inf)):
            first, each = chain_seconds(
                site.ranks, chunk_nbytes, latency, rate, site.message_seconds, adds
            )
            way.append((float(first), float(each)))
    return max(up), max(down)


def link_routes(cluster, tree=None):
    """Return the routes of all sites but the hub to what is above them in the tree, and those from it.

    tree: the cluster's own, unless another is given.
    """
    tree, names = tree or cluster.tree, cluster.names
    ends = [
        (names[site], names[tree.hub if site == tree.partner else tree.parents[site]])
        for site in range(len(names))
        if site != tree.hub
    ]
    return [cluster.route(*end) for end in ends], [cluster.route(*end[::-1]) for end in ends]


def shared_lines(routes, nbytes):
    """Return link -> latency and rate of a stream of `nbytes` on every route at the same time.

    The rate is all streams' that pass the link's pipe.
    """
    passing = Counter(link.pipe for route in routes for link in route)
    return {link: link.line(passing[link.pipe] * nbytes) for route in routes for link in route}


def crossings(ways, wire_nbytes, stream_nbytes):
    """Return (first chunk, every other chunk), float64[routes], of each way: up, and down.

    A wire is on each route of a way at the same time. Links that share a rate take turns: their bytes
    add up, and for every other chunk those of both ways. stream_nbytes: those of all chunks.
    """
    found, carried = [], {}
    for routes in ways:
        lines, load = shared_lines(routes, stream_nbytes), {}
        for link in (link for route in routes for link in route):
            load[link.pipe] = load.get(link.pipe, 0.0) + wire_nbytes / lines[link][1]
        for pipe, seconds in load.items():
            carried[pipe] = carried.get(pipe, 0.0) + seconds
        latency = np.array([sum(lines[link][0] for link in route) for route in routes])
        found.append(latency + _slowest(routes, load))
    return tuple((first, _slowest(routes, carried)) for first, routes in zip(found, ways))


def _slowest(routes, seconds):
    return np.array([max(seconds[link.pipe] for link in route) for route in routes])


def copy_seconds_of_exact(cluster, algorithm, nbytes):
    """Return the seconds of the copies in one exact allreduce of `nbytes`, at the slowest site.

    A rank copies all that it sends to its host and all that it receives from there: the vector once
    with MPI's own algorithm, up to twice in a tree, once a step of doubling, and 2 (p - 1) / p of it
    otherwise.
    """
    sent = {"mpi": 1, "tree": 2, "doubling": (cluster.size - 1).bit_length()}.get(
        algorithm, 2 * (1 - 1 / cluster.size)
    )
    return 2 * sent * nbytes / min(site.host_copy_bytes_per_second for site in cluster.sites)


def copy_seconds_of_chunks(cluster, chunk_nbytes, wire_nbytes, tree=None):
    """Return (first chunk, every other chunk) of "hierarchical", at the slowest site.

    A chunk is copied out and in at each hop of its site's chain, up and down, and so are wires. The
    first takes all hops one after another; of every other the rank that copies most counts.
    """
    first, each, tree = 0.0, 0.0, tree or cluster.tree
    for index, site in enumerate(cluster.sites):
        wires = 2 * (len(tree.children[index]) + (tree.above(index) is not None)) * wire_nbytes
        hops, rate = 2 * (site.ranks - 1), site.host_copy_bytes_per_second
        first = max(first, (wires + 2 * hops * chunk_nbytes) / rate)
        each = max(each, (wires + min(hops, 4) * chunk_nbytes) / rate)
    return first, each
