"""What "ring" takes where its sites follow one another in any order, many orders at once."""

import math

import numpy as np

from isthmus.timing.formulas import ring_seconds


class RingTimes:
    """Seconds of "ring" for vectors of `nbytes` bytes.

    An order is int[..., sites], the sites by number; the ranks of a site follow one another. A hop is
    what lies between a rank and the next: a site's own network, or the route to the site after it.
    """

    def __init__(self, cluster, nbytes, add_bytes_per_second):
        self.cluster, self.nbytes, self.add = cluster, nbytes, add_bytes_per_second
        self.part = nbytes / cluster.size
        self.steps = 2 * (cluster.size - 1)
        self.ranks_of_site = np.array([site.ranks for site in cluster.sites])
        self._routes = {}

    def halves(self, order):
        """Return (until the parts have their sums, from then on), float64[...] each."""
        latency, rate, sustained = self.hops(order)
        return ring_seconds(latency, rate, self.nbytes, self.add, sustained)

    def seconds(self, order):
        """Return float64[...]: the seconds of each order."""
        return sum(self.halves(order))

    def at_least(self, order):
        """Return float64[...] that are soon found, and not more than `seconds`.

        A part goes round but for two hops, twice; and the slowest hop takes one part after another.
        """
        latency, rate, sustained = self.hops(order)
        if not self.steps:
            return np.zeros(latency.shape[:-1])
        alone, each = latency + self.part / rate, self.part / np.minimum(rate, sustained)
        left_out = (alone + np.roll(alone, -1, axis=-1)).min(axis=-1)
        round_twice = 2 * alone.sum(axis=-1) - left_out + self.steps / 2 * self.part / self.add
        return np.maximum(round_twice, (alone + (self.steps - 1) * each).max(axis=-1))

    def hops(self, order):
        """Return float64[..., ranks], three times, of each hop: its latency, its rate for a part, and
        that of one part after another, where it has its share of a pipe that several hops pass."""
        order = np.asarray(order)
        rows = order.reshape(-1, order.shape[-1])
        sites, ranks = len(self.ranks_of_site), self.cluster.size
        count = self.ranks_of_site[rows]
        here = np.repeat(rows.ravel(), count.ravel()).reshape(-1, ranks)
        there = np.repeat(np.roll(rows, -1, axis=1).ravel(), count.ravel()).reshape(-1, ranks)
        last = np.zeros((len(rows), ranks + 1), bool)
        np.put_along_axis(last, count.cumsum(axis=1), True, axis=1)
        hop = here * sites + np.where(last[:, 1:], there, here)
        known, number = np.unique(hop, return_inverse=True)
        number = number.reshape(hop.shape)
        latency, rate, sustained = self._lines(*np.divmod(known, sites), number)
        shape = (*order.shape[:-1], ranks)
        return latency[number].reshape(shape), rate[number].reshape(shape), sustained.reshape(shape)

    def route(self, here, there):
        """Return the links from one site, by number, to another."""
        if (here, there) not in self._routes:
            names = self.cluster.names
            self._routes[here, there] = self.cluster.route(names[here], names[there])
        return self._routes[here, there]

    def _lines(self, here, there, number):
        """Return latency and rate of hops, float64[hops], and the sustained rate, as `number` is shaped.

        here, there: int[hops], the sites of each. number: int[orders, ranks], the hops of each order.
        """
        routes = [self.route(*ends) for ends in zip(here.tolist(), there.tolist())]
        lines, users = np.empty((len(routes), 2)), {}
        for hop, (site, route) in enumerate(zip(here.tolist(), routes)):
            lines[hop] = self.line(site, route)
            for link in route:
                users.setdefault(link.pipe, {}).setdefault(link, []).append(hop)
        sustained = np.full(number.shape, math.inf)
        alone = np.full(len(routes), math.inf)
        for links in users.values():
            passing = sum(map(len, links.values()))
            if passing == 1:  # no other hop takes from it, whatever the order
                ((link, (hop,)),) = links.items()
                alone[hop] = min(alone[hop], self.sustained(link, 1))
                continue
            passes = np.isin(number, [hop for hops in links.values() for hop in hops]).sum(axis=1)
            for link, hops in links.items():
                rates = np.array([self.sustained(link, most) for most in range(1, passes.max() + 1)])
                of_order = rates[np.maximum(passes, 1) - 1]
                uses = np.isin(number, hops)
                sustained = np.where(uses, np.minimum(sustained, of_order[:, None]), sustained)
        return *lines.T, np.minimum(sustained, alone[number])

    def line(self, site, route):
        """Return the latency of a hop, and the rate of a part that it has for itself."""
        if not route:
            return self.cluster.sites[site].network.line(self.part)
        latency, rate = zip(*(link.line(self.part) for link in route))
        return sum(latency), self._share * min(rate)

    def sustained(self, link, passing):
        """Return the rate of many parts on a link whose pipe so many hops pass, of each.

        What a link lets pass at any rate, after a pause, it does once.
        """
        longest = link.streams.nbytes[-1] if link.streams else math.inf
        nbytes = min(self.steps * passing * self.part, longest)
        return self._share * link.line(nbytes)[1] / passing

    @property
    def _share(self):
        """What is left of a rate for a part beside what its message grows by."""
        return self.part / (self.part + self.cluster.overhead_nbytes) if self.part else 1.0
