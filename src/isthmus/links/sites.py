"""Communicators over sites that are jobs of their own: MPI's inside a site, sockets between sites."""

import hmac
import secrets
import selectors
import socket
import struct
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from os import PathLike
from typing import Any

from mpi4py import MPI

from isthmus.cluster.cluster import Cluster
from isthmus.errors import SiteError
from isthmus.links.agreement import broadcast_json, gather_json, together
from isthmus.links.circle import COME_BACK, Circle
from isthmus.links.comm import Request
from isthmus.links.frames import HEADER_NBYTES
from isthmus.links.greeting import SECONDS_TO_GREET
from isthmus.links.meeting import MOST_AT_ONCE, Connections, Listener
from isthmus.links.socket_comm import LEADERS, TIER, WORLD, Endpoint, LostSitesError, SocketComm
from isthmus.links.succession import Succession
from isthmus.links.switch import Switch
from isthmus.links.tiers import Tiers, ready, world_of

_WORD = struct.Struct("!32sI")
"""What a rank tells its leader when it calls: the word that it was told, and its number."""


class SitesComm:
    """Ranks of several sites: MPI's `comm` has those of this one, an `Endpoint` reaches all others.

    ranks: the cluster rank of each. channel: of the endpoint's messages.
    """

    def __init__(self, comm: MPI.Comm, endpoint: Endpoint, channel: int, ranks: Sequence[int]):
        self.comm, self.endpoint = comm, endpoint
        self.far = SocketComm(endpoint, channel, ranks)
        self.rank, self.size = self.far.rank, self.far.size
        first = self.rank - comm.rank
        self.here = range(first, first + comm.size)

    def Isend(self, buffer: Any, dest: int, tag: int = 0) -> Request:  # noqa: N802
        if dest in self.here:
            return self.comm.Isend(buffer, dest - self.here.start, tag)
        return self.far.Isend(buffer, dest, tag)

    def Irecv(self, buffer: Any, source: int, tag: int = 0) -> Request:  # noqa: N802
        if source in self.here:
            return self.comm.Irecv(buffer, source - self.here.start, tag)
        return self.far.Irecv(buffer, source, tag)

    def Send(self, buffer: Any, dest: int, tag: int = 0) -> None:  # noqa: N802
        self.Isend(buffer, dest, tag).Wait()

    def Recv(self, buffer: Any, source: int, tag: int = 0) -> None:  # noqa: N802
        self.Irecv(buffer, source, tag).Wait()

    def overhead_nbytes(self, nbytes: int, dest: int) -> int:
        """Return by how many bytes a message grows: a frame's header, where it leaves the site."""
        return 0 if dest in self.here else self.far.overhead_nbytes(nbytes, dest)

    def Split(self, color: int, key: int = 0) -> MPI.Comm:  # noqa: N802
        """Return MPI's communicator of this site's ranks with `color`: others are not MPI's to reach."""
        return self.comm.Split(color, key)

    def Revoke(self) -> None:  # noqa: N802
        """Have every rank of this site raise that waits for another one of it."""
        if self.comm.size > 1:
            self.comm.Revoke()

    def Free(self) -> None:  # noqa: N802
        self.comm.Free()


@contextmanager
def tiers_of_sites(
    comm: MPI.Comm,
    cluster: Cluster,
    site: str,
    listens: str,
    connections: Connections | None,
    deadline_seconds: float | None,
    paced: bool = False,
    keys: str | PathLike[str] | None = None,
    door: Listener | None = None,
    generation: int | None = None,
    succession: Succession | None = None,
    late: Collection[str] = (),
) -> Iterator[Tiers]:
    """Give the tiers of a cluster each of whose sites is a job of its own; `comm` has those of `site`.

    listens: the site that the others have called; its first rank is the job's rank 0. connections: what
    `jobs.sites` gave the first rank of `comm`, None on the others. door: where sites come back, on the
    first rank of a site that listens. generation: where others are under way, how often members have
    changed. succession: on first ranks, where the hub may be another one. late: sites without which the
    others begin. Collective over all sites that are there. Raises as `tiers_of_rank_0` does.
    """
    circle = _connected(comm, cluster, site, listens, connections, deadline_seconds, late)
    circle.door, circle.succession = door, succession
    if generation is not None:
        cluster = Cluster(circle.enter(generation).cluster, cluster.source)
    elif late:
        cluster = cluster.without({*range(cluster.size)} - {*circle.ranks})
    tiers = tiers_of_circle(circle, cluster)
    if keys is not None:
        try:
            tiers = tiers.sealed_with(keys)
        except LostSitesError as problem:
            why = str(problem).partition(";")[0]
            raise SiteError(f"while this site came back: {why}; {COME_BACK}") from None
    with ready(tiers, paced) as tiers:
        yield tiers


def tiers_of_circle(circle: Circle, cluster: Cluster, made: list[Any] | None = None) -> Tiers:
    """Return the tiers of those who take part, `cluster`. Collective over this site.

    made: a list that is given each communicator as soon as there is one.
    """
    endpoint, ranks, made = circle.endpoint, circle.ranks, [] if made is None else made

    def dup():
        made.append(circle.comm.Dup())
        return made[-1]

    index = cluster.names.index(circle.site)
    everyone = SitesComm(dup(), endpoint, WORLD, ranks)
    own = dup()
    leaders: Any = MPI.COMM_NULL
    if own.rank == 0:
        first = [ranks[cluster.ranks_of_site(name)[0]] for name in cluster.names]
        leaders = SocketComm(endpoint, LEADERS, first)
    tier = cluster.sites[index].tier
    same = [rank for rank, of in zip(ranks, cluster.site_of_rank) if cluster.sites[of].tier == tier]
    mine: Any = SitesComm(dup(), endpoint, TIER, same)
    cluster = cluster.with_overhead(HEADER_NBYTES)
    return Tiers(
        cluster,
        world_of(cluster, everyone, own, leaders),
        own,
        leaders,
        cloud=mine if tier == "cloud" else MPI.COMM_NULL,
        edge=mine if tier == "edge" else MPI.COMM_NULL,
        tier=tier,
        site_name=circle.site,
        home=cluster.ranks_of_site(circle.listens)[0],
        circle=circle,
    )


def _connected(comm, cluster, site, listens, connections, deadline_seconds, late):
    """Return this rank's Circle, with the Switch of its site, started, on the first rank. Collective."""
    mine = cluster.ranks_of_site(site)
    elsewhere = [rank for rank in range(cluster.size) if rank not in mine]
    rank = mine[comm.rank]
    near = _sockets_to_leader(comm)
    if comm.rank != 0:
        endpoint = Endpoint(rank, [(near, f"the switch of site {site!r}", elsewhere)])
        return Circle(site, listens, cluster, comm, endpoint, None, {}, late)
    reached = {
        name: cluster.ranks_of_site(name) if site == listens else elsewhere for name in connections
    }
    own, inside = socket.socketpair()
    peers = [
        (parts["leaders"], f"site {name!r}", cluster.ranks_of_site(name)[:1])
        for name, parts in connections.items()
    ]
    endpoint = Endpoint(rank, [*peers, (own, f"the switch of site {site!r}", elsewhere)])
    switch = Switch(
        {rank: inside} | {mine[local]: connection for local, connection in near.items()},
        {name: (parts["switch"], reached[name]) for name, parts in connections.items()},
        endpoint.streams[:-1],
        deadline_seconds,
    )
    switch.start()
    direct = dict(zip(connections, endpoint.streams))
    return Circle(site, listens, cluster, comm, endpoint, switch, direct, late)


def _sockets_to_leader(comm):
    """Return the connection to the first rank of `comm`, and there those to all others, by rank.

    Whoever else calls does not know the word that the first rank has told the others. Collective.
    """
    if comm.size == 1:
        return {}
    hosts = gather_json(comm, MPI.Get_processor_name())
    server = told = None
    if comm.rank == 0:
        server = socket.create_server(("127.0.0.1" if len({*hosts}) == 1 else "", 0), backlog=comm.size)
        told = [server.getsockname()[1], secrets.token_hex(32)]
    port, word = broadcast_json(comm, told)
    host = "127.0.0.1" if hosts[0] == hosts[comm.rank] else hosts[0]
    end = time.monotonic() + SECONDS_TO_GREET

    def connect():
        if comm.rank == 0:
            return _those_who_call(server, comm.size - 1, word, end)
        try:
            connection = socket.create_connection((host, port), timeout=SECONDS_TO_GREET)
            connection.sendall(_WORD.pack(bytes.fromhex(word), comm.rank))
        except OSError as problem:
            raise SiteError(
                f"{host}:{port}: the site's first rank cannot be reached from {hosts[comm.rank]}: "
                f"{problem.strerror or problem}; look at the network inside the site"
            ) from None
        return connection

    try:
        return together(comm, connect)
    finally:
        if server is not None:
            server.close()


def _those_who_call(server, count, word, end):
    """Return rank -> connection of so many ranks that know the word; nobody waits for others.

    end: until when, on `time.monotonic`. SiteError where not all have called by then.
    """
    found: dict[int, socket.socket] = {}
    heard: dict[socket.socket, bytes] = {}  # of those who have called, what each has said so far

    def hang_up(connection):
        watch.unregister(connection)
        del heard[connection]
        connection.close()

    with selectors.DefaultSelector() as watch:
        watch.register(server, selectors.EVENT_READ)
        while len(found) < count and (left := end - time.monotonic()) > 0:
            for connection in [key.fileobj for key, _ in watch.select(left)]:
                if connection is server:
                    if len(heard) > count + MOST_AT_ONCE:
                        hang_up(next(iter(heard)))  # who has called first
                    with suppress(OSError):  # it has hung up
                        caller, _ = server.accept()
                        caller.setblocking(False)
                        watch.register(caller, selectors.EVENT_READ)
                        heard[caller] = b""
                elif connection in heard:
                    more = _more(connection, _WORD.size - len(heard[connection]))
                    heard[connection] += more
                    if not more:
                        hang_up(connection)
                    elif len(heard[connection]) == _WORD.size:
                        said, rank = _WORD.unpack(heard[connection])
                        if hmac.compare_digest(said, bytes.fromhex(word)):
                            found[rank] = connection.dup()
                        hang_up(connection)
        for connection in [*heard]:
            hang_up(connection)
    if len(found) == count:
        return found
    for connection in found.values():
        connection.close()
    raise SiteError(
        f"{count - len(found)} ranks of this site did not reach their first rank within "
        f"{SECONDS_TO_GREET:.0f} s; look at the network inside the site"
    )


def _more(connection, nbytes):
    """Return what has come, none once the other end has closed it."""
    try:
        return connection.recv(nbytes)
    except OSError:
        return b""
