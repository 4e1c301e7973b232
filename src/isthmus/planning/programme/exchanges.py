"""What the exchanges of an epoch add to a plan's objective, and what a faster link would save of it."""

from typing import Any, NamedTuple

import numpy as np

from isthmus.cluster.aggregation_tree import AggregationTree
from isthmus.timing.crossing import shortest_period
from isthmus.timing.step import exchange_terms, together_terms

FASTER = 1e-3
"""Share of a link's bytes per second by which it is made faster to see what that saves."""


class Placed(NamedTuple):
    """Shards that are placed for steps with their exchanges."""

    allocation: Any  # allocation.Allocation
    least_seconds: float  # no Allocation has a smaller value
    lead: float | None  # how far the hub is ahead of the other of two sites, from 0 to 1


class Exchange:
    """The exchanges of `steps` steps, which all sites begin together."""

    floor_seconds = 0.0
    """What all steps take, however shards are placed."""

    def __init__(self, cluster, workload, steps):
        self.cluster, self.workload, self.steps = cluster, workload, steps
        self._together = {}

    def place(self, allocate):
        """Return the Placed with the least value.

        allocate(delay_seconds) -> Allocation of all steps in which the links add so much to a step of
        each site, float64[sites].
        """
        found = allocate(np.zeros(len(self.cluster.sites)))
        return Placed(found, found.lower_bound_seconds, None)

    def epoch_seconds(self, terms):
        """Return the seconds of all steps where nothing else counts, from the predicted terms of one.

        None: they are the value of the Allocation and `own_seconds`.
        """
        return None

    def own_seconds(self, cluster, computing_seconds):
        """Return what exchanges on `cluster` add to the value of an Allocation."""
        return self.steps * sum(together_terms(cluster, computing_seconds, self.workload).values())

    def link_prices(self, placed, computing_seconds, value):
        """Return link -> seconds of all steps that one more byte per second saves."""
        return link_prices(self.cluster, lambda changed: self.own_seconds(changed, computing_seconds))

    def delay_of_rank(self):
        """Return float64[ranks]: what the links add to a step before a plan is known."""
        return np.zeros(self.cluster.size)

    def beyond_seconds(self, seconds_of_rank):
        """Return what a step takes beyond its slowest rank's computing."""
        return sum(self.together(float(seconds_of_rank.max())).values())

    def least_beyond_seconds(self, computing_seconds):
        """Return what a step takes at least beyond computing and `delay_of_rank`, in any plan."""
        return sum(self.together(computing_seconds).values())

    def together(self, computing_seconds):
        """Return the terms of an exchange that all begin together: less where buckets travel before."""
        key = computing_seconds if len(self.workload.buckets) > 1 else 0.0
        if key not in self._together:
            self._together[key] = together_terms(self.cluster, key, self.workload)
        return self._together[key]


class Together(Exchange):
    """The same where the objective is the time of an epoch: it is that of its steps, to the last bit."""

    def epoch_seconds(self, terms):
        return self.steps * sum(
            (terms | together_terms(self.cluster, terms["compute"], self.workload)).values()
        )


class Following(Exchange):
    """The same where sites need not wait until the others have the sum: steps follow one another."""

    def __init__(self, cluster, workload, steps, crossing):
        super().__init__(cluster, workload, steps)
        self.crossing, self.floor_seconds = crossing, steps * crossing.pipe_seconds

    def place(self, allocate):
        found, lead, least = shortest_period(self.cluster, self.crossing, self.steps, allocate)
        # What is left of the links depends on the plan: maybe none.
        if len(self.workload.buckets) > 1 or self.crossing.halves:
            least = super().place(allocate).least_seconds
        return Placed(found, least, lead)

    def epoch_seconds(self, terms):
        return self.steps * sum(terms.values())

    def own_seconds(self, cluster, computing_seconds):
        """Return it without the links, which are part of the sites' own seconds."""
        terms = together_terms(cluster, computing_seconds, self.workload)
        return self.steps * (sum(terms.values()) - terms["links"])

    def link_prices(self, placed, computing_seconds, value):
        def crossing_of(cluster):
            links = together_terms(cluster, computing_seconds, self.workload)["links"]
            return self.crossing.of(cluster, self.workload, links)

        def seconds_of_site(cluster):
            """Return float64[sites]: what the links add to the objective through each site."""
            delays = crossing_of(cluster).delay_seconds(placed.lead)
            return self.steps * weight_of_site * delays

        cluster = self.cluster
        if value <= self.floor_seconds:  # the busiest pipe alone decides how long a step takes
            return link_prices(cluster, lambda changed: self.steps * crossing_of(changed).pipe_seconds)
        weight_of_site = np.bincount(cluster.site_of_rank, placed.allocation.shadow_prices["fixed"])
        hub = cluster.names[cluster.hub]
        star = cluster.tree == AggregationTree.star(cluster.hub, len(cluster.sites))
        alone = all(hub in (link.source, link.target) for link in cluster.links)
        if len(cluster.sites) > 2 and star and alone:
            return prices_of_star(cluster, seconds_of_site)
        return link_prices(cluster, lambda changed: float(seconds_of_site(changed).sum()))

    def delay_of_rank(self):
        """Return it for the faster of two sites, or of two halves, a whole round trip ahead."""
        cluster = self.cluster
        rates = np.array([sum(site.samples_per_second) for site in cluster.sites])
        ahead = 2 * rates[~self.crossing.beyond].sum() >= rates.sum()
        delay = self.crossing.delay_seconds(float(ahead))
        return delay[list(cluster.site_of_rank)]

    def beyond_seconds(self, seconds_of_rank):
        return following_seconds(self.cluster, self.workload, seconds_of_rank)

    def least_beyond_seconds(self, computing_seconds):
        terms = self.together(computing_seconds)
        # Another lead of two sites could be better, by a round trip at the very most.
        return sum(terms.values()) - terms["links"] - self.crossing.across_seconds


def following_seconds(cluster, workload, seconds_of_rank):
    """Return what a step takes beyond its computing where sites go on as soon as they can."""
    first_rank = np.cumsum([0] + [site.ranks for site in cluster.sites[:-1]])
    of_site = np.maximum.reduceat(seconds_of_rank, first_rank)
    return sum(exchange_terms(cluster, of_site, workload).values())


def link_name(link):
    """Return the name of what a link's rate belongs to: what it shares, or its two sites."""
    return link.name


def link_names(cluster):
    """Return name -> numbers of the links that have it."""
    names = {}
    for number, link in enumerate(cluster.links):
        names.setdefault(link_name(link), []).append(number)
    return names


def link_prices(cluster, exchange_seconds):
    """Return link -> seconds of an epoch's exchange saved by one more byte per second, by differences.

    exchange_seconds: of a cluster. Both directions of a link grow together; links that share a rate are
    one. Links that save nothing when all of them grow save nothing alone, so halves are tried.
    """
    names = link_names(cluster)
    prices, now, trials = dict.fromkeys(names, 0.0), exchange_seconds(cluster), [list(names)]
    while trials:
        chosen = trials.pop()
        saved = now - exchange_seconds(
            with_faster_links(cluster, {number for name in chosen for number in names[name]})
        )
        if saved > 1e-12 * now and len(chosen) > 1:
            trials += [chosen[: len(chosen) // 2], chosen[len(chosen) // 2 :]]
        elif saved > 0 and chosen:
            prices[chosen[0]] = saved / added_bytes_per_second(cluster, names[chosen[0]])
    return prices


def prices_of_star(cluster, seconds_of_site):
    """Return `link_prices` where each site has a link of its own to the hub and one from it.

    seconds_of_site: of a cluster, float64[sites]. What it saves that a site's link is faster is that
    site's alone, so all are tried at once.
    """
    names, now = link_names(cluster), seconds_of_site(cluster)
    prices, hub = dict.fromkeys(names, 0.0), cluster.names[cluster.hub]
    ends = [(link.source, link.target) for link in cluster.links]
    for way in (0, 1):
        numbers = {number for number, end in enumerate(ends) if end[way] == hub}
        saved = now - seconds_of_site(with_faster_links(cluster, numbers))
        of_site = dict(zip(cluster.names, saved.tolist()))
        for name, members in names.items():
            prices[name] += sum(
                of_site[ends[number][1 - way]] for number in numbers.intersection(members)
            ) / added_bytes_per_second(cluster, members)
    return prices


def with_faster_links(cluster, numbers):
    """Return `cluster` with `FASTER` more bytes per second on each of the links."""
    table = cluster.to_table()
    for members in link_names(cluster).values():
        added = added_bytes_per_second(cluster, members)
        for number in numbers.intersection(members):
            table["link"][number]["bytes_per_second"] += added
    return type(cluster)(table)


def added_bytes_per_second(cluster, numbers):
    """Return by how much the links of one name are made faster."""
    return FASTER * min(cluster.links[number].bytes_per_second for number in numbers)
