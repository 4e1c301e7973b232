"""One site of a run as a job of its own, which listens for the others or calls the one that does."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from hashlib import sha256
from typing import TYPE_CHECKING, NamedTuple

from isthmus.errors import ClusterError, SecurityError, SettingsError
from isthmus.json_text import dumps
from isthmus.links.agreement import from_root
from isthmus.links.frames import checksum
from isthmus.links.greeting import Introduction
from isthmus.links.meeting import Address, Listener, in_words, is_loopback, join
from isthmus.registry import ALGORITHMS
from isthmus.security.admission import SiteKeys, Token, read_token

if TYPE_CHECKING:
    from isthmus.links.tiers import Tiers

PATHS = {
    "cluster": ("file",),
    "data": ("train", "test", "validation"),
    "model": ("folder",),
    "security": ("keys", "token"),
    "clients": ("speeds", "available"),
}
"""Of the settings, the paths, which each site has of its own."""
OTHERWISE = ("run", "slurm", "recovery")
"""Sections that may differ: those of the site that listens count."""


class SiteJob(NamedTuple):
    """This job's site, and the address where it listens or that it calls."""

    site: str
    address: Address
    listens: bool

    @contextmanager
    def tiers(self, comm, settings, cluster, paced, keys, tell, replays) -> "Iterator[Tiers]":
        """Give the tiers of all sites once they have met. Collective over all ranks of all sites.

        settings: as the first rank of `comm` has read them, None on the others. tell: called with lines
        of progress there. replays: whether this run replays another; then all sites do.
        """
        from isthmus.links.sites import tiers_of_sites  # which starts MPI

        connections = None
        others_call = ExitStack()  # closed at the end, where sites may come back

        def meet():
            nonlocal connections
            self._check(settings, cluster, comm.size)
            me = Introduction(
                self.site, digest_of(settings, cluster, replays), self._admission(settings)
            )
            wait_seconds = settings.recovery.wait_seconds
            if not self.listens:
                connections, generation = join(self.address, me, wait_seconds, tell)
                return [next(iter(connections)), generation]
            others = [name for name in cluster.names if name != self.site]
            with ExitStack() as stack:
                listener = stack.enter_context(Listener(self.address, me, others, tell))
                connections = listener.meet(wait_seconds)
                if settings.recovery.survive:
                    listener.attend()
                    door.append(listener)
                    others_call.push(stack.pop_all())
            return [self.site, None]

        door = []
        with others_call:
            listens, generation = from_root(comm, meet)
            deadline_seconds = settings.recovery.deadline_seconds if settings else None
            with tiers_of_sites(
                comm,
                cluster,
                self.site,
                listens,
                connections,
                deadline_seconds,
                paced,
                keys,
                *door,
                generation=generation,
            ) as tiers:
                yield tiers

    @property
    def options(self) -> list[str]:
        """The words of `isthmus train` that say this."""
        return ["--site", self.site, "--listen" if self.listens else "--join", in_words(self.address)]

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
        algorithm = ALGORITHMS.get(settings.allreduce.algorithm)
        if algorithm is not None and not algorithm.own:
            able = ", ".join(f'"{row.name}"' for row in ALGORITHMS.values() if row.own)
            raise SettingsError(
                f'allreduce.algorithm = "{algorithm.name}" reaches no further than one mpirun, and '
                f"sites are jobs of their own here; use one of {able}"
            )

    def _admission(self, settings):
        """Return what this site proves itself with."""
        security = settings.security
        if security.keys_of_links is not None:
            return SiteKeys(security.keys_of_links.expanduser(), self.site)
        if security.token is not None:
            return read_token(security.token)
        if self.listens and not is_loopback(self.address[0]):
            raise SecurityError(
                f"--listen {in_words(self.address)}: not only this host can call there, and "
                "nothing says who may join; set security.token, or security.link and keys"
            )
        return Token(b"")


def digest_of(settings, cluster, replays):
    """Return the SHA-256 of what all sites of a run must have alike, as hexadecimal text."""
    table = settings.to_json()
    table = {section: values for section, values in table.items() if section not in OTHERWISE}
    for section, names in PATHS.items():
        table[section] = {key: value for key, value in table[section].items() if key not in names}
    return sha256(dumps([table, cluster.to_table(), replays]).encode()).hexdigest()


def with_own_paths(table, own):
    """Return the settings of the site that listens, as JSON, with the paths of this site's `own`."""
    return table | {
        section: table[section] | {name: own[section][name] for name in names if name in own[section]}
        for section, names in PATHS.items()
    }
