"""The plan of a run: shards on the ranks of a cluster, and the seconds that all is predicted to take."""

import hashlib
import json
import warnings
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np

from isthmus.errors import PlanError
from isthmus.planning.allocation import allocate_shards, shards_by_rank
from isthmus.planning.crossing import Crossing, shortest_period
from isthmus.planning.exchanges import Exchange
from isthmus.planning.integers import NODES
from isthmus.planning.objectives import make_objective
from isthmus.planning.prices import bits_taken_for_bytes, link_name, price_sentences
from isthmus.planning.problem import Pipes, Prices
from isthmus.planning.step import predict_step, together_terms
from isthmus.planning.time_model import (
    fair_staging_seconds,
    staging_seconds,
    steps_per_epoch,
    waiting_seconds,
)


@dataclass(frozen=True, eq=False)
class Plan:
    """Which rank holds which shard, and the seconds that all of it is predicted to take.

    rank_of_shard: int64[shards]. samples_of_rank, seconds_of_rank: one a cluster rank; the seconds are
    those of computing one step. staging_seconds: bringing the shards, if links are full all the time;
    fair_staging_seconds: if flows share them fairly. steps: of an epoch, the same on every rank. terms:
    seconds of a step by term, from one step to the next. objective_seconds: the objective of an epoch,
    exchange included where it counts finish times: "period": epoch_seconds; "makespan": those of steps
    that all sites begin together, which is more where sites are ready at different times; with the
    staging's share where that was asked for. lower_bound_seconds: the objective that no plan of whole
    shards can beat; gap: the one over the other - 1.
    stopped: a node limit was reached; the plan is the best found until then. money: of one epoch.
    shadow_prices: seconds of the objective saved by one more unit of {"rate": samples per second, a
    rank; "storage": bytes, a rank; "least": a sample less demanded, a rank; "link": bytes per second
    both ways, by link; "budget": money}. sentences: the same for people; warnings: what looks wrong.
    """

    rank_of_shard: np.ndarray
    samples_of_rank: tuple[int, ...]
    seconds_of_rank: tuple[float, ...]
    steps: int
    step_seconds: float
    epoch_seconds: float
    staging_seconds: float
    objective: str
    objective_seconds: float
    lower_bound_seconds: float
    gap: float
    stopped: bool
    money: float
    terms: dict
    bound_by: str
    shadow_prices: dict
    fair_staging_seconds: float = 0.0
    sentences: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @cached_property
    def shards_of_rank(self):
        """The shards of each rank, ascending: a tuple of tuples."""
        return shards_by_rank(self.rank_of_shard, len(self.samples_of_rank))

    @property
    def waiting_of_rank(self):
        """Seconds that each rank waits in a step for the slowest, before the exchange begins."""
        return tuple(waiting_seconds(self.seconds_of_rank).tolist())

    @property
    def hash(self):
        """SHA-256 of the placement: the same on every machine."""
        return hashlib.sha256(json.dumps(self.shards_of_rank).encode()).hexdigest()

    def to_dict(self):
        """Return a table for JSON, with the hash."""
        table = {field.name: getattr(self, field.name) for field in fields(self)}
        del table["rank_of_shard"]
        return {"shards_of_rank": self.shards_of_rank} | table | {"hash": self.hash}

    @classmethod
    def from_dict(cls, table):
        """Return the Plan that `to_dict` wrote."""
        values = {key: tuple(value) if isinstance(value, list) else value
                  for key, value in table.items() if key not in ("hash", "shards_of_rank")}
        lengths = [len(shards) for shards in table["shards_of_rank"]]
        rank_of_shard = np.full(sum(lengths), -1)
        rank_of_shard[[shard for shards in table["shards_of_rank"] for shard in shards]] = np.repeat(
            np.arange(len(lengths)), lengths)
        return cls(rank_of_shard=rank_of_shard, **values)


def plan_shards(cluster, shards_or_counts, workload, objective="makespan", pinned=None, *,
                forbidden=None, alpha=1.0, least_samples=0, budget=None, staged_epochs=None,
                then=("bytes", "imbalance"), nodes=NODES):
    """Return the Plan that makes an epoch of `workload` on `cluster` shortest.

    shards_or_counts: a ShardSet, or the samples of each shard. objective: "makespan", or one of
    `objectives.OBJECTIVES`, which tell what they leave out; alpha: of "weighted". pinned: {shard: site
    that must hold it}; forbidden: {shard: site, or sites, that must not}. least_samples: of every
    rank, or {site: samples a rank}. budget: money for `staged_epochs` epochs (one if None) at the
    cluster file's price_per_second, and for bringing the data at its price_per_byte. staged_epochs:
    bring the shards from the workload's data_site first, and charge an epoch with that share of it;
    None: staging is told, not counted. then, nodes: as in `allocate_shards`. Raises PlanError where
    no plan satisfies the limits or a site does not exist.
    """
    weights = make_objective(objective, alpha)
    samples, nbytes = samples_and_nbytes(shards_or_counts, workload)
    if samples.sum() == 0:
        raise PlanError("no plan: the shards hold no samples; pack some data")
    if staged_epochs is not None and not staged_epochs >= 1:
        raise ValueError(f"staged_epochs must be at least 1, not {staged_epochs}")
    steps = steps_per_epoch(int(samples.sum()), workload.batch_size)
    sites = [cluster.sites[site] for site in cluster.site_of_rank]
    fixed = steps * np.array([site.fixed_seconds for site in sites])
    doubts = bits_taken_for_bytes(cluster)
    for doubt in doubts:
        warnings.warn(doubt, stacklevel=2)
    pipes, per_byte = _pipes(cluster, workload.data_site, staged_epochs)
    epochs = staged_epochs or 1
    prices = None if budget is None else Prices(
        epochs * np.array([site.price_per_second for site in sites]), per_byte, budget)
    limits = {
        "storage": [site.storage_nbytes for site in sites], "storage_sizes": nbytes,
        "allowed": allowed_ranks(cluster, pinned or {}, forbidden or {}, samples.size),
        "least": least_of_ranks(cluster, least_samples), "pipes": pipes, "prices": prices}

    def allocate(delay_seconds):
        return allocate_shards(
            samples, 1 / np.array(cluster.rates), objective=objective, alpha=alpha, then=then,
            nodes=nodes, fixed_seconds=fixed + steps * delay_seconds[list(cluster.site_of_rank)],
            **limits)

    even = together_terms(cluster, samples.sum() / sum(cluster.rates) / steps, workload)
    crossing = Crossing.of(cluster, workload, even["links"]) if objective == "period" else None
    if crossing:
        found, lead, least = shortest_period(cluster, crossing, steps, allocate)
        if len(workload.buckets) > 1:  # what of the links is left depends on the plan: it may be nothing
            least = allocate(np.zeros(len(cluster.sites))).lower_bound_seconds
    else:
        found, lead = allocate(np.zeros(len(cluster.sites))), None
        least = found.lower_bound_seconds
    weight_of_site = np.bincount(cluster.site_of_rank, found.shadow_prices["fixed"])
    held, stored = (np.bincount(found.rank_of_shard, column, minlength=cluster.size)
                    for column in (samples, nbytes))
    terms = predict_step(cluster, held / steps, workload)
    step_seconds = sum(terms.values())
    compute_of_rank = fixed + held / np.array(cluster.rates)
    exchange = Exchange(workload, steps * bool(weights.makespan), terms["compute"], crossing, lead,
                         weight_of_site)
    floor, own = steps * crossing.pipe_seconds if crossing else 0.0, exchange.seconds(cluster)
    value = max(floor, found.value + own)
    if staged_epochs is None and crossing:
        value = steps * step_seconds
    elif staged_epochs is None and objective == "makespan":
        value = steps * sum((terms | together_terms(cluster, terms["compute"], workload)).values())
    bound = max(floor, least + own)
    shadow = {name: found.shadow_prices[name] for name in ("rate", "storage", "least", "budget")}
    shadow["link"] = exchange.link_prices(cluster, full_pipes=value <= floor)
    name_of_pipe = {link.pipe: link_name(link) for link in cluster.links}
    for pipe, saved in found.shadow_prices["pipe"].items():  # in the staging
        shadow["link"][name_of_pipe[pipe]] += saved
    each_second = np.array([site.price_per_second for site in sites])
    return Plan(
        rank_of_shard=found.rank_of_shard, samples_of_rank=tuple(held.astype(int).tolist()),
        seconds_of_rank=tuple((compute_of_rank / steps).tolist()), steps=steps,
        step_seconds=step_seconds, epoch_seconds=steps * step_seconds,
        staging_seconds=staging_seconds(cluster, stored.tolist(), workload.data_site),
        fair_staging_seconds=fair_staging_seconds(cluster, stored.tolist(), workload.data_site),
        objective=objective, objective_seconds=value, lower_bound_seconds=bound,
        gap=max(0.0, value / bound - 1) if least > 0 else found.gap,
        stopped=found.stopped,
        money=float(each_second @ (held / np.array(cluster.rates)) + per_byte @ stored / epochs),
        terms=terms, bound_by=_bound_by(cluster, terms, compute_of_rank / steps), shadow_prices=shadow,
        sentences=price_sentences(cluster, shadow, value), warnings=doubts)


def samples_and_nbytes(shards_or_counts, workload):
    """Return samples and bytes of each shard."""
    if hasattr(shards_or_counts, "samples"):
        return tuple(np.array(column, float)
                     for column in (shards_or_counts.samples, shards_or_counts.nbytes))
    samples = np.asarray(shards_or_counts, float)
    return samples, samples * workload.sample_nbytes


def _pipes(cluster, data_site, staged_epochs):
    """Return the Pipes from the data's site to every rank, and the money for a byte to each rank."""
    if data_site is None:
        if staged_epochs is not None:
            raise PlanError("staged_epochs needs to know where the shards lie; name the site "
                            "(data.site in a run's settings, data_site of a workload)")
        return None, np.zeros(cluster.size)
    if data_site not in cluster.names:
        raise PlanError(f"the data lies at site {data_site!r}, which does not exist; known sites: "
                        f"{', '.join(cluster.names)}")
    routes = [cluster.route(data_site, name) for name in cluster.names]
    rate = {link.pipe: link.bytes_per_second for route in routes for link in route}
    of_site = np.array([[any(link.pipe == pipe for link in route) for route in routes]
                        for pipe in rate], bool).reshape(len(rate), len(routes))
    money = np.array([sum(link.price_per_byte for link in route) for route in routes])
    sites = np.array(cluster.site_of_rank)
    return Pipes(tuple(rate), np.array(list(rate.values())), of_site[:, sites],
                 1 / staged_epochs if staged_epochs else 0.0), money[sites]


def allowed_ranks(cluster, pinned, forbidden, shards):
    """Return (row of each shard, bool[rows, ranks]) of where shards may go."""
    sites = np.array(cluster.site_of_rank)
    held, banned = {}, {}
    for word, table, found in (("pinned to", pinned, held), ("forbidden at", forbidden, banned)):
        for shard, names in table.items():
            names = [names] if isinstance(names, str) else list(names)
            for name in names:
                if name not in cluster.names:
                    raise PlanError(f"shard {shard} is {word} site {name!r}, which does not exist; "
                                    f"known sites: {', '.join(cluster.names)}")
                if not 0 <= shard < shards:
                    raise PlanError(f"shard {shard} is {word} site {name!r}, but there are shards 0 "
                                    f"to {shards - 1}; name one of these")
            found[shard] = frozenset(map(cluster.names.index, names))
    of_shard, rows, known = np.zeros(shards, int), [sites >= 0], {}
    for shard in held | banned:
        key = held.get(shard), banned.get(shard, frozenset())
        if key not in known:
            known[key] = len(rows)
            at = rows[0] if key[0] is None else np.isin(sites, list(key[0]))
            rows.append(at & ~np.isin(sites, list(key[1])))
        of_shard[shard] = known[key]
    return of_shard, np.array(rows)


def least_of_ranks(cluster, least_samples):
    """Return the samples that each rank must hold."""
    if not isinstance(least_samples, dict):
        return np.full(cluster.size, float(least_samples))
    for name in least_samples:
        if name not in cluster.names:
            raise PlanError(f"least_samples names site {name!r}, which does not exist; known sites: "
                            f"{', '.join(cluster.names)}")
    return [float(least_samples.get(cluster.names[site], 0)) for site in cluster.site_of_rank]


def _bound_by(cluster, terms, seconds_of_rank):
    """Return one sentence: the term that takes longest, and where."""
    name = max(terms, key=terms.get)
    whole = sum(terms.values())
    share = f"{1e3 * terms[name]:.1f} ms of {1e3 * whole:.1f} ms a step"
    if name == "compute":
        rank = int(np.argmax(seconds_of_rank))
        return (f"bound by computing on rank {rank} of site "
                f"{cluster.names[cluster.site_of_rank[rank]]}: {share}")
    if name == "links":
        slowest = min(cluster.links, key=lambda link: link.bytes_per_second)
        return f"bound by the link {slowest.source} > {slowest.target}: {share}"
    return f"bound by the allreduce's {name}: {share}"
