"""Means and standard deviations of features, gathered over the shards of all ranks.

Each shard's sums are taken by the rank that holds it, row after row in float64, and added up in the
order of the shards on every rank: the same bits, however many ranks there are and whatever each holds.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from isthmus.links.world import all_gather_rows
from isthmus.shards.batches import LocalSamples
from isthmus.shards.scale import Scale, kept_axis

if TYPE_CHECKING:  # a communicator's contract is no more than a type here
    from isthmus.links.comm import Comm

WIDE = 10.0
"""A spread of features from which on the usual learning rates are too large."""
PIECE_NBYTES = 4 << 20
"""Of float64 that are in memory at a time."""
FLAT = 1e-12
"""A deviation below this share of the mean is float64's rounding: the column is constant."""
SMALLEST = 1e-30
"""A deviation that float32 still divides by."""


@dataclass(frozen=True, eq=False)
class Moments:
    """Mean and standard deviation of features over all samples, float64, one a column or channel."""

    mean: npt.NDArray[np.float64]
    std: npt.NDArray[np.float64]
    shape: tuple[int, ...]

    def scale(self) -> Scale:
        """Return what standardises the features; a constant column becomes 0.

        ValueError where they are beyond float32.
        """
        varies = self.std > np.maximum(FLAT * np.abs(self.mean), SMALLEST)
        return Scale.of(self.mean, np.where(varies, self.std, 1.0), self.shape)

    def whole(self) -> tuple[float, float]:
        """Return the mean and the standard deviation of all columns or channels taken together."""
        mean = self.mean.mean()
        return float(mean), float(np.sqrt((self.std**2 + (self.mean - mean) ** 2).mean()))

    @property
    def spread(self) -> float:
        """The root mean square of the features in the column where it is largest."""
        return float(np.sqrt(self.mean**2 + self.std**2).max(initial=0.0))


def gather_moments(world: "Comm", local: LocalSamples) -> Moments:
    """Return the Moments of the features, the first of the arrays, of all ranks' `local`. Collective.

    In two passes, the mean before the squares of what is off it: exact to the rounding of float64, also
    where means are large. What is not finite is left out. The same bits on every rank, and for every
    placement of the shards.
    """
    shape = next(iter(local.arrays.values())).shape[1:]

    def numbers_and_sums(rows):
        finite = np.isfinite(rows)
        return np.concatenate([_summed(finite, shape), _summed(np.where(finite, rows, 0.0), shape)])

    numbers, sums = np.split(_sum_of_shards(world, local, numbers_and_sums), 2)
    numbers = np.maximum(numbers, 1.0)
    mean = sums / numbers

    def squares(rows):
        off = np.where(np.isfinite(rows), rows, np.nan) - _spread_out(mean, shape)
        return _summed(np.where(np.isnan(off), 0.0, off * off), shape)

    with np.errstate(over="ignore"):
        return Moments(mean, np.sqrt(_sum_of_shards(world, local, squares) / numbers), shape)


def _spread_out(values, shape):
    """Return `values`, one a column, as an array that broadcasts to a sample."""
    axis = kept_axis(shape)
    if axis is None:
        return values[0]
    return values.reshape([-1 if each == axis else 1 for each in range(len(shape))])


def _summed(rows, shape):
    """Return float64[columns]: sums over samples, one row after the other, and then inside them."""
    columns = np.add.reduce(rows.reshape(len(rows), math.prod(shape)), axis=0, dtype=np.float64).reshape(
        shape
    )
    axis = kept_axis(shape)
    if axis is None:
        return np.array([columns.sum()])
    return np.moveaxis(columns, axis, 0).reshape(shape[axis], -1).sum(axis=1)


def _sum_of_shards(world, local, of_rows):
    """Return the sum of what `of_rows` gives of each shard's rows, in the shards' order. Collective."""
    features, first, sums, numbers = next(iter(local.arrays.values())), 0, [], []
    rows = max(1, PIECE_NBYTES // (8 * max(1, math.prod(features.shape[1:]))))
    for shard in local.shards:
        last = first + local.manifest.shards[shard].samples
        pieces = [
            of_rows(features[start : min(start + rows, last)].astype(np.float64))
            for start in range(first, last, rows)
        ]
        if pieces:
            sums.append(np.add.reduce(np.stack(pieces), axis=0))
            numbers.append(shard)
        first = last
    width = len(of_rows(np.zeros((0, *features.shape[1:]))))
    order = np.concatenate(all_gather_rows(world, np.array(numbers, np.int64)))
    everyone = np.concatenate(all_gather_rows(world, np.array(sums, np.float64).reshape(-1, width)))
    return np.add.reduce(everyone[np.argsort(order, kind="stable")], axis=0)
