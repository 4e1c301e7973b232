"""What is to be placed where, as checked arrays: the one description that all of planning works on."""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from isthmus.errors import PlanError

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Pipes:
    """What shards cross on their way to the ranks, before computing starts."""

    names: tuple[str, ...]
    bytes_per_second: np.ndarray  # float64[pipes]
    uses: np.ndarray  # bool[pipes, ranks], which pipes lead to a rank
    share: float = 1.0  # of the staging's time that is charged to the finish, 1 / epochs that it serves


@dataclass(frozen=True)
class Prices:
    """Money, and what it is spent on."""

    per_second: np.ndarray  # float64[ranks], of computing
    per_byte: np.ndarray  # float64[ranks], brought there
    budget: float  # all there is


@dataclass(frozen=True)
class Problem:
    """Shards and ranks as arrays; checked by `make_problem`."""

    sizes: np.ndarray  # float64[shards], units: samples, say
    nbytes: np.ndarray  # float64[shards]
    seconds_per_unit: np.ndarray  # float64[ranks]
    fixed_seconds: np.ndarray  # float64[ranks], whatever a rank holds
    storage: np.ndarray  # float64[ranks], bytes
    least: np.ndarray  # float64[ranks], units that a rank must hold
    place_of_shard: np.ndarray  # int64[shards], its row of `places`
    places: np.ndarray  # bool[rows, ranks], where a shard may go
    pipes: Pipes
    prices: Prices | None
    load: float = field(init=False)  # units of all shards
    ideal_seconds: float = field(init=False)  # of the whole load on all ranks together

    def __post_init__(self):
        """Add the whole load, and the seconds it takes on all ranks together."""
        load = float(self.sizes.sum())
        object.__setattr__(self, "load", load)
        object.__setattr__(
            self, "ideal_seconds", (load or 1.0) / float((1 / self.seconds_per_unit).sum())
        )

    @property
    def ranks(self) -> int:
        return self.seconds_per_unit.size

    @property
    def targets(self) -> Floats:
        """Units of each rank if the load followed the rates alone."""
        return self.load / self.seconds_per_unit / (1 / self.seconds_per_unit).sum()

    @property
    def budget(self) -> float:
        """All the money there is; infinite where nothing has a price."""
        return np.inf if self.prices is None else max(self.prices.budget, 1e-300)

    @property
    def limits_bytes(self) -> bool:
        """Whether the bytes of a shard matter, or its size alone."""
        return bool(
            np.isfinite(self.storage).any()
            or self.pipes.names
            or (self.prices is not None and self.prices.per_byte.any())
        )

    def may_hold(self, shard: int) -> npt.NDArray[np.bool_]:
        """Return bool[ranks]: where `shard` may go."""
        return self.places[self.place_of_shard[shard]]

    def staged_seconds(self, stored: Floats) -> Floats:
        """Return float64[pipes]: bytes over each pipe / its rate, for `stored` bytes a rank."""
        return (self.pipes.uses @ stored) / self.pipes.bytes_per_second

    def waiting_seconds(self, stored: Floats) -> Floats:
        """Return float64[ranks]: when each rank may begin, its slowest pipe charged by its share."""
        if not self.pipes.names or not self.pipes.share:
            return np.zeros(self.ranks)
        return self.pipes.share * (self.pipes.uses * self.staged_seconds(stored)[:, None]).max(axis=0)

    def seconds_of(self, units: Floats, stored: Floats | None = None) -> Floats:
        """Return float64[ranks]: when each rank is done with `units` and what it waits for."""
        seconds = self.fixed_seconds + self.seconds_per_unit * units
        return seconds if stored is None else seconds + self.waiting_seconds(stored)

    def money(self, units: Floats, stored: Floats) -> float:
        """Return what the plan costs, computing and bytes brought."""
        if self.prices is None:
            return 0.0
        return float(
            self.prices.per_second @ (self.seconds_per_unit * units) + self.prices.per_byte @ stored
        )

    def broken_limits(self, units: Floats, stored: Floats) -> str | None:
        """Return the first limit that a plan breaks, in words; None if it keeps them all."""
        if (stored > self.storage * (1 + 1e-9)).any():
            return f"storage of rank {int((stored - self.storage).argmax())}"
        if (units < self.least * (1 - 1e-9)).any():
            return f"least samples of rank {int((self.least - units).argmax())}"
        if self.prices is not None and self.money(units, stored) > self.prices.budget * (1 + 1e-9):
            return "the budget"
        return None


def loads(problem, rank_of_shard):
    """Return units and bytes on each rank of the shards that are placed (rank >= 0)."""
    placed = rank_of_shard >= 0
    if placed.all():
        placed = slice(None)
    where = rank_of_shard[placed]
    return tuple(
        np.bincount(where, values[placed], minlength=problem.ranks).astype(float)
        for values in (problem.sizes, problem.nbytes)
    )


def make_problem(
    sizes,
    seconds_per_unit,
    fixed_seconds=None,
    storage=None,
    allowed=None,
    storage_sizes=None,
    least=None,
    pipes=None,
    prices=None,
):
    """Return the checked Problem; ValueError for numbers that make no sense, PlanError for places."""
    sizes = vector("sizes", sizes)
    rates = vector("seconds_per_unit", seconds_per_unit, positive=True)
    if rates.size == 0:
        raise ValueError("seconds_per_unit must name at least one rank")
    ranks = rates.size
    zeros = np.zeros(ranks)
    room = np.full(ranks, np.inf) if storage is None else np.asarray(storage, float)
    if room.shape != (ranks,) or np.isnan(room).any() or (room < 0).any():
        raise ValueError(f"storage must hold {ranks} numbers that are not negative, one a rank")
    pipes = pipes or Pipes((), np.zeros(0), np.zeros((0, ranks), bool), 0.0)
    rate = vector("bytes_per_second", pipes.bytes_per_second, len(pipes.names), positive=True)
    pipes = Pipes(tuple(pipes.names), rate, np.asarray(pipes.uses, bool), pipes.share)
    if pipes.uses.shape != (len(pipes.names), ranks):
        raise ValueError(f"uses must have one row a pipe and {ranks} columns, one a rank")
    if prices is not None:
        prices = Prices(
            vector("per_second", prices.per_second, ranks),
            vector("per_byte", prices.per_byte, ranks),
            float(prices.budget),
        )
        if not prices.budget >= 0:
            raise ValueError(f"budget must be a number that is not negative, not {prices.budget}")
    problem = Problem(
        sizes,
        sizes if storage_sizes is None else vector("storage_sizes", storage_sizes, sizes.size),
        rates,
        vector("fixed_seconds", zeros if fixed_seconds is None else fixed_seconds, ranks),
        room,
        vector("least", zeros if least is None else least, ranks),
        *_places(allowed, sizes.size, ranks),
        pipes,
        prices,
    )
    _check_each_shard(problem)
    return problem


def vector(name, values, size=None, positive=False):
    """Return `values` as float64, finite and not negative (or positive), or raise ValueError."""
    values = np.asarray(values, float)
    if values.ndim != 1 or (size is not None and values.size != size):
        raise ValueError(f"{name} must hold {size or 'some'} numbers, not shape {values.shape}")
    wrong = ~np.isfinite(values) | ((values <= 0) if positive else (values < 0))
    if wrong.any():
        rule = "positive" if positive else "not negative"
        raise ValueError(
            f"{name}[{wrong.argmax()}] must be finite and {rule}, not {values[wrong.argmax()]}"
        )
    return values


def _places(allowed, shards, ranks):
    """Return place_of_shard and places from {shard: ranks}, or check the two arrays given."""
    if isinstance(allowed, tuple):
        of_shard, places = np.asarray(allowed[0], np.int64), np.asarray(allowed[1], bool)
        if (
            of_shard.shape != (shards,)
            or places.ndim != 2
            or places.shape[1] != ranks
            or (shards and not 0 <= of_shard.min() <= of_shard.max() < len(places))
        ):
            raise ValueError(
                f"allowed must be (a row of places for each of {shards} shards, places "
                f"with {ranks} columns)"
            )
        return of_shard, places
    of_shard, rows, known = np.zeros(shards, np.int64), [np.ones(ranks, bool)], {}
    for shard, chosen in (allowed or {}).items():
        if not 0 <= shard < shards:
            raise PlanError(f"allowed names shard {shard}; there are shards 0 to {shards - 1}")
        chosen = chosen if isinstance(chosen, range) else tuple(chosen)
        if chosen not in known:
            if any(not 0 <= rank < ranks for rank in chosen):
                raise PlanError(
                    f"shard {shard} is allowed on ranks {list(chosen)}; there are ranks 0 to {ranks - 1}"
                )
            known[chosen] = len(rows)
            rows.append(np.isin(np.arange(ranks), list(chosen)))
        of_shard[shard] = known[chosen]
    return of_shard, np.array(rows)


def _check_each_shard(problem):
    """Raise PlanError for a shard that no rank can take, whatever happens to the others."""
    if not problem.sizes.size:
        return
    most = np.where(problem.places, problem.storage, -1.0).max(axis=1)[problem.place_of_shard]
    if (most < 0).any():
        raise PlanError(
            f"no plan: shard {(most < 0).argmax()} is allowed on no rank; allow it somewhere"
        )
    if (problem.nbytes > most).any():
        shard = int((problem.nbytes > most).argmax())
        raise PlanError(
            f"no plan: shard {shard} takes {problem.nbytes[shard]:g}, more than the storage of every "
            f"rank that may hold it (at most {most[shard]:g}); give more storage_nbytes, or pack "
            "smaller shards"
        )
