"""All ranks of a job, and what they do together: inside a site first, and then between leaders.

MPI's own collectives may do what stays inside a site. What crosses sites is sent by the verbs of the
leaders' communicator, so that whatever wraps it wraps this too.
"""

import itertools

import numpy as np

from isthmus.topology.comm import Comm, Wrapped

TOGETHER = 78
"""Tag of what ranks tell each other beside their work: paced links let it pass, or their own
instruments would be what a paced run waits for."""


class World(Wrapped):
    """All ranks: messages between any two of them by the verbs, and the ways of what all do together.

    site: MPI's communicator of this rank's site.
    leaders: that of the first rank of each site; None off the leaders, and where there is one site.
    site_of_rank: number of the site of every rank.
    hub: the site whose leader gathers for all others.
    """

    lets_past = True

    def __init__(self, comm: Comm, site, leaders, site_of_rank, hub=0):
        super().__init__(comm)
        self.Isend, self.Irecv, self.Send, self.Recv = comm.Isend, comm.Irecv, comm.Send, comm.Recv
        self.site, self.leaders, self.hub = site, leaders, hub
        self.site_index = site_of_rank[self.rank]
        self.ranks_of_site = [[] for _ in range(max(site_of_rank) + 1)]
        self.place_of_rank = []  # (site, number in it) of every rank
        for rank, site_number in enumerate(site_of_rank):
            self.place_of_rank.append((site_number, len(self.ranks_of_site[site_number])))
            self.ranks_of_site[site_number].append(rank)

    @classmethod
    def of(cls, comm):
        """Return `comm` if it is a World, or one of a communicator whose sites nobody knows yet."""
        return comm if isinstance(comm, cls) else cls(comm, comm, None, [0] * comm.size)


def broadcast(comm, array, root=0):
    """Overwrite the contiguous `array` on every rank with that of `root`. Collective."""
    world = World.of(comm)
    home, place = world.place_of_rank[root]
    if world.site_index == home:
        world.site.Bcast(array, place)
    if world.leaders is not None:
        _tell_leaders(world.leaders, array, home)
    if world.site_index != home:
        world.site.Bcast(array, 0)


def gather(comm, array, root=0):
    """Return [array of each rank] on `root`, in rank order, and None elsewhere. Collective.

    The arrays are of one dtype; their first dimension may differ from rank to rank.
    """
    world = World.of(comm)
    home, place = world.place_of_rank[root]
    counts, rows = _gather_at_leader(world, np.ascontiguousarray(array), home)
    if place and world.site_index == home:  # from the leader to the root beside it
        if world.site.rank == 0:
            _send(world.site, counts, rows, place)
        elif world.rank == root:
            counts, rows = _receive(world.site, 0, world.size, array)
    return _parts(counts, rows) if world.rank == root else None


def all_gather(comm, array):
    """Return [array of each rank] on every rank, in rank order. Collective.

    The arrays are of one dtype; their first dimension may differ from rank to rank.
    """
    world = World.of(comm)
    root = world.ranks_of_site[world.hub][0]
    counts, rows = _gather_at_leader(world, np.ascontiguousarray(array), world.hub)
    if world.rank != root:
        counts = np.empty(world.size, np.int64)
    broadcast(world, counts, root)
    if world.rank != root:
        rows = _room(counts, array)
    broadcast(world, rows, root)
    return _parts(counts, rows)


def maximum(comm, numbers):
    """Return the largest of all ranks' float64 `numbers`, entry by entry, on every rank. Collective."""
    return np.max(all_gather(comm, np.asarray(numbers, np.float64)[None]), axis=(0, 1))


def barrier(comm):
    """Return when every rank has called this. Collective."""
    all_gather(comm, np.empty(0, np.uint8))


def _gather_at_leader(world, own, home):
    """Return the numbers of rows of all ranks, and these rows, on the leader of site `home` alone."""
    site = world.site
    counts = np.empty(site.size, np.int64)
    site.Allgather(np.array([len(own)], np.int64), counts)
    rows = _room(counts, own)
    nbytes = counts * (rows.nbytes // max(1, len(rows)))
    site.Gatherv(own.reshape(-1).view(np.uint8), [rows.reshape(-1).view(np.uint8), nbytes], 0)
    if world.leaders is None:
        return counts, rows
    if world.site_index != home:
        _send(world.leaders, counts, rows, home)
        return None, None
    parts = {}
    for number, ranks in enumerate(world.ranks_of_site):
        came = counts, rows
        if number != home:
            came = _receive(world.leaders, number, len(ranks), own)
        parts.update(zip(ranks, _parts(*came)))
    ordered = [parts[rank] for rank in range(world.size)]
    return np.array([len(part) for part in ordered], np.int64), np.concatenate(ordered)


def _tell_leaders(leaders, array, home):
    """Overwrite `array` on every leader with that of leader `home`."""
    if leaders.rank != home:
        leaders.Recv(array, home, TOGETHER)
        return
    for request in [leaders.Isend(array, other, TOGETHER) for other in range(leaders.size)
                    if other != home]:
        request.Wait()


def _send(comm, counts, rows, target):
    comm.Send(counts, target, TOGETHER)
    comm.Send(rows, target, TOGETHER)


def _receive(comm, source, ranks, like):
    """Return what a rank sends of `ranks` ranks: their numbers of rows, and the rows."""
    counts = np.empty(ranks, np.int64)
    comm.Recv(counts, source, TOGETHER)
    rows = _room(counts, like)
    comm.Recv(rows, source, TOGETHER)
    return counts, rows


def _room(counts, like):
    """Return an array for so many rows of each rank, of the dtype and the shape of those of `like`."""
    return np.empty((counts.sum(), *like.shape[1:]), like.dtype)


def _parts(counts, rows):
    """Return the rows of each rank."""
    ends = np.cumsum(counts).tolist()
    return [rows[first:last] for first, last in itertools.pairwise([0, *ends])]
