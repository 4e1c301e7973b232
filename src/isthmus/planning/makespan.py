"""The makespan as a linear programme: how much each rank should hold, and how good any plan can be.

    min T   subject to   fixed_r + s_r sum_c z_cr <= T          every rank r
                         sum_c w_c z_cr <= storage_r            every rank r with a limit
                         sum_r z_cr = total_c, z >= 0           every class c of shards

z_cr: units (samples) of class c on rank r. Shards of one class may go to the same ranks and take the
same storage a unit; ranks of one class are alike in everything. Both are solved as one: by symmetry
the optimum of the classes is the optimum of the single shards and ranks. There is no variable for a
forbidden pair. Makespan on related machines: Lenstra, Shmoys and Tardos 1990, doi:10.1007/BF01585745.
"""

from dataclasses import dataclass

import numpy as np

from isthmus.errors import PlanError


@dataclass(frozen=True)
class Problem:
    """Shards and ranks as arrays; checked by `allocate_shards`, which makes it.

    sizes, storage_sizes: float64[shards]; seconds_per_unit, fixed_seconds, storage: float64[ranks];
    allowed: bool[shards, ranks] or None where every shard may go everywhere.
    """

    sizes: np.ndarray
    storage_sizes: np.ndarray
    seconds_per_unit: np.ndarray
    fixed_seconds: np.ndarray
    storage: np.ndarray
    allowed: np.ndarray | None

    @property
    def ranks(self):
        return self.seconds_per_unit.size

    def may_hold(self, shard):
        """Return bool[ranks]: where `shard` may go."""
        everywhere = np.ones(self.ranks, bool)
        return everywhere if self.allowed is None else self.allowed[shard]

    def seconds_of(self, units):
        """Return float64[ranks]: when each rank is done with `units` of it."""
        return self.fixed_seconds + self.seconds_per_unit * units


@dataclass(frozen=True)
class Relaxation:
    """The optimum with divisible shards, and what one more unit of each limit would save."""

    seconds: float
    units: np.ndarray          # float64[classes, ranks]
    class_of_shard: np.ndarray
    saved_by_storage: np.ndarray  # seconds a unit of storage of one rank
    saved_by_rate: np.ndarray     # seconds a unit per second of one rank


def classes_of(*columns):
    """Return the class number of each row of `columns`, in order of first appearance."""
    rows = np.concatenate([np.reshape(column, (len(columns[0]), -1)) for column in columns], axis=1)
    _, first, inverse = np.unique(rows, axis=0, return_index=True, return_inverse=True)
    rank = np.empty(first.size, int)
    rank[np.argsort(first)] = np.arange(first.size)
    return rank[inverse.ravel()]


def shard_classes(problem):
    """Return the class of each shard: where it may go, and its storage a unit where that counts."""
    columns = [np.zeros(problem.sizes.size)]
    if np.isfinite(problem.storage).any():
        columns.append(problem.storage_sizes / np.where(problem.sizes > 0, problem.sizes, 1))
    if problem.allowed is not None:
        columns.append(problem.allowed)
    return classes_of(*columns)


def relax(problem):
    """Return the Relaxation; PlanError that names the limits in conflict if there is none."""
    from scipy.optimize import linprog
    shards, ranks = shard_classes(problem), _rank_classes(problem)
    model = _Model(problem, shards, ranks)
    done = linprog(model.cost, A_ub=model.upper, b_ub=model.upper_bound, A_eq=model.equal,
                   b_eq=model.equal_bound, bounds=(0, None), method="highs")
    if not done.success:
        raise PlanError(explain_conflict(problem, model))
    return model.relaxation(done)


def _rank_classes(problem):
    columns = [problem.seconds_per_unit, problem.fixed_seconds, problem.storage]
    if problem.allowed is not None:
        columns.append(np.unique(problem.allowed, axis=0).T)
    return classes_of(*columns)


class _Model:
    """The sparse matrices, in units of the whole load and of the time it takes on all ranks."""

    def __init__(self, problem, shard_class, rank_class):
        from scipy.sparse import coo_array
        self.problem, self.shard_class, self.rank_class = problem, shard_class, rank_class
        self.members = np.bincount(rank_class)
        first_rank = np.unique(rank_class, return_index=True)[1]
        first_shard = np.unique(shard_class, return_index=True)[1]
        self.load = problem.sizes.sum() or 1.0
        self.time = self.load / (1 / problem.seconds_per_unit).sum()
        totals = np.bincount(shard_class, problem.sizes)
        weight = np.bincount(shard_class, problem.storage_sizes) / np.where(totals > 0, totals, 1)
        allowed = np.ones((totals.size, self.members.size), bool)
        if problem.allowed is not None:
            allowed = problem.allowed[np.ix_(first_shard, first_rank)]
        self.classes, self.groups = np.nonzero(allowed)
        pairs = self.classes.size
        count = self.members.size
        seconds = problem.seconds_per_unit[first_rank][self.groups] * self.load / self.time
        self.limited = np.flatnonzero(np.isfinite(problem.storage[first_rank]))
        row_of_limit = np.full(count, -1)
        row_of_limit[self.limited] = count + np.arange(self.limited.size)
        stored = np.flatnonzero(row_of_limit[self.groups] >= 0)
        self.storage_unit = problem.storage_sizes.sum() or 1.0
        share = weight[self.classes[stored]] * self.load / self.storage_unit
        pair = np.arange(pairs)
        self.upper = coo_array(
            (np.concatenate([seconds, share, -self.members.astype(float)]),
             (np.concatenate([self.groups, row_of_limit[self.groups[stored]], np.arange(count)]),
              np.concatenate([pair, stored, np.full(count, pairs)]))),
            shape=(count + self.limited.size, pairs + 1)).tocsr()
        self.upper_bound = np.concatenate([
            -self.members * problem.fixed_seconds[first_rank] / self.time,
            self.members[self.limited] * problem.storage[first_rank][self.limited]
            / self.storage_unit])
        self.equal = coo_array((np.ones(pairs), (self.classes, pair)),
                               shape=(totals.size, pairs + 1)).tocsr()
        self.equal_bound = totals / self.load
        self.cost = np.concatenate([np.zeros(pairs), [1.0]])

    def relaxation(self, done):
        """Return the solved model in the caller's units, class by class and rank by rank."""
        problem, group = self.problem, self.rank_class
        per_group = np.zeros((self.equal_bound.size, self.members.size))
        per_group[self.classes, self.groups] = done.x[:-1] * self.load
        units = (per_group / self.members)[:, group]
        price = -done.ineqlin.marginals
        count = self.members.size
        storage_price = np.zeros(count)
        storage_price[self.limited] = price[count:] * self.time / self.storage_unit
        # dT / d rate of one rank: its row's price times the units it holds times s^2.
        saved_by_rate = price[:count][group] * units.sum(axis=0) * problem.seconds_per_unit**2
        return Relaxation(done.x[-1] * self.time, units, self.shard_class,
                          storage_price[group], saved_by_rate)


def explain_conflict(problem, model):
    """Return a line that names the limits in conflict: those that an elastic programme exceeds."""
    from scipy.optimize import linprog
    from scipy.sparse import block_array, csr_array, eye_array
    count, limits = model.members.size, model.limited.size
    slack = block_array([[csr_array((count, limits))], [-eye_array(limits)]]).tocsr()
    upper = block_array([[model.upper, slack]]).tocsr()
    equal = block_array([[model.equal, csr_array((model.equal.shape[0], limits))]]).tocsr()
    cost = np.concatenate([np.zeros(model.cost.size), np.ones(limits)])
    done = linprog(cost, A_ub=upper, b_ub=model.upper_bound, A_eq=equal, b_eq=model.equal_bound,
                   bounds=(0, None), method="highs")
    if not done.success:
        return f"no plan: the solver stopped with {done.message!r}"
    short = model.limited[done.x[model.cost.size:] > 1e-9]
    # A full rank is in conflict too where it could have held what another is short of.
    ranks = np.flatnonzero(np.isin(model.rank_class, short))
    missing = done.fun * model.storage_unit
    return (f"no plan: storage of rank{'s' if ranks.size > 1 else ''} {_listed(ranks)} is short by "
            f"{missing:.6g} in all for the shards that may go there; give more storage_nbytes, pin "
            "fewer shards, or pack less data")


def _listed(ranks):
    shown = ", ".join(map(str, ranks[:8]))
    return shown if ranks.size <= 8 else f"{shown} and {ranks.size - 8} more"


def lower_bound_seconds(problem, relaxed_seconds):
    """Return what no plan of whole shards can beat: the relaxation and three valid cuts."""
    bounds = [relaxed_seconds, problem.fixed_seconds.max(), _largest_shard(problem),
              _two_of_the_largest(problem), _whole_units(problem, relaxed_seconds)]
    return float(max(bounds))


def _largest_shard(problem):
    """A shard is somewhere: no sooner than on the fastest rank that may hold it."""
    if problem.allowed is None:
        return problem.seconds_of(problem.sizes.max(initial=0)).min() if problem.sizes.size else 0
    alone = problem.fixed_seconds + problem.seconds_per_unit * problem.sizes[:, None]
    return np.where(problem.allowed, alone, np.inf).min(axis=1).max(initial=0)


def _two_of_the_largest(problem):
    """Of the p + 1 largest shards two are on one rank (pigeonhole)."""
    if problem.sizes.size <= problem.ranks:
        return 0.0
    largest = np.sort(problem.sizes)[::-1][:problem.ranks + 1]
    return problem.seconds_of(largest[-1] + largest[-2]).min()


def _whole_units(problem, seconds):
    """With sizes that are multiples of one unit, a rank holds a whole number of units by any time.

    The least T at which these whole numbers add up to the load, found by stepping through the times
    at which one rank's number grows.
    """
    unit = _common_unit(problem.sizes)
    if unit is None:
        return seconds
    needed = round(problem.sizes.sum() / unit)
    with np.errstate(invalid="ignore"):
        most = np.floor(problem.storage / np.where(
            problem.sizes.sum() > 0, problem.storage_sizes.sum() / problem.sizes.sum(), 1)
            / unit + 1e-9) if _storage_follows_size(problem) else np.full(problem.ranks, np.inf)
    step = problem.seconds_per_unit * unit
    whole = np.minimum(np.floor(np.maximum(seconds - problem.fixed_seconds, 0) / step + 1e-9), most)
    missing = needed - int(whole.sum())
    if missing > 4 * problem.ranks + 100:  # far from the relaxation: limits that this cut ignores
        return seconds
    import heapq
    following = [(problem.fixed_seconds[r] + (whole[r] + 1) * step[r], r)
                 for r in range(problem.ranks) if whole[r] < most[r]]
    heapq.heapify(following)
    while missing > 0 and following:
        seconds, rank = heapq.heappop(following)
        missing -= 1
        whole[rank] += 1
        if whole[rank] < most[rank]:
            heapq.heappush(following, (problem.fixed_seconds[rank]
                                       + (whole[rank] + 1) * step[rank], rank))
    return seconds


def _storage_follows_size(problem):
    return np.allclose(problem.storage_sizes * problem.sizes.sum(),
                       problem.sizes * problem.storage_sizes.sum(), rtol=1e-12)


def _common_unit(sizes):
    """Return the greatest common divisor of whole `sizes`, or None."""
    whole = np.rint(sizes)
    if not sizes.size or not (whole == sizes).all() or sizes.max() > 2**53 or not sizes.any():
        return None
    return float(np.gcd.reduce(whole.astype(np.int64)))
