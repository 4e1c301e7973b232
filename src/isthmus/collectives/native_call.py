"""How Python calls a compiled exchange: what it must know of MPI and of this rank, and what it tells."""

import itertools
import threading

import numpy as np
from mpi4py import MPI

from isthmus.collectives import native_loop as loop
from isthmus.compression import by_address
from isthmus.links import native_mpi
from isthmus.links.comm import innermost
from isthmus.links.counted import CountedComm
from isthmus.links.world import World
from isthmus.registry import ALLREDUCE_STAGES

LAPS = slice(loop.REDUCE, loop.BROADCAST + 1)
UNTOLD = slice(loop.UNTOLD, loop.UNTOLD + LAPS.stop - LAPS.start)
NONE_GIVEN = np.zeros((0, 3), np.int64)
TIMED = [name for name in ALLREDUCE_STAGES if hasattr(loop, name.upper())]
STAGES = tuple(sorted(TIMED, key=lambda name: getattr(loop, name.upper())))
"""Those that the loop tells, in its order."""


class NativeCall:
    """Calls loops that know what stands in `plan`, int64[places], as `native_loop` has it.

    comm: the CountedComm of what the loop sends as SITE. slots: how many messages it may have under way.
    """

    def __init__(self, places, comm, slots, clock):
        self.clock, self.sent = clock, comm.sent
        self.requests, self.status = native_mpi.no_requests(slots), native_mpi.room_for_status()
        self.share = np.empty(1, "f4")
        self.share_bits = self.share.view("i4")
        plan = self.plan = np.zeros(places, np.int64)
        plan[: loop.SLEEP + 1] = native_mpi.addresses()
        plan[loop.SITE] = native_mpi.handle(innermost(comm))
        plan[loop.FLOAT], plan[loop.BYTE] = map(native_mpi.handle, (MPI.FLOAT, MPI.BYTE))
        plan[loop.STATUS], plan[loop.SENT] = self.status.ctypes.data, self.sent.ctypes.data
        plan[loop.REQUESTS], plan[loop.REQUEST_NBYTES] = (
            self.requests.ctypes.data,
            self.requests.shape[1],
        )
        plan[loop.ADD : loop.CHECK + 1] = (
            by_address.add_dense.address,
            by_address.weight.address,
            by_address.check.address,
        )
        plan[loop.FINITE] = 1
        self.one = np.zeros((1, 3), np.int64)  # room for the table of a vector that is given at once
        clock.ask(self._untold)

    def given(self, given):
        """Return the table of a GivenBucket, and its arrays, which the table does not keep."""
        pieces = [np.ascontiguousarray(piece) for piece in given.pieces]
        bounds = itertools.pairwise(given.bounds)
        table = [(MPI.Get_address(piece), *ends) for piece, ends in zip(pieces, bounds)]
        table = table or [(0, given.part.start, given.part.stop)]
        self.share[0] = given.share
        self.plan[loop.SHARE] = self.share_bits[0]
        return np.array(table), pieces

    def __call__(self, exchange, *arguments):
        """Call a loop; MPI.Exception where MPI has refused something."""
        plan = self.plan
        plan[loop.BESIDE] = threading.get_ident() != threading.main_thread().ident
        plan[loop.NOW], plan[LAPS] = 1e9 * self.clock.last, 0
        try:
            exchange(*arguments)
        except loop.RefusedError:
            raise self.refused() from None
        self.clock.take(STAGES, plan[LAPS].tolist(), int(plan[loop.NOW]))

    def refused(self):
        """Return what MPI has refused something with."""
        return MPI.Exception(int(self.plan[loop.ERROR]))

    def forget(self):
        """Forget what calls at once have taken that nobody was told of."""
        self.plan[UNTOLD] = 0

    def _untold(self):
        """Return stage -> seconds of the last call at once, and of those of which nobody was told."""
        if not self.plan[UNTOLD].any():
            return None
        last, untold = (dict(zip(STAGES, (1e-9 * self.plan[part]).tolist())) for part in (LAPS, UNTOLD))
        self.forget()
        return last, untold


def is_plain(comm):
    """Whether `comm` is MPI's own with nothing around it but the counting."""
    within = comm.comm if type(comm) is CountedComm else None
    return isinstance(within.comm if type(within) is World else within, MPI.Comm)
