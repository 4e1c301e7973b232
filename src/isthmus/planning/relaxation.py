"""The linear programme: how much each rank should hold, and how good any plan can be.

    min  weights . (T, x, S, d)    subject to
    wait_g + fixed_g + s_g U_g <= T        every class g of ranks, wait_g: each of its pipes' S_l
    W_g <= storage_g,  U_g >= least_g      where there is a limit
    sum of bytes over pipe l / B_l <= S_l  every pipe
    money spent <= budget
    |s_g (U_g - target_g)| <= d_g          where imbalance counts
    sum_g x_ig = total_i,  x >= 0          every kind i

x_ig: how many of kind i all ranks of class g hold; U_g, W_g: units and bytes on one of them. There is
no variable for a forbidden pair. Rows are in seconds and in shares of all bytes, because the solver's
tolerances are absolute. The same matrices, with whole numbers, are the integer programme. Makespan on
unlike machines: Lenstra, Shmoys and Tardos 1990, doi:10.1007/BF01585745.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from isthmus.planning.classes import Groups, Items, fluid_items, rank_groups
from isthmus.planning.objectives import TIE_BREAKS, Objective
from isthmus.planning.problem import Problem

TIE_BREAK_PAIRS = 5000
"""Most variables for which the linear programme is solved again for the second and third objective."""


class Model:
    """The rows as sparse matrices, by block of one name: A v <= b, and the equalities.

    v: pairs (kind, class), then T, S of each pipe, and d of each class if `deviations`.
    """

    def __init__(self, problem, items, groups, held=None, deviations=False):
        """held: units and bytes that each rank holds already (float64[ranks] both); none if None."""
        from scipy.sparse import csr_array
        self.problem, self.items, self.groups = problem, items, groups
        self.time, self.bytes = problem.ideal_seconds, float(problem.nbytes.sum()) or 1.0
        self.held = held or (np.zeros(problem.ranks),) * 2
        self.kind, self.group = np.nonzero(problem.places[np.ix_(items.place, groups.first)])
        pairs, count = self.kind.size, groups.first.size
        self.pipes = len(problem.pipes.names)
        self.deviations = count if deviations else 0
        self.pairs, self.size = pairs, pairs + 1 + self.pipes + self.deviations
        member, shape = groups.members[self.group], (count, pairs)
        where = (self.group, np.arange(pairs))
        self.units = csr_array((items.size[self.kind] / member, where), shape)
        self.stored = csr_array((items.nbytes[self.kind] / member, where), shape)
        self.equal = csr_array((np.ones(pairs), (self.kind, np.arange(pairs))),
                               (items.total.size, self.size))
        self.blocks, self._rows = {}, []
        self._add_rows()

    def _add_rows(self):
        from scipy.sparse import csr_array, diags_array
        problem, groups, pipes = self.problem, self.groups, self.problem.pipes
        count = groups.first.size
        seconds = diags_array(groups.seconds_per_unit / self.time)
        uses = pipes.uses[:, groups.first] if self.pipes else np.zeros((0, count), bool)
        self.finish_pipe, self.finish_group = np.nonzero(uses & (pipes.share > 0))
        free = np.setdiff1d(np.arange(count), self.finish_group)
        self.finish_pipe = np.concatenate([self.finish_pipe, np.full(free.size, -1)])
        self.finish_group = np.concatenate([self.finish_group, free])
        rows = np.arange(self.finish_group.size)
        waits = np.flatnonzero(self.finish_pipe >= 0)
        self._add("finish", (seconds @ self.units)[self.finish_group],
                  -groups.fixed_seconds[self.finish_group] / self.time,
                  makespan=-np.ones(rows.size), staged=csr_array(
                      (np.full(waits.size, pipes.share), (waits, self.finish_pipe[waits])),
                      (rows.size, self.pipes)))
        self.limited = np.flatnonzero(np.isfinite(groups.storage))
        self._add("storage", self.stored[self.limited] / self.bytes,
                  groups.storage[self.limited] / self.bytes)
        self.needed = np.flatnonzero(groups.least > 0)
        self.unit = problem.load or 1.0
        self._add("least", -self.units[self.needed] / self.unit, -groups.least[self.needed] / self.unit)
        if self.pipes:
            scale = pipes.bytes_per_second * self.time
            over = csr_array(uses * groups.members / scale[:, None])
            self._add("pipes", over @ self.stored, -(pipes.uses @ self.held[1]) / scale,
                      staged=-diags_array(np.ones(self.pipes)).tocsr())
        if problem.prices is not None:
            price = problem.prices
            self.money = price.budget or 1.0
            each = (csr_array((groups.members * price.per_second[groups.first]
                               * groups.seconds_per_unit)[None]) @ self.units
                    + csr_array((groups.members * price.per_byte[groups.first])[None]) @ self.stored)
            self._add("budget", each / self.money,
                      np.array([price.budget - problem.money(*self.held)]) / self.money)
        if self.deviations:
            members = np.bincount(groups.of_rank, problem.targets - self.held[0]) / groups.members
            target = groups.seconds_per_unit * members / self.time
            minus = -diags_array(np.ones(count)).tocsr()
            self._add("above", seconds @ self.units, target, deviation=minus)
            self._add("below", -(seconds @ self.units), -target, deviation=minus)

    def _add(self, name, pairs, bound, makespan=None, staged=None, deviation=None):
        """Append the rows  pairs x + makespan T + staged S + deviation d <= bound."""
        from scipy.sparse import csr_array, hstack
        count = bound.size
        parts = [pairs, csr_array((count, 1)) if makespan is None else csr_array(makespan[:, None])]
        for part, width in ((staged, self.pipes), (deviation, self.deviations)):
            if width:
                parts.append(csr_array((count, width)) if part is None else part)
        first = sum(rows.shape[0] for rows, _ in self._rows)
        self.blocks[name] = slice(first, first + count)
        self._rows.append((hstack(parts).tocsr(), bound))

    def rows(self):
        """Return A and b of all rows A v <= b."""
        from scipy.sparse import vstack
        return (vstack([rows for rows, _ in self._rows]).tocsr(),
                np.concatenate([bound for _, bound in self._rows]))

    def cost(self, objective):
        """Return the objective's weight of each variable, in units of `time` (bytes: of all bytes)."""
        problem, groups, cost = self.problem, self.groups, np.zeros(self.size)
        cost[self.pairs] = objective.makespan
        if objective.computing:
            cost[:self.pairs] += objective.computing * self.units.T @ (
                groups.members * groups.seconds_per_unit) / self.time
        if objective.moving or objective.bytes:
            scale = self.bytes if objective.bytes else self.time
            cost[:self.pairs] += self.stored.T @ (
                groups.members * objective.seconds_per_byte(problem)[groups.first]) / scale
        if objective.imbalance:
            cost[-self.deviations:] = objective.imbalance * groups.members
        return cost

    def constant(self, objective):
        """Return the part of the objective that what ranks hold already decides, in units of `time`."""
        units, stored = self.held
        return (objective.computing * self.problem.seconds_per_unit @ units
                + objective.seconds_per_byte(self.problem) @ stored) / self.time


@dataclass(frozen=True)
class Relaxation:
    """The optimum with divisible shards, and what one more unit of each limit would save.

    value: of the objective; item, rank, units: how many units of which class each rank should hold.
    """

    value: float
    items: Items
    groups: Groups
    item: np.ndarray
    rank: np.ndarray
    units: np.ndarray
    prices: dict


def relax(problem: Problem, objective: Objective, then=()):
    """Return the Relaxation; PlanError that names the limits in conflict if there is none.

    then: names of TIE_BREAKS, minimised in turn without giving up what came before. Shadow prices
    are those of `objective`.
    """
    from isthmus.planning.conflicts import refuse
    items = fluid_items(problem)
    groups = rank_groups(problem, items)
    small = items.total.size * groups.first.size <= TIE_BREAK_PAIRS
    ties = [name for name in then if small and (problem.pipes.names or name != "bytes")]
    chain = [objective] + [TIE_BREAKS[name] for name in ties]
    model = Model(problem, items, groups,
                  deviations=any(each.imbalance for each in chain))
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
    units = done.x[:model.pairs].clip(0) * items.size[model.kind] / groups.members[model.group]
    return Relaxation(first.fun * model.time, items, groups, *_spread(model, units),
                      _prices(model, objective, first))


def with_ceiling(rows, bound, cost, value):
    """Return the rows and one more: cost . v <= value, give or take the solver's tolerance."""
    from scipy.sparse import csr_array, vstack
    return (vstack([rows, csr_array(cost[None])]).tocsr(),
            np.append(bound, value + 1e-8 * max(1.0, abs(value))))


def solve_lp(model, objective, rows, bound):
    """Return scipy's answer for the rows."""
    from scipy.optimize import linprog
    return linprog(model.cost(objective), A_ub=rows, b_ub=bound, A_eq=model.equal,
                   b_eq=model.items.total, bounds=(0, None), method="highs")


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


def _prices(model, objective, done):
    """Return what one more unit of each limit saves, in seconds of the objective.

    rate: unit per second, a rank; fixed: a second less of its own, a rank; storage: byte, a rank;
    least: one unit less demanded, a rank; pipe: byte per second, by pipe; budget: one unit of money.
    """
    problem, groups, of_rank = model.problem, model.groups, model.groups.of_rank
    dual = {name: -done.ineqlin.marginals[rows] for name, rows in model.blocks.items()}
    held = model.units @ done.x[:model.pairs]  # units on one rank of each class
    stored = model.stored @ done.x[:model.pairs]
    finish = np.bincount(model.finish_group, dual["finish"], minlength=groups.first.size)
    per_second = finish / groups.members + objective.computing
    storage, least = np.zeros((2, groups.first.size))
    storage[model.limited] = dual["storage"]
    least[model.needed] = dual["least"]
    pipe, budget = {}, 0.0
    if problem.prices is not None:
        budget = float(dual["budget"][0]) * model.time / model.money
        per_second = per_second + budget * problem.prices.per_second[groups.first]
    if objective.imbalance:
        per_second = per_second * 0.0  # the targets move with the rates: no price
    if model.pipes:
        pipes = problem.pipes
        seconds = pipes.uses[:, groups.first] @ (groups.members * stored) / pipes.bytes_per_second
        saved = (dual["pipes"] + objective.moving) * seconds / pipes.bytes_per_second
        pipe = dict(zip(pipes.names, map(float, saved)))
    # A rank is s slower by one part in its rate r = 1 / s: ds / dr = -s^2.
    return {"rate": (per_second * held * groups.seconds_per_unit**2)[of_rank],
            "fixed": (finish / groups.members)[of_rank],
            "storage": (storage / groups.members * model.time / model.bytes)[of_rank],
            "least": (least / groups.members * model.time / model.unit)[of_rank],
            "pipe": pipe, "budget": budget}
