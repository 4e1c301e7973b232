"""What the exact algorithms share: they begin when the whole vector is there.

Each is made with (comm, site_of_rank, size, clock, empty): a communicator that takes arrays of
`empty`, which are on the host or on a device.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from mpi4py import MPI

from isthmus import kernels
from isthmus.collectives.given import GivenBucket
from isthmus.links.comm import Comm


class Exact:
    """An exchange that leaves the sum over all ranks in `total` when it is called."""

    def start(self, total: np.ndarray, number: int, key: int, given: GivenBucket) -> None:
        """Write a bucket into `total`, for the end: these algorithms cut the whole vector into parts."""
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


class OfMPI(Exact):
    """MPI's own Allreduce, whatever algorithm the library picks, to whatever peers."""

    UNKNOWN = -1  # the last place of `sent`: no site's

    def __init__(self, comm: Comm, size: int, sent: np.ndarray, clock: Any):
        self.allreduce, self.sent, self.clock = _own_allreduce(comm), sent, clock
        self.site = 0 if sent.size == 2 else self.UNKNOWN
        self.nbytes = 4 * size if comm.size > 1 else 0

    def __call__(self, total: np.ndarray) -> None:
        self.sent[self.site] += self.nbytes
        self.allreduce(MPI.IN_PLACE, total)
        self.clock.lap("links")

    def predicted(self) -> Iterator[tuple[int, int]]:
        yield self.site, self.nbytes


def _own_allreduce(comm):
    """Return MPI's Allreduce on `comm`; ValueError where it would go past what wraps the links."""
    try:
        return comm.Allreduce
    except AttributeError as problem:
        raise ValueError(f'algorithm "mpi" cannot be used on these links: {problem}') from None
