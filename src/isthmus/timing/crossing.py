"""What the links between sites add to steps that follow one another, and plans that make use of it.

Where sites are ready at different times, one's wire travels while another still computes. A site with
fast ranks may therefore compute for a whole round trip longer than one that is far away, and none
waits: the objective "period" shares the data out for that.
"""

from dataclasses import dataclass

import numpy as np

from isthmus.compression.dense import Dense
from isthmus.timing.formulas import period_seconds
from isthmus.timing.stages import hierarchical_stages

LOOKS = 8
"""Most plans that are made to find how far one of two sites should be ahead; one or two do."""


@dataclass(frozen=True)
class Crossing:
    """What the links add to each site's computing."""

    round_trip_seconds: np.ndarray  # float64[sites], to the hub and back, 0 for the hub
    beyond: np.ndarray  # bool[sites], those that reach the hub by way of its partner at the top
    pipe_seconds: float  # what the busiest pipe needs for a step, whatever the sites do meanwhile

    @classmethod
    def of(cls, cluster, workload, links_seconds):
        """Return the Crossing of a workload; None where sites do not meet as leaders in every step.

        links_seconds: what of the time on the links is left after the computing, if all sites begin
        together. Only with several buckets is that not the whole.
        """
        if (
            workload.algorithm != "hierarchical"
            or len(cluster.sites) == 1
            or workload.size == 0
            or workload.exchanges_per_step != 1
        ):
            return None
        stages = hierarchical_stages(
            cluster,
            workload.size,
            workload.compressor or Dense(),
            workload.compressor is not None,
            workload.chunk_nbytes,
        )
        trips = stages.round_trip_seconds
        if len(workload.buckets) > 1:
            together = period_seconds(np.zeros(len(trips)), trips, stages.tree.beyond)
            trips = trips * min(1.0, links_seconds / together) if together else trips
        return cls(trips, stages.tree.beyond, stages.pipe_seconds)

    def period_seconds(self, computing_seconds, own_seconds):
        """Return the seconds from one step to the next.

        computing_seconds: float64[sites].
        own_seconds: what an exchange takes but for the links.
        """
        period = period_seconds(computing_seconds, self.round_trip_seconds, self.beyond)
        return max(self.pipe_seconds, own_seconds + period)

    @property
    def halves(self):
        """Whether two halves of several sites exchange at the top: their trips are then upper bounds."""
        return self.beyond.size > 2 and self.beyond.any()

    @property
    def across_seconds(self):
        """Seconds from the partner at the top to the hub and back; 0 where the hub is alone there."""
        return float(self.round_trip_seconds[self.beyond].min()) if self.beyond.any() else 0.0

    def delay_seconds(self, lead=1.0):
        """Return float64[sites]: what to add to each site's computing; the period is the largest sum.

        lead: of two sites that exchange directly, how far the hub is ahead, from 0 (the other is, by
        the whole round trip) to 1; the period is that of the best. A hub that is alone at the top is
        always ahead.
        """
        given = (1 - lead) * self.across_seconds
        return self.round_trip_seconds + np.where(self.beyond, -given, given)


def shortest_period(cluster, crossing, steps, allocate):
    """Return (Allocation, lead, lower bound) of the plan with the shortest period.

    allocate(delay_seconds) -> Allocation of `steps` steps in which the links add so much to each site,
    float64[sites]. The value of divisible shards is convex in the lead, so tangents (shadow prices)
    bound it from below for all leads, and their lowest point is where to look next (Kelley 1960, "The
    cutting-plane method for solving convex programs").
    """
    if not crossing.beyond.any():
        found = allocate(crossing.delay_seconds())
        return found, 1.0, found.lower_bound_seconds
    rates = np.array([sum(site.samples_per_second) for site in cluster.sites])
    share = rates[~crossing.beyond].sum() / rates.sum()
    lead, best, tangents = 0.5 if abs(share - 0.5) < 1e-6 else float(share > 0.5), None, []
    for _ in range(LOOKS):
        found = allocate(crossing.delay_seconds(lead))
        if best is None or found.value < best[0].value:
            best = found, lead
        by_site = np.bincount(cluster.site_of_rank, found.shadow_prices["fixed"])
        slope = steps * by_site @ (crossing.delay_seconds(1.0) - crossing.delay_seconds(0.0))
        tangents.append((slope, found.lp_seconds - slope * lead))
        lead, bound = _lowest(tangents)
        if best[0].lp_seconds <= bound + 1e-6 * abs(bound):
            break
    return *best, min(bound, best[0].value)


def _lowest(tangents):
    """Return where in [0, 1] the largest of the lines (slope, start) is lowest, and how low."""
    slope, start = np.array(tangents).T
    cross = [
        0.0,
        1.0,
        *(
            (start[j] - start[i]) / (slope[i] - slope[j])
            for i in range(slope.size)
            for j in range(i)
            if slope[i] != slope[j]
        ),
    ]
    places = np.clip(cross, 0.0, 1.0)
    heights = (np.outer(places, slope) + start).max(axis=1)
    lowest = int(heights.argmin())
    return float(places[lowest]), float(heights[lowest])
