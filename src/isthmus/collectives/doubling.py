"""Recursive doubling: the fewest steps, for vectors so short that a message takes as long whatever it
holds.

In log2(p) steps two ranks swap all that they have summed so far, and both add it up (Thakur,
Rabenseifner and Gropp 2005, "Optimization of collective communication operations in MPICH"). A rank
sends log2(p) vectors. Where p is no power of two, some ranks first fold their vector into a
neighbour's, and are told the result. All ranks end with the same bits, for a + b is b + a.
"""

import numpy as np

from isthmus import kernels
from isthmus.collectives.exact import Exact
from isthmus.collectives.messages import inbox_entries, pieces, sending_nbytes, wait_for
from isthmus.schedules import doublings


class Doubling(Exact):
    """The exact sum of float32[size] over `comm`, on every rank, in place."""

    def __init__(self, comm, site_of_rank, size, clock, empty=np.empty):
        self.comm, self.clock, self.size = comm, clock, size
        self.site_of_rank = site_of_rank
        self.steps = doublings(comm.size, comm.rank)
        self.inbox = empty(inbox_entries(size if self.steps else 0) // 2, "f4")

    def __call__(self, total):
        for step in self.steps:
            for piece in pieces(total):
                self._swap(step, total[piece])
            self.clock.lap("reduce" if step.sums else "broadcast")

    def predicted(self):
        """Yield (site, bytes) for each vector that this rank sends in one call."""
        for step in self.steps:
            if step.target is not None:
                nbytes = sending_nbytes(self.comm, self.size, 4, step.target)
                yield self.site_of_rank[step.target], nbytes

    def _swap(self, step, part):
        came, under_way = self.inbox[: part.size] if step.sums else part, []
        if step.source is not None:
            under_way.append(self.comm.Irecv(came, step.source))
        if step.target is not None:
            under_way.append(self.comm.Isend(part, step.target))
        wait_for(under_way)  # what is sent must stay as it is until then
        if step.source is not None and step.sums:
            kernels.for_array(part).add(came, part)
