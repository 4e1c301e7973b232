"""What the exchanges of an epoch add to a plan's objective, also on a cluster that has changed."""

from dataclasses import dataclass

import numpy as np

from isthmus.planning.crossing import Crossing
from isthmus.planning.prices import (
    added_bytes_per_second,
    link_names,
    link_prices,
    with_faster_links,
)
from isthmus.planning.step import together_terms
from isthmus.planning.time_model import Workload


@dataclass(frozen=True)
class Exchange:
    """The exchanges of `steps` steps, each after the slowest rank's `computing_seconds`.

    crossing: None where all sites begin together. weight_of_site: float64[sites], how much of a site's
    seconds the objective takes.
    """

    workload: Workload
    steps: int
    computing_seconds: float
    crossing: Crossing | None
    lead: float | None
    weight_of_site: np.ndarray

    def seconds(self, cluster):
        """Return all of it, or all but the links where those are part of the sites' own seconds."""
        terms = together_terms(cluster, self.computing_seconds, self.workload)
        return self.steps * (sum(terms.values()) - (terms["links"] if self.crossing else 0.0))

    def link_prices(self, cluster, full_pipes=False):
        """Return link -> seconds of all steps that one more byte per second saves.

        full_pipes: the busiest pipe alone decides how long a step takes.
        """
        if not self.crossing:
            return link_prices(cluster, self.seconds)
        if full_pipes:
            return link_prices(
                cluster, lambda changed: self.steps * self._crossing(changed).pipe_seconds)
        hub = cluster.names[cluster.hub]
        if len(cluster.sites) > 2 and all(hub in (link.source, link.target) for link in cluster.links):
            return self._prices_of_star(cluster)
        return link_prices(cluster, lambda changed: float(self._site_seconds(changed).sum()))

    def _prices_of_star(self, cluster):
        """Return the prices where each site has a link of its own to the hub and one from it.

        What it saves that a site's link is faster is that site's alone, so all are tried at once.
        """
        names, now = link_names(cluster), self._site_seconds(cluster)
        prices, hub = dict.fromkeys(names, 0.0), cluster.names[cluster.hub]
        ends = [(link.source, link.target) for link in cluster.links]
        for way in (0, 1):
            numbers = {number for number, end in enumerate(ends) if end[way] == hub}
            saved = now - self._site_seconds(with_faster_links(cluster, numbers))
            of_site = dict(zip(cluster.names, saved.tolist()))
            for name, members in names.items():
                prices[name] += sum(of_site[ends[number][1 - way]] for number in numbers.intersection(
                    members)) / added_bytes_per_second(cluster, members)
        return prices

    def _site_seconds(self, cluster):
        """Return float64[sites]: what the links add to the objective through each site."""
        delays = self._crossing(cluster).delay_seconds(self.lead)
        return self.steps * self.weight_of_site * delays

    def _crossing(self, cluster):
        together = together_terms(cluster, self.computing_seconds, self.workload)
        return Crossing.of(cluster, self.workload, together["links"])
