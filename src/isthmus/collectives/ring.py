"""Rings: every rank sends to its right neighbour and receives from its left one.

Bandwidth-optimal among ranks that are all alike (Patarasuk and Yuan 2009, "Bandwidth optimal
all-reduce algorithms for clusters of workstations"): each rank sends 2 (p - 1) / p of the vector.

All functions here are collective, work in place on a contiguous float32[n] of one length n on all p
ranks, and take any communicator that has `rank`, `size`, `Isend` and `Irecv` (for a vector on a
device: one from its `residence`). Part r of the vector
is `ring_part(n, p, r)`. Messages are at most `messages.PIECE_NBYTES` long. `inbox` is scratch,
float32[ring_inbox_entries(n, p)] or more; give the same one to every call and none allocates.
"""

import numpy as np

from isthmus.collectives.exact import Exact
from isthmus.collectives.messages import adding, inbox_entries, sending, sending_nbytes, wait_for
from isthmus.collectives.trading import AT_ONCE, trade
from isthmus.devices import library_of
from isthmus.links.world import Group


class Ring(Exact):
    """The exact sum of float32[size] over `comm`, on every rank, in place.

    ranks: those of `comm` in the order in which they follow one another; None: by their numbers.
    flow(here, there): the Flow between two sites; None: all at once.
    """

    def __init__(self, comm, site_of_rank, size, clock, empty=np.empty, ranks=None, flow=None):
        self.size, self.clock = size, clock
        order = list(range(comm.size) if ranks is None else ranks)
        self.comm = comm if order == sorted(order) else Group(comm, order)
        self.right = (self.comm.rank + 1) % comm.size
        left, here, self.right_site = (
            site_of_rank[order[(self.comm.rank + step) % comm.size]] for step in (-1, 0, 1)
        )
        self.takes, self.sends = (
            (flow(left, here), flow(here, self.right_site)) if flow else (AT_ONCE,) * 2
        )
        self.inbox = empty(inbox_entries(-(-size // comm.size)), "f4")

    def __call__(self, total):
        ring_reduce_scatter(self.comm, total, inbox=self.inbox, sends=self.sends, takes=self.takes)
        self.clock.lap("reduce")
        ring_all_gather(self.comm, total, sends=self.sends, takes=self.takes)
        self.clock.lap("broadcast")

    def predicted(self):
        """Yield (site, bytes) for each part that this rank sends in one call."""
        for step in range(self.comm.size - 1):
            for sent in (self.comm.rank - step - 1, self.comm.rank - step):
                part = ring_part(self.size, self.comm.size, sent)
                entries, most = part.stop - part.start, self.sends.nbytes
                yield self.right_site, sending_nbytes(self.comm, entries, 4, self.right, most)


def ring_part(size, ranks, rank):
    """Return the slice of `size` entries that is part `rank` (modulo `ranks`) of `ranks` parts.

    Parts differ by at most one entry; they are empty where there are more ranks than entries.
    """
    rank %= ranks
    return slice(size * rank // ranks, size * (rank + 1) // ranks)


def ring_inbox_entries(size, ranks):
    """Return the float32 entries of an inbox that serves every function here."""
    return inbox_entries(size if ranks > 1 else 0)


def ring_reduce(comm, vector, root=0, *, inbox=None):
    """Leave in `vector` on rank `root` the sum over all ranks; on the others it holds less.

    The rank after the root starts; each adds its own to what came and passes it on, piece by piece,
    so all work at once. A rank sends 4 n bytes, the root none. Raises ValueError if `vector`, `root`
    or `inbox` is wrong, before anything is sent. (The pipelined chain of Thakur, Rabenseifner and
    Gropp 2005, "Optimization of collective communication operations in MPICH".)
    """
    if not 0 <= root < comm.size:
        raise ValueError(f"root must be one of ranks 0 to {comm.size - 1}, not {root}")
    inbox = _checked(comm, vector, inbox, vector.size)
    left, right = _neighbours(comm)
    sent = []
    if comm.rank == (root + 1) % comm.size and comm.rank != root:
        sent = sending(comm, vector, right)
    elif comm.size > 1:
        for piece in adding(comm, vector, left, inbox):
            if comm.rank != root:
                sent += sending(comm, vector[piece], right)
    wait_for(sent)


def ring_reduce_scatter(comm, vector, *, inbox=None, sends=AT_ONCE, takes=AT_ONCE):
    """Leave in part `rank` of `vector` its sum over all ranks, and return that part, a view.

    The other parts hold less. A rank sends all parts but its own: (p - 1) / p of 4 n bytes where p
    divides n. sends, takes: the Flow to the right, and from the left. Raises ValueError if `vector` or
    `inbox` is wrong, before anything is sent. (The first half of Patarasuk and Yuan 2009.)
    """
    inbox = _checked(comm, vector, inbox, -(-vector.size // comm.size))
    left, right = _neighbours(comm)
    for step in range(comm.size - 1):  # each part gathers its sum
        outgoing = vector[ring_part(vector.size, comm.size, comm.rank - step - 1)]
        mine = vector[ring_part(vector.size, comm.size, comm.rank - step - 2)]
        trade(comm, outgoing, right, mine, left, sends, takes, inbox)
    return vector[ring_part(vector.size, comm.size, comm.rank)]


def ring_all_gather(comm, vector, *, sends=AT_ONCE, takes=AT_ONCE):
    """Overwrite each part of `vector` with that of the rank whose number it has.

    A rank sends all parts but that of its right neighbour. sends, takes: as in `ring_reduce_scatter`.
    Raises ValueError if `vector` is wrong, before anything is sent. (The second half of Patarasuk and
    Yuan 2009.)
    """
    _check_vector(vector)
    left, right = _neighbours(comm)
    for step in range(comm.size - 1):  # the finished parts go round
        outgoing = vector[ring_part(vector.size, comm.size, comm.rank - step)]
        arriving = vector[ring_part(vector.size, comm.size, comm.rank - step - 1)]
        trade(comm, outgoing, right, arriving, left, sends, takes)


def _neighbours(comm):
    return (comm.rank - 1) % comm.size, (comm.rank + 1) % comm.size


def _check_vector(vector):
    if vector.dtype != np.float32 or vector.ndim != 1 or not vector.flags.c_contiguous:
        raise ValueError(
            "vector must be a contiguous float32 of one dimension, not "
            f"{vector.dtype} of shape {vector.shape} and strides {vector.strides}"
        )


def _checked(comm, vector, inbox, largest):
    """Return the inbox for pieces of `largest` entries, a new one if none was given."""
    _check_vector(vector)
    needed = inbox_entries(largest) if comm.size > 1 else 0
    if inbox is None:
        return library_of(vector).empty(needed, np.float32)
    if inbox.dtype != np.float32 or inbox.ndim != 1 or inbox.size < needed:
        raise ValueError(
            f"inbox must be float32 of one dimension and {needed} entries or more, not "
            f"{inbox.dtype} of shape {inbox.shape}"
        )
    return inbox
