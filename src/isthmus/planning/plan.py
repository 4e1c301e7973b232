"""The plan of a run: shards on the ranks of a cluster, and the seconds that all is predicted to take."""

import hashlib
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from isthmus.errors import PlanError
from isthmus.json_text import dumps
from isthmus.planning.epoch import Epoch, Shards, Staging
from isthmus.planning.programme.allocation import allocate_shards, shards_by_rank
from isthmus.planning.programme.exchanges import Exchange, link_name
from isthmus.planning.programme.integers import NODES
from isthmus.planning.programme.objectives import make_objective
from isthmus.planning.programme.terms import Objective
from isthmus.planning.sentences import bits_taken_for_bytes, bound_by, price_sentences
from isthmus.quantities import real, whole
from isthmus.timing.step import predict_step
from isthmus.timing.time_model import Workload, fair_staging_seconds, staging_seconds, waiting_seconds

if TYPE_CHECKING:
    from isthmus.cluster.cluster import Cluster


@dataclass(frozen=True, eq=False)
class Plan:
    """Which rank holds which shard, and the seconds that all of it is predicted to take.

    Ranks are cluster ranks. Seconds, steps and money are of one epoch where nothing else is said.
    """

    rank_of_shard: npt.NDArray[np.int64]  # of each shard; -1 of one that nobody has
    samples_of_rank: tuple[int, ...]
    seconds_of_rank: tuple[float, ...]  # of computing one step
    steps: int  # the same on every rank
    step_seconds: float  # from one step to the next
    epoch_seconds: float
    staging_seconds: float  # of bringing the shards, if links are full all the time
    objective: str  # its name
    # The objective's value, with exchanges where it counts finish times, and with the staging's share
    # where that was asked for. Of "period" it is epoch_seconds. Of "makespan" all sites begin a step
    # together, which takes more where some are ready sooner.
    objective_seconds: float
    lower_bound_seconds: float  # the objective that no plan of whole shards can beat
    gap: float  # the one over the other, less 1
    stopped: bool  # a node limit was reached, and this is the best plan found until then
    money: float
    terms: dict[str, float]  # term -> seconds of a step, which add up to step_seconds
    bound_by: str  # the term that takes longest, in a sentence
    shadow_prices: dict[str, Any]  # seconds that one more unit saves, as `_shadow_prices` says
    fair_staging_seconds: float = 0.0  # of bringing the shards, if flows share links fairly
    sentences: tuple[str, ...] = ()  # the shadow prices, for people
    warnings: tuple[str, ...] = ()  # what looks wrong in the cluster file
    data: str | None = None  # digest of the samples, None where only their counts were known

    @cached_property
    def shards_of_rank(self) -> tuple[tuple[int, ...], ...]:
        """The shards of each rank, ascending: a tuple of tuples."""
        ranks = len(self.samples_of_rank)
        return shards_by_rank(np.where(self.rank_of_shard < 0, ranks, self.rank_of_shard), ranks)

    @property
    def waiting_of_rank(self) -> tuple[float, ...]:
        """Seconds that each rank waits in a step for the slowest, before the exchange begins."""
        return tuple(waiting_seconds(self.seconds_of_rank).tolist())

    @property
    def hash(self) -> str:
        """SHA-256 of the placement: the same on every machine."""
        return hashlib.sha256(dumps(self.shards_of_rank).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Return a table for JSON, with the hash."""
        table = {field.name: getattr(self, field.name) for field in fields(self)}
        del table["rank_of_shard"]
        return {"shards_of_rank": self.shards_of_rank} | table | {"hash": self.hash}

    @classmethod
    def from_dict(cls, table: dict[str, Any]) -> Self:
        """Return the Plan that `to_dict` wrote."""
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in table.items()
            if key not in ("hash", "shards_of_rank")
        }
        lengths = [len(shards) for shards in table["shards_of_rank"]]
        placed = [shard for shards in table["shards_of_rank"] for shard in shards]
        rank_of_shard = np.full(1 + max(placed, default=-1), -1)
        rank_of_shard[placed] = np.repeat(np.arange(len(lengths)), lengths)
        return cls(rank_of_shard=rank_of_shard, **values)


def plan_shards(
    cluster: "Cluster",
    shards_or_counts: Shards | Sequence[int] | np.ndarray,
    workload: Workload,
    objective: str | Objective = "makespan",
    pinned: Mapping[int, str] | None = None,
    *,
    forbidden: Mapping[int, str | Collection[str]] | None = None,
    alpha: float = 1.0,
    least_samples: float | Mapping[str, float] = 0,
    budget: float | None = None,
    staged_epochs: float | None = None,
    then: Sequence[str] = ("bytes", "imbalance"),
    nodes: int = NODES,
) -> Plan:
    """Return the Plan that makes an epoch of `workload` on `cluster` shortest.

    shards_or_counts: a ShardSet, or the samples of each shard. What a set's policy forbids no limit
        and no objective allows.
    objective: a name of `objectives.OBJECTIVES`, which tell what they leave out.
    pinned: {shard: site that must hold it}.
    forbidden: {shard: site, or sites, that must not}.
    alpha: of the objective "weighted".
    least_samples: of every rank, or {site: samples a rank}.
    budget: money for `staged_epochs` epochs (one if None). Computing costs the cluster file's
        price_per_second, bringing the data its price_per_byte.
    staged_epochs: bring the shards from the workload's data_site first, and charge an epoch with that
        share of it. None: staging is told, not counted.
    then, nodes: as in `allocate_shards`.

    Raises PlanError where no plan satisfies the limits, or a site does not exist; PolicyError where they
    leave a shard no rank that its policy lets read it.
    """
    nodes = whole("nodes", nodes, 1)
    aim = make_objective(objective, real("alpha", alpha)).on(cluster)
    epoch = Epoch.of(cluster, shards_or_counts, workload)
    if epoch.samples.sum() == 0:
        raise PlanError("no plan: the shards hold no samples; pack some data")
    for doubt in bits_taken_for_bytes(cluster):
        warnings.warn(doubt, stacklevel=2)
    staging = Staging.of(cluster, workload.data_site, staged_epochs)
    limits = epoch.limits(pinned, forbidden, least_samples) | {
        "pipes": staging.pipes,
        "prices": staging.prices(epoch.of_rank("price_per_second"), budget),
    }

    def allocate(delay_seconds):
        delays = epoch.steps * delay_seconds[list(cluster.site_of_rank)]
        return allocate_shards(
            epoch.samples,
            epoch.seconds_per_sample,
            objective=aim,
            then=then,
            nodes=nodes,
            fixed_seconds=epoch.fixed_seconds + delays,
            **limits,
        )

    even_seconds = epoch.samples.sum() / sum(cluster.rates) / epoch.steps
    exchange = aim.exchange(cluster, workload, epoch.steps, even_seconds) or Exchange(
        cluster, workload, 0
    )
    try:
        placed = exchange.place(allocate)
    except PlanError as problem:
        if (bound := epoch.complaint()) is None:
            raise
        raise PlanError(f"{problem}; {bound}") from None
    time_alone = len(aim.terms) == 1 and staged_epochs is None
    return replace(
        _told(objective, epoch, staging, exchange, placed, time_alone),
        data=getattr(shards_or_counts, "digest", None),
    )


def _told(objective, epoch, staging, exchange, placed, time_alone):
    """Return the Plan of an Allocation: what it is predicted to take, and what would help.

    time_alone: the objective is the time of an epoch, and nothing else.
    """
    cluster, workload, found, steps = epoch.cluster, epoch.workload, placed.allocation, epoch.steps
    held, stored = (
        np.bincount(found.rank_of_shard, column, minlength=cluster.size)
        for column in (epoch.samples, epoch.nbytes)
    )
    computing = epoch.fixed_seconds + held / np.array(cluster.rates)
    terms = predict_step(cluster, held / steps, workload)
    own, floor = exchange.own_seconds(cluster, terms["compute"]), exchange.floor_seconds
    whole = exchange.epoch_seconds(terms) if time_alone else None
    value = max(floor, found.value + own) if whole is None else whole
    bound = max(floor, placed.least_seconds + own)
    shadow = _shadow_prices(cluster, found, exchange.link_prices(placed, terms["compute"], value))
    return Plan(
        rank_of_shard=found.rank_of_shard,
        samples_of_rank=tuple(held.astype(int).tolist()),
        seconds_of_rank=tuple((computing / steps).tolist()),
        steps=steps,
        step_seconds=sum(terms.values()),
        epoch_seconds=steps * sum(terms.values()),
        staging_seconds=staging_seconds(cluster, stored.tolist(), workload.data_site),
        fair_staging_seconds=fair_staging_seconds(cluster, stored.tolist(), workload.data_site),
        objective=objective,
        objective_seconds=value,
        lower_bound_seconds=bound,
        gap=max(0.0, value / bound - 1) if placed.least_seconds > 0 else found.gap,
        stopped=found.stopped,
        money=float(
            epoch.of_rank("price_per_second") @ (held / np.array(cluster.rates))
            + staging.money_per_byte @ stored / staging.epochs
        ),
        terms=terms,
        bound_by=bound_by(cluster, terms, computing / steps),
        shadow_prices=shadow,
        sentences=price_sentences(cluster, shadow, value),
        warnings=bits_taken_for_bytes(cluster),
    )


def _shadow_prices(cluster, found, link_prices):
    """Return what -> seconds of the objective that one more unit of it saves.

    "rate", "storage", "least": float of each rank, for a sample per second, a byte, a sample less.
    "link": by link, for a byte per second both ways, in exchanges and in the staging.
    "budget": for a unit of money.
    """
    shadow = {name: found.shadow_prices[name] for name in ("rate", "storage", "least", "budget")}
    shadow["link"] = link_prices
    name_of_pipe = {link.pipe: link_name(link) for link in cluster.links}
    for pipe, saved in found.shadow_prices["pipe"].items():  # in the staging
        shadow["link"][name_of_pipe[pipe]] += saved
    return shadow
