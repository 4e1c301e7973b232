"""Which rank holds which shard, so that the last rank is done as soon as possible."""

import hashlib
import json
from dataclasses import asdict, dataclass

import numpy as np

from isthmus.errors import PlanError
from isthmus.planning.makespan import Problem, lower_bound_seconds, relax
from isthmus.planning.rounding import loads, place_whole
from isthmus.planning.step import predict_step
from isthmus.planning.time_model import (
    predict_allreduce,
    staging_seconds,
    steps_per_epoch,
)
from isthmus.topology.cluster import Cluster


@dataclass(frozen=True)
class Allocation:
    """Whole shards on ranks.

    seconds: when the last rank is done; lp_seconds: the same if shards were divisible;
    lower_bound_seconds: what no plan of whole shards can beat; gap: seconds / lower bound - 1.
    shadow_prices: {"rate": a rank, "storage": a rank}, seconds that one more unit would save.
    """

    shards_of_rank: tuple[tuple[int, ...], ...]
    seconds_of_rank: tuple[float, ...]
    seconds: float
    lp_seconds: float
    lower_bound_seconds: float
    gap: float
    shadow_prices: dict


def allocate_shards(sizes, seconds_per_unit, *, fixed_seconds=None, storage=None, allowed=None,
                    storage_sizes=None):
    """Return the Allocation of shards to ranks with the least makespan.

    sizes: units (samples) of each shard. seconds_per_unit, fixed_seconds, storage: one a rank.
    allowed: {shard: ranks that may hold it}; a shard that is not named may go anywhere.
    storage_sizes: what each shard takes of a rank's storage; its size if not given.

    Exact (to the solver's tolerance) where kinds of shards times ranks are few; else floor, integer
    programme and local search, with the gap told. Ties go the same way every time. Raises
    ValueError for numbers that make no sense and PlanError that names the limits in conflict.
    """
    problem = _problem(sizes, seconds_per_unit, fixed_seconds, storage, allowed, storage_sizes)
    _check_each_shard(problem)
    if problem.sizes.size == 0:
        nothing = np.zeros(problem.ranks)
        return _allocation(problem, np.zeros(0, int), float(problem.fixed_seconds.max()),
                           {"rate": nothing, "storage": nothing})
    relaxation = relax(problem)
    rank_of_shard = place_whole(problem, relaxation)
    _check_plan(problem, rank_of_shard)
    return _allocation(problem, rank_of_shard, relaxation.seconds, {
        "rate": relaxation.saved_by_rate, "storage": relaxation.saved_by_storage})


def _allocation(problem, rank_of_shard, lp_seconds, prices):
    seconds = problem.seconds_of(loads(problem, rank_of_shard)[0])
    bound = lower_bound_seconds(problem, lp_seconds)
    assert bound <= seconds.max() * (1 + 1e-6) + 1e-9, "a bound above a plan is no bound"
    bound = min(bound, float(seconds.max()))  # what is left is the solver's tolerance
    order = np.argsort(rank_of_shard, kind="stable")
    cuts = np.searchsorted(rank_of_shard[order], np.arange(1, problem.ranks))
    return Allocation(
        shards_of_rank=tuple(tuple(map(int, part)) for part in np.split(order, cuts)),
        seconds_of_rank=tuple(map(float, seconds)), seconds=float(seconds.max()),
        lp_seconds=float(lp_seconds), lower_bound_seconds=bound,
        gap=float(seconds.max()) / bound - 1 if bound > 0 else 0.0,
        shadow_prices={name: tuple(map(float, values)) for name, values in prices.items()})


def _problem(sizes, seconds_per_unit, fixed_seconds, storage, allowed, storage_sizes):
    """Return the checked Problem."""
    sizes = _vector("sizes", sizes, None, 0.0, False)
    rates = _vector("seconds_per_unit", seconds_per_unit, None, 0.0, True)
    if rates.size == 0:
        raise ValueError("seconds_per_unit must name at least one rank")
    ranks = rates.size
    fixed = _vector("fixed_seconds", np.zeros(ranks) if fixed_seconds is None else fixed_seconds,
                    ranks, 0.0, False)
    room = np.full(ranks, np.inf) if storage is None else np.asarray(storage, float)
    if room.shape != (ranks,) or np.isnan(room).any() or (room < 0).any():
        raise ValueError(f"storage must hold {ranks} numbers that are not negative, one a rank")
    taken = sizes if storage_sizes is None else _vector("storage_sizes", storage_sizes, sizes.size,
                                                        0.0, False)
    mask = None
    if allowed:
        mask = np.ones((sizes.size, ranks), bool)
        for shard, places in allowed.items():
            places = list(places)
            if not 0 <= shard < sizes.size:
                raise PlanError(f"allowed names shard {shard}; there are shards 0 to "
                                f"{sizes.size - 1}")
            if any(not 0 <= rank < ranks for rank in places):
                raise PlanError(f"shard {shard} is allowed on ranks {places}; there are ranks 0 to "
                                f"{ranks - 1}")
            mask[shard] = False
            mask[shard, places] = True
    return Problem(sizes, taken, rates, fixed, room, mask)


def _vector(name, values, size, least, strictly):
    vector = np.asarray(values, float)
    wrong = ~np.isfinite(vector) | (vector < least) | (strictly & (vector == least))
    if vector.ndim != 1 or (size is not None and vector.size != size):
        raise ValueError(f"{name} must hold {size or 'some'} numbers, not shape {vector.shape}")
    if wrong.any():
        rule = "positive" if strictly else "not negative"
        raise ValueError(f"{name}[{wrong.argmax()}] must be finite and {rule}, not "
                         f"{vector[wrong.argmax()]}")
    return vector


def _check_each_shard(problem):
    """Raise PlanError for a shard that no rank can take, whatever happens to the others."""
    largest = problem.storage.max()
    if problem.allowed is None and not (problem.storage_sizes > largest).any():
        return
    for shard, size in enumerate(problem.storage_sizes):
        places = problem.may_hold(shard)
        if not places.any():
            raise PlanError(f"no plan: shard {shard} is allowed on no rank; allow it somewhere")
        if size > problem.storage[places].max():
            raise PlanError(
                f"no plan: shard {shard} takes {size:g}, more than the storage of every rank that "
                f"may hold it (at most {problem.storage[places].max():g}); give more "
                "storage_nbytes, or pack smaller shards")


def _check_plan(problem, rank_of_shard):
    """Check the finished plan against every limit: what the solver says is not taken on trust."""
    _, stored = loads(problem, rank_of_shard)
    assert ((rank_of_shard >= 0) & (rank_of_shard < problem.ranks)).all(), "a shard has no rank"
    assert (stored <= problem.storage * (1 + 1e-9)).all(), "a rank holds more than its storage"
    if problem.allowed is not None:
        assert problem.allowed[np.arange(rank_of_shard.size), rank_of_shard].all(), (
            "a shard is on a rank that may not hold it")


@dataclass(frozen=True)
class Plan:
    """Which rank holds which shard, and the seconds that all of it is predicted to take.

    shards_of_rank, samples_of_rank, seconds_of_rank: one a cluster rank; the seconds are those of
    computing one step. steps: of an epoch, the same on every rank. terms: seconds of a step by term.
    lower_bound_seconds: of an epoch; gap: epoch_seconds / lower_bound_seconds - 1.
    shadow_prices: seconds of an epoch saved by one more unit of {"rate": samples per second, a
    rank; "storage": bytes, a rank; "link": bytes per second both ways, by link}.
    """

    shards_of_rank: tuple[tuple[int, ...], ...]
    samples_of_rank: tuple[int, ...]
    seconds_of_rank: tuple[float, ...]
    steps: int
    step_seconds: float
    epoch_seconds: float
    staging_seconds: float
    lower_bound_seconds: float
    gap: float
    terms: dict
    bound_by: str
    shadow_prices: dict

    @property
    def hash(self):
        """SHA-256 of the placement: the same on every machine."""
        return hashlib.sha256(json.dumps(self.shards_of_rank).encode()).hexdigest()

    def to_dict(self):
        """Return a table for JSON, with the hash."""
        return asdict(self) | {"hash": self.hash}

    @classmethod
    def from_dict(cls, table):
        """Return the Plan that `to_dict` wrote."""
        values = {key: value for key, value in table.items() if key != "hash"}
        values["shards_of_rank"] = tuple(map(tuple, values["shards_of_rank"]))
        for key in ("samples_of_rank", "seconds_of_rank"):
            values[key] = tuple(values[key])
        return cls(**values)


def plan_shards(cluster, shards_or_counts, workload, objective="makespan", pinned=None):
    """Return the Plan that makes an epoch of `workload` on `cluster` shortest.

    shards_or_counts: a ShardSet, or the samples of each shard. objective: "makespan", the only one.
    pinned: {shard: name of the site that must hold it}. Raises PlanError where no plan satisfies
    the limits or a site does not exist.
    """
    if objective != "makespan":
        raise ValueError(f"objective must be 'makespan', not {objective!r}")
    samples, nbytes = _shards(shards_or_counts, workload)
    if samples.sum() == 0:
        raise PlanError("no plan: the shards hold no samples; pack some data")
    steps = steps_per_epoch(int(samples.sum()), workload.batch_size)
    fixed = np.array([cluster.sites[site].fixed_seconds for site in cluster.site_of_rank])
    storage = np.array([cluster.sites[site].storage_nbytes for site in cluster.site_of_rank])
    allocation = allocate_shards(
        samples, 1 / np.array(cluster.rates), fixed_seconds=steps * fixed, storage=storage,
        storage_sizes=nbytes, allowed=_allowed(cluster, pinned or {}, samples.size))
    samples_of_rank = [int(samples[list(mine)].sum()) for mine in allocation.shards_of_rank]
    terms = predict_step(cluster, np.array(samples_of_rank) / steps, workload)
    step_seconds = sum(terms.values())
    exchange = steps * (step_seconds - terms["compute"])
    bound = allocation.lower_bound_seconds + exchange
    seconds_of_rank = tuple(seconds / steps for seconds in allocation.seconds_of_rank)
    return Plan(
        shards_of_rank=allocation.shards_of_rank, samples_of_rank=tuple(samples_of_rank),
        seconds_of_rank=seconds_of_rank, steps=steps, step_seconds=step_seconds,
        epoch_seconds=steps * step_seconds,
        staging_seconds=staging_seconds(cluster, [float(nbytes[list(mine)].sum())
                                                  for mine in allocation.shards_of_rank],
                                        workload.data_site),
        lower_bound_seconds=bound, gap=max(0.0, steps * step_seconds / bound - 1), terms=terms,
        bound_by=_bound_by(cluster, terms, seconds_of_rank),
        shadow_prices=allocation.shadow_prices | {"link": _link_prices(cluster, workload, steps)})


def _shards(shards_or_counts, workload):
    """Return samples and bytes of each shard."""
    if hasattr(shards_or_counts, "samples"):
        return tuple(np.array(column, float)
                     for column in (shards_or_counts.samples, shards_or_counts.nbytes))
    samples = np.asarray(shards_or_counts, float)
    return samples, samples * workload.sample_nbytes


def _allowed(cluster, pinned, shards):
    for shard, name in pinned.items():
        if name not in cluster.names:
            raise PlanError(f"shard {shard} is pinned to site {name!r}, which does not exist; "
                            f"known sites: {', '.join(cluster.names)}")
        if not 0 <= shard < shards:
            raise PlanError(f"shard {shard} is pinned to site {name!r}, but there are shards 0 to "
                            f"{shards - 1}")
    return {shard: cluster.ranks_of_site(name) for shard, name in pinned.items()}


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


def _link_prices(cluster, workload, steps):
    """Return link -> seconds of an epoch saved by one more byte per second, by differences.

    Both directions of a link grow together; links that share a rate are one.
    """
    def epoch(changed):
        return steps * predict_allreduce(changed, workload.size, algorithm=workload.algorithm,
                                         compressor=workload.compressor).seconds

    names = [link.pipe.rpartition(":")[0] or "-".join(sorted((link.source, link.target)))
             for link in cluster.links]
    now, prices = epoch(cluster), {}
    for name in dict.fromkeys(names):
        table = cluster.to_table()
        chosen = [entry for entry, other in zip(table["link"], names) if other == name]
        added = 0.001 * min(entry["bytes_per_second"] for entry in chosen)
        for entry in chosen:
            entry["bytes_per_second"] += added
        prices[name] = max(0.0, (now - epoch(Cluster(table))) / added)
    return prices
