"""Who takes part in a job of several sites while sites go and come, as every rank knows it.

Where a site is gone, everybody who waits for it, or for one that waits for it, is woken: by sockets that
close, by what leaders and switches say, and inside a site by MPI. Then each site tells the hub, the one
that listens, how far it has come; that one decides who goes on, and after which step. It alone
decides, so there is one answer; a site that does not hear it is not among those who go on. Where others
may be the next hub, it decides by the votes of those who are left, as `quorum` has it.
"""

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from mpi4py import MPI

from isthmus.cluster.cluster import Cluster
from isthmus.errors import SiteError
from isthmus.links.agreement import from_root, gather_json
from isthmus.links.frames import Stream
from isthmus.links.greeting import start_of
from isthmus.links.meeting import Listener
from isthmus.links.quorum import Vote, earliest, may_let_in, next_number
from isthmus.links.socket_comm import Endpoint, LostSitesError
from isthmus.links.succession import Succession
from isthmus.links.switch import Switch
from isthmus.links.world import barrier

SECONDS_TO_LISTEN = 0.05
"""Before looking again whether those who are waited for are there; what they say is heard at once."""
COME_BACK = "start this site again with the same command, and it takes part again"


@dataclass(frozen=True)
class Decision:
    """What the hub has decided. ranks: those who go on, by their numbers in the first cluster, in order.

    cluster: of them, the table of a cluster file. step: after which they go on; redo: whether what is
    due after it is to be done again. hub: the site that has decided; members: [site, start] of those who
    go on. stops: whether they are too few, and only write down how far they are.
    """

    generation: int
    ranks: list[int]
    cluster: dict[str, Any]
    step: int
    redo: bool
    hub: str
    members: list[list[str]]
    stops: bool


class Circle:
    """This rank's site among the others. One a rank, for as long as the job lives.

    site, listens: this site, and the hub, by name. cluster: the first one, whose numbers of ranks stay
    what they are on sockets. comm: MPI's, of this site's ranks that are left. direct: site -> the
    leader's stream to its leader; empty off the leaders, and of an edge the hub alone. late: sites
    without which the others begin. ranks: those who take part. door: where sites come back, on the
    leader of one that listens. succession: on leaders, where the hub may be another one; else None.
    stops: whether too few are left.
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
        late: Collection[str] = (),
    ):
        self.site, self.listens, self.cluster, self.comm = site, listens, cluster, comm
        self.endpoint, self.switch, self.direct = endpoint, switch, direct
        self.ranks: Sequence[int] = [
            rank for rank, index in enumerate(cluster.site_of_rank) if cluster.names[index] not in late
        ]
        self.door: Listener | None = None
        self.succession: Succession | None = None
        self.members: list[list[str]] = []  # (site, start), since the last change
        self.taken = self.promised = 0  # the last change, and the highest that was voted for
        self.came: list[str] = []  # sites that the last change has let in, until all have made their job
        self.stops = False
        self.entered: Decision | None = None  # by which this site came back
        self._to_switch = endpoint.streams[-1]
        self._number_of = dict.fromkeys(direct, 0)  # of the connection to a site
        self.endpoint.connections = dict.fromkeys(cluster.names, 0)

    @property
    def absent(self) -> list[str]:
        """The sites of the cluster file that do not take part."""
        here = self._sites()
        return [name for name in self.cluster.names if name not in here]

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

        def decide():
            change = self._agreed(points)
            return [change, {site: self._number_of[site] for site in self.direct}]

        told, self.endpoint.connections = from_root(self.comm, decide)
        change = Decision(**told)
        self._take(change)
        return change

    def _agreed(self, points):
        """Return the Decision of the hub, or of the next one, as JSON."""
        while True:
            change = self._decide(points) if self.is_hub else self._ask(points)
            if change is not None:
                return change
            self._move()

    def enter(self, generation: int) -> Decision:
        """Return the Decision by which this site comes back. Collective over this site.

        generation: how often members have changed before.
        """
        self.survive()
        self.endpoint.generation = generation

        def hear():
            if (change := self._hear()) is None:
                raise SiteError(f"the hub has gone as this site came back; {COME_BACK}")
            return change

        self.entered = Decision(**from_root(self.comm, hear))
        self._take(self.entered)
        return self.entered

    def look(self) -> None:
        """Raise LostSitesError where a site waits to take part: then it does."""
        if self.door is not None and self.door.ready:
            raise LostSitesError("a site has come back")

    def part_from(self, sites: Collection[str], seconds: float = 0.0) -> bool:
        """Leave out sites that live, as the hub's first rank; return whether there are any.

        seconds: for which they may end by themselves first. Another site's first rank waits as long for
        the hub to ask how far all are: who asks it sooner has it hear that instead of why they go.
        """
        here = [site for site in sites if site in self.direct] if self.is_hub else []
        asks = not self.is_hub and self.listens in self.direct
        end = time.monotonic() + seconds
        while (
            any(map(self._lives, here)) or (asks and self.endpoint.broken is None)
        ) and time.monotonic() < end:
            self.endpoint.progress(SECONDS_TO_LISTEN, settling=True)
        for site in here:
            self._leave_out(site)
        return bool(here)

    def site_of(self, rank: int) -> str:
        """Return the site of a rank, by its number among those who take part."""
        return self.cluster.names[self.cluster.site_of_rank[self.ranks[rank]]]

    def _take(self, change):
        before = self._sites()
        self.ranks, self.listens, self.stops = change.ranks, change.hub, change.stops
        self.members, self.taken = change.members, change.generation
        self.promised = max(self.promised, change.generation)
        if self.door is not None:
            self.door.is_hub = self.is_hub and not change.stops
            self.door.members = {(site, start) for site, start in change.members}
        self.came = [site["name"] for site in change.cluster["site"] if site["name"] not in before]
        self.endpoint.renew(change.generation)

    def close(self) -> None:
        """Say good-bye to all other sites. Collective over this site."""
        self.endpoint.finish()
        barrier(self.comm)
        if self.switch is not None:
            self.switch.close()

    def _decide(self, points):
        """Return the Decision, as JSON, once all sites that are left have said how far they are."""
        endpoint, said, taken = self.endpoint, {self.site: points}, {self.site: self.taken}
        for stream in self.direct.values():
            endpoint.say(stream, {"generation": endpoint.generation})
        while any(self._lives(site) and site not in said for site in self.direct):
            if (heard := endpoint.hear("points", SECONDS_TO_LISTEN)) is not None:
                for site in [name for name, each in self.direct.items() if each is heard[0]]:
                    said[site], taken[site] = heard[1]["points"], heard[1]["taken"]
        for site in [site for site in self.direct if not self._lives(site)]:
            self._leave_out(site)
            said.pop(site, None)
        stops = self.succession is not None and not self.succession.quorum.is_reached(said)
        points = sorted(point for each in said.values() for point in each)
        ranks = [rank for rank, *_ in points]
        step, done = earliest([(step, done) for _, step, done in points])
        if (
            not stops
            and ranks == [*self.ranks]  # else the next time, as who is new takes from all that were
            and may_let_in([taken[site] for site in said], self._sites(), said)
        ):
            ranks = sorted(ranks + self._let_in())
        gone = {*range(self.cluster.size)} - {*ranks}
        change = {
            "generation": endpoint.generation + 1,
            "ranks": ranks,
            "cluster": (self.cluster.without(gone) if gone else self.cluster).to_table(),
            "step": step,
            "redo": not done,
            "hub": self.site,
            "members": self._starts(),
            "stops": stops,
        }
        for stream in self.direct.values():
            endpoint.say(stream, change)
        return change

    def _ask(self, points):
        """Return the Decision that the hub tells, as JSON, once it has heard how far this site is."""
        endpoint = self.endpoint
        self.promised = max(self.promised, next_number([endpoint.generation]))
        words = {"generation": endpoint.generation, "points": points, "taken": self.taken}
        endpoint.say(self.direct[self.listens], words)
        return self._hear()

    def _hear(self):
        """Return the Decision that the hub tells, as JSON; None where the next hub is to be found."""
        hub = self.direct[self.listens]
        while self._lives(self.listens):
            heard = self.endpoint.hear("ranks", SECONDS_TO_LISTEN)
            if heard is not None and heard[0] is hub:  # nobody else decides
                return heard[1]
        if self.succession is not None:
            return None
        raise SiteError(
            f"{hub.reason or f'{hub.who} has gone, or goes on without this site'}; where it goes on, "
            f"{COME_BACK}"
        )

    def _move(self):
        """Find the next hub, and talk to it, or as it to those who have called."""
        succession, endpoint = self.succession, self.endpoint
        assert succession is not None
        assert self.switch is not None
        for site in [*self.direct]:
            self._leave_out(site)
        members = frozenset((site, start) for site, start in self.members)
        vote = Vote(self.site, succession.me.start, self.taken, members, self.promised)
        self.listens, number, connections = succession.next_hub(
            vote, self.listens, self._sites(), self.switch.deadline_seconds
        )
        mine = self.cluster.ranks_of_site(self.site)
        elsewhere = [rank for rank in range(self.cluster.size) if rank not in mine]
        endpoint.reach(elsewhere, self._to_switch)
        for site, parts in connections.items():
            self._connect(site, parts, self.cluster.ranks_of_site(site) if self.is_hub else elsewhere)
        self.promised, endpoint.generation = number, number - 1

    def _connect(self, site, parts, ranks):
        """Talk to another site's leader, and reach these ranks through its switch."""
        assert self.switch is not None
        first = self.cluster.ranks_of_site(site)[:1]
        stream = self.endpoint.add(parts["leaders"], f"site {site!r}", first)
        self.endpoint.reach(first, stream)
        self._number_of[site] = self.switch.add(site, parts["switch"], ranks, stream)
        self.direct[site] = stream

    def _sites(self):
        """Return the names of the sites that take part, in the order of the cluster file."""
        names = {self.cluster.names[self.cluster.site_of_rank[rank]] for rank in self.ranks}
        return [name for name in self.cluster.names if name in names]

    def _starts(self):
        """Return [site, start] of this site and of those that it is the hub of."""
        if self.succession is None:
            return []
        door = self.succession.door
        return [[self.site, self.succession.me.start]] + [
            [site, start_of(door.hello_of(site)["session"])] for site in self.direct
        ]

    def _let_in(self):
        """Have sites that wait take part; return their ranks."""
        came: list[int] = []
        for site in self.door.ready if self.door is not None else ():
            ranks = self.cluster.ranks_of_site(site)
            if (parts := self.door.take(site, self.endpoint.generation)) is not None:
                self._connect(site, parts, ranks)
                came += ranks
        return came

    def _lives(self, site):
        stream = self.direct[site]
        return stream in self.endpoint.streams and not stream.ended

    def _leave_out(self, site):
        self.endpoint.lose(self.direct.pop(site))
        assert self.switch is not None
        self.switch.forget(site)
