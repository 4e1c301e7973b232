"""`Doubling` by compiled code, where that can do it: with vectors of one message on the host, over links
that are MPI's own with nothing around them but the counting, and nothing traced."""

import numpy as np

from isthmus.collectives import native_at_once
from isthmus.collectives import native_loop as loop
from isthmus.collectives.doubling import Doubling
from isthmus.collectives.messages import PIECE_NBYTES
from isthmus.collectives.native_at_once import begin_at_once, end_at_once
from isthmus.collectives.native_call import NativeCall, is_plain
from isthmus.collectives.native_loop import begin, count_sent, lap, wait, write_given
from isthmus.kernels.compiled import compiled
from isthmus.links import native_mpi
from isthmus.links.native_mpi import decode_by

TARGET, SOURCE, SITE_OF_TARGET, SUMS = range(4)  # in a row of `steps`; -1: nobody
COMING, LEAVING = range(2)  # the requests


native = compiled(nogil=True, calls=(native_at_once, loop, native_mpi))


@native
def double(plan, steps, total):
    """Overwrite `total` with its sum over all ranks."""
    data, size = total.ctypes.data, len(total)
    for step in range(len(steps) if size else 0):
        target, source, sums = steps[step, TARGET], steps[step, SOURCE], steps[step, SUMS]
        came = plan[loop.INBOX] if sums else data
        if source >= 0:
            begin(plan, loop.IRECV, came, size, loop.FLOAT, source, loop.SITE, COMING)
        if target >= 0:
            count_sent(plan, steps[step, SITE_OF_TARGET], 4 * size)
            begin(plan, loop.ISEND, data, size, loop.FLOAT, target, loop.SITE, LEAVING)
        wait(plan, COMING)
        wait(plan, LEAVING)  # what is sent must stay as it is until then
        if source >= 0 and sums:
            decode_by(plan[loop.ADD], came, data, size, 1)
        lap(plan, loop.REDUCE if sums else loop.BROADCAST)
    plan[loop.FINITE] = decode_by(plan[loop.CHECK], 0, data, size, 1)


@native
def double_at_once(plan, steps, given, total, vector, share):
    """Overwrite `total` with the sum of what all ranks give; return whether it is finite."""
    begin_at_once(plan, given, vector, share)
    write_given(plan, given, total.ctypes.data, 0, len(total))
    double(plan, steps, total)
    return end_at_once(plan)


class NativeDoubling(Doubling):
    """The exact sum of float32[size] over `comm`, in place: as `Doubling` has it, to the bit."""

    def __init__(self, comm, site_of_rank, size, clock):
        super().__init__(comm, site_of_rank, size, clock)
        self.call = NativeCall(loop.PEERS, comm, 2, clock)
        self.call.plan[loop.INBOX] = self.inbox.ctypes.data
        rows = np.array([self._row(step) for step in self.steps], np.int64)
        self.rows = rows.reshape(len(rows), SUMS + 1)
        nothing = np.empty(0, "f4")
        self.call(double, self.call.plan, self.rows, nothing)  # compiled before it is needed
        self.at_once(nothing, nothing, 0, 0)
        self.call.forget()

    def at_once(self, total, vector, share_bits, key):
        """Start the one bucket and finish, in the main thread; return what `finish` does."""
        call = self.call
        try:
            return double_at_once(call.plan, self.rows, call.one, total, vector, share_bits)
        except loop.RefusedError:
            raise call.refused() from None

    def finish(self, total, key):
        plan = self.call.plan
        self.call(double, plan, self.rows, total)
        return bool(plan[loop.FINITE])

    def _row(self, step):
        """Return what compiled code knows of a step."""
        site = None if step.target is None else self.site_of_rank[step.target]
        return [-1 if each is None else each for each in (step.target, step.source, site, step.sums)]


def planned(comm, site_of_rank, size, clock, empty):
    """Return the exchange of `doubling`: by compiled code where that can do it."""
    able = (
        4 * size <= PIECE_NBYTES
        and clock.recorder is None
        and is_plain(comm)
        and native_mpi.why_not() is None
    )
    if able:
        return NativeDoubling(comm, site_of_rank, size, clock)
    return Doubling(comm, site_of_rank, size, clock, empty)
