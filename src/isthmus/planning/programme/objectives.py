"""The terms that plans are made for, and the objectives that are sums of them.

A new one is a class here and a row in OBJECTIVES. C_j is the rate of rank j, D_j what it holds, x_ij
whether shard i is on it, and B bytes per second. Only finish times know that ranks run side by side. The
other objectives are kept because the literature on placing data between edge and cloud uses them.
"""

import numpy as np

from isthmus.planning.programme.cuts import makespan_bound
from isthmus.planning.programme.exchanges import Exchange, Following, Together
from isthmus.planning.programme.terms import Objective, PerByte, PerSecond, Term
from isthmus.timing.crossing import Crossing
from isthmus.timing.step import together_terms


class Makespan(Term):
    """When the last rank is done, of steps that all sites begin together."""

    searches = ("programme", "swaps", "replanning")
    finishes = True

    def value(self, problem, units, stored):
        return float(problem.seconds_of(units, stored).max())

    def cost(self, model):
        cost = np.zeros(model.size)
        cost[model.latest] = 1.0
        return cost

    def increment(self, problem, units, waits, ranks, size):
        return (
            problem.fixed_seconds[ranks]
            + waits[ranks]
            + problem.seconds_per_unit[ranks] * (units[ranks] + size)
        )

    def lower_bound(self, problem, relaxed):
        return makespan_bound(problem, relaxed)

    def exchange(self, cluster, workload, steps, computing_seconds):
        return Together(cluster, workload, steps)


class Period(Makespan):
    """When the last rank is done, after what the links add to each site's own seconds."""

    def exchange(self, cluster, workload, steps, computing_seconds):
        links = together_terms(cluster, computing_seconds, workload)["links"]
        crossing = Crossing.of(cluster, workload, links)
        return (
            Following(cluster, workload, steps, crossing)
            if crossing
            else Exchange(cluster, workload, steps)
        )


class Computing(PerSecond):
    """The seconds that ranks compute, summed over ranks."""

    def per_second(self, problem):
        return self.weight


class Moving(PerByte):
    """The seconds that data is on links, summed over links: bytes / B."""

    searches = ("programme", "swaps")

    def value(self, problem, units, stored):
        return self.weight * float(problem.staged_seconds(stored).sum())

    def per_byte(self, problem):
        return self.weight * (1 / problem.pipes.bytes_per_second) @ problem.pipes.uses

    def per_pipe_second(self):
        return self.weight

    def tells_apart(self, problem):
        """Nothing more than which pipes lead to a rank, by which all ranks are told apart."""
        return ()


class MovedBytes(PerByte):
    """The bytes that cross a link: no seconds, so that it is of use alone."""

    searches = ("programme", "swaps")

    def per_byte(self, problem):
        return self.weight * problem.pipes.uses.any(axis=0)

    def scale(self, model):
        return model.bytes

    def tells_apart(self, problem):
        """Nothing more than which pipes lead to a rank, by which all ranks are told apart."""
        return ()


class Imbalance(Term):
    """The sum over ranks of |L_j - L'_j|: their seconds, and those if loads followed the rates."""

    searches = ("programme",)
    prices_rates = False

    def value(self, problem, units, stored):
        return self.weight * float(problem.seconds_per_unit @ abs(units - problem.targets))

    def columns(self, groups):
        """d of each class of ranks, |s_g (U_g - target_g)| <= d_g."""
        return groups.first.size

    def add_rows(self, model):
        from scipy.sparse import diags_array

        groups = model.groups
        members = np.bincount(groups.of_rank, model.problem.targets - model.held[0]) / groups.members
        target = groups.seconds_per_unit * members / model.time
        seconds = diags_array(groups.seconds_per_unit / model.time) @ model.units
        minus = -diags_array(np.ones(groups.first.size)).tocsr()
        model.add("above", seconds, target, own=(type(self), minus))
        model.add("below", -seconds, -target, own=(type(self), minus))

    def cost(self, model):
        cost = np.zeros(model.size)
        cost[model.own[type(self)]] = self.weight * model.groups.members
        return cost

    def increment(self, problem, units, waits, ranks, size):
        held, target = units[ranks], problem.targets[ranks]
        return (
            self.weight
            * problem.seconds_per_unit[ranks]
            * (abs(held + size - target) - abs(held - target))
        )


def makespan(alpha=1.0):
    """min T, every rank done by T, and its data brought where that is asked for. The default.

    Leaves out nothing that the time model knows, but what other jobs do to the links.
    """
    return Objective((Makespan(),))


def period(alpha=1.0):
    """min T, the time from one step to the next, where a site need not wait for the others' sum.

    It is the makespan after what the links add to each site's own time (`planning.crossing`), and the
    makespan itself without links. Leaves out how the first step begins and the last one ends.
    """
    return Objective((Period(),))


def total_time(alpha=1.0):
    """min sum_j D_j / C_j + sum_j D_j / B.

    Leaves out that ranks run side by side, so that all of the load goes to the fastest rank that has
    room. Leaves out that data which stays where it was born crosses nothing. With one B for all,
    sum_j D_j / B = D / B is the same for every plan and drops out.
    """
    return Objective((Computing(),))


def assignment(alpha=1.0):
    """min sum_ij T_ij x_ij, T_ij = computing shard i on rank j + bringing it there over each link.

    Leaves out that ranks and links work side by side. Unlike total_time it knows the way.
    """
    return Objective((Computing(), Moving()))


def imbalance(alpha=1.0):
    """min sum_j |L_j - L'_j|, L_j the seconds of rank j and L'_j the same if loads followed the rates.

    Leaves out fixed costs, links, and how long everything takes. A plan far from its targets everywhere
    by a little is worse to it than one that ruins a single rank, which all others then wait for.
    """
    return Objective((Imbalance(),))


def weighted(alpha=1.0):
    """min T_total + alpha x communication: the makespan + alpha x seconds on links, summed over links.

    Leaves out that transfers over different links overlap. Alpha has no unit and no right value.
    """
    return Objective((Makespan(), Moving(alpha)))


OBJECTIVES = {
    "makespan": makespan,
    "period": period,
    "total_time": total_time,
    "assignment": assignment,
    "imbalance": imbalance,
    "weighted": weighted,
}
"""Name -> Objective of an alpha, which `weighted` alone heeds."""
TIE_BREAKS = {"bytes": Objective((MovedBytes(),)), "imbalance": Objective((Imbalance(),))}
"""Name -> Objective: what is made small next, among plans that are equal."""


def make_objective(objective: str | Objective, alpha: float = 1.0) -> Objective:
    """Return the Objective of a name; one that is an Objective already stays what it is.

    Raises ValueError that lists the names if there is none of that name.
    """
    if isinstance(objective, Objective):
        return objective
    if objective not in OBJECTIVES:
        raise ValueError(
            f"objective must be one of {', '.join(map(repr, OBJECTIVES))}, not {objective!r}"
        )
    return OBJECTIVES[objective](alpha)


def tie_breaks(problem, names):
    """Return the Objectives of `names`, in turn; the bytes moved only where there are pipes.

    Raises ValueError that lists the names if one is not known.
    """
    if unknown := [name for name in names if name not in TIE_BREAKS]:
        raise ValueError(
            f"then must hold some of {', '.join(map(repr, TIE_BREAKS))}, not {unknown[0]!r}"
        )
    return [TIE_BREAKS[name] for name in names if problem.pipes.names or name != "bytes"]
