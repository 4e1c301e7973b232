"""Cores that ranks of a host share: what a pipeline of chunks takes where all of them are busy at once.

Each rank's work on a chunk was measured with others beside it. In a pipeline every rank of a host works
on some chunk at the same time, so that it goes no faster than the host does the work of all of them.
"""

import numpy as np


def least_interval(cluster, chunk_seconds, coding_seconds):
    """Return the seconds that the most crowded host needs for all its ranks' work on one chunk.

    chunk_seconds: site -> seconds that a rank of it takes for (handing a chunk to a neighbour, adding
    one), as they were measured. coding_seconds: float[sites], of each leader's encoding and decoding.
    0 where calibration has not counted the cores, or was of other ranks.
    """
    found = cluster.calibration
    if found is None or found.ranks != cluster.size:
        return 0.0
    sites = np.array(cluster.site_of_rank)
    first_of_site = [ranks[0] for ranks in map(cluster.ranks_of_site, cluster.names)]
    slowest = 0.0
    for host in found.hosts:
        ranks = np.array(host.ranks)
        leaders = [rank for rank in host.ranks if rank in first_of_site]
        # Networks were measured between two ranks of each site, all sites at once.
        handing = 2 * len({site for site in sites[ranks] if cluster.sites[site].ranks > 1})
        work = sum(coding_seconds[sites[rank]] * _own(host.cores, len(leaders)) for rank in leaders)
        for rank in host.ranks:
            site = sites[rank]
            place, last = rank - first_of_site[site], cluster.sites[site].ranks - 1
            neighbours = (place > 0) + (place < last)
            hand, add = chunk_seconds[site]
            work += 2 * neighbours * hand * _own(host.cores, handing)  # up and down
            work += (place < last) * add * _own(host.cores, len(host.ranks))
        slowest = max(slowest, work / host.cores)
    return float(slowest)


def _own(cores, busy):
    """Return the share of a time that is the rank's own: it was measured with `busy` ranks at once."""
    return min(1.0, cores / max(1, busy))
