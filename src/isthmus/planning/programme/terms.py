"""What a plan is to make small: an objective is a sum of terms, and the searches ask the terms.

No search knows an objective by name. A term tells its columns, rows and cost in the linear programme,
its value for a plan, what one more shard would add (increment), what a second of computing and a byte
are worth (price), and which searches can handle it. All is in seconds, and times the term's weight.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt

from isthmus.planning.programme.problem import Floats, Problem

if TYPE_CHECKING:
    from isthmus.cluster.cluster import Cluster
    from isthmus.planning.programme.classes import Groups
    from isthmus.planning.programme.exchanges import Exchange
    from isthmus.planning.programme.linear_programme import Model
    from isthmus.timing.time_model import Workload

SEARCHES = {
    "programme": "the linear and the integer programme",
    "swaps": "moves and swaps of single shards",
    "replanning": "plans that are made again while a run goes on",
}
"""What looks for plans. A term that the programme cannot handle cannot be planned for at all."""


@dataclass(frozen=True)
class Term:
    """One thing that is to be small. A term of its own says what differs from this one, which is 0."""

    weight: float = 1.0

    searches: ClassVar[tuple[str, ...]] = ()
    """Names of SEARCHES: those that make the term small, or leave it as it is."""
    finishes: ClassVar[bool] = False
    """Whether it is the time at which the last rank is done."""
    prices_rates: ClassVar[bool] = True
    """Whether a faster rank has a price in the objective; not if what is asked for follows the rates."""

    def on(self, cluster: "Cluster") -> "Term":
        """Return the term with what it takes from a cluster file."""
        return self

    def value(self, problem: Problem, units: Floats, stored: Floats) -> float:
        """Return what a plan with `units` and `stored` bytes on each rank has of it."""
        return 0.0

    def settled(self, problem: Problem, units: Floats, stored: Floats) -> float:
        """Return how much of `cost . variables` is decided by what ranks hold already."""
        return 0.0

    def columns(self, groups: "Groups") -> int:
        """Return how many variables of its own it needs in the programme."""
        return 0

    def add_rows(self, model: "Model") -> None:
        """Add rows for the variables of its own to a `programme.Model`."""

    def cost(self, model: "Model") -> Floats:
        """Return the cost of each variable of a `programme.Model`, in units of `model.time`."""
        return np.zeros(model.size)

    def increment(
        self, problem: Problem, units: Floats, waits: Floats, ranks: npt.NDArray[np.int64], size: float
    ) -> Floats | float:
        """Return what `size` more units add on each of `ranks`, but for their bytes.

        units, waits: float64[all ranks], what each holds and the seconds for which it waits first.
        """
        return 0.0

    def per_second(self, problem: Problem) -> Floats | float:
        """Return what a second of computing adds by itself, for each rank or for all."""
        return 0.0

    def per_pipe_second(self) -> float:
        """Return what a second of staging on a pipe adds by itself."""
        return 0.0

    def per_byte(self, problem: Problem) -> Floats:
        """Return float64[ranks]: what one byte on a rank adds for having been moved there."""
        return np.zeros(problem.ranks)

    def tells_apart(self, problem: Problem) -> Sequence[np.ndarray]:
        """Return arrays of ranks: ranks that differ in one of them are not alike to this term."""
        return ()

    def lower_bound(self, problem: Problem, relaxed: float) -> float:
        """Return what no plan has less of, if it is asked for alone; `relaxed`: of divisible shards."""
        return relaxed

    def exchange(
        self, cluster: "Cluster", workload: "Workload", steps: int, computing_seconds: float
    ) -> "Exchange | None":
        """Return the `exchanges.Exchange` that it counts for `steps` steps; None if it counts none.

        computing_seconds: of a step, about.
        """
        return None


class PerSecond(Term):
    """A price for each second that a rank computes: a term of this kind says `per_second` alone."""

    searches = ("programme",)

    def value(self, problem: Problem, units: Floats, stored: Floats) -> float:
        return float((self.per_second(problem) * problem.seconds_per_unit) @ units)

    settled = value

    def cost(self, model: "Model") -> Floats:
        groups, cost = model.groups, np.zeros(model.size)
        price = np.broadcast_to(self.per_second(model.problem), model.problem.ranks)[groups.first]
        cost[: model.pairs] = (
            model.units.T @ (price * groups.members * groups.seconds_per_unit) / model.time
        )
        return cost

    def increment(
        self, problem: Problem, units: Floats, waits: Floats, ranks: npt.NDArray[np.int64], size: float
    ) -> Floats | float:
        price = np.broadcast_to(self.per_second(problem), problem.ranks)[ranks]
        return price * problem.seconds_per_unit[ranks] * size

    def tells_apart(self, problem: Problem) -> Sequence[np.ndarray]:
        return (np.broadcast_to(self.per_second(problem), problem.ranks),)


class PerByte(Term):
    """A price for each byte that is brought to a rank: a term of this kind says `per_byte` alone.

    Local search changes shards only between ranks that the same pipes lead to, and a term whose bytes
    cost the same there is handled by it too.
    """

    searches = ("programme",)

    def value(self, problem: Problem, units: Floats, stored: Floats) -> float:
        return float(self.per_byte(problem) @ stored)

    def settled(self, problem: Problem, units: Floats, stored: Floats) -> float:
        return float(self.per_byte(problem) @ stored)

    def scale(self, model: "Model") -> float:
        """Return the unit of its cost: seconds, as those of the others are."""
        return model.time

    def cost(self, model: "Model") -> Floats:
        groups, cost = model.groups, np.zeros(model.size)
        cost[: model.pairs] = (
            model.stored.T
            @ (groups.members * self.per_byte(model.problem)[groups.first])
            / self.scale(model)
        )
        return cost

    def tells_apart(self, problem: Problem) -> Sequence[np.ndarray]:
        return (self.per_byte(problem),)


@dataclass(frozen=True)
class Objective:
    """The sum of its terms. One at most is a finish time; the weights of others are relative to it."""

    terms: tuple[Term, ...]

    def __post_init__(self) -> None:
        """Refuse what is no term, and what nothing can plan for."""
        for term in self.terms:
            if not isinstance(term, Term):
                raise TypeError(f"an objective is a sum of planning.terms.Term, not of {term!r}")
            if unknown := set(term.searches) - set(SEARCHES):
                raise ValueError(
                    f"{_name(term)} names the search {min(unknown)!r}; there are {', '.join(SEARCHES)}"
                )
        self.require("programme")
        finishing = [term for term in self.terms if term.finishes]
        if len(finishing) > 1:
            raise ValueError(
                "an objective has one finish time at most, not " + " and ".join(map(_name, finishing))
            )
        if finishing and finishing[0].weight != 1:
            raise ValueError(
                f"{_name(finishing[0])} has the weight 1, to which those of other terms "
                f"are relative, not {finishing[0].weight}"
            )

    def handled_by(self, search: str) -> bool:
        """Return whether a search can handle all of its terms."""
        return all(search in term.searches for term in self.terms)

    def require(self, search: str) -> None:
        """Raise ValueError that names the term which a search cannot handle."""
        for term in self.terms:
            if search not in term.searches:
                raise ValueError(f"{SEARCHES[search]} cannot handle the term {_name(term)}")

    def on(self, cluster: "Cluster") -> "Objective":
        """Return the objective with what its terms take from a cluster file."""
        return Objective(tuple(term.on(cluster) for term in self.terms))

    @property
    def finishes(self) -> bool:
        """Whether one of the terms is the time at which the last rank is done."""
        return any(term.finishes for term in self.terms)

    def value(self, problem: Problem, units: Floats, stored: Floats) -> float:
        """Return the objective of a plan with `units` and `stored` bytes on each rank."""
        return sum((term.value(problem, units, stored) for term in self.terms if term.weight), 0.0)

    def per_byte(self, problem: Problem) -> Floats:
        """Return float64[ranks]: what one byte on a rank adds for having been moved there."""
        return sum((term.per_byte(problem) for term in self.terms), np.zeros(problem.ranks))

    def increment(
        self, problem: Problem, units: Floats, waits: Floats, ranks: npt.NDArray[np.int64], size: float
    ) -> Floats | float:
        """Return what `size` more units add on each of `ranks`, but for their bytes."""
        return sum(
            (term.increment(problem, units, waits, ranks, size) for term in self.terms),
            np.zeros(ranks.size),
        )

    def lower_bound(self, problem: Problem, relaxed: float) -> float:
        """Return the largest known value that no plan has less of, from that of divisible shards."""
        terms = [term for term in self.terms if term.weight]
        return terms[0].lower_bound(problem, relaxed) if len(terms) == 1 else relaxed

    def exchange(
        self, cluster: "Cluster", workload: "Workload", steps: int, computing_seconds: float
    ) -> "Exchange | None":
        """Return the Exchange that counts for `steps` steps; None if no term knows of time."""
        found = (term.exchange(cluster, workload, steps, computing_seconds) for term in self.terms)
        return next(filter(None, found), None)


def _name(term):
    return type(term).__name__
