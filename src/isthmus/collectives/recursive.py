"""Recursive halving, then doubling: few steps, for ranks that all reach one another alike.

Rabenseifner's algorithm (Thakur, Rabenseifner and Gropp 2005, "Optimization of collective
communication operations in MPICH"): in log2(p) steps two ranks swap halves of what each still sums,
and in as many steps they swap what is finished. A rank sends 2 (p - 1) / p of the vector in
2 log2(p) messages. Where p is no power of two, some ranks first fold their vector into a
neighbour's, and are told the result.
"""

import numpy as np

from isthmus.collectives.exact import Exact
from isthmus.collectives.messages import (
    adding,
    inbox_entries,
    receiving,
    sending,
    sending_nbytes,
    wait_for,
)
from isthmus.collectives.trading import AT_ONCE, trade
from isthmus.schedules import core_ranks, halvings


class Recursive(Exact):
    """The exact sum of float32[size] over `comm`, on every rank, in place.

    flow(here, there): the Flow between two sites; None: all at once.
    """

    def __init__(self, comm, site_of_rank, size, clock, empty=np.empty, flow=None):
        self.comm, self.clock, self.size = comm, clock, size
        self.site_of_rank = site_of_rank
        core, rank = core_ranks(comm.size), comm.rank
        self.folds_into = None if rank in core else rank + 1
        self.folded = rank - 1 if rank > 0 and rank - 1 not in core else None
        self.halvings = halvings(core, core.index(rank), size) if rank in core else []
        self.flow, self.site = flow or (lambda here, there: AT_ONCE), site_of_rank[rank]
        self.inbox = empty(inbox_entries(size if comm.size > 1 else 0), "f4")

    def __call__(self, total):
        if self.folds_into is not None:
            wait_for(sending(self.comm, total, self.folds_into))
            self.clock.lap("reduce")
            wait_for(receiving(self.comm, total, self.folds_into))
            self.clock.lap("broadcast")
            return
        if self.folded is not None:
            self._add_from(self.folded, total)
        for step in self.halvings:
            self._trade(step.peer, total[step.give], total[step.keep], self.inbox)
        self.clock.lap("reduce")
        for step in reversed(self.halvings):
            self._trade(step.peer, total[step.keep], total[step.give])
        if self.folded is not None:
            wait_for(sending(self.comm, total, self.folded))
        self.clock.lap("broadcast")

    def predicted(self):
        """Yield (site, bytes) for each part that this rank sends in one call."""
        for other in (self.folds_into, self.folded):
            if other is not None:
                yield self.site_of_rank[other], sending_nbytes(self.comm, self.size, 4, other)
        for step in self.halvings:
            site = self.site_of_rank[step.peer]
            most = self.flow(self.site, site).nbytes
            for part in (step.give, step.keep):
                yield site, sending_nbytes(self.comm, part.stop - part.start, 4, step.peer, most)

    def _trade(self, peer, given, taken, inbox=None):
        here, there = self.site, self.site_of_rank[peer]
        flows = self.flow(here, there), self.flow(there, here)
        trade(self.comm, given, peer, taken, peer, *flows, inbox)

    def _add_from(self, source, part):
        for _ in adding(self.comm, part, source, self.inbox):
            pass
