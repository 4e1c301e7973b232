"""What trees of sites take, and what they take at least while they are only known in part."""

import numpy as np

from isthmus.compression.dense import Dense
from isthmus.timing.stages import Work, stages_of
from isthmus.timing.time_model import time_of


class TreeTimes:
    """Seconds of "hierarchical" over any tree of a cluster's sites, and bounds on them.

    A tree's cost is its seconds; with `price_by`, bytes at a price first and seconds then.
    """

    def __init__(self, cluster, size, compressor, chunk_nbytes):
        self.cluster, wires = cluster, compressor or Dense()
        self.work = Work.of(cluster, size, wires, compressor is not None, chunk_nbytes)
        self.portable, self.price, self._seconds = wires.portable, None, {}
        self.message_nbytes = self.work.wire_nbytes + cluster.overhead_nbytes
        self.stream_nbytes = self.message_nbytes * self.work.chunks

    @property
    def rest(self):
        """How many chunks there are beside the first."""
        return self.work.chunks - 1

    def price_by(self, price):
        """Count links' bytes first. price: link -> of a byte over it; None: seconds alone count."""
        self.price = price

    def seconds(self, tree):
        """Return what one exchange over `tree` takes."""
        if tree not in self._seconds:
            tree_used = tree if self.portable else tree.with_one_at_the_top()
            self._seconds[tree] = time_of(stages_of(self.cluster, tree_used, self.work)).seconds
        return self._seconds[tree]

    def cost(self, tree):
        """Return (price, seconds)."""
        price = 0.0
        if self.price is not None:
            for site, parent in self.edges(tree):
                price += self.edge_price(site, parent)
        return price, self.seconds(tree)

    @staticmethod
    def edges(tree):
        """Return (site, what is above it) of all edges."""
        return [(site, tree.above(site)) for site in tree.downwards if site != tree.hub]

    def edge_price(self, site, parent):
        """Return the price of a byte up and one down between two sites."""
        names, route = self.cluster.names, self.cluster.route
        ends = names[site], names[parent]
        return sum(self.price(link) for end in (ends, ends[::-1]) for link in route(*end))

    def least_seconds(self, first_links, each_links, height, peers, two):
        """Return what a tree takes at least whose links take so long.

        first_links, each_links: of the first chunk and any other. height: of the tree at least. peers:
        most wires that a site adds up at least. two: whether two sites exchange at the top.
        """
        work = self.work
        coding = peers * work.message + work.decode * (peers + 1 + two)
        own = work.reduce[1] + work.broadcast[1] + coding + 2 * work.encode
        first = work.reduce[0] + work.broadcast[0] + coding + (height + 1 + two) * work.encode
        return first + first_links + (work.chunks - 1) * max(each_links, own)

    def line(self, links):
        """Return (latency, seconds of a chunk) of a route that is used for one wire alone."""
        lines = [link.line(self.stream_nbytes) for link in links]
        return (
            sum(latency for latency, _ in lines),
            max((self.message_nbytes / rate for _, rate in lines), default=0.0),
        )

    def pairs(self):
        """Return float64[sites, sites]: latencies, and seconds of a chunk, from site to site."""
        names = self.cluster.names
        table = [[self.line(self.cluster.route(a, b)) for b in names] for a in names]
        return np.array(table).transpose(2, 0, 1)


def shortest(seconds, relays):
    """Return float64[sites, sites]: the shortest ways where only `relays` are passed (Floyd 1962)."""
    distance = np.array(seconds)
    np.fill_diagonal(distance, 0.0)
    for middle in relays:
        distance = np.minimum(distance, distance[:, middle, None] + distance[middle])
    return distance


def told_parents(cluster):
    """Return the parent of each site that the cluster file tells, or None."""
    index = {name: number for number, name in enumerate(cluster.names)}
    return [None if site.parent is None else index[site.parent] for site in cluster.sites]


def tops_told(cluster):
    """Return (hub, partner or None) where the cluster file tells what is at the top, else None."""
    parents = told_parents(cluster)
    free = [site for site, parent in enumerate(parents) if parent is None]
    told = len(free) == 1 or (len(free) == 2 and len(parents) > 2)
    return (cluster.tree.hub, cluster.tree.partner) if cluster.told_hub or told else None


def hubs_allowed(cluster):
    """Return the sites that the cluster file lets be a hub, where it tells none."""
    return [site for site, row in enumerate(cluster.sites) if row.relay and row.parent is None]
