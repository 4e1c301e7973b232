"""The samples that a rank holds, and the batches that it makes of them."""

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from isthmus.quantities import whole
from isthmus.vectors import part_bounds

if TYPE_CHECKING:  # a manifest is checked by what not every machine has
    from isthmus.shards.access import Access
    from isthmus.shards.manifest import Manifest
    from isthmus.shards.scale import Scale


def order_of(samples: int, seed: int, epoch: int, since: int = 0) -> np.ndarray:
    """Return the order in which a rank takes so many samples of an epoch, or of what is left of it.

    since: steps of the epoch that were made before.
    """
    keys = [seed, epoch, since] if since else [seed, epoch]
    return np.random.Generator(np.random.PCG64(keys)).permutation(samples)


class LocalSamples:
    """A rank's own samples in memory.

    arrays: name -> array with one row a sample, in the manifest's order; `samples` may be 0.
    received_nbytes: bytes that came over MPI rather than from this rank's own disk. shards: which they
    are, in the order of the rows; manifest: of the set that they are from. scale: what batches bring
    the features, the first of the arrays, to; None: as they are. access: what this rank may read of the
    set, where that has a policy.
    """

    def __init__(
        self,
        arrays: dict[str, np.ndarray],
        received_nbytes: int = 0,
        shards: tuple[int, ...] = (),
        manifest: "Manifest | None" = None,
        scale: "Scale | None" = None,
        access: "Access | None" = None,
    ):
        self.arrays, self.received_nbytes = arrays, received_nbytes
        self.shards, self.manifest, self.scale, self.access = shards, manifest, scale, access
        self.samples: int = len(next(iter(arrays.values())))
        self.copies: LocalSamples | None = None  # of what other ranks hold, for when they are gone

    @property
    def nbytes(self) -> int:
        return sum(values.nbytes for values in self.arrays.values())

    def batches(
        self,
        size: int | None = None,
        seed: int = 0,
        *,
        steps: int | None = None,
        epoch: int = 0,
        start: int = 0,
        rows: np.ndarray | None = None,
        since: int = 0,
    ) -> Iterator[tuple[np.ndarray, ...]]:
        """Yield tuples of the arrays' rows, in one random order that depends on (seed, epoch) alone.

        size: samples of a batch, the last may be short. Or steps: exactly so many batches, of sizes
        that differ by at most one, empty where there are fewer samples than steps. start: the first
        batch to give; the others are the same as if all had been given.
        rows: those to take, in place of all, where an epoch goes on after `since` steps that other
        ranks have made too; `steps` and `start` count from there.
        """
        if (size is None) == (steps is None):
            raise ValueError("give either size or steps")
        samples = self.samples if rows is None else len(rows)
        if steps is None:
            bounds = [*range(0, samples, whole("size", size, least=1)), samples]
        else:
            bounds = part_bounds(samples, whole("steps", steps, least=1))
        seed, epoch, start = (
            whole(name, value, least=0)
            for name, value in (("seed", seed), ("epoch", epoch), ("start", start))
        )
        order = order_of(samples, seed, epoch, since)
        order = order if rows is None else rows[order]
        for first, last in list(itertools.pairwise(bounds))[start:]:
            yield self.at(order[first:last])

    def at(self, rows: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return these rows of the arrays as a batch has them."""
        features, *others = (values[rows] for values in self.arrays.values())
        return (features if self.scale is None else self.scale.apply(features), *others)
