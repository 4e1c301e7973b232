"""What rounds of clients take as they will be drawn: who is drawn follows from the seed and the round.

A plan counts with the mean share that each rank plays. A round waits for the rank that most of the drawn
clients have fallen on, and each of its clients makes batches that cost more than their samples.
"""

from dataclasses import replace

import numpy as np

from isthmus.jobs.clients import clients_of_plan, turn_of
from isthmus.planning.sentences import bound_by
from isthmus.timing.step import exchange_terms
from isthmus.timing.update import update_seconds

MOST_EXCHANGES = 100
"""That are looked at: draws of later rounds are alike."""


def as_drawn(plan, settings, cluster, shards, workload):
    """Return the Plan with the seconds of rounds as the run will draw them, and a sentence on them.

    Between two exchanges a site waits for its slowest rank in each round, and then the sites for the
    slowest of them. Means over the first exchanges of the run, `MOST_EXCHANGES` at most.
    """
    strategy = settings.make_strategy()
    rounds = min(MOST_EXCHANGES * strategy.edge_rounds, settings.training.epochs * plan.steps)
    spent = seconds_of_draws(plan, settings, cluster, shards, workload, rounds)
    firsts = np.cumsum([0, *(site.ranks for site in cluster.sites[:-1])])
    busy = spent.sum(axis=0)  # of each rank in each round
    slowest = np.stack(
        [first + busy[:, first:last].argmax(axis=1) for first, last in zip(firsts, [*firsts[1:], None])],
        axis=1,
    )
    of_site = np.take_along_axis(spent, slowest[None], axis=2)  # its slowest rank's, in each round
    exchanges = np.arange(0, rounds, strategy.edge_rounds)
    lengths = np.diff([*exchanges, rounds])
    of_site = np.add.reduceat(of_site, exchanges, axis=1) / lengths[:, None]
    found = []
    for number in range(len(exchanges)):
        sites = of_site[:, number].sum(axis=0)
        parts = of_site[:, number, sites.argmax()]
        found.append(exchange_terms(cluster, sites, workload) | dict(zip(PARTS, parts.tolist())))
    terms = {
        name: float(np.average([each[name] for each in found], weights=lengths)) for name in plan.terms
    }
    step_seconds, of_rank = sum(terms.values()), tuple(busy.mean(axis=0).tolist())
    return replace(
        plan,
        terms=terms,
        bound_by=bound_by(cluster, terms, of_rank),
        seconds_of_rank=of_rank,
        step_seconds=step_seconds,
        epoch_seconds=plan.steps * step_seconds,
        sentences=(
            *plan.sentences,
            f"a round takes {1e3 * step_seconds:.1f} ms as clients will be drawn, the mean over "
            f"{rounds} rounds, and {1e3 * plan.step_seconds:.1f} ms if every rank played its mean share",
        ),
    )


PARTS = ("compute", "update", "python")


def seconds_of_draws(plan, settings, cluster, shards, workload, rounds):
    """Return float64[PARTS, rounds, ranks]: what each rank's clients take in each round."""
    clients, rank_of_client = clients_of_plan(settings, shards, plan)
    turn, strategy = turn_of(settings), settings.make_strategy()
    made = {int(samples): list(turn.batches(int(samples))) for samples in np.unique(clients.weights)}
    batches = np.array([len(made[int(samples)]) for samples in clients.weights])
    samples = np.array(
        [sum(last - first for _, first, last in made[int(each)]) for each in clients.weights]
    )
    sites = [cluster.sites[site] for site in cluster.site_of_rank]
    of_batch = np.array(
        [
            [site.fixed_seconds for site in sites],
            [update_seconds(site, workload) for site in sites],
            [site.python_seconds for site in sites],
        ]
    )
    wanted, spent = strategy.number_of(clients.count), np.empty((len(PARTS), rounds, cluster.size))
    for number in range(rounds):
        drawn, _ = clients.drawn(number, wanted, strategy.by)
        ranks = rank_of_client[drawn]
        spent[:, number] = of_batch * np.bincount(ranks, batches[drawn], cluster.size)
        spent[0, number] += np.bincount(ranks, samples[drawn], cluster.size) / np.array(cluster.rates)
    return spent
