"""What a plan is to make small. All are in seconds, so that they can be compared and mixed.

C_j, D_j, x_ij: rate of rank j, what it holds, and whether shard i is on it; B: bytes per second.
Only `makespan` and `weighted` know that ranks run side by side: the others are kept because the
literature on placing data between edge and cloud uses them, each with what it leaves out.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Objective:
    """Weights of: the last rank's finish; computing seconds summed over ranks; seconds on links
    summed over links (bytes / B); bytes that cross a link; sum of |L_j - L'_j| in seconds."""

    makespan: float = 0.0
    computing: float = 0.0
    moving: float = 0.0
    bytes: float = 0.0
    imbalance: float = 0.0

    def value(self, problem, units, stored):
        """Return the objective of a plan with `units` and `stored` bytes on each rank."""
        total = 0.0
        if self.makespan:
            total += self.makespan * float(problem.seconds_of(units, stored).max())
        if self.computing:
            total += self.computing * float(problem.seconds_per_unit @ units)
        if self.moving:
            total += self.moving * float(problem.staged_seconds(stored).sum())
        if self.bytes:
            total += self.bytes * float(problem.pipes.uses.any(axis=0) @ stored)
        if self.imbalance:
            total += self.imbalance * float(
                problem.seconds_per_unit @ abs(units - problem.targets))
        return total

    def seconds_per_byte(self, problem):
        """Return float64[ranks]: what one byte on a rank adds for having been moved there."""
        uses = problem.pipes.uses
        if not problem.pipes.names:
            return 0.0 * problem.seconds_per_unit
        return self.moving * (1 / problem.pipes.bytes_per_second) @ uses + self.bytes * uses.any(axis=0)


def makespan():
    """min T, every rank done by T (staging counted where asked for). The default; leaves out nothing
    that the time model knows, but what other jobs do to the links."""
    return Objective(makespan=1.0)


def period():
    """min T, the time from one step to the next, where a site need not wait until the others have the
    sum: the makespan, after what the links add to each site's own time (`planning.crossing`). Leaves
    out how the first step begins and the last one ends; without links it is the makespan."""
    return makespan()


def total_time():
    """min sum_j D_j / C_j + sum_j D_j / B. Leaves out that ranks run side by side, so that all of the
    load goes to the fastest rank that has room; and that data which stays where it was born crosses
    nothing: with one B for all, sum_j D_j / B = D / B is the same for every plan and drops out."""
    return Objective(computing=1.0)


def assignment():
    """min sum_ij T_ij x_ij, T_ij = computing shard i on rank j + bringing it there over each link of
    the way. Leaves out that ranks and links work side by side; unlike total_time it knows the way."""
    return Objective(computing=1.0, moving=1.0)


def imbalance():
    """min sum_j |L_j - L'_j|, L_j the seconds of rank j and L'_j the same if loads followed the rates.
    Leaves out how long everything takes: a plan far from its targets everywhere by a little is worse
    than one that ruins a single rank, which all others then wait for; and fixed costs and links."""
    return Objective(imbalance=1.0)


def weighted(alpha=1.0):
    """min T_total + alpha x communication: the makespan + alpha x seconds on links, summed over links.
    Leaves out that transfers over different links overlap; alpha has no unit and no right value."""
    return Objective(makespan=1.0, moving=alpha)


OBJECTIVES = {"makespan": makespan, "period": period, "total_time": total_time,
              "assignment": assignment, "imbalance": imbalance, "weighted": weighted}
TIE_BREAKS = {"bytes": Objective(bytes=1.0), "imbalance": Objective(imbalance=1.0)}


def make_objective(name, alpha=1.0):
    """Return the Objective called `name`; ValueError that lists the names if there is none."""
    if name not in OBJECTIVES:
        raise ValueError(f"objective must be one of {', '.join(map(repr, OBJECTIVES))}, not {name!r}")
    return weighted(alpha) if name == "weighted" else OBJECTIVES[name]()
