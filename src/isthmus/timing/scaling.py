"""What a cluster would do with more edge sites, other links or another compressor."""

from dataclasses import dataclass, replace

import numpy as np

from isthmus.cluster.cluster import Cluster
from isthmus.compression import Dense, Int8, OneBit
from isthmus.errors import ClusterError
from isthmus.timing.simulation import simulate

COMPARED = {"dense float32": None, "float16": Dense("float16"), "int8": Int8(), "1 bit": OneBit()}
"""Name -> compressor of a scaling study; None sends float32 as it is."""


@dataclass(frozen=True)
class Point:
    """One simulation of a study: `value` edge sites, or links times `value`."""

    value: float
    compressor: str
    step_seconds: float
    samples_per_second: float
    busiest_link: float


class Study:
    """Simulations of one cluster and workload, every rank with as many samples a step throughout.

    `options` are those of `simulate`; the algorithm is "hierarchical", which alone compresses.
    """

    def __init__(self, cluster, workload, **options):
        self.cluster, self.options = cluster, options
        self.workload = replace(workload, algorithm="hierarchical")
        self.seconds_of_rank = workload.batch_size / sum(cluster.rates)

    def edge_sites(self, counts):
        """Return a Point for every number of edge sites and every compressor."""
        return [
            self.point(count, name, cluster)
            for count in counts
            for cluster in (with_edge_sites(self.cluster, count),)
            for name in COMPARED
        ]

    def link_rates(self, factors):
        """Return a Point for every factor on all links' bytes per second and every compressor."""
        return [
            self.point(factor, name, cluster)
            for factor in factors
            for cluster in (with_link_rate(self.cluster, factor),)
            for name in COMPARED
        ]

    def point(self, value, compressor, cluster):
        """Simulate `cluster` with a compressor of COMPARED."""
        made = simulate(
            cluster,
            replace(self.workload, compressor=COMPARED[compressor]),
            self.seconds_of_rank * np.array(cluster.rates),
            **self.options,
        )
        return Point(
            value,
            compressor,
            made.step_seconds,
            made.samples_per_second,
            max(made.utilisation.values(), default=0.0),
        )

    def stops_paying(self, points, compressor="int8", against="dense float32"):
        """Return from how many edge sites on `compressor` makes steps no shorter than `against`.

        None if it is shorter at the largest count of `points`. A count is found between two counts
        of `points` by bisection: there the advantage is taken to change sign once.
        """
        pays = {
            count: self._pays(points, count, compressor, against)
            for count in sorted({point.value for point in points})
        }
        counts = list(pays)
        last = next((place for place in range(len(counts), 0, -1) if pays[counts[place - 1]]), 0)
        if last == len(counts):
            return None
        low, high = counts[last - 1] if last else counts[0] - 1, counts[last]
        while high - low > 1:
            middle = (low + high) // 2
            cluster = with_edge_sites(self.cluster, middle)
            tried = [self.point(middle, name, cluster) for name in (compressor, against)]
            low, high = (
                (middle, high) if self._pays(tried, middle, compressor, against) else (low, middle)
            )
        return high

    @staticmethod
    def _pays(points, count, compressor, against):
        seconds = {point.compressor: point.step_seconds for point in points if point.value == count}
        return seconds[compressor] < seconds[against] * (1 - 1e-9)


def edge_counts(most):
    """Return 1, 2, 4 ... and `most`."""
    counts = [1]
    while 2 * counts[-1] < most:
        counts.append(2 * counts[-1])
    return [*counts, most] if most > 1 else counts


def with_edge_sites(cluster, count):
    """Return `cluster` with `count` edge sites: its own in their order, and copies of them.

    A copy has the links of what it copies; links of a shared name share with those of the copies.
    Raises ClusterError if there is no edge site to copy, and if those that remain are not linked.
    """
    table = cluster.to_table()
    edge = [site for site in table["site"] if site["tier"] == "edge"]
    if not edge:
        raise ClusterError(
            f'{cluster.source}: no site has tier "edge", so there is none to copy; '
            'give one tier = "edge"'
        )
    edge_names = {site["name"] for site in edge}
    rounds = range(-(-count // len(edge)))
    mark = "#"
    while any(mark in site["name"] for site in table["site"]):
        mark += "#"

    def named(name, number):
        return f"{name}{mark}{number + 1}" if number and name in edge_names else name

    copies = [site | {"name": named(site["name"], number)} for number in rounds for site in edge]
    sites = [site for site in table["site"] if site["tier"] != "edge"] + copies[:count]
    sites = [
        {key: value for key, value in site.items() if key not in ("hosts", "world_ranks")}
        for site in sites
    ]
    kept = {site["name"] for site in sites}
    links = {}
    for number in rounds:
        for link in table.get("link", ()):
            ends = named(link["from"], number), named(link["to"], number)
            if kept.issuperset(ends):
                links.setdefault(ends, link | {"from": ends[0], "to": ends[1]})
    return Cluster({"site": sites, "link": list(links.values())}, source=cluster.source)


def with_link_rate(cluster, factor):
    """Return `cluster` with every link's bytes per second times `factor`."""
    table = cluster.to_table()
    for link in table.get("link", ()):
        link["bytes_per_second"] *= factor
    return Cluster(table, source=cluster.source)
