"""One site of a run as a job of its own, which listens for the others or calls the one that does."""

import ipaddress
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from hashlib import sha256
from typing import TYPE_CHECKING, NamedTuple

from isthmus.collectives.warm_up import load_kernels
from isthmus.errors import ClusterError, SecurityError, SettingsError
from isthmus.json_text import dumps
from isthmus.links.agreement import from_root
from isthmus.links.frames import checksum
from isthmus.links.greeting import Introduction
from isthmus.links.joining import join, join_one_under_way
from isthmus.links.meeting import Address, Listener, in_words
from isthmus.links.quorum import Quorum
from isthmus.registry import ALGORITHMS
from isthmus.security.admission import SiteKeys, Token, read_token
from isthmus.security.key_files import read_private

if TYPE_CHECKING:
    from isthmus.links.tiers import Tiers

PATHS = {
    "cluster": ("file",),
    "data": ("train", "test", "validation"),
    "model": ("folder",),
    "security": ("keys", "token"),
    "clients": ("speeds", "available"),
    "run": ("folder",),
}
"""Of the settings, the paths, which each site has of its own."""
OTHERWISE = ("run", "slurm", "recovery")
"""Sections that may differ: those of the hub count, but for `wait_seconds` and `[slurm]`."""


class SiteJob(NamedTuple):
    """This job's site, the address where it listens, and those that it calls."""

    site: str
    listen: Address | None = None
    join: tuple[Address, ...] = ()

    def begins(self, cluster) -> bool:
        """Whether the others join this site at the start, and it has the run's folder, whoever listens.

        Else the first in the cluster file does of those that listen, which they find out as they meet.
        """
        return self.listen is not None and (not self.join or self.site == cluster.names[0])

    @contextmanager
    def tiers(self, comm, settings, cluster, paced, keys, tell, replays) -> "Iterator[Tiers]":
        """Give the tiers of all sites once they have met. Collective over all ranks of all sites.

        settings: as the first rank of `comm` has read them, None on the others. tell: called with lines
        of progress there. replays: whether this run replays another; then all sites do.
        """
        from isthmus.links.sites import tiers_of_sites  # which starts MPI
        from isthmus.links.succession import Succession

        connections = door = succession = deadline_seconds = None
        others_call = ExitStack()  # closed at the end, where sites may come back

        def meet():
            nonlocal connections, door, succession, deadline_seconds
            self._check(settings, cluster, comm.size)
            me = Introduction(
                self.site,
                digest_of(settings, cluster, replays),
                self._admission(settings),
                listens=self.listen is not None,
                calls=len(self.join),
            )
            with ExitStack() as stack:
                listener = self._listener(me, cluster, tell, stack)
                joined = None
                if listener is None:
                    joined = join(self.join, me, settings.recovery.wait_seconds, tell)
                else:
                    connections, joined = self._met(listener, me, settings.recovery, cluster, tell)
                if joined is not None:
                    connections = joined.connections
                words = listener.words if joined is None else joined.words
                if late := words.get("late", []):
                    tell(
                        f"site {self.site}: begins without {', '.join(late)}, which did not join in time"
                    )
                is_hub = joined is None and settings.recovery.survive
                if listener is not None and (is_hub or words["quorum"]):
                    listener.words = {name: words[name] for name in ("quorum", "deadline_seconds")}
                    door = listener
                    listener.attend()
                    others_call.push(stack.pop_all())
            if words["quorum"]:
                succession = Succession(quorum_of(cluster), me, self.join, door, joined)
            deadline_seconds = words["deadline_seconds"]
            hub = self.site if joined is None else joined.site
            return [hub, words.get("generation"), late]

        with others_call:
            if self.join:  # sites to which this one comes back stand still from its call on
                load_kernels()
            listens, generation, late = from_root(comm, meet)
            with tiers_of_sites(
                comm,
                cluster,
                self.site,
                listens,
                connections,
                deadline_seconds,
                paced,
                keys,
                door,
                generation,
                succession,
                late,
            ) as tiers:
                yield tiers

    def _listener(self, me, cluster, tell, stack):
        """Return where others call this site, until `stack` is closed; None where they do not."""
        if self.listen is None:
            return None
        others = [name for name in cluster.names if name != self.site]
        before = cluster.names[: cluster.names.index(self.site)]
        begins = self.begins(cluster)
        listener = stack.enter_context(Listener(self.listen, me, others, tell, before, begins))
        if self.join:
            listener.attend()
        return listener

    def _met(self, listener, me, recovery, cluster, tell):
        """Return the connections of all others that are there, or who is the hub of a run under way."""
        if not listener.is_hub:
            joined = join(self.join, me, recovery.wait_seconds, tell, lambda: listener.begins)
            if joined is not None:
                return None, joined
            listener.is_hub = True
        listener.words = {"deadline_seconds": recovery.deadline_seconds}
        joined = None

        def may_begin(sites):
            return recovery.survive and may_begin_alone(sites, cluster, recovery)

        def elsewhere():
            nonlocal joined
            joined = join_one_under_way(self.join, me, recovery.wait_seconds, tell)
            if joined is not None:
                listener.is_hub = False
                listener.dismiss(f"site {joined.site!r} is the hub", elsewhere=True)
            return joined is not None

        if self.join and elsewhere():
            return None, joined
        look = elsewhere if self.join else lambda: False
        return listener.meet(recovery.wait_seconds, recovery.survive, look, may_begin), joined

    @property
    def options(self) -> list[str]:
        """The words of `isthmus train` that say this."""
        listen = [] if self.listen is None else ["--listen", in_words(self.listen)]
        join = [word for address in self.join for word in ("--join", in_words(address))]
        return ["--site", self.site, *listen, *join]

    def check_name(self, cluster):
        """Raise ClusterError unless the cluster has this site."""
        if self.site not in cluster.names:
            raise ClusterError(
                f"{cluster.source}: has no site {self.site!r}; --site is one of "
                f"{', '.join(cluster.names)}"
            )

    def _check(self, settings, cluster, ranks):
        self.check_name(cluster)
        checksum()
        wanted = len(cluster.ranks_of_site(self.site))
        if ranks != wanted:
            raise ClusterError(
                f"{cluster.source}: site {self.site!r} has {wanted} ranks, this job has {ranks}; start "
                f"it with mpirun -n {wanted}, or change `ranks` of the site"
            )
        if self.listen is not None and self.join:  # it may be the hub of any others
            for name in cluster.names:
                if name != self.site and len(cluster.route(self.site, name)) > 1:
                    raise ClusterError(
                        f"{cluster.source}: site {self.site!r} may be the next hub, and has no link of "
                        f'its own to site {name!r}; add a [[link]] with between = ["{self.site}", '
                        f'"{name}"], or leave out --listen'
                    )
        algorithm = ALGORITHMS.get(settings.allreduce.algorithm)
        if algorithm is not None and not algorithm.own:
            able = ", ".join(f'"{row.name}"' for row in ALGORITHMS.values() if row.own)
            raise SettingsError(
                f'allreduce.algorithm = "{algorithm.name}" reaches no further than one mpirun, and '
                f"sites are jobs of their own here; use one of {able}"
            )
        if (keys := settings.security.keys_of_links) is not None:  # before others wait for this site
            from isthmus.links.sealed import trusted_keys  # which starts MPI

            private = read_private(keys.expanduser(), self.site)
            trusted_keys(cluster, self.site, private, keys.expanduser(), cluster.names, pinned=True)

    def _admission(self, settings):
        """Return what this site proves itself with."""
        security = settings.security
        if security.keys_of_links is not None:
            return SiteKeys(security.keys_of_links.expanduser(), self.site)
        if security.token is not None:
            return read_token(security.token)
        if self.listen is not None and not is_loopback(self.listen[0]):
            raise SecurityError(
                f"--listen {in_words(self.listen)}: not only this host can call there, and "
                "nothing says who may join; set security.token, or security.link and keys"
            )
        return Token(b"")


def is_loopback(host: str) -> bool:
    """Whether nobody outside this machine can reach `host`, a name or an address, to listen at."""
    try:
        found = socket.getaddrinfo(host or None, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError:
        return False
    return all(ipaddress.ip_address(each[4][0].split("%")[0]).is_loopback for each in found)


def quorum_of(cluster):
    """Return the Quorum of the sites of a cluster file."""
    return Quorum({site.name: site.ranks for site in cluster.sites})


def may_begin_alone(sites, cluster, recovery):
    """Whether some sites of a cluster may begin without the others: never less than the majority.

    Else others, in whose reach these are not, could begin as well.
    """
    gone = {rank for name in cluster.names if name not in sites for rank in cluster.ranks_of_site(name)}
    try:
        left = cluster.without(gone)
    except ClusterError:  # they do not reach one another
        return False
    enough = left.size >= recovery.least_ranks and len(sites) >= recovery.least_sites
    return enough and quorum_of(cluster).is_reached(sites)


def digest_of(settings, cluster, replays):
    """Return the SHA-256 of what all sites of a run must have alike, as hexadecimal text."""
    table = settings.to_json()
    table = {section: values for section, values in table.items() if section not in OTHERWISE}
    for section, names in PATHS.items():
        if section in OTHERWISE:
            continue
        table[section] = {key: value for key, value in table[section].items() if key not in names}
    return sha256(dumps([table, cluster.to_table(), replays]).encode()).hexdigest()


def with_own_paths(table, own):
    """Return the settings of the site that listens, as JSON, with the paths of this site's `own`."""
    return table | {
        section: table[section] | {name: own[section][name] for name in names if name in own[section]}
        for section, names in PATHS.items()
    }
