"""What ranks find together: cores for all of them, and one time of day."""

import os
import time

import numpy as np

from isthmus.checks.findings import passed, warned
from isthmus.links.clocks import clock_offsets

YIELD = "OMPI_MCA_mpi_yield_when_idle"
LARGEST_OFFSET_SECONDS = 1e-3


def cores_here():
    """Return the JSON facts of this process: the cores it may use, its quota, and yielding."""
    return {
        "cores": sorted(os.sched_getaffinity(0)),
        "quota": cpu_quota(),
        "of": os.cpu_count(),
        "spins": os.environ.get(YIELD) == "0",
    }


def cpu_quota(path="/sys/fs/cgroup/cpu.max"):
    """Return how many cores' time a container may use, or None where it is not limited."""
    try:
        with open(path, encoding="utf-8") as file:
            quota, period = file.read().split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else int(quota) / int(period)


def cores_for_ranks(facts, ranks_of_host, threads=1, planned=1, started=True):
    """Yield, for each host, whether its ranks have a core for each of their threads.

    facts: `cores_here` of every rank. planned: ranks that a run will have, where one process alone
    checks for it.
    """
    for host, ranks in ranks_of_host.items():
        cores = len({core for rank in ranks for core in facts[rank]["cores"]})
        quota, everywhere = facts[ranks[0]]["quota"], facts[ranks[0]]["of"]
        usable = cores if quota is None else min(cores, max(1, int(quota)))
        wanted = max(len(ranks), planned)
        what = (
            f"{host}: {wanted} rank{'s' if wanted > 1 else ''}"
            f"{f' of {threads} threads' if threads > 1 else ''} on {usable} core"
            f"{'s' if usable > 1 else ''}"
        )
        if wanted * threads <= usable:
            yield passed("cores", what)
        elif cores < everywhere and wanted * threads <= everywhere:
            yield warned(
                "cores",
                f"{what}, of {everywhere} that the host has",
                "bind ranks to other cores or to none: mpirun --bind-to none",
            )
        elif any(facts[rank]["spins"] for rank in ranks):
            yield warned("cores", f"{what}, and ranks that wait hold theirs", f"unset {YIELD}")
        else:
            yield warned(
                "cores",
                f"{what}: they take turns",
                "use fewer ranks or threads, or more hosts"
                + ("" if started else "; mpirun starts them with --oversubscribe"),
            )


def clocks(comm):
    """Return whether the ranks of `comm` agree on the time of day, by ping-pong. Collective."""
    offsets = clock_offsets(comm, time.time)
    worst = int(np.argmax(np.abs(offsets[:, 0])))
    offset, error = offsets[worst]
    if abs(offset) - error > LARGEST_OFFSET_SECONDS:
        return warned(
            "clocks",
            f"rank {worst}'s is {abs(offset):.3g} s {'ahead of' if offset > 0 else 'behind'} rank 0's",
            "run chrony or another NTP client on every host; until then, times in logs do not compare",
        )
    return passed(
        "clocks", f"within {1e6 * (np.abs(offsets[:, 0]) + offsets[:, 1]).max():.0f} us of rank 0's"
    )
