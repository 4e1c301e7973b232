"""What the exchanges of an epoch add to a plan's objective, also on a cluster that has changed."""

from dataclasses import dataclass

import numpy as np

from isthmus.planning.crossing import Crossing
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

    def with_links(self, cluster):
        """Return all of it, links included, to first order."""
        if not self.crossing:
            return self.seconds(cluster)
        delays = self._crossing(cluster).delay_seconds(self.lead)
        return self.seconds(cluster) + self.steps * float(self.weight_of_site @ delays)

    def of_pipes(self, cluster):
        """Return what the busiest pipe needs."""
        return self.steps * self._crossing(cluster).pipe_seconds

    def _crossing(self, cluster):
        together = together_terms(cluster, self.computing_seconds, self.workload)
        return Crossing.of(cluster, self.workload, together["links"])
