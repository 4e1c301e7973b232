"""The linear programme of a plan that follows another: what is moved costs link time.

    min  T + M / epochs    subject to
    sum_i x_ij <= rate_j (T - fixed_j)                               every rank j
    bytes_j <= storage_j,  units_j >= least_j                        where there is a limit
    sum_j x_ij = total_i,  x >= 0                                    every kind i
    sum_(j in s) x_ij = held_is + sum_(l into s) y_il - sum_(l out of s) y_il    every kind i and site s
    sum_(l in p) sum_i bytes_i y_il / B_p <= M                       every pipe p

Of kind i x_ij is on rank j, and y_il goes over link l; M seconds are spent on moving. A drift of rates
changes one column, that of T. The basis of the last solution is therefore where the next one starts:
with highspy, where it is installed. SciPy's HiGHS starts anew each time. Rows are in shares of the load
and of `time`, because the solver's tolerances are absolute.
"""

import numpy as np

from isthmus.planning.programme.classes import fluid_items
from isthmus.planning.programme.silence import silent


class MovingProgramme:
    """Built once for a cluster and a Problem, solved as often as rates change."""

    def __init__(self, cluster, problem, warm=True):
        """warm: start from the last solution if highspy is there."""
        self.cluster, self.problem = cluster, problem
        self.items, self.time = fluid_items(problem, bytes_count=True), problem.ideal_seconds
        self.site_of_rank = np.array(cluster.site_of_rank)
        self.kind, self.rank = np.nonzero(problem.places[self.items.place])
        self.pairs = self.kind.size
        self.latest, self.moving = self.pairs, self.pairs + 1  # the columns of T and M
        self.size = self.pairs + 2 + self.items.total.size * len(cluster.links)
        self._solver = (_Warm if warm and _highspy() else _Cold)(*self._rows())

    def solve(self, samples_per_second, rank_of_shard, epochs):
        """Return the least seconds of moving and of all epochs' computing, and float64[ranks]: units.

        None where no divisible shards satisfy the limits. epochs: that are still to come.
        """
        problem, load = self.problem, self.problem.load
        own = np.asarray(samples_per_second) / load
        cost = np.zeros(self.size)
        cost[self.latest], cost[self.moving] = 1.0, 1 / epochs
        bound = self.bound.copy()
        bound[: problem.ranks] = -problem.fixed_seconds * own
        bound[self.held_rows] = self._held(rank_of_shard)
        found = self._solver.solve(cost, bound, self.latest, -own * self.time)
        if found is None:
            return None
        value, shares = found
        units = load * np.bincount(self.rank, shares[: self.pairs].clip(0), minlength=problem.ranks)
        return value * self.time * epochs, units

    def _held(self, rank_of_shard):
        """Return the share of the load that is of each kind at each site: kinds x sites, flat."""
        sites = len(self.cluster.sites)
        place = self.items.of_shard * sites + self.site_of_rank[rank_of_shard]
        return np.bincount(
            place, self.problem.sizes / self.problem.load, minlength=self.items.total.size * sites
        )

    def _rows(self):
        """Return (matrix, bound, number of rows <= bound; the others are equalities)."""
        from scipy.sparse import csr_array, vstack

        problem, items, links = self.problem, self.items, self.cluster.links
        kinds, sites, ranks = items.total.size, len(self.cluster.sites), problem.ranks
        column, first_link = np.arange(self.pairs), self.pairs + 2

        def rows(count, *entries):
            values, row, where = (np.concatenate(part) for part in zip(*entries))
            return csr_array((values, (row, where)), (count, self.size))

        ones = np.ones(self.pairs)
        limited, needed = np.isfinite(problem.storage), problem.least > 0
        total_nbytes = problem.nbytes.sum() or 1.0
        parts = [
            rows(
                ranks,
                (ones, self.rank, column),  # the column of T is in every row from the start
                (np.full(ranks, -1.0), np.arange(ranks), np.full(ranks, self.latest)),
            )
        ]
        bounds = [np.zeros(ranks)]
        stored = rows(ranks, (items.nbytes[self.kind] / total_nbytes, self.rank, column))
        parts += [stored[limited], -rows(ranks, (ones, self.rank, column))[needed]]
        bounds += [problem.storage[limited] / total_nbytes, -problem.least[needed] / problem.load]
        pipes = list(dict.fromkeys(link.pipe for link in links))
        if pipes:
            of_link = np.array([pipes.index(link.pipe) for link in links])
            seconds = 1 / (self.time * np.array([link.bytes_per_second for link in links]))
            carried = np.arange(kinds * len(links))
            link = carried % len(links)
            parts.append(
                rows(
                    len(pipes),
                    (
                        items.nbytes[carried // len(links)] * seconds[link],
                        of_link[link],
                        first_link + carried,
                    ),
                    (np.full(len(pipes), -1.0), np.arange(len(pipes)), np.full(len(pipes), self.moving)),
                )
            )
            bounds.append(np.zeros(len(pipes)))
        inequalities = sum(part.shape[0] for part in parts)
        parts.append(rows(kinds, (ones, self.kind, column)))
        bounds.append(items.total)
        entries = [(ones, self.kind * sites + self.site_of_rank[self.rank], column)]
        if pipes:
            ends = np.array(
                [[self.cluster.names.index(end) for end in (link.source, link.target)] for link in links]
            )
            entries += [
                (
                    np.full(carried.size, sign),
                    carried // len(links) * sites + ends[link, end],
                    first_link + carried,
                )
                for end, sign in ((0, 1.0), (1, -1.0))
            ]
        parts.append(rows(kinds * sites, *entries))
        bounds.append(np.zeros(kinds * sites))
        self.bound = np.concatenate(bounds)
        self.held_rows = slice(self.bound.size - kinds * sites, self.bound.size)
        return vstack(parts).tocsc(), inequalities


def _highspy():
    try:
        import highspy
    except ImportError:
        return None
    return highspy


class _Cold:
    """SciPy's HiGHS, from the beginning each time."""

    def __init__(self, matrix, inequalities):
        self.matrix, self.inequalities = matrix, inequalities

    def solve(self, cost, bound, column, values):
        """Return (value, variables) with the first rows of one column set to `values`, or None."""
        from scipy.optimize import linprog

        matrix, many = self.matrix, self.inequalities
        first = matrix.indptr[column]
        matrix.data[first : first + values.size] = values
        rows = matrix.tocsr()
        with silent():
            done = linprog(
                cost,
                A_ub=rows[:many],
                b_ub=bound[:many],
                A_eq=rows[many:],
                b_eq=bound[many:],
                bounds=(0, None),
                method="highs",
            )
        return (done.fun, done.x) if done.success else None


class _Warm:
    """HiGHS that keeps its basis."""

    def __init__(self, matrix, inequalities):
        highspy = _highspy()
        with silent():  # it prints who it is when it is made, before it can be told not to
            self.model = highspy.Highs()
        self.inequalities, self.bound, self.cost = inequalities, None, None
        self.optimal = highspy.HighsModelStatus.kOptimal
        self.model.setOptionValue("output_flag", False)
        self.model.setOptionValue("threads", 1)
        self.model.setOptionValue("simplex_scale_strategy", 0)  # rows are scaled: a third faster
        programme = highspy.HighsLp()
        rows, columns = matrix.shape
        programme.num_row_, programme.num_col_ = rows, columns
        programme.col_cost_, programme.col_lower_ = np.zeros(columns), np.zeros(columns)
        programme.col_upper_ = np.full(columns, np.inf)
        programme.row_lower_ = np.where(np.arange(rows) < inequalities, -np.inf, 0.0)
        programme.row_upper_ = np.zeros(rows)
        programme.a_matrix_.format_ = highspy.MatrixFormat.kColwise
        programme.a_matrix_.start_, programme.a_matrix_.index_ = matrix.indptr, matrix.indices
        programme.a_matrix_.value_ = matrix.data
        self.model.passModel(programme)

    def solve(self, cost, bound, column, values):
        """Return (value, variables) with the first rows of one column set to `values`, or None."""
        model = self.model
        rows = np.arange(bound.size, dtype=np.int32)
        if self.bound is None or (bound != self.bound).any():
            lower = np.where(rows < self.inequalities, -np.inf, bound)
            model.changeRowsBounds(rows.size, rows, lower, bound)
        if self.cost is None or (cost != self.cost).any():
            model.changeColsCost(cost.size, np.arange(cost.size, dtype=np.int32), cost)
        for row, value in enumerate(values.tolist()):
            model.changeCoeff(row, column, value)
        self.bound, self.cost = bound, cost
        with silent():
            model.run()
        if model.getModelStatus() != self.optimal:
            return None
        return model.getInfo().objective_function_value, np.array(model.getSolution().col_value)
