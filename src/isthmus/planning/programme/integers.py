"""Whole shards by an integer programme over how many of each kind every rank takes."""

from dataclasses import dataclass

import numpy as np

from isthmus.planning.programme.classes import each_rank, rank_groups, whole_items
from isthmus.planning.programme.linear_programme import Model, with_ceiling
from isthmus.planning.programme.problem import loads
from isthmus.planning.programme.silence import silent

NODES = 300
"""Of the search tree, after which the solver returns the best it has found. Nodes, not seconds: the
same plan on every machine, however busy."""


@dataclass(frozen=True)
class Solved:
    """What an integer programme has found."""

    rank_of_shard: np.ndarray | None  # int64[shards]
    bound: float  # of the first objective, proved
    stopped: bool  # nodes ran out


def place_by_integers(problem, chain, shards, kinds, rank_of_shard, nodes=NODES, reached=None):
    """Place `shards` so that the objectives of `chain` are small, each without giving up those before.

    reached: a value of the first objective that is known to be optimal, and not solved for again.
    """
    held = loads(problem, rank_of_shard)
    items = whole_items(problem, shards, kinds)
    model = Model(problem, items, each_rank(problem, *held), held, chain)
    rows, bound = model.rows()
    first, constant = chain[0], model.constant(chain[0])
    best, proved, stopped = None, -np.inf, False
    if reached is not None:
        rows, bound = with_ceiling(rows, bound, model.cost(chain[0]), reached / model.time - constant)
        chain = chain[1:]
    for number, objective in enumerate(chain):
        done, counts = _whole_solution(model, objective, rows, bound, nodes)
        if number == 0 and reached is None:
            stopped = done.status in (1, 4)  # 4: what scipy makes of HiGHS' node limit
            if done.mip_dual_bound is not None:
                proved = (done.mip_dual_bound + constant) * model.time
        if counts is None:
            break
        best = counts
        if stopped:
            break
        rows, bound = with_ceiling(rows, bound, model.cost(objective), done.fun)
    if best is None:
        return Solved(None, proved, stopped)
    groups = rank_groups(problem, items, first)
    if groups.exact and not held[1].any():
        best = _one_of_many(best, groups.of_rank)
    result = rank_of_shard.copy()
    for kind in range(items.total.size):
        result[shards[items.of_shard == kind]] = np.repeat(np.arange(problem.ranks), best[kind])
    return Solved(result, proved, stopped)


def _one_of_many(counts, group_of_rank):
    """Return counts[kind, rank] with identical ranks in order, most of the first kinds first: of the
    many solutions that differ by names alone always the same one."""
    result = counts.copy()
    for group in np.unique(group_of_rank):
        ranks = np.flatnonzero(group_of_rank == group)
        mine = counts[:, ranks]
        result[:, ranks] = mine[:, np.lexsort(-mine[::-1])]
    return result


def _whole_solution(model, objective, rows, bound, nodes):
    """Return scipy's answer and counts[kind, rank], or None where there is none.

    The solver may exceed a limit by its tolerance: where the counts do, once more with a margin.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    problem = model.problem
    top = np.full(model.size, np.inf)
    top[: model.pairs] = model.items.total[model.kind]
    whole = np.zeros(model.size)
    whole[: model.pairs] = 1
    tight = np.zeros(bound.size)
    for name in ("storage", "budget"):
        if name in model.blocks:
            tight[model.blocks[name]] = 2e-6
    for margin in (0.0, 1.0):
        with silent():
            done = milp(
                model.cost(objective),
                bounds=Bounds(0, top),
                integrality=whole,
                constraints=[
                    LinearConstraint(rows, -np.inf, bound - margin * tight),
                    LinearConstraint(model.equal, model.items.total, model.items.total),
                ],
                options={"node_limit": nodes, "mip_rel_gap": 1e-9},
            )
        if done.x is None:
            return done, None
        counts = np.zeros((model.items.total.size, problem.ranks), np.int64)
        counts[model.kind, model.group] = np.rint(done.x[: model.pairs])
        units = model.held[0] + model.items.size @ counts
        stored = model.held[1] + model.items.nbytes @ counts
        if problem.broken_limits(units, stored) is None:
            return done, counts
    return done, None
