"""Ring allreduce: every rank sends to its right neighbour and receives from its left one.

Bandwidth-optimal among ranks that are all alike (Patarasuk and Yuan 2009, "Bandwidth optimal
all-reduce algorithms for clusters of workstations"): each rank sends 2 (p - 1) / p of the vector.
"""

import itertools

import numpy as np

from isthmus import kernels
from isthmus.vectors import part_bounds


class Ring:
    """The exact sum of float32[size] over `comm`, on every rank, in place."""

    def __init__(self, comm, site_of_rank, size, clock):
        self.comm, self.clock = comm, clock
        self.right_site = site_of_rank[(comm.rank + 1) % comm.size]
        bounds = part_bounds(size, comm.size)
        self.parts = [slice(first, last) for first, last in itertools.pairwise(bounds)]
        self.inbox = np.empty(max(last - first for first, last in itertools.pairwise(bounds)), "f4")

    def __call__(self, total):
        reduce_scatter(self.comm, total, self.parts, self.inbox)
        self.clock.lap("reduce")
        all_gather(self.comm, total, self.parts)
        self.clock.lap("broadcast")

    def predicted(self):
        """Yield (site, bytes) for every message that this rank sends in one call."""
        ranks, rank = self.comm.size, self.comm.rank
        for step in range(ranks - 1):
            for part in (rank - step, rank - step + 1):
                part = self.parts[part % ranks]
                yield self.right_site, 4 * (part.stop - part.start)


def reduce_scatter(comm, total, parts, inbox):
    """Leave in part `rank + 1` of `total` its sum over all ranks; the other parts hold less."""
    right, left = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
    for step in range(comm.size - 1):
        outgoing = total[parts[(comm.rank - step) % comm.size]]
        mine = total[parts[(comm.rank - step - 1) % comm.size]]
        arrived = inbox[:mine.size]
        _exchange(comm, outgoing, right, arrived, left)
        kernels.for_array(mine).add(arrived, mine)


def all_gather(comm, total, parts):
    """Send round the part `rank + 1` of `total` that each rank has, until every rank has all."""
    right, left = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
    for step in range(comm.size - 1):
        finished = total[parts[(comm.rank - step + 1) % comm.size]]
        arriving = total[parts[(comm.rank - step) % comm.size]]
        _exchange(comm, finished, right, arriving, left)


def _exchange(comm, outgoing, right, incoming, left):
    received = comm.Irecv(incoming, left)
    sent = comm.Isend(outgoing, right)
    received.Wait()
    sent.Wait()
