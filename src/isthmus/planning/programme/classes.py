"""Identical shards and identical ranks are solved as one.

By symmetry the optimum of the linear programme over classes is the optimum over single shards and
ranks. Where there are too many classes, ranks that are almost alike are taken together at the best of
their values: what is then solved is easier than the truth, so that its optimum is still a bound.
"""

from dataclasses import dataclass, replace

import numpy as np

PAIRS, GROUPS = 150_000, 1000
"""Most variables of the linear programme (classes of shards times classes of ranks), most classes."""


@dataclass(frozen=True)
class Items:
    """Kinds of what is placed."""

    size: np.ndarray  # float64[kinds], of one
    nbytes: np.ndarray  # float64[kinds], of one
    total: np.ndarray  # float64[kinds], how many there are
    place: np.ndarray  # int64[kinds], the row of `places` that says where they may go
    of_shard: np.ndarray  # int64[shards], the kind of each


@dataclass(frozen=True)
class Groups:
    """Classes of ranks, and the values that the programme uses for one rank of each."""

    first: np.ndarray  # int64[classes], one of its ranks
    members: np.ndarray  # how many ranks it has
    of_rank: np.ndarray  # int64[ranks], the class of each
    seconds_per_unit: np.ndarray
    fixed_seconds: np.ndarray
    storage: np.ndarray
    least: np.ndarray
    exact: bool = True  # false: ranks are only almost alike, and these are the best of their values


def factorise(values):
    """Return the number of each value among the distinct ones, and how many distinct there are."""
    values = np.asarray(values)
    if values.size and values.dtype.kind == "f":
        low, high = values.min(), values.max()
        if np.isfinite(high) and high - low < 4 * values.size + 1000:
            whole = values.astype(np.int64)
            if (whole == values).all():  # a table instead of a sort
                seen = np.zeros(int(high - low) + 1, bool)
                whole -= int(low)
                seen[whole] = True
                number = np.cumsum(seen) - 1
                return number[whole], int(number[-1]) + 1
    names, numbers = np.unique(values, return_inverse=True)
    return numbers.ravel(), names.size


def order_of(numbers):
    """Return the stable order of whole numbers from 0 on; NumPy is fastest where 16 bits hold them."""
    small = numbers.size and numbers.max() < 2**16
    return np.argsort(numbers.astype(np.uint16) if small else numbers, kind="stable")


def classes_of(*columns):
    """Return (class of each row, first row of each class), numbered in order of their values."""
    codes, count = np.zeros(len(columns[0]), np.int64), 1
    for column in columns:
        numbers, distinct = factorise(column)
        if distinct > 1:
            codes, count = factorise(
                (codes * distinct + numbers).astype(float)
                if count * distinct < 2**53
                else codes * distinct + numbers
            )
    first = np.full(count, -1)
    first[codes[::-1]] = np.arange(codes.size)[::-1]
    return codes, first


def _pattern(flags):
    """Return one number for each different column of bool[rows, columns]."""
    packed = np.ascontiguousarray(np.packbits(flags, axis=0).T)
    return np.unique(packed.view(f"V{packed.shape[1]}").ravel(), return_inverse=True)[1].ravel()


def fluid_items(problem, bytes_count=False):
    """Return Items that are as divisible as water: one is the whole load, totals are shares of it.

    A class is where shards may go, and their bytes a unit where bytes count: where the problem limits
    them, or if `bytes_count`.
    """
    density = np.ones(problem.sizes.size)
    if (bytes_count or problem.limits_bytes) and problem.nbytes is not problem.sizes:
        with np.errstate(divide="ignore", invalid="ignore"):
            density = np.where(problem.sizes > 0, problem.nbytes / problem.sizes, 0.0)
        digits = 10.0 ** (np.floor(np.log10(np.where(density > 0, density, 1))) - 12)
        density = np.rint(density / digits) * digits
    of_shard, first = classes_of(problem.place_of_shard, density)
    if first.size > 2000:  # too many densities: the least of each of many bins, for a bound
        bins = np.floor(np.log(np.maximum(density, 1e-300)) / 2e-3)
        of_shard, first = classes_of(problem.place_of_shard, bins)
        least = np.full(first.size, np.inf)
        np.minimum.at(least, of_shard, density)
        density = least[of_shard]
    load = problem.load or 1.0
    return Items(
        np.full(first.size, load),
        density[first] * load,
        np.bincount(of_shard, problem.sizes, minlength=first.size) / load,
        problem.place_of_shard[first],
        of_shard,
    )


def whole_items(problem, shards, kinds):
    """Return Items of whole `shards`, counted by kind; of_shard is of those shards alone."""
    _, first, of_shard, counts = np.unique(
        kinds[shards], return_index=True, return_inverse=True, return_counts=True
    )
    sample = shards[first]
    return Items(
        problem.sizes[sample],
        problem.nbytes[sample],
        counts.astype(float),
        problem.place_of_shard[sample],
        of_shard.ravel(),
    )


def kinds_of(problem, bytes_count=False):
    """Return the kind of each shard: shards of one kind are alike in all that counts.

    bytes_count: bytes do even where the problem does not limit them.
    """
    columns = [problem.place_of_shard, problem.sizes]
    if (bytes_count or problem.limits_bytes) and problem.nbytes is not problem.sizes:
        columns.append(problem.nbytes)
    return classes_of(*columns)[0]


def rank_groups(problem, items, objective):
    """Return the classes of ranks that are alike to the objective, few enough for `items`."""
    columns = [problem.seconds_per_unit, problem.fixed_seconds, problem.storage, problem.least]
    same = [_pattern(problem.places)]
    if problem.pipes.names:
        same.append(_pattern(problem.pipes.uses))
    if problem.prices is not None:
        same += [problem.prices.per_second, problem.prices.per_byte]
    for term in objective.terms:
        same += term.tells_apart(problem)
    of_rank, first = classes_of(*same, *columns)
    width = 1e-3
    exact = True
    while (first.size > GROUPS or first.size * items.total.size > PAIRS) and width < 1:
        bins = [
            np.floor(np.log(column.clip(1e-300)) / width) if np.isfinite(column).all() else column
            for column in columns
        ]
        of_rank, first = classes_of(*same, *bins)
        width, exact = 2 * width, False
    groups = Groups(
        first,
        np.bincount(of_rank, minlength=first.size),
        of_rank,
        *(column[first] for column in columns),
        exact,
    )
    return groups if exact else _best_of_each(groups, columns)


def _best_of_each(groups, columns):
    def reduced(operation, column, start):
        result = np.full(groups.first.size, start)
        operation.at(result, groups.of_rank, column)
        return result

    seconds, fixed, storage, least = columns
    return replace(
        groups,
        seconds_per_unit=reduced(np.minimum, seconds, np.inf),
        fixed_seconds=reduced(np.minimum, fixed, np.inf),
        storage=reduced(np.maximum, storage, -np.inf),
        least=reduced(np.minimum, least, np.inf),
    )


def each_rank(problem, units, stored):
    """Return Groups in which every rank is its own, with what it already holds taken off its limits."""
    alone = np.arange(problem.ranks)
    return Groups(
        alone,
        np.ones(problem.ranks),
        alone,
        problem.seconds_per_unit,
        problem.fixed_seconds + problem.seconds_per_unit * units,
        problem.storage - stored,
        np.maximum(problem.least - units, 0.0),
    )
