"""A step: computing, buckets of the gradient that travel meanwhile, and sites that need not wait."""

import math
from dataclasses import replace

import numpy as np

from isthmus.registry import ALLREDUCE_STAGES
from isthmus.timing.crossing import Crossing
from isthmus.timing.passes import pass_terms, private_seconds
from isthmus.timing.stages import site_sum_terms
from isthmus.timing.time_model import (
    AllreduceTime,
    compute_seconds,
    overlapped_seconds,
    predict_allreduce,
)
from isthmus.timing.update import update_terms

FORWARD_SHARE = 1 / 3
"""Of the time of a gradient: a layer is one matrix product on the way there and two on the way back."""


def computed_share(first, size):
    """Return the share of its computing after which a gradient's entries from `first` on are ready.

    The backward pass goes from the last of `size` entries to the first, and takes time in proportion.
    """
    return FORWARD_SHARE + (1 - FORWARD_SHARE) * (size - first) / size if size else 1.0


def ready_shares(buckets):
    """Return float64[buckets]: the `computed_share` of as many equal parts of a gradient, in turn."""
    backward = 2 * FORWARD_SHARE
    return 1 - backward * np.arange(buckets - 1, -1, -1) / max(1, buckets)


def predict_overlapped(
    cluster, buckets, computing_seconds, *, algorithm, compressor=None, chunk_nbytes=None
):
    """Return the AllreduceTime, in seconds, of what is left of an allreduce after the computing.

    buckets: slices of the float32 vector in the order in which they are ready. A bucket is reduced and
    encoded between two pieces of computing; links carry it meanwhile, one bucket after another
    (f_b = max(r_b, f_(b-1)) + t_b); it is decoded and passed on in the end. Algorithms other than
    "hierarchical" begin when the whole is there.
    """
    size = max((bucket.stop for bucket in buckets), default=0)
    if algorithm != "hierarchical" or len(buckets) < 2:
        return predict_allreduce(
            cluster, size, algorithm=algorithm, compressor=compressor, chunk_nbytes=chunk_nbytes
        )
    times = [
        predict_allreduce(
            cluster,
            bucket.stop - bucket.start,
            algorithm=algorithm,
            compressor=compressor and compressor.piece(bucket),
            chunk_nbytes=chunk_nbytes,
        )
        for bucket in buckets
    ]
    latency = min(
        predict_allreduce(cluster, 1, algorithm=algorithm).links_seconds,
        *(time.links_seconds for time in times),
    )
    own, ready = 0.0, []
    for bucket, time in zip(buckets, times):
        own += time.reduce_seconds + time.encode_seconds + time.copy_seconds
        ready.append(computed_share(bucket.start, size) * computing_seconds + own)
    sent = overlapped_seconds(ready, [time.links_seconds - latency for time in times])
    started = done = computing_seconds + own
    for time, last_byte in zip(times, sent):
        done = max(done, last_byte + latency) + time.decode_seconds + time.broadcast_seconds
    total = {stage: sum(time.terms[stage] for time in times) for stage in times[0].terms}
    total["links"] = done - started - total["decode"] - total["broadcast"]
    return AllreduceTime(**{f"{stage}_seconds": seconds for stage, seconds in total.items()})


def predict_step(cluster, samples_of_rank, workload):
    """Return term -> seconds of one of many steps in which rank i computes `samples_of_rank[i]` samples.

    "compute" is the slowest rank's; the other terms are what the step takes beyond it. They add up to
    the time from one step to the next.
    """
    computing = computing_of_site(cluster, samples_of_rank)
    computing = computing + private_seconds(cluster, workload, samples_of_rank)
    return {"compute": float(computing.max()), **exchange_terms(cluster, computing, workload)}


def computing_of_site(cluster, samples_of_rank):
    """Return float64[sites]: seconds until the slowest rank of each site has computed its samples."""
    fixed = [cluster.sites[site].fixed_seconds for site in cluster.site_of_rank]
    first_rank = np.cumsum([0] + [site.ranks for site in cluster.sites[:-1]])
    return np.maximum.reduceat(compute_seconds(samples_of_rank, cluster.rates, fixed), first_rank)


def exchange_terms(cluster, computing_seconds, workload):
    """Return term -> seconds of what a step takes beyond the slowest site's computing.

    computing_seconds: float64[sites]. "links" is what is left of them: while one site's wire is on its
    way another computes, where not all sites are ready together (`period_seconds`).
    """
    slowest = float(np.max(computing_seconds))
    terms = together_terms(cluster, slowest, workload)
    crossing = Crossing.of(cluster, workload, terms["links"])
    if crossing is not None:
        own = sum(terms.values()) - terms["links"]
        left = crossing.period_seconds(computing_seconds, own) - own - slowest
        most = terms["links"]  # no longer than steps that all begin together
        if crossing.halves:
            most = max(most, crossing.pipe_seconds - own - slowest)
        left = min(left, most)
        if not np.isclose(left, terms["links"], rtol=1e-9, atol=0):  # or it is the same but for rounding
            terms["links"] = max(0.0, left)
    return terms


def together_terms(cluster, computing_seconds, workload):
    """Return term -> seconds of what a step takes beyond computing where all sites begin it together.

    Exchanges on average; steps that are made while one is under way hide its links. Sums inside sites
    are part of them. Then the update, and Python, which are the same in every step.
    """
    share, buckets = workload.exchanged_share, workload.buckets
    if not buckets or share < 1:
        buckets = (slice(0, math.ceil(share * workload.size)),)
    terms = predict_overlapped(
        cluster,
        buckets,
        computing_seconds,
        algorithm=workload.algorithm,
        compressor=workload.compressor,
        chunk_nbytes=workload.chunk_nbytes,
    ).terms
    for name, seconds in pass_terms(cluster, workload, max(bucket.stop for bucket in buckets)).items():
        terms[name] += seconds
    if workload.algorithm == "hierarchical":  # all others begin with waiting for it
        terms["links"] = max(0.0, terms["links"] - workload.late_steps * computing_seconds)
    often = workload.exchanges_per_step / share
    terms = {name: often * seconds for name, seconds in terms.items()}
    if workload.site_sums_per_step:
        for name, seconds in site_sum_terms(cluster, workload.size).items():
            terms[name] += workload.site_sums_per_step * seconds
    return terms | update_terms(cluster, workload)


def exchange_seconds(cluster, computing_seconds, workload):
    """Return the seconds that one exchange takes, none of which is hidden."""
    one = replace(
        workload, exchanges_per_step=workload.exchanged_share, late_steps=0.0, site_sums_per_step=0.0
    )
    terms = together_terms(cluster, computing_seconds, one)
    return sum(terms[stage] for stage in ALLREDUCE_STAGES)
