"""What a plan says of a strategy's rounds: what is expected of them, and what would save time."""

from isthmus.jobs.arriving import outlook, own_seconds
from isthmus.timing.rounds import unequal_steps

WORTH_SAYING = 0.02
"""Share of a round's computing that other shares must save to be named."""


def round_advice(chosen, settings, cluster, workload):
    """Return sentences on the rounds of a run with this plan; none where each step is one."""
    strategy = settings.make_strategy()
    told = [f"strategy: {words}" for words in outlook(settings, cluster, chosen) if words]
    if told:  # no site waits for another
        return told
    if not workload.site_sums_per_step or strategy.plays_clients:
        return []
    steps = round(workload.exchanged_share / workload.exchanges_per_step)
    rates = [sum(site.samples_per_second) for site in cluster.sites]
    fixed = [own_seconds(site, workload) for site in cluster.sites]
    held = [
        sum(chosen.samples_of_rank[rank] for rank in cluster.ranks_of_site(name)) / chosen.steps
        for name in cluster.names
    ]
    computing = [
        max(chosen.seconds_of_rank[rank] for rank in cluster.ranks_of_site(name))
        for name in cluster.names
    ]
    alone = [each + own - site.fixed_seconds for each, own, site in zip(computing, fixed, cluster.sites)]
    other = unequal_steps(rates, fixed, steps * sum(held), steps)
    saved = 1 - other.seconds / (steps * max(alone))
    if saved < WORTH_SAYING:
        return []
    return [
        f"sites that made unequal numbers of steps a round ("
        f"{', '.join(f'{name} {count}' for name, count in zip(cluster.names, other.steps))}), of "
        f"{other.samples[0]:.0f} samples each, would compute for {other.seconds:.3f} s of it, "
        f"{100 * saved:.0f} % less; isthmus makes equal numbers, and shares samples out instead"
    ]
