"""A plan before a run: from the settings alone, without MPI."""

import math
import warnings
from dataclasses import replace

import numpy as np

from isthmus.errors import PlanError
from isthmus.jobs.arriving import as_arriving
from isthmus.jobs.choosing import arrange, choose, settle
from isthmus.jobs.clients import client_shards, clients_in_a_round
from isthmus.jobs.drawn_rounds import as_drawn
from isthmus.jobs.round_advice import round_advice
from isthmus.jobs.settings import RunSettings
from isthmus.planning.plan import plan_shards
from isthmus.shards.classes import class_distance
from isthmus.shards.shard_file import ShardSet
from isthmus.terminal import table_of

WORTH_SAYING = 0.02
"""Share of an epoch that another objective must save to be named."""


def make_plan(settings_path, cluster_path=None):
    """Return the plan of a run's training shards, its cluster (or that of `cluster_path`), and advice.

    advice: sentences on what the settings could ask for.
    """
    settings = RunSettings.from_toml(settings_path)
    if cluster_path:
        settings = settings.with_cluster(cluster_path)
    cluster = settings.read_cluster()
    settings, _ = choose(settings, cluster)
    cluster, tree = arrange(settings, cluster)
    shards = client_shards(
        settings, ShardSet.open(settings.data.train, settings.security.keys), cluster.size
    )
    settings, rounds, chosen = settled_plan(settings, cluster, shards)
    advice = round_advice(chosen, settings, cluster, workload_of(settings, shards))
    advice += _advice(chosen, settings, cluster, shards)
    told = ([tree] if tree else []) + ([f"strategy: {rounds}"] if rounds else [])
    return chosen, cluster, told + advice


def _advice(chosen, settings, cluster, shards):
    """Return what sites that need not wait for each other's wires would save, if that is worth it."""
    if chosen.objective != "makespan":
        return []
    epochs = settings.plan.staged_epochs or math.inf
    other = plan_run(settings, cluster, shards, settings.plan.limits() | {"objective": "period"})
    whole = [plan.epoch_seconds + plan.staging_seconds / epochs for plan in (chosen, other)]
    saved = 1 - whole[1] / whole[0]
    if saved < WORTH_SAYING:
        return []
    held = np.bincount(cluster.site_of_rank, other.samples_of_rank)
    idle = [name for name, samples in zip(cluster.names, held) if samples == 0]
    return [
        f'objective = "period" under [plan] would take {whole[1]:.3f} s an epoch, '
        f"{100 * saved:.0f} % less: fast sites compute while the wires of slow ones travel"
        + (f"; {', '.join(idle)} would hold no samples" if idle else "")
    ]


def settled_plan(settings, cluster, shards):
    """Return the settings with nothing left open, why (None: nothing was), and the plan of `shards`.

    Which classes a site holds is known once there is a plan; where they differ, that is made again for
    what they ask for.
    """
    settled, why = settle(settings, cluster)
    chosen = plan_run(settled, cluster, shards)
    if why is None:
        return settled, None, chosen
    site_of_shard = np.array(cluster.site_of_rank)[chosen.rank_of_shard]
    again, why = settle(settings, cluster, class_distance(shards.manifest, site_of_shard.tolist()))
    return again, why, chosen if again == settled else plan_run(again, cluster, shards)


def plan_run(settings, cluster, shards, limits=None):
    """Return the plan of `shards` that the settings ask for; what looks wrong is in its `warnings`.

    limits: keyword arguments of `plan_shards` in place of those of the settings' [plan].
    """
    limits = settings.plan.limits() if limits is None else limits
    workload = workload_of(settings, shards)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        try:
            plan = plan_shards(cluster, shards, workload, **limits)
        except PlanError as problem:
            raise PlanError(f"[plan] for {cluster.source}: {problem}") from None
        if settings.plays_clients and isinstance(shards, ShardSet):
            plan = as_drawn(plan, settings, cluster, shards, workload)
        elif settings.make_strategy().without_rounds and isinstance(shards, ShardSet):
            plan = as_arriving(plan, settings, cluster)
    return plan


def held_as(plan, shards_of_rank, samples, rates):
    """Return the plan with shards where they are, some perhaps nowhere; what it predicts stays.

    samples: of each shard. rates: samples per second of each rank.
    """
    ranks, held = np.full(len(samples), -1), []
    for rank, shards in enumerate(shards_of_rank):
        ranks[[*shards]] = rank
        held.append(sum(samples[shard] for shard in shards))
    seconds = [each / rate / plan.steps for each, rate in zip(held, rates)]
    return replace(
        plan, rank_of_shard=ranks, samples_of_rank=tuple(held), seconds_of_rank=tuple(seconds)
    )


def workload_of(settings, shards):
    """Return what an epoch of `shards` asks: with clients a step is a round, of the samples of some."""
    workload = settings.workload()
    if not (settings.plays_clients and isinstance(shards, ShardSet)):
        return workload
    count, wanted = clients_in_a_round(settings, shards)
    rounds = max(1, round(count / wanted))
    return replace(workload, batch_size=max(1, -(-sum(shards.samples) // rounds)))


def plan_table(plan, cluster, advice=()):
    """Return what to print: a table of site, rank, shards, samples, seconds; what bounds it all."""
    columns = ("rank", "shards", "samples", "compute, ms a step", "waits, ms")
    rows = [
        (
            (
                cluster.names[site],
                rank,
                len(plan.shards_of_rank[rank]),
                plan.samples_of_rank[rank],
                f"{1e3 * plan.seconds_of_rank[rank]:.2f}",
                f"{1e3 * waits:.2f}",
            ),
            "",
        )
        for rank, (site, waits) in enumerate(zip(cluster.site_of_rank, plan.waiting_of_rank))
    ]
    table = table_of([("site", "left"), *((column, "right") for column in columns)], rows)
    terms = ", ".join(
        f"{name} {1e3 * seconds:.2f}" for name, seconds in plan.terms.items() if seconds > 0
    )
    lines = [
        f"an epoch: {plan.steps} steps, {plan.epoch_seconds:.3f} s",
        f"{plan.objective}: {plan.objective_seconds:.3f} s; no plan has less than "
        f"{plan.lower_bound_seconds:.3f} s, gap {100 * plan.gap:.2f} %"
        + (" (stopped at the node limit)" if plan.stopped else ""),
    ]
    if plan.staging_seconds:
        fair = plan.fair_staging_seconds
        lines.append(
            f"staging: {plan.staging_seconds:.3f} s, once; {fair:.3f} s if "
            "all flows start together and share links fairly"
        )
    if plan.money:
        lines.append(f"money: {plan.money:.6g} an epoch")
    return [
        table,
        *lines,
        f"a step: {1e3 * plan.step_seconds:.2f} ms ({terms})",
        plan.bound_by,
        *plan.sentences,
        *advice,
        *(f"warning: {line}" for line in plan.warnings),
    ]
