"""MPI's own allreduce: in Python, and by compiled code, which takes less time around the call.

That is for short vectors on the host, over links that are MPI's own with nothing around them, where
nothing is traced.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from mpi4py import MPI

from isthmus.collectives import native_at_once
from isthmus.collectives import native_loop as loop
from isthmus.collectives.exact import Exact
from isthmus.collectives.messages import PIECE_NBYTES
from isthmus.collectives.native_at_once import begin_at_once, end_at_once
from isthmus.collectives.native_call import NativeCall, is_plain
from isthmus.collectives.native_loop import count_sent, lap, write_given
from isthmus.kernels.compiled import compiled
from isthmus.links import native_mpi
from isthmus.links.comm import Comm
from isthmus.links.counted import CountedComm
from isthmus.links.native_mpi import decode_by, sum_in_place

TO, ALLREDUCE, IN_PLACE, OPERATION, PLACES = range(loop.PEERS, loop.PEERS + 5)  # in `plan`

native = compiled(nogil=True, calls=(native_at_once, loop, native_mpi))


@native
def sum_at_once(plan, given, total, vector, share):
    """Overwrite `total` with the sum of what all ranks give; return whether it is finite."""
    begin_at_once(plan, given, vector, share)
    data, size = total.ctypes.data, len(total)
    write_given(plan, given, data, 0, size)
    if size:
        count_sent(plan, plan[TO], 4 * size)
        function, operation, comm = plan[ALLREDUCE], plan[OPERATION], plan[loop.SITE]
        code = sum_in_place(function, plan[IN_PLACE], data, size, plan[loop.FLOAT], operation, comm)
        if code:
            plan[loop.ERROR] = code
            raise loop.RefusedError
    lap(plan, loop.LINKS)
    plan[loop.FINITE] = decode_by(plan[loop.CHECK], 0, data, size, 1)
    return end_at_once(plan)


class OfMPI(Exact):
    """MPI's own Allreduce, whatever algorithm the library picks, to whatever peers.

    sent: int64[sites + 1], bytes by site, counted here; the last are those that MPI sends it does not
    tell where. clock: as those of `Exact`.
    """

    UNKNOWN = -1  # the last place of `sent`: no site's

    def __init__(self, comm: Comm, size: int, sent: np.ndarray, clock: Any):
        self.allreduce, self.sent, self.clock = _own_allreduce(comm), sent, clock
        self.site = 0 if sent.size == 2 else self.UNKNOWN  # of one site all stays there
        self.nbytes = 4 * size if comm.size > 1 else 0

    def __call__(self, total: np.ndarray) -> None:
        self.sent[self.site] += self.nbytes
        self.allreduce(MPI.IN_PLACE, total)
        self.clock.lap("links")

    def predicted(self) -> Iterator[tuple[int, int]]:
        yield self.site, self.nbytes


class NativeOfMPI(OfMPI):
    """The same by compiled code, where a vector is given at once."""

    def __init__(self, comm: Comm, size: int, sent: np.ndarray, clock: Any):
        super().__init__(comm, size, sent, clock)
        self.call = NativeCall(PLACES, CountedComm(comm, sent, ()), 0, clock)
        self.call.plan[[TO, ALLREDUCE, IN_PLACE, OPERATION]] = (
            self.site % sent.size,
            native_mpi.address("MPI_Allreduce"),
            int(MPI.IN_PLACE),
            native_mpi.handle(MPI.SUM),
        )
        nothing = np.empty(0, "f4")
        self.at_once(nothing, nothing, 0, 0)  # compiled before it is needed
        self.call.forget()

    def at_once(self, total: np.ndarray, vector: np.ndarray, share_bits: int, key: int) -> bool:
        """Start the one bucket and finish, in the main thread; return what `finish` does."""
        call = self.call
        try:
            return sum_at_once(call.plan, call.one, total, vector, share_bits)
        except loop.RefusedError:
            raise call.refused() from None


def planned(comm: Comm, size: int, sent: np.ndarray, clock: Any) -> OfMPI:
    """Return the exchange of `mpi`: by compiled code where that can do it."""
    able = (
        4 * size <= PIECE_NBYTES
        and clock.recorder is None
        and comm.size > 1
        and is_plain(CountedComm(comm, sent, ()))
        and native_mpi.why_not() is None
    )
    return (NativeOfMPI if able else OfMPI)(comm, size, sent, clock)


def _own_allreduce(comm):
    """Return MPI's Allreduce on `comm`; ValueError where it would go past what wraps the links."""
    try:
        return comm.Allreduce
    except AttributeError as problem:
        raise ValueError(f'algorithm "mpi" cannot be used on these links: {problem}') from None
