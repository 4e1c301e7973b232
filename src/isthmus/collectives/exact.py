"""What the exact algorithms share: they begin when the whole vector is there.

Each is made with (comm, site_of_rank, size, clock, empty): a communicator that takes arrays of
`empty(shape, dtype)`, which are on the host or on a device; the number of the site of each of its
ranks, by which bytes are counted; entries of a vector; and a StageClock, told when a stage ends.
"""

from collections.abc import Iterator

import numpy as np

from isthmus import kernels
from isthmus.collectives.given import GivenBucket


class Exact:
    """An exchange that leaves the sum over all ranks in `total` when it is called."""

    def start(self, total: np.ndarray, number: int, key: int, given: GivenBucket) -> None:
        """Write a bucket into `total`, for the end: these algorithms cut the whole vector into parts.

        key: number of the call, which seeds how compressors round; exact sums have no use for it.
        """
        given.write(total, given.part)

    def finish(self, total: np.ndarray, key: int) -> bool:
        """Leave the sum in `total`, and return whether all of it is finite."""
        self(total)
        return kernels.for_array(total).all_finite(total)

    def undo(self) -> None:
        """Nothing is carried from call to call."""

    def __call__(self, total: np.ndarray) -> None:
        """Overwrite `total` with its sum over all ranks."""
        raise NotImplementedError

    def predicted(self) -> Iterator[tuple[int, int]]:
        """Yield (number of a site, bytes that a call sends there)."""
        raise NotImplementedError
