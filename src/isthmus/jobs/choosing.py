"""What settings leave to the planner, the allreduce ("auto") and a strategy's rounds, and why."""

import math
from dataclasses import fields, replace

from isthmus.cluster.aggregation_tree import AggregationTree
from isthmus.compression import COMPRESSORS
from isthmus.errors import SettingsError
from isthmus.jobs.combining import check_sites_of_mean
from isthmus.jobs.privacy_settings import check_sites
from isthmus.jobs.settings import KindSettings, RunSettings
from isthmus.planning.rings import plan_ring
from isthmus.planning.trees import plan_tree
from isthmus.registry import ALGORITHMS
from isthmus.shards.classes import UNLIKE
from isthmus.timing import choice
from isthmus.timing.step import exchange_seconds
from isthmus.timing.update import update_terms


def choose(settings, cluster, joined=False, mpi=True):
    """Return the settings with "auto" replaced by what is fastest on `cluster`, and why.

    Each candidate is timed with the tree or the ring that `arrange` gives it. Why: a table for run.json
    with `reason` and the candidates, fastest first; None where the settings name an algorithm. A
    compressor that the settings name is kept, whatever its error. Raises SettingsError where the cluster
    has too few sites for a secure sum or a robust mean, and for an algorithm in which a site would add
    up that may not.
    joined: sites are jobs of their own, and MPI's own algorithm does not reach beyond one. mpi: whether
    that is tried.
    """
    check_sites(settings, cluster)
    check_sites_of_mean(settings, cluster)
    wanted = settings.allreduce
    if wanted.algorithm != "auto":
        try:
            ALGORITHMS[wanted.algorithm].check_relays(cluster.sites)
        except ValueError as problem:
            raise SettingsError(f"allreduce.algorithm, for {cluster.source}: {problem}") from None
        return settings, None
    compressors, algorithms, bound = what_is_tried(settings, joined, mpi)
    chosen = choice.choose_allreduce(
        cluster,
        settings.make_model().size,
        largest_error=bound,
        compressors=compressors,
        algorithms=algorithms,
        arrange=lambda candidate: arrange(_with(settings, candidate), cluster)[0],
    )
    why = {
        "reason": chosen.reason,
        "candidates": [
            {
                "name": each.name,
                "seconds": each.seconds,
                "error": each.error,
                "chunk_nbytes": each.chunk_nbytes,
            }
            for each in chosen.candidates
        ],
    }
    return _with(settings, chosen.best), why


def what_is_tried(settings, joined=False, mpi=True):
    """Return (compressors, exact algorithms, largest error) that "auto" chooses from; as `choose`."""
    named = settings.make_compressor()
    if named is not None:
        return (named,), (), 1.0
    algorithms = [
        name
        for name in choice.EXACT
        if (settings.cluster.links == "real" or not ALGORITHMS[name].unpaced)
        and (ALGORITHMS[name].own or (mpi and not joined and settings.security.link != "sealed"))
    ]
    return choice.TRIED, algorithms, settings.allreduce.largest_error


def _with(settings, candidate):
    """Return the settings with a Candidate in the place of "auto"."""
    update = {
        "algorithm": candidate.algorithm,
        "chunk_nbytes": candidate.chunk_nbytes,
        "compressor": settings.allreduce.compressor or _kind_of(candidate.compressor),
    }
    return settings.model_copy(update={"allreduce": settings.allreduce.model_copy(update=update)})


def arrange(settings, cluster):
    """Return `cluster` with the tree, or the ring, of sites that is planned for the settings' exchanges,
    and why.

    Why: a sentence; None where the tree is that of the routes and the ring that of the file, or neither
    is used. Raises SettingsError where `plan.tree` names no link.
    """
    if settings.privacy.secure_sum != "off":
        return _meeting_at_the_hub(cluster, "secure sums: all sites", ", and none sees another's part")
    if settings.allreduce.robust_mean is not None:
        return _meeting_at_the_hub(cluster, f"combine {settings.allreduce.combine}: all sites", "")
    if len(cluster.sites) < 3 or settings.make_strategy().without_rounds:
        return cluster, None
    workload = settle(settings, cluster)[0].workload()
    share, least = workload.exchanged_share, settings.plan.tree
    size = math.ceil(share * workload.size)
    try:
        if workload.algorithm == "hierarchical":
            planned = plan_tree(
                cluster, size, workload.compressor, chunk_nbytes=workload.chunk_nbytes, least=least
            )
            other = cluster.with_tree(planned.tree)
        elif workload.algorithm == "ring":
            planned = plan_ring(cluster, size, least=least)
            other = cluster.with_ring(planned.ring)
        else:
            return cluster, None
    except ValueError as problem:
        raise SettingsError(f"plan.tree, for {cluster.source}: {problem}") from None
    why = planned.sentence(cluster.names, workload.exchanges_per_step / share)
    return (cluster, None) if why is None else (other, why)


def _meeting_at_the_hub(cluster, who, what):
    """Return `cluster` with every site below its hub, and why; None where it is so already.

    who, what: what is said before and after that they send there.
    """
    star = AggregationTree.star(cluster.tree.hub, len(cluster.sites))
    if cluster.tree.parents == star.parents:
        return cluster, None
    return cluster.with_tree(star), f"{who} send to {cluster.names[star.hub]}{what}"


def _kind_of(compressor):
    """Return the settings that name `compressor`."""
    if compressor is None:
        return None
    kind = next(name for name, known in COMPRESSORS.items() if type(compressor) is known)
    return KindSettings(
        kind=kind,
        arguments={field.name: getattr(compressor, field.name) for field in fields(compressor)},
    )


def settle(settings, cluster, unlike=None):
    """Return the settings with what the strategy leaves open decided, and why; None: nothing is open.

    unlike: the `class_distance` of what sites hold; None where nobody has counted.
    """
    strategy = settings.make_strategy()
    if not strategy.leaves_open:
        return settings, None
    every_step = settings.model_copy(update={"strategy": RunSettings.model_fields["strategy"].default})
    workload = replace(every_step.workload(), buckets=())
    fixed = max(site.fixed_seconds for site in cluster.sites)
    updating = sum(update_terms(cluster, workload).values())
    computing = workload.batch_size / sum(cluster.rates) + fixed + updating
    differ = None if unlike is None else unlike >= UNLIKE
    found = strategy.settled(computing, exchange_seconds(cluster, computing, workload), differ)
    arguments = settings.strategy.arguments | {
        name: getattr(found[0], name)
        for name in settings.strategy.arguments
        if getattr(found[0], name) != getattr(strategy, name)
    }
    classes = (
        "; how many samples of each class its shards hold is not known"
        if unlike is None
        else f"; {100 * unlike:.0f} % of the samples are of other classes than if sites were alike, and "
        f"from {100 * UNLIKE:.0f} % on they count as unlike"
    )
    return settings.with_strategy(arguments), found[1] + classes
