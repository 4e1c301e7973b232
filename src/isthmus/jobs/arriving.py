"""What is expected of sites that do not wait for each other: when changes arrive, and how old."""

from dataclasses import replace

from isthmus.cluster.cluster import Cluster
from isthmus.compression.dense import Dense
from isthmus.planning.sentences import bound_by
from isthmus.registry import ALLREDUCE_STAGES
from isthmus.timing.stages import site_sum_terms
from isthmus.timing.update import update_seconds
from isthmus.training.strategies.strategy import exchanges_per_step

SHORTEST = 1e-3
"""Time of a site for a change, as a share of the slowest's: one without samples computes nothing."""


def outlook(settings, cluster, plan):
    """Return what the strategy expects of sites of this cluster that do not wait for each other, in
    words, and a warning; None for what is not told."""
    strategy = settings.make_strategy()
    if not strategy.without_rounds:
        return None, None
    return strategy.outlook(seconds_of_changes(settings, cluster, plan))


def as_arriving(plan, settings, cluster):
    """Return the Plan with the seconds of epochs in which changes arrive one by one until all meet.

    "compute" is that of the site that computes longest, "links" what no other term of its steps says.
    """
    strategy = settings.make_strategy()
    played = strategy.expected_epoch(seconds_of_changes(settings, cluster, plan), plan.steps)
    computing = [
        share * plan.steps * each for share, each in zip(played.walks, _computing(cluster, plan))
    ]
    wire, size = settings.make_compressor() or Dense(), settings.make_model().size
    longer = Dense().wire_nbytes(size) - wire.wire_nbytes(size)  # what all go on from is float32
    whole = played.seconds + max(
        _crossing(cluster, site, longer)[1] for site in range(len(cluster.sites))
    )
    terms = plan.terms | {"compute": max(computing) / plan.steps, "links": 0.0}
    terms |= dict.fromkeys(set(ALLREDUCE_STAGES) - {"reduce", "broadcast", "links"}, 0.0)
    terms["links"] = max(0.0, whole / plan.steps - sum(terms.values()))
    step_seconds = sum(terms.values())
    return replace(
        plan,
        terms=terms,
        bound_by=bound_by(cluster, terms, plan.seconds_of_rank),
        step_seconds=step_seconds,
        epoch_seconds=plan.steps * step_seconds,
        sentences=(
            *plan.sentences,
            f"an epoch takes {whole:.3f} s as changes arrive, of which sites walk their own samples "
            f"{min(played.walks):.2f} to {max(played.walks):.2f} times",
        ),
    )


def seconds_of_changes(settings, cluster, plan):
    """Return what each site takes for a change: its steps, both ways, and until the hub looks for it.

    The hub looks between two steps of its own, half of which passes on average.
    """
    every, workload = 1 / exchanges_per_step(settings.make_strategy()), settings.workload()
    wire, size = settings.make_compressor() or Dense(), settings.make_model().size
    steps = [
        each + own_seconds(site, workload) - site.fixed_seconds
        for each, site in zip(_computing(cluster, plan), cluster.sites)
    ]
    seconds = []
    for site, each in enumerate(steps):
        crossing = sum(_crossing(cluster, site, wire.wire_nbytes(size)))
        seconds.append(every * each + crossing + (site != cluster.hub) * steps[cluster.hub] / 2)
    return [max(each, SHORTEST * max(seconds)) for each in seconds]


def own_seconds(site, workload):
    """Return what a step takes a site whatever its samples: fixed, the sum inside it, update, Python."""
    alone = Cluster({"site": [site.model_dump(mode="json", exclude_defaults=True)]})
    return (
        site.fixed_seconds
        + site.python_seconds
        + update_seconds(site, workload)
        + sum(site_sum_terms(alone, workload.size).values())
    )


def _computing(cluster, plan):
    """Return what a step's computing takes each site."""
    return [
        max(plan.seconds_of_rank[rank] for rank in cluster.ranks_of_site(name)) for name in cluster.names
    ]


def _crossing(cluster, site, nbytes):
    """Return the seconds of so many bytes from a site to the hub, and back."""
    ends = cluster.names[site], cluster.names[cluster.hub]
    ways = [] if site == cluster.hub else [cluster.route(*ends), cluster.route(*ends[::-1])]
    return [
        sum(link.latency_seconds for link in way) + nbytes / min(link.bytes_per_second for link in way)
        for way in ways
    ] or [0.0, 0.0]
