"""Who takes part in a job of several sites while sites go and come, as every rank knows it.

Where a site is gone, everybody who waits for it, or for one that waits for it, is woken: by sockets that
close, by what leaders and switches say, and inside a site by MPI. Then each site tells the one that
listens, the hub, how far it has come; that one decides who goes on, and after which step. It alone
decides, so there is one answer; a site that does not hear it is not among those who go on.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mpi4py import MPI

from isthmus.cluster.cluster import Cluster
from isthmus.errors import SiteError
from isthmus.links.agreement import from_root, gather_json
from isthmus.links.frames import Stream
from isthmus.links.meeting import Listener
from isthmus.links.socket_comm import Endpoint, LostSitesError
from isthmus.links.switch import Switch
from isthmus.links.world import barrier

SECONDS_TO_LISTEN = 0.05
"""Before looking again whether those who are waited for are there; what they say is heard at once."""
COME_BACK = "start this site again with the same command, and it takes part again"


@dataclass(frozen=True)
class Decision:
    """What the hub has decided. ranks: those who go on, by their numbers in the first cluster, in order.

    cluster: of them, the table of a cluster file. step: after which they go on; redo: whether what is
    due after it is to be done again.
    """

    generation: int
    ranks: list[int]
    cluster: dict[str, Any]
    step: int
    redo: bool


class Circle:
    """This rank's site among the others. One a rank, for as long as the job lives.

    site, listens: this site, and the hub, by name. cluster: the first one, whose numbers of ranks stay
    what they are on sockets. comm: MPI's, of this site's ranks that are left. direct: site -> the
    leader's stream to its leader; empty off the leaders, and of an edge the hub alone. ranks: those who
    take part.
    """

    def __init__(
        self,
        site: str,
        listens: str,
        cluster: Cluster,
        comm: MPI.Comm,
        endpoint: Endpoint,
        switch: Switch | None,
        direct: dict[str, Stream],
    ):
        self.site, self.listens, self.cluster, self.comm = site, listens, cluster, comm
        self.endpoint, self.switch, self.direct = endpoint, switch, direct
        self.ranks: Sequence[int] = range(cluster.size)
        self.door: Listener | None = None  # where sites come back, on the hub's leader
        self.entered: Decision | None = None  # by which this site came back
        self._to_switch = endpoint.streams[-1]
        self.endpoint.sites = cluster.names

    @property
    def is_hub(self) -> bool:
        """Whether this site's leader decides."""
        return self.site == self.listens

    def survive(self) -> None:
        """Have this site go on where others are gone."""
        self.endpoint.survives = True
        if self.switch is not None:
            self.switch.survives = True

    def wake(self) -> None:
        """Have every rank of this site raise where it waits for other sites."""
        self.endpoint.say(self._to_switch, {"generation": self.endpoint.generation})

    def settle(self, step: int, done: bool) -> Decision:
        """Return what the hub decides, once all ranks that are left of this site ask. Collective there.

        step: the last one that this rank has ended; done: whether what is due after it is done, too.
        Raises SiteError on every rank where this site does not go on, MPI.Exception where a rank of it
        dies meanwhile.
        """
        first = self.cluster.ranks_of_site(self.site)[0]
        if self.comm.size > 1:
            self.comm = self.comm.Shrink()
            self.comm.Set_errhandler(MPI.ERRORS_RETURN)
        points = gather_json(self.comm, [self.endpoint.rank, step, done])
        if points[0][0] != first:
            raise SiteError(
                f"the first rank of site {self.site!r} is gone, and so is the site; {COME_BACK}"
            )
        change = Decision(
            **from_root(self.comm, lambda: self._decide(points) if self.is_hub else self._ask(points))
        )
        self._take(change)
        return change

    def enter(self, generation: int) -> Decision:
        """Return the Decision by which this site comes back. Collective over this site.

        generation: how often members have changed before.
        """
        self.survive()
        self.endpoint.generation = generation
        self.entered = Decision(**from_root(self.comm, self._hear))
        self._take(self.entered)
        return self.entered

    def look(self) -> None:
        """Raise LostSitesError where a site waits to take part: then it does."""
        if self.door is not None and self.door.ready:
            raise LostSitesError("a site has come back")

    def _take(self, change):
        self.ranks = change.ranks
        self.endpoint.sites = [site["name"] for site in change.cluster["site"]]
        self.endpoint.renew(change.generation)

    def close(self) -> None:
        """Say good-bye to all other sites. Collective over this site."""
        self.endpoint.finish()
        barrier(self.comm)
        if self.switch is not None:
            self.switch.close()

    def _decide(self, points):
        """Return the Decision, as JSON, once all sites that are left have said how far they are."""
        endpoint, said = self.endpoint, {self.site: points}
        for stream in self.direct.values():
            endpoint.say(stream, {"generation": endpoint.generation})
        while any(self._lives(site) and site not in said for site in self.direct):
            if (heard := endpoint.hear("points", SECONDS_TO_LISTEN)) is not None:
                for site in [name for name, each in self.direct.items() if each is heard[0]]:
                    said[site] = heard[1]["points"]
        for site in [site for site in self.direct if not self._lives(site)]:
            self._leave_out(site)
            said.pop(site, None)
        points = sorted(point for each in said.values() for point in each)
        ranks = [rank for rank, *_ in points]
        step, done = min((step, done) for _, step, done in points)
        if ranks == [*self.ranks]:  # else the next time, as who is new takes from all that were
            ranks = sorted(ranks + self._let_in())
        gone = {*range(self.cluster.size)} - {*ranks}
        change = {
            "generation": endpoint.generation + 1,
            "ranks": ranks,
            "cluster": (self.cluster.without(gone) if gone else self.cluster).to_table(),
            "step": step,
            "redo": not done,
        }
        for stream in self.direct.values():
            endpoint.say(stream, change)
        return change

    def _ask(self, points):
        """Return the Decision that the hub tells, as JSON, once it has heard how far this site is."""
        endpoint = self.endpoint
        words = {"generation": endpoint.generation, "points": points}
        endpoint.say(self.direct[self.listens], words)
        return self._hear()

    def _hear(self):
        """Return the Decision that the hub tells, as JSON."""
        hub = self.direct[self.listens]
        while self._lives(self.listens):
            if (heard := self.endpoint.hear("ranks", SECONDS_TO_LISTEN)) is not None:
                return heard[1]
        raise SiteError(
            f"{hub.reason or f'{hub.who} has gone, or goes on without this site'}; where it goes on, "
            f"{COME_BACK}"
        )

    def _let_in(self):
        """Have sites that wait take part; return their ranks."""
        came: list[int] = []
        for site in self.door.ready if self.door is not None else ():
            assert self.switch is not None
            ranks = self.cluster.ranks_of_site(site)
            parts = self.door.take(site, self.endpoint.generation)
            stream = self.endpoint.add(parts["leaders"], f"site {site!r}", ranks[:1])
            self.switch.add(site, parts["switch"], ranks, stream)
            self.direct[site] = stream
            came += ranks
        return came

    def _lives(self, site):
        stream = self.direct[site]
        return stream in self.endpoint.streams and not stream.ended

    def _leave_out(self, site):
        self.endpoint.lose(self.direct.pop(site))
        assert self.switch is not None
        self.switch.forget(site)
