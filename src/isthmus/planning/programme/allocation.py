"""Which rank holds which shard: numbers in, numbers out."""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from isthmus.errors import PlanError
from isthmus.planning.programme.classes import order_of
from isthmus.planning.programme.integers import NODES
from isthmus.planning.programme.objectives import make_objective, tie_breaks
from isthmus.planning.programme.problem import Pipes, Prices, loads, make_problem
from isthmus.planning.programme.relaxation import relax
from isthmus.planning.programme.rounding import place_whole
from isthmus.planning.programme.terms import Objective


@dataclass(frozen=True, eq=False)
class Allocation:
    """Whole shards on ranks, how good that is, and what would make it better."""

    rank_of_shard: npt.NDArray[np.int64]  # of each shard
    seconds_of_rank: tuple[float, ...]  # when each rank is done
    seconds: float  # when the last rank is done
    value: float  # of the objective, in seconds
    lp_seconds: float  # the value if shards were divisible
    lower_bound_seconds: float  # the value that no plan of whole shards can beat
    gap: float  # value / lower bound - 1, or value / seconds of an even load where the bound is 0
    stopped: bool  # the node limit was reached, and this is the best plan found until then
    # Seconds of the value that one more unit saves, as `relaxation.prices_of` says.
    shadow_prices: dict[str, Any]

    @cached_property
    def shards_of_rank(self) -> tuple[tuple[int, ...], ...]:
        """The shards of each rank, ascending: a tuple of tuples."""
        return shards_by_rank(self.rank_of_shard, len(self.seconds_of_rank))

    @property
    def hash(self) -> str:
        """SHA-256 of the placement: the same on every machine."""
        return hashlib.sha256(self.rank_of_shard.astype("<i8").tobytes()).hexdigest()

    def __eq__(self, other: object) -> bool:
        """Return whether shards, times and prices are the same."""
        if not isinstance(other, Allocation):
            return NotImplemented
        return self.hash == other.hash and all(
            getattr(self, name) == getattr(other, name)
            for name in self.__dataclass_fields__
            if name != "rank_of_shard"
        )


def shards_by_rank(rank_of_shard: npt.NDArray[np.int64], ranks: int) -> tuple[tuple[int, ...], ...]:
    """Return a tuple with the shards of each rank, ascending, as a tuple."""
    order = order_of(rank_of_shard)
    ends = np.searchsorted(rank_of_shard[order], np.arange(ranks + 1)).tolist()
    shards = order.tolist()
    return tuple(tuple(shards[start:stop]) for start, stop in pairwise(ends))


def allocate_shards(
    sizes: npt.ArrayLike,
    seconds_per_unit: npt.ArrayLike,
    *,
    fixed_seconds: npt.ArrayLike | None = None,
    storage: npt.ArrayLike | None = None,
    allowed: Mapping[int, Collection[int]] | tuple[np.ndarray, np.ndarray] | None = None,
    storage_sizes: npt.ArrayLike | None = None,
    objective: str | Objective = "makespan",
    alpha: float = 1.0,
    least: npt.ArrayLike | None = None,
    pipes: Pipes | None = None,
    prices: Prices | None = None,
    then: Sequence[str] = ("bytes", "imbalance"),
    nodes: int = NODES,
) -> Allocation:
    """Return the Allocation of shards to ranks with the least makespan, or another objective.

    sizes: units (samples) of each shard.
    seconds_per_unit, fixed_seconds, storage: one a rank.
    allowed: {shard: ranks that may hold it}. A shard that is not named may go anywhere. For very many
        shards it is (row of each shard, bool[rows, ranks]).
    storage_sizes: bytes of each shard, its size if not given.
    objective: a name of `objectives.OBJECTIVES`, or a `terms.Objective`.
    alpha: of the objective "weighted".
    least: units that each rank must hold.
    pipes: Pipes that shards cross first.
    prices: Prices with a budget.
    then: what to make small next, of "bytes" (moved) and "imbalance", where the problem is small enough.
    nodes: after which integer programmes stop.

    The plan is exact, to the solver's tolerance, where kinds of shards times ranks are few. Else it is
    found by floor, deal, local search and a small integer programme, and its gap is told. Ties go the
    same way every time. Raises ValueError for numbers that make no sense, and PlanError that names a
    smallest set of limits in conflict.
    """
    problem = make_problem(
        sizes, seconds_per_unit, fixed_seconds, storage, allowed, storage_sizes, least, pipes, prices
    )
    aim = make_objective(objective, alpha)
    tie_breaks(problem, then)  # also where the problem will be too large for them: all are known
    if problem.sizes.size == 0:
        return _nothing(problem)
    relaxation = relax(problem, aim, then)
    bound = aim.lower_bound(problem, relaxation.value)
    placement = _placed(problem, aim, relaxation, bound, then, nodes)
    _check_plan(problem, placement.rank_of_shard)
    return _allocation(problem, aim, placement, relaxation, max(bound, placement.bound))


def _placed(problem, objective, relaxation, bound, then, nodes):
    """Return the Placement; where rounding spends too much, from shares that leave some money over."""
    try:
        return place_whole(problem, objective, relaxation, bound, then, nodes)
    except PlanError:
        if problem.prices is None:
            raise
        for share in (0.99, 0.95):
            with suppress(PlanError):
                prices = replace(problem.prices, budget=share * problem.prices.budget)
                thrifty = relax(replace(problem, prices=prices), objective, then)
                return place_whole(problem, objective, thrifty, bound, then, nodes)
        raise


def _allocation(problem, objective, placement, relaxation, bound):
    units, stored = loads(problem, placement.rank_of_shard)
    seconds = problem.seconds_of(units, stored)
    value = objective.value(problem, units, stored)
    slack = 1e-6 * value + 2e-6 * problem.ideal_seconds
    assert bound <= value + slack, f"a bound {bound} above a plan {value} is no bound"
    bound = float(max(0.0, min(bound, value)))  # what is left is the solver's tolerance
    return Allocation(
        placement.rank_of_shard,
        tuple(seconds.tolist()),
        float(seconds.max()),
        value,
        float(relaxation.value),
        bound,
        float(
            value / bound - 1 if bound > 1e-9 * problem.ideal_seconds else value / problem.ideal_seconds
        ),
        placement.stopped,
        {
            name: tuple(given.tolist()) if isinstance(given, np.ndarray) else given
            for name, given in relaxation.prices.items()
        },
    )


def _nothing(problem):
    """Return the Allocation of no shards."""
    zeros = (0.0,) * problem.ranks
    fixed = problem.fixed_seconds
    return Allocation(
        np.zeros(0, np.int64),
        tuple(fixed.tolist()),
        *(float(fixed.max()),) * 4,
        0.0,
        False,
        {"rate": zeros, "fixed": zeros, "storage": zeros, "least": zeros, "pipe": {}, "budget": 0.0},
    )


def _check_plan(problem, rank_of_shard):
    """Check the finished plan against every limit: what the solver says is not taken on trust."""
    assert ((rank_of_shard >= 0) & (rank_of_shard < problem.ranks)).all(), "a shard has no rank"
    assert problem.places[problem.place_of_shard, rank_of_shard].all(), (
        "a shard is on a rank that may not hold it"
    )
    broken = problem.broken_limits(*loads(problem, rank_of_shard))
    assert broken is None, f"the plan breaks {broken}"
