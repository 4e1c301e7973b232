"""The linear programme: how much each rank should hold, and how good any plan can be.

    min  costs of the terms . (x, T, S, d)    subject to
    wait_g + fixed_g + s_g U_g <= T        every class g of ranks, wait_g: each of its pipes' S_l
    W_g <= storage_g,  U_g >= least_g      where there is a limit
    sum of bytes over pipe l / B_l <= S_l  every pipe
    money spent <= budget
    rows of the terms' own, with d         |s_g (U_g - target_g)| <= d_g  of imbalance
    sum_g x_ig = total_i,  x >= 0          every kind i

All ranks of class g hold x_ig of kind i; on one of them are U_g units and W_g bytes. There is no
variable for a forbidden pair. Rows are in seconds and in shares of all bytes, because the solver's
tolerances are absolute. The same matrices, with whole numbers, are the integer programme. Makespan on
unlike machines: Lenstra, Shmoys and Tardos 1990, doi:10.1007/BF01585745.
"""

import numpy as np

from isthmus.planning.programme.silence import silent


class Model:
    """The rows A v <= b as sparse matrices, in blocks that have a name, and the equalities.

    v is the pairs (kind, class), then T (`latest`), then S of each pipe, and then what variables terms
    have of their own (`own` is the slice of each kind of term).
    """

    def __init__(self, problem, items, groups, held=None, objectives=()):
        """held: units and bytes that each rank holds already (float64[ranks] both); none if None.

        objectives: those that the model is to be solved for.
        """
        from scipy.sparse import csr_array

        self.problem, self.items, self.groups = problem, items, groups
        self.time, self.bytes = problem.ideal_seconds, float(problem.nbytes.sum()) or 1.0
        self.held = held or (np.zeros(problem.ranks),) * 2
        self.kind, self.group = np.nonzero(problem.places[np.ix_(items.place, groups.first)])
        pairs, count = self.kind.size, groups.first.size
        self.pipes = len(problem.pipes.names)
        self.pairs, self.latest, self.size = pairs, pairs, pairs + 1 + self.pipes
        terms = {type(term): term for objective in objectives for term in objective.terms}
        self.own = {}
        for kind, term in terms.items():
            if columns := term.columns(groups):
                self.own[kind] = slice(self.size, self.size + columns)
                self.size += columns
        member, shape = groups.members[self.group], (count, pairs)
        where = (self.group, np.arange(pairs))
        self.units = csr_array((items.size[self.kind] / member, where), shape)
        self.stored = csr_array((items.nbytes[self.kind] / member, where), shape)
        self.equal = csr_array(
            (np.ones(pairs), (self.kind, np.arange(pairs))), (items.total.size, self.size)
        )
        self.blocks, self._rows = {}, []
        self._add_rows()
        for term in terms.values():
            term.add_rows(self)

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
        self.add(
            "finish",
            (seconds @ self.units)[self.finish_group],
            -groups.fixed_seconds[self.finish_group] / self.time,
            latest=-np.ones(rows.size),
            staged=csr_array(
                (np.full(waits.size, pipes.share), (waits, self.finish_pipe[waits])),
                (rows.size, self.pipes),
            ),
        )
        self.limited = np.flatnonzero(np.isfinite(groups.storage))
        self.add(
            "storage", self.stored[self.limited] / self.bytes, groups.storage[self.limited] / self.bytes
        )
        self.needed = np.flatnonzero(groups.least > 0)
        self.unit = problem.load or 1.0
        self.add("least", -self.units[self.needed] / self.unit, -groups.least[self.needed] / self.unit)
        if self.pipes:
            scale = pipes.bytes_per_second * self.time
            over = csr_array(uses * groups.members / scale[:, None])
            self.add(
                "pipes",
                over @ self.stored,
                -(pipes.uses @ self.held[1]) / scale,
                staged=-diags_array(np.ones(self.pipes)).tocsr(),
            )
        if problem.prices is not None:
            price = problem.prices
            self.money = price.budget or 1.0
            each = (
                csr_array(
                    (groups.members * price.per_second[groups.first] * groups.seconds_per_unit)[None]
                )
                @ self.units
                + csr_array((groups.members * price.per_byte[groups.first])[None]) @ self.stored
            )
            self.add(
                "budget",
                each / self.money,
                np.array([price.budget - problem.money(*self.held)]) / self.money,
            )

    def add(self, name, pairs, bound, latest=None, staged=None, own=(None, None)):
        """Append the rows  pairs x + latest T + staged S + own d <= bound, as a block.

        own: a kind of term, and what its rows have in its columns.
        """
        from scipy.sparse import csr_array, hstack

        count = bound.size
        parts = [pairs, csr_array((count, 1)) if latest is None else csr_array(latest[:, None])]
        if self.pipes:
            parts.append(csr_array((count, self.pipes)) if staged is None else staged)
        for kind, columns in self.own.items():
            width = columns.stop - columns.start
            parts.append(own[1] if kind is own[0] else csr_array((count, width)))
        first = sum(rows.shape[0] for rows, _ in self._rows)
        self.blocks[name] = slice(first, first + count)
        self._rows.append((hstack(parts).tocsr(), bound))

    def rows(self):
        """Return A and b of all rows A v <= b."""
        from scipy.sparse import vstack

        return (
            vstack([rows for rows, _ in self._rows]).tocsr(),
            np.concatenate([bound for _, bound in self._rows]),
        )

    def cost(self, objective):
        """Return the objective's cost of each variable, in units of `time` (bytes: of all bytes)."""
        return sum((term.cost(self) for term in objective.terms), np.zeros(self.size))

    def constant(self, objective):
        """Return the part of the objective that what ranks hold already decides, in units of `time`."""
        return sum(term.settled(self.problem, *self.held) for term in objective.terms) / self.time


def with_ceiling(rows, bound, cost, value):
    """Return the rows and one more: cost . v <= value, give or take the solver's tolerance."""
    from scipy.sparse import csr_array, vstack

    return (
        vstack([rows, csr_array(cost[None])]).tocsr(),
        np.append(bound, value + 1e-8 * max(1.0, abs(value))),
    )


def solve_lp(model, objective, rows, bound):
    """Return scipy's answer for the rows."""
    from scipy.optimize import linprog

    with silent():
        return linprog(
            model.cost(objective),
            A_ub=rows,
            b_ub=bound,
            A_eq=model.equal,
            b_eq=model.items.total,
            bounds=(0, None),
            method="highs",
        )
