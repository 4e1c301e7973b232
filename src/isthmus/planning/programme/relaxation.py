"""Divisible shards: how much each rank should hold, and how good any plan can be."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from isthmus.planning.programme.classes import Groups, Items, fluid_items, rank_groups
from isthmus.planning.programme.conflicts import refuse
from isthmus.planning.programme.linear_programme import Model, solve_lp, with_ceiling
from isthmus.planning.programme.objectives import tie_breaks
from isthmus.planning.programme.problem import Problem
from isthmus.planning.programme.terms import Objective

TIE_BREAK_PAIRS = 5000
"""Most variables for which the linear programme is solved again for the second and third objective."""


@dataclass(frozen=True)
class Relaxation:
    """The optimum with divisible shards: `units[k]` units of `items` `item[k]` are on rank `rank[k]`."""

    value: float  # of the objective
    items: Items
    groups: Groups
    item: np.ndarray
    rank: np.ndarray
    units: np.ndarray
    prices: dict  # as `prices_of` says


def relax(problem: Problem, objective: Objective, then=()):
    """Return the Relaxation; PlanError that names the limits in conflict if there is none.

    then: names of TIE_BREAKS, minimised in turn without giving up what came before. Shadow prices
    are those of `objective`.
    """
    items = fluid_items(problem, bytes_count=bool(objective.per_byte(problem).any()))
    groups = rank_groups(problem, items, objective)
    small = items.total.size * groups.first.size <= TIE_BREAK_PAIRS
    chain = [objective] + (tie_breaks(problem, then) if small else [])
    model = Model(problem, items, groups, objectives=chain)
    rows, bound = model.rows()
    first = done = solve_lp(model, objective, rows, bound)
    if not done.success:
        refuse(model, done)
    for before, after in pairwise(chain):
        rows, bound = with_ceiling(rows, bound, model.cost(before), done.fun)
        again = solve_lp(model, after, rows, bound)
        if not again.success:
            break  # within the solver's tolerance of what came before: that stands
        done = again
    units = done.x[: model.pairs].clip(0) * items.size[model.kind] / groups.members[model.group]
    return Relaxation(
        first.fun * model.time, items, groups, *_spread(model, units), prices_of(model, objective, first)
    )


def _spread(model, units):
    """Return (item, rank, units) for each rank of each class that holds something of an item."""
    groups = model.groups
    some = np.flatnonzero(units > 1e-12 * model.unit)
    members = groups.members[model.group[some]].astype(int)
    ranks_by_group = np.argsort(groups.of_rank, kind="stable")
    start = np.concatenate([[0], np.cumsum(groups.members)]).astype(int)[model.group[some]]
    entry = np.repeat(np.arange(some.size), members)
    offset = np.arange(entry.size) - np.repeat(np.cumsum(members) - members, members)
    rank = ranks_by_group[start[entry] + offset]
    # Ranks that were only almost alike are done at one time if each follows its own pace.
    pace = groups.seconds_per_unit[groups.of_rank] / model.problem.seconds_per_unit
    return model.kind[some][entry], rank, units[some][entry] * pace[rank]


def prices_of(model, objective, done):
    """Return what one more unit of each limit saves, in seconds of the objective.

    "rate": float64[ranks], for a unit per second.
    "fixed": float64[ranks], for a second less of a rank's own.
    "storage": float64[ranks], for a byte.
    "least": float64[ranks], for a unit less that is demanded.
    "pipe": by name, for a byte per second.
    "budget": for a unit of money.
    """
    problem, groups, of_rank = model.problem, model.groups, model.groups.of_rank
    dual = {name: -done.ineqlin.marginals[rows] for name, rows in model.blocks.items()}
    held = model.units @ done.x[: model.pairs]  # units on one rank of each class
    stored = model.stored @ done.x[: model.pairs]
    finish = np.bincount(model.finish_group, dual["finish"], minlength=groups.first.size)
    own = np.broadcast_to(sum(term.per_second(problem) for term in objective.terms), problem.ranks)
    per_second = finish / groups.members + own[groups.first]
    storage, least = np.zeros((2, groups.first.size))
    storage[model.limited] = dual["storage"]
    least[model.needed] = dual["least"]
    pipe, budget = {}, 0.0
    if problem.prices is not None:
        budget = float(dual["budget"][0]) * model.time / model.money
        per_second = per_second + budget * problem.prices.per_second[groups.first]
    if not all(term.prices_rates for term in objective.terms):
        per_second = per_second * 0.0
    if model.pipes:
        pipes = problem.pipes
        seconds = pipes.uses[:, groups.first] @ (groups.members * stored) / pipes.bytes_per_second
        own = sum(term.per_pipe_second() for term in objective.terms)
        saved = (dual["pipes"] + own) * seconds / pipes.bytes_per_second
        pipe = dict(zip(pipes.names, map(float, saved)))
    # A rank is s slower by one part in its rate r = 1 / s: ds / dr = -s^2.
    return {
        "rate": (per_second * held * groups.seconds_per_unit**2)[of_rank],
        "fixed": (finish / groups.members)[of_rank],
        "storage": (storage / groups.members * model.time / model.bytes)[of_rank],
        "least": (least / groups.members * model.time / model.unit)[of_rank],
        "pipe": pipe,
        "budget": budget,
    }
