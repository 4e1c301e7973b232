"""From divisible shards to whole ones: floor, deal, local search, and an integer programme."""

from dataclasses import dataclass

import numpy as np

from isthmus.errors import PlanError
from isthmus.planning.programme.classes import kinds_of, order_of
from isthmus.planning.programme.integers import place_by_integers
from isthmus.planning.programme.objectives import tie_breaks
from isthmus.planning.programme.problem import loads
from isthmus.planning.programme.search import improve

INTEGER_VARIABLES = 1500
"""Most integer variables that are left to the solver; more would take more than a second or two."""
GOOD_ENOUGH = 1e-3
"""Gap at which a plan of many kinds of shards is not searched further."""


@dataclass(frozen=True)
class Placement:
    """Whole shards on ranks, and what is proved of them."""

    rank_of_shard: np.ndarray  # int64[shards]
    bound: float = -np.inf  # what the integer programme proved, if it did
    stopped: bool = False  # the node limit was reached before the programme was done


def place_whole(problem, objective, relaxation, bound, then, nodes):
    """Return the Placement of whole shards: every limit obeyed, the objective as small as found.

    What fits whole into the relaxation's shares stays there; the rest is dealt to the rank where it
    costs least, and a local search follows. Where that leaves a gap to `bound`, an integer programme
    is solved: over all shards if their kinds times ranks are few (then the plan is optimal unless
    `stopped`, also in the objectives named in `then`), else over the rest. Raises PlanError if no
    whole-shard plan is found.
    """
    kinds = kinds_of(problem, bytes_count=bool(objective.per_byte(problem).any()))
    exact = (int(kinds.max(initial=-1)) + 1) * problem.ranks <= INTEGER_VARIABLES
    floor = fill_shares(problem, relaxation, kinds)
    goal = bound * (1 + (1e-9 if exact else GOOD_ENOUGH))
    for weight in (1.0, 10.0, 1000.0) if problem.prices is not None else (0.0,):
        best = deal(
            problem,
            objective,
            floor.copy(),
            weight * max(relaxation.prices["budget"], 1e-3 * problem.ideal_seconds / problem.budget),
        )
        if _keeps_limits(problem, best):
            break
    if objective.handled_by("swaps"):
        best = improve(problem, objective, best, goal)
    best = best if _keeps_limits(problem, best) else None
    chain = tie_breaks(problem, then) if exact else []
    done = best is not None and _value(problem, objective, best) <= goal
    if done and not chain:
        return Placement(best)
    left = np.arange(problem.sizes.size) if exact else np.flatnonzero(floor < 0)
    few = exact or np.unique(kinds[left]).size * problem.ranks <= INTEGER_VARIABLES
    if not left.size or not few:
        return Placement(_found(problem, best, exact))
    start = np.where(np.isin(np.arange(floor.size), left), -1, floor)
    solved = place_by_integers(
        problem,
        [objective] + chain,
        left,
        kinds,
        start,
        nodes,
        None if not done else _value(problem, objective, best),
    )
    plan = solved.rank_of_shard
    if not exact:
        plan = improve(problem, objective, plan, goal) if objective.handled_by("swaps") else plan
    plans = [each for each in (plan, best) if _keeps_limits(problem, each)]
    if not plans:
        if solved.stopped:
            raise PlanError(
                f"no plan: none was found within {nodes} nodes of the integer programme; "
                "allow more nodes"
            )
        _found(problem, None, exact)
    plan = min(
        plans,
        key=lambda each: round(  # of equals the first, which has the tie-breaks
            _value(problem, objective, each) / problem.ideal_seconds, 7
        ),
    )
    return Placement(plan, solved.bound if exact else -np.inf, solved.stopped)


def _found(problem, plan, exact):
    """Return the plan; if there is none raise PlanError, which says what limits could give way."""
    if plan is None:
        cures = [
            (problem.least.any(), "demand fewer least_samples"),
            (np.isfinite(problem.storage).any(), "give more storage_nbytes"),
            (np.isfinite(problem.budget), "raise the budget"),
            (True, "pack smaller shards"),
        ]
        raise PlanError(
            f"no plan: shards of {problem.sizes.min():g} to {problem.sizes.max():g} samples would fit "
            f"in pieces, but {'not whole' if exact else 'no plan of whole ones was found'}; "
            + ", or ".join(cure for binds, cure in cures if binds)
        )
    return plan


def _value(problem, objective, plan):
    return objective.value(problem, *loads(problem, plan))


def _keeps_limits(problem, plan):
    return plan is not None and problem.broken_limits(*loads(problem, plan)) is None


def fill_shares(problem, relaxation, kinds):
    """Return rank_of_shard with what fits whole into each rank's share; -1 for what is left.

    The shards of a class in a row, largest first, and the shares of the ranks in a row, fastest
    first: a shard that lies inside one share goes there.
    """
    of_shard = relaxation.items.of_shard
    order = _in_order(kinds, of_shard, problem.sizes)
    by_item = np.lexsort((relaxation.rank, problem.seconds_per_unit[relaxation.rank], relaxation.item))
    item, rank = relaxation.item[by_item], relaxation.rank[by_item]
    units = relaxation.units[by_item]
    classes = relaxation.items.total.size
    have = np.bincount(of_shard, problem.sizes, minlength=classes)
    shared = np.bincount(item, units, minlength=classes)
    ends = np.cumsum(units * (have / np.where(shared > 0, shared, 1))[item])
    size = problem.sizes[order]
    stop = np.cumsum(size)
    share = np.searchsorted(ends, stop - 0.999999 * size, "left").clip(max=max(ends.size - 1, 0))
    result = np.full(order.size, -1)
    if ends.size:
        inside = (stop <= ends[share] + 1e-6 * size) & (item[share] == of_shard[order]) & (size > 0)
        result[order[inside]] = rank[share[inside]]
    return _within_storage(problem, result)


def _in_order(kinds, of_shard, sizes):
    """Return the shards by class, largest first, by way of their kinds (which are fewer)."""
    first = np.zeros(int(kinds.max(initial=-1)) + 1, np.int64)
    first[kinds[::-1]] = np.arange(kinds.size)[::-1]
    position = np.empty(first.size, np.int64)
    position[np.lexsort((-sizes[first], of_shard[first]))] = np.arange(first.size)
    return order_of(position[kinds])


def _within_storage(problem, rank_of_shard):
    """Take back what exceeds a rank's storage: bytes were rounded down in the bound's classes."""
    _, stored = loads(problem, rank_of_shard)
    for rank in np.flatnonzero(stored > problem.storage):
        mine = np.flatnonzero(rank_of_shard == rank)
        rank_of_shard[mine[np.cumsum(problem.nbytes[mine]) > problem.storage[rank]]] = -1
    return rank_of_shard


def deal(problem, objective, rank_of_shard, seconds_per_money=0.0):
    """Give each shard without a rank, largest first, to a rank where it costs the objective least.

    seconds_per_money: what money counts for (the budget's shadow price, or more to keep to it).
    Many shards with the same places are dealt a handful at a time, one to a rank. Returns None if a
    shard fits nowhere.
    """
    units, stored = loads(problem, rank_of_shard)
    left = np.flatnonzero(rank_of_shard < 0)
    left = left[np.lexsort((left, -problem.nbytes[left], -problem.sizes[left]))]
    handful = 1 if left.size <= 2000 else 4
    if handful == 1:
        hands = [left]
    else:
        breadth = problem.places.sum(axis=1)
        rows = problem.place_of_shard[left]
        hands = [left[rows == row] for row in np.argsort(breadth, kind="stable")]
    per_byte, per_unit = objective.per_byte(problem), np.zeros(problem.ranks)
    if problem.prices is not None:
        per_byte = per_byte + seconds_per_money * problem.prices.per_byte
        per_unit = seconds_per_money * problem.prices.per_second * problem.seconds_per_unit
    waits = problem.waiting_seconds(stored)  # as it stands; what is dealt now adds little
    for hand in hands:
        start = 0
        while start < hand.size:
            ranks = np.flatnonzero(problem.may_hold(hand[start]))
            count = 1 if handful == 1 else max(1, min(hand.size - start, ranks.size) // handful)
            room = problem.storage[ranks] - stored[ranks]
            while True:  # as many as there are ranks with room for the one with most bytes
                mine = hand[start : start + count]
                fits = room >= problem.nbytes[mine].max()
                if count == 1 or fits.sum() >= count:
                    break
                count = max(1, min(count // 2, int(fits.sum())))
            ranks = ranks[fits]
            if not ranks.size:
                return None
            cost = _cost(problem, objective, units, waits, ranks, problem.sizes[mine[0]])
            cost += per_unit[ranks] * problem.sizes[mine[0]] + per_byte[ranks] * problem.nbytes[mine[0]]
            chosen = ranks[_least(cost, count)]
            rank_of_shard[mine] = chosen
            units[chosen] += problem.sizes[mine]
            stored[chosen] += problem.nbytes[mine]
            start += mine.size
    return rank_of_shard


def _cost(problem, objective, units, waits, ranks, size):
    """Return what one more shard costs on each of `ranks`, but for its bytes and money; least where
    samples are still demanded."""
    wanted = units[ranks] < problem.least[ranks]
    return objective.increment(problem, units, waits, ranks, size) - 1e6 * problem.ideal_seconds * wanted


def _least(cost, count):
    """Return the places of the `count` smallest, in order; ties by place, whatever the machine."""
    if count == 1:
        return np.array([int(cost.argmin())])
    limit = np.partition(cost, count - 1)[count - 1]
    below = np.flatnonzero(cost < limit)
    chosen = np.concatenate([below, np.flatnonzero(cost == limit)[: count - below.size]])
    return chosen[np.argsort(cost[chosen], kind="stable")]
