"""All ranks of a job, and what they do together: inside a site first, and then between leaders.

MPI's own collectives may do what stays inside a site. What crosses sites is sent by the verbs of the
leaders' communicator, so that whatever wraps it wraps this too.
"""

import math
from collections.abc import Sequence
from typing import Any, Self

import numpy as np

from isthmus.links.comm import Comm, Request, Wrapped, bytes_of, parts_of

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

    def __init__(
        self, comm: Comm, site: Any, leaders: Comm | None, site_of_rank: Sequence[int], hub: int = 0
    ):
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
    def of(cls, comm: Comm) -> Self:
        """Return `comm` if it is a World, or one of a communicator whose sites nobody knows yet."""
        return comm if isinstance(comm, cls) else cls(comm, comm, None, [0] * comm.size)


class Group(Wrapped):
    """Some ranks of a communicator, or all, in an order of their own, on the same verbs.

    Rank r of it is rank `ranks[r]` of `comm`. What wraps that wraps this.
    """

    def __init__(self, comm: Comm, ranks: Sequence[int]):
        super().__init__(comm)
        self.ranks, self.rank, self.size = ranks, ranks.index(comm.rank), len(ranks)

    def Isend(self, buffer: Any, dest: int, tag: int = 0) -> Request:  # noqa: N802
        return self.comm.Isend(buffer, self.ranks[dest], tag)

    def Irecv(self, buffer: Any, source: int, tag: int = 0) -> Request:  # noqa: N802
        return self.comm.Irecv(buffer, self.ranks[source], tag)

    def overhead_nbytes(self, nbytes: int, dest: int) -> int:
        return super().overhead_nbytes(nbytes, self.ranks[dest])


def broadcast(comm: Comm, array: np.ndarray, root: int = 0) -> None:
    """Overwrite the contiguous `array` on every rank with that of `root`. Collective."""
    world = World.of(comm)
    home, place = world.place_of_rank[root]
    for part in parts_of(array):
        if world.site_index == home:
            world.site.Bcast(part, place)
        if world.leaders is not None:
            _tell_leaders(world.leaders, part, home)
        if world.site_index != home:
            world.site.Bcast(part, 0)


def gather(comm: Comm, array: np.ndarray, root: int = 0) -> list[np.ndarray] | None:
    """Return [array of each rank] on `root`, in rank order, and None elsewhere. Collective.

    The arrays are of one shape and dtype.
    """
    world = World.of(comm)
    return _gather(world, np.ascontiguousarray(array), [len(array)] * world.size, root)


def gather_rows(comm: Comm, array: np.ndarray, root: int = 0) -> list[np.ndarray] | None:
    """Return what `gather` does, of arrays whose first dimension may differ. Collective."""
    world = World.of(comm)
    return _gather(world, np.ascontiguousarray(array), _counts(world, array), root)


def all_gather(comm: Comm, array: np.ndarray) -> list[np.ndarray]:
    """Return [array of each rank] on every rank, in rank order. Collective.

    The arrays are of one shape and dtype.
    """
    world = World.of(comm)
    return _all_gather(world, np.ascontiguousarray(array), [len(array)] * world.size)


def all_gather_rows(
    comm: Comm, array: np.ndarray, counts: Sequence[int] | None = None
) -> list[np.ndarray]:
    """Return what `all_gather` does, of arrays whose first dimension may differ. Collective.

    counts: what that is on each rank, where all know it.
    """
    world = World.of(comm)
    counts = _counts(world, array) if counts is None else counts
    return _all_gather(world, np.ascontiguousarray(array), counts)


def maximum(comm: Comm, numbers: Sequence[float] | np.ndarray) -> np.ndarray:
    """Return the largest of all ranks' float64 `numbers`, entry by entry, on every rank. Collective."""
    return np.max(all_gather(comm, np.asarray(numbers, np.float64)), axis=0)


def barrier(comm: Comm) -> None:
    """Return when every rank has called this. Collective."""
    all_gather(comm, np.empty(1, np.uint8))


def _counts(world, array):
    """Return the rows of each rank's array, on every rank."""
    return np.concatenate(all_gather(world, np.array([len(array)]))).tolist()


def _gather(world, own, counts, root):
    home, place = world.place_of_rank[root]
    # In the root's site all goes to the root at once, but for what its leader has from other sites.
    rows = _gather_in_site(world, own, counts, place if world.site_index == home else 0)
    if world.site_index != home:
        if world.leaders is not None:
            world.leaders.Send(rows, home, TOGETHER)
        return None
    others = [site for site in range(len(world.ranks_of_site)) if site != home]
    came = {home: rows}
    for site in others:
        came[site] = _room(world, own, counts, site)
        if world.leaders is not None:
            world.leaders.Recv(came[site], site, TOGETHER)
            if place:
                world.site.Send(came[site], place, TOGETHER)
        elif world.rank == root:
            world.site.Recv(came[site], 0, TOGETHER)
    return _of_ranks(world, came, counts) if world.rank == root else None


def _all_gather(world, own, counts):
    sites = range(len(world.ranks_of_site))
    came = {site: _room(world, own, counts, site) for site in sites}
    if len(sites) == 1:
        world.site.Allgatherv(bytes_of(own), [bytes_of(came[0]), _nbytes(world, own, counts, 0)])
        return _of_ranks(world, came, counts)
    came[world.site_index] = _gather_in_site(world, own, counts, 0)
    if world.leaders is not None:
        _swap_between_leaders(world, came)
    for site in sites:
        if site != world.site_index or world.site.size > 1:
            world.site.Bcast(came[site], 0)
    return _of_ranks(world, came, counts)


def _swap_between_leaders(world, came):
    """Fill `came`, site -> rows, of which a leader has its own: two directly, more through the hub."""
    leaders, hub, own = world.leaders, world.hub, world.site_index
    if leaders.size == 2 or own == hub:
        others = [site for site in came if site != own]
        sent = [leaders.Isend(came[own], other, TOGETHER) for other in others]
        for other in others:
            leaders.Recv(came[other], other, TOGETHER)
        sent += [
            leaders.Isend(came[site], other, TOGETHER)
            for other in others
            for site in others
            if site != other
        ]
    else:
        sent = [leaders.Isend(came[own], hub, TOGETHER)]
        for site in (hub, *(site for site in came if site not in (own, hub))):
            leaders.Recv(came[site], hub, TOGETHER)
    for request in sent:
        request.Wait()


def _tell_leaders(leaders, array, home):
    """Overwrite `array` on every leader with that of leader `home`."""
    if leaders.rank != home:
        leaders.Recv(array, home, TOGETHER)
        return
    for request in [
        leaders.Isend(array, other, TOGETHER) for other in range(leaders.size) if other != home
    ]:
        request.Wait()


def _gather_in_site(world, own, counts, place):
    """Return the rows of this site's ranks on number `place` of them; junk on the others."""
    site = world.site
    rows = _room(world, own, counts, world.site_index)
    site.Gatherv(bytes_of(own), [bytes_of(rows), _nbytes(world, own, counts, world.site_index)], place)
    return rows


def _room(world, like, counts, site):
    """Return an array for the rows of a site's ranks, each as those of `like`."""
    rows = sum(counts[rank] for rank in world.ranks_of_site[site])
    return np.empty((rows, *like.shape[1:]), like.dtype)


def _nbytes(world, like, counts, site):
    """Return the bytes of each of a site's ranks."""
    of_row = like.itemsize * math.prod(like.shape[1:])
    return [counts[rank] * of_row for rank in world.ranks_of_site[site]]


def _of_ranks(world, came, counts):
    """Return the rows of each rank, from those of each site."""
    parts = [None] * world.size
    for site, ranks in enumerate(world.ranks_of_site):
        first = 0
        for rank in ranks:
            parts[rank] = came[site][first : first + counts[rank]]
            first += counts[rank]
    return parts
