"""What is done to a vector beside adding and coding it: robust means, seals, masks, and noise.

A pass is over all of a vector, on one rank of each site or on the hub alone, and takes what calibration
has found; one that was not measured counts as nothing.
"""

from dataclasses import dataclass

import numpy as np

from isthmus.compression.dense import Dense
from isthmus.timing.stages import hierarchical_stages


@dataclass(frozen=True)
class Pass:
    """name: as a cluster file tells it. stage: which it adds to. nbytes: of what it goes over. times:
    how often in an exchange, on the rank that does it most. whole: it is done before anything goes on.
    waits: the hub has all of it before it tells any."""

    name: str
    stage: str
    nbytes: float
    times: float = 1.0
    whole: bool = False
    waits: bool = False


GRID = 400
"""Moments at which it is asked whether all ranks are done."""


def passes_of(cluster, workload, size):
    """Return the passes of one exchange of `size` entries."""
    found, sites, tree = [], len(cluster.sites), cluster.tree
    if workload.combine is not None:
        name = f"{workload.combine.how} of {sites}"
        whole = workload.combine.whole
        found.append(Pass(name, "decode", 4 * size, whole=whole, waits=whole))
    if workload.sealed:  # to and from each neighbour under a key of its own
        peers = [len(below) + (tree.above(site) is not None) for site, below in enumerate(tree.children)]
        nbytes = (workload.compressor or Dense()).wire_nbytes(size)
        found.append(Pass("seal", "encode", nbytes, times=max(peers)))
    if workload.secure is not None:
        bits, reveals = workload.compressor.bits, workload.secure == "reveal"
        streams = max(sites - 2 + reveals, reveals * (sites - 1))  # a leader adds them, the hub takes
        found.append(Pass(f"fixed point {bits} bits", "encode", 4 * size, whole=True, waits=True))
        found.append(Pass(f"mask {bits} bits", "encode", size * bits // 8, times=streams))
    if workload.private is not None:
        stage = "encode" if workload.private == "site" else "compute"
        found.append(Pass("noise", stage, 4 * size, whole=True))
    return found


def pass_seconds(cluster, each):
    """Return the seconds of a pass, at the site that takes longest."""
    longest = 0.0
    for site in cluster.sites:
        table = next((table for table in site.passes if table.name == each.name), None)
        if table is not None:
            table.warn_outside(each.nbytes)
            more = max(1.0, each.nbytes / table.nbytes[-1])
            seconds = more * float(np.interp(each.nbytes, table.nbytes, table.seconds))
            longest = max(longest, each.times * seconds)
    return longest


def pass_terms(cluster, workload, size):
    """Return stage -> seconds by which passes make one exchange of `size` entries longer.

    Chunk by chunk a pass is one stage more of the leader's own work: behind links that are slower all
    but the first chunk's is hidden. Where the hub waits for all of it, the way up ends before the way
    down begins, which else are used side by side.
    """
    if size == 0 or len(cluster.sites) == 1 or workload.algorithm != "hierarchical":
        return {}
    passes = [each for each in passes_of(cluster, workload, size) if each.stage != "compute"]
    if not passes:
        return {}
    compressor = workload.compressor or Dense()
    stages = hierarchical_stages(
        cluster, size, compressor, workload.compressor is not None, workload.chunk_nbytes
    )
    seconds = {each: pass_seconds(cluster, each) for each in passes}
    terms = dict.fromkeys((each.stage for each in passes), 0.0)
    own, (_, links), rest = stages.interval, stages.links, stages.rest
    more = sum(seconds[each] for each in passes if not each.whole) / (1 + rest)
    longer = 1 + rest * (max(links, own + more) - max(links, own)) / more if more else 0.0
    for each in passes:
        terms[each.stage] += seconds[each] * (1 if each.whole else longer / (1 + rest))
    if any(each.waits for each in passes):
        up, down = (float(each.max()) for _, each in stages.ways)
        apart = max(up, own / 2) + max(down, own / 2)
        terms["links"] = terms.get("links", 0.0) + rest * max(0.0, apart - max(links, own))
    return terms


def private_seconds(cluster, workload, samples_of_rank):
    """Return the seconds by which computing is longer where little may be told of any one sample.

    Batches are drawn by chance, so that the slowest of several ranks takes longer than the mean of any:
    its expectation, with as many samples a rank as a normal variable of their number's variance. And the
    noise, which a rank of each site draws.
    """
    if workload.private != "sample":
        return 0.0
    from scipy.special import ndtr

    noise = sum(
        pass_seconds(cluster, each)
        for each in passes_of(cluster, workload, workload.size)
        if each.stage == "compute"
    )
    rates = np.asarray(cluster.rates, float)
    fixed = np.array([cluster.sites[site].fixed_seconds for site in cluster.site_of_rank])
    samples = np.asarray(samples_of_rank, float)
    mean, spread = fixed + samples / rates, np.sqrt(samples) / rates
    if not spread.any():
        return noise
    grid = np.linspace((mean - 6 * spread).min(), (mean + 6 * spread).max(), GRID)
    below = np.ones(GRID)  # the chance that all ranks are done by then
    for middle, width in zip(mean[spread > 0], spread[spread > 0]):
        below *= ndtr((grid - middle) / width)
    area = np.sum(np.diff(grid) * (below[1:] + below[:-1]) / 2)
    slowest = grid[-1] - float(area)
    return noise + max(0.0, slowest - mean.max())
