"""From divisible shards to whole ones: floor, a small integer programme, then local search."""

import numpy as np

from isthmus.errors import PlanError
from isthmus.planning.makespan import classes_of, lower_bound_seconds

INTEGER_VARIABLES = 1500
"""Most integer variables that are left to the solver; more would take more than a second or two."""
NODES = 300
"""Of the search tree, after which the solver returns the best it has found. Nodes, not seconds: the
same plan on every machine, however busy."""
GOOD_ENOUGH = 1e-3
"""Gap at which a plan of many kinds of shards is not searched further."""


def place_whole(problem, relaxation):
    """Return rank_of_shard, int64[shards]: whole shards, every limit obeyed, as early as possible.

    What fits whole into the relaxation's shares stays there; the rest is placed by finish time, and
    a local search follows. Where that leaves a gap, an integer programme is solved: over all shards
    if their kinds times ranks are few (then the plan is optimal), else over the rest. Raises
    PlanError if no whole-shard plan is found.
    """
    bound = lower_bound_seconds(problem, relaxation.seconds)
    kinds = classes_of(problem.sizes, problem.storage_sizes, relaxation.class_of_shard)
    exact = (kinds.max(initial=-1) + 1) * problem.ranks <= INTEGER_VARIABLES
    floor = _floor(problem, relaxation)
    best = _improve(problem, _placed_by_finish(problem, floor))
    if best is not None and _seconds(problem, best) <= bound * (1 + (1e-9 if exact else GOOD_ENOUGH)):
        return best
    left = np.arange(problem.sizes.size) if exact else np.flatnonzero(floor < 0)
    solved = None
    if left.size and np.unique(kinds[left]).size * problem.ranks <= INTEGER_VARIABLES:
        solved = _solve_integers(problem, left, kinds, np.where(np.isin(
            np.arange(problem.sizes.size), left), -1, floor))
        solved = solved if exact else _improve(problem, solved)
    found = [plan for plan in (best, solved) if plan is not None]
    if not found:
        raise PlanError("no plan: the shards would fit in pieces, but not whole; give more "
                        "storage_nbytes, or pack smaller shards")
    return min(found, key=lambda plan: _seconds(problem, plan))


def _seconds(problem, rank_of_shard):
    return problem.seconds_of(loads(problem, rank_of_shard)[0]).max()


def _floor(problem, relaxation):
    """Return rank_of_shard with what fits whole into each rank's share; -1 for what is left.

    Largest shards first, each to the rank with most room left of its class.
    """
    rank_of_shard = np.full(problem.sizes.size, -1)
    order = np.lexsort((np.arange(problem.sizes.size), -problem.sizes))
    room = relaxation.units.copy()
    stored = np.zeros(problem.ranks)
    for shard in order:
        here = room[relaxation.class_of_shard[shard]]
        rank = int(np.where(problem.may_hold(shard), here, -1.0).argmax())
        if here[rank] >= problem.sizes[shard] * (1 - 1e-9) and (
                stored[rank] + problem.storage_sizes[shard] <= problem.storage[rank]):
            rank_of_shard[shard] = rank
            here[rank] -= problem.sizes[shard]
            stored[rank] += problem.storage_sizes[shard]
    return rank_of_shard


def _placed_by_finish(problem, rank_of_shard):
    """Give each shard without a rank, largest first, to the rank that is then done first.

    Returns None if a shard fits nowhere.
    """
    result = rank_of_shard.copy()
    units, stored = loads(problem, result)
    left = np.flatnonzero(result < 0)
    for shard in left[np.argsort(-problem.sizes[left], kind="stable")]:
        finish = problem.seconds_of(units + problem.sizes[shard])
        fits = stored + problem.storage_sizes[shard] <= problem.storage
        finish[~(fits & problem.may_hold(shard))] = np.inf
        rank = int(finish.argmin())
        if finish[rank] == np.inf:
            return None
        result[shard] = rank
        units[rank] += problem.sizes[shard]
        stored[rank] += problem.storage_sizes[shard]
    return result


def loads(problem, rank_of_shard):
    """Return units and storage taken on each rank by the shards that are placed."""
    placed = rank_of_shard >= 0
    return tuple(np.bincount(rank_of_shard[placed], sizes[placed], minlength=problem.ranks)
                 for sizes in (problem.sizes, problem.storage_sizes))


def _solve_integers(problem, shards, kinds, rank_of_shard):
    """Place `shards` by an integer programme over how many of each kind every rank takes.

    Returns None if the solver finds no plan.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import block_array, csr_array, diags_array, kron
    names, first, counts = np.unique(kinds[shards], return_index=True, return_counts=True)
    sample = shards[first]
    units, stored = loads(problem, rank_of_shard)
    ranks, variables = problem.ranks, names.size * problem.ranks
    time = (problem.sizes.sum() or 1.0) / (1 / problem.seconds_per_unit).sum()
    # Variable k * ranks + r: shards of kind k on rank r; the last one is T.
    work = kron(csr_array(problem.sizes[sample][None]),
                diags_array(problem.seconds_per_unit / time))
    storage_unit = problem.storage_sizes.sum() or 1.0
    limited = np.flatnonzero(np.isfinite(problem.storage))
    space = kron(csr_array(problem.storage_sizes[sample][None] / storage_unit),
                 diags_array(np.ones(ranks))).tocsr()[limited]
    placed = kron(diags_array(np.ones(names.size)), csr_array(np.ones((1, ranks))))
    matrix = block_array([[work, csr_array(-np.ones((ranks, 1)))], [space, None], [placed, None]])
    free = (problem.storage - stored)[limited] / storage_unit
    lower = np.concatenate([np.full(ranks + limited.size, -np.inf), counts])
    most = np.where([problem.may_hold(shard) for shard in sample], counts[:, None], 0).ravel()
    for margin in (0.0, 2e-6):  # the solver may exceed a limit by its tolerance: then once more
        upper = np.concatenate([-problem.seconds_of(units) / time, free - margin, counts])
        done = milp(np.append(np.zeros(variables), 1.0),
                    constraints=LinearConstraint(matrix.tocsc(), lower, upper),
                    bounds=Bounds(0, np.append(most, np.inf)),
                    integrality=np.append(np.ones(variables), 0),
                    options={"node_limit": NODES, "mip_rel_gap": 1e-9})
        if done.x is None:
            return None
        amount = np.rint(done.x[:-1]).astype(int).reshape(names.size, ranks)
        result = rank_of_shard.copy()
        for name, row in zip(names, amount):
            result[shards[kinds[shards] == name]] = np.repeat(np.arange(ranks), row)
        if (loads(problem, result)[1] <= problem.storage * (1 + 1e-12)).all():
            return result
    return None


def _improve(problem, rank_of_shard):
    """Move or swap a shard of the critical rank as long as that rank is done sooner."""
    if rank_of_shard is None:
        return None
    units, stored = loads(problem, rank_of_shard)
    for _ in range(10 * problem.ranks + 100):
        seconds = problem.seconds_of(units)
        critical = int(seconds.argmax())
        change = _best_move(problem, rank_of_shard, units, stored, critical) or _best_swap(
            problem, rank_of_shard, units, stored, critical)
        if change is None:
            break
        for shard, rank in change:
            old = rank_of_shard[shard]
            for total, sizes in ((units, problem.sizes), (stored, problem.storage_sizes)):
                total[old] -= sizes[shard]
                total[rank] += sizes[shard]
            rank_of_shard[shard] = rank
    return rank_of_shard


def _best_move(problem, rank_of_shard, units, stored, critical):
    """Return the move of one shard off `critical` that leaves both ranks done earliest, or None."""
    best, change = problem.seconds_of(units)[critical] * (1 - 1e-12), None
    for shard in np.flatnonzero(rank_of_shard == critical):
        finish = problem.seconds_of(units + problem.sizes[shard])
        fits = stored + problem.storage_sizes[shard] <= problem.storage
        finish[~(fits & problem.may_hold(shard))] = np.inf
        finish[critical] = np.inf
        rank = int(finish.argmin())
        rest = problem.seconds_of(units - problem.sizes[shard])[critical]
        if max(finish[rank], rest) < best:
            best, change = max(finish[rank], rest), [(shard, rank)]
    return change


def _best_swap(problem, rank_of_shard, units, stored, critical):
    """Return the swap of a shard of `critical` with a smaller one elsewhere that helps most."""
    best, change = problem.seconds_of(units)[critical] * (1 - 1e-12), None
    others = np.flatnonzero(rank_of_shard != critical)
    there = rank_of_shard[others]
    for shard in np.flatnonzero(rank_of_shard == critical):
        gain = problem.sizes[shard] - problem.sizes[others]
        taken = problem.storage_sizes[shard] - problem.storage_sizes[others]
        here = problem.seconds_of(units)[critical] - problem.seconds_per_unit[critical] * gain
        away = problem.seconds_of(units)[there] + problem.seconds_per_unit[there] * gain
        fits = ((gain > 0) & (stored[there] + taken <= problem.storage[there])
                & (stored[critical] - taken <= problem.storage[critical])
                & problem.may_hold(shard)[there])
        if problem.allowed is not None:
            fits &= problem.allowed[others, critical]
        worst = np.where(fits, np.maximum(here, away), np.inf)
        pick = int(worst.argmin()) if worst.size else None
        if pick is not None and worst[pick] < best:
            best, change = worst[pick], [(shard, there[pick]), (others[pick], critical)]
    return change
