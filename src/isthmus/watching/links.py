"""What the links of a run carry; and those ten times slower than predicted, named while it goes on."""

import logging
import statistics

import numpy as np

from isthmus.links.agreement import gather_json

TIMES = 10.0
LEAST_SECONDS = 0.005
"""An exchange: less than this over the prediction may be the machine's own unrest."""
log = logging.getLogger("isthmus")


def counted_links(tiers, member):
    """Return the bytes sent over each link and what the formula says, on every rank. Collective."""
    names = tiers.cluster.names
    everyone = np.array(
        gather_json(
            tiers.world, np.stack([member.sent_to_sites, member.predicted_to_sites()], axis=1).tolist()
        )
    )
    site_of_rank = np.array(tiers.cluster.site_of_rank)
    return [
        {
            "source": names[i],
            "target": names[j],
            "sent_nbytes": int(nbytes[0]),
            "predicted_nbytes": int(nbytes[1]),
        }
        for i in range(len(names))
        for j in range(len(names))
        if i != j and (nbytes := everyone[site_of_rank == i, j].sum(axis=0)).any()
    ]


def received_shards(tiers, sets):
    """Return name -> bytes of shards that ranks had from others and not from a folder of their own, on
    every rank, for `sets`, name -> LocalSamples. Collective."""
    return {name: sum(gather_json(tiers.world, local.received_nbytes)) for name, local in sets.items()}


class LinkWatch:
    """Holds what rounds take on the links against what was predicted; kept where the job's rank 0 is.

    cluster: its tree of sites tells which links are meant. predicted_seconds: of a step, on its links; a
    round's are as many times that as it has steps.
    """

    def __init__(self, cluster, predicted_seconds):
        self.predicted_seconds = predicted_seconds
        names, tree = cluster.names, cluster.tree
        others = [site for site in range(len(names)) if site != tree.hub]
        ends = [f"{names[site]} and {names[tree.above(site)]}" for site in others]
        self.links = (
            f"the link between {ends[0]}"
            if len(ends) == 1
            else (f"one of the links between {', '.join(ends)}")
        )
        self.slow = False

    def look(self, step, rounds):
        """Warn where the median of the last rounds is so long; once, and once after.

        rounds: (seconds on links, steps) from one exchange to the next.
        """
        if not rounds or not self.predicted_seconds:
            return
        median = statistics.median(seconds for seconds, _ in rounds)
        predicted = self.predicted_seconds * statistics.median(steps for _, steps in rounds)
        slow = median > max(TIMES * predicted, predicted + LEAST_SECONDS)
        what = "a step" if all(steps == 1 for _, steps in rounds) else "an exchange"
        if slow and not self.slow:
            log.warning(
                f"step {step}: {what} takes {1e3 * median:.1f} ms on links, "
                f"{median / predicted:.0f} times the predicted {1e3 * predicted:.1f} ms: {self.links} "
                "is slower than the cluster file says, or others use it; measure with "
                "`mpirun ... isthmus bench links`"
            )
        elif self.slow and not slow:
            log.warning(f"step {step}: links are as fast as before: {what} takes {1e3 * median:.1f} ms")
        self.slow = slow
