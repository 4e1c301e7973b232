"""What a step takes beside computing and sums: the optimiser's update of the parameters, and Python."""

import math

import numpy as np


def update_terms(cluster, workload):
    """Return {"update", "python"} -> seconds of a step, each of the slowest site: all sites do both."""
    return {
        "update": max(update_seconds(site, workload) for site in cluster.sites),
        "python": max(site.python_seconds for site in cluster.sites),
    }


def update_seconds(site, workload):
    """Return the seconds of an update on the ranks of `site`, all at once.

    From the site's table of the optimiser, or else of its class; without one from the bytes that an
    update reads and writes and the memory's rate, which counts as nothing where it was not measured.
    """
    if workload.optimiser is None or workload.size == 0:
        return 0.0
    nbytes, kind = 4 * workload.size, workload.optimiser.partition("(")[0]
    named = {table.optimiser: table for table in site.update}
    table = named.get(workload.optimiser) or next(
        (table for name, table in named.items() if name.partition("(")[0] == kind), None
    )
    if table is None:
        rate = site.memory_bytes_per_second
        return workload.update_nbytes / rate if math.isfinite(rate) else 0.0
    table.warn_outside(nbytes)
    more = max(1.0, nbytes / table.nbytes[-1])
    return more * float(np.interp(nbytes, table.nbytes, table.seconds))
