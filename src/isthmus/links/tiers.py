"""The communicators of a cluster: the world, each site, its leaders, and the two tiers."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from os import PathLike
from typing import Any, Self

from mpi4py import MPI

from isthmus.cluster.cluster import Cluster
from isthmus.cluster.hosts import is_same_host
from isthmus.devices import take_device
from isthmus.errors import ClusterError
from isthmus.links.agreement import from_root, gather_json, raise_first, ranks_on_host, together
from isthmus.links.circle import Circle
from isthmus.links.comm import Comm, innermost, message_nbytes
from isthmus.links.paced import PacedComm
from isthmus.links.sealed import SealedComm, agree_on_keys, strangers
from isthmus.links.traced import Recorder, TracedComm
from isthmus.links.world import World
from isthmus.mpirun import tolerates_faults
from isthmus.security.pair_keys import PairKeys


@dataclass(frozen=True)
class Tiers:
    """One rank's view of the cluster's communicators.

    `world` has every rank, in the order of the cluster file: `world.rank` is the cluster rank.
    `leaders` has the first rank of each site, in the order of the sites; it is COMM_NULL off the
    leaders. `cloud` and `edge` are COMM_NULL for a rank of the other tier. `home` is the cluster rank
    of the job's own rank 0, which reads settings and writes results. `recorder` notes what this rank
    does, where that is asked for. `sealed`: nobody between the sites can read what crosses; `keys`: what
    this rank then shares with those of other sites. `circle`: who takes part, where each site is a job
    of its own, and MPI's collectives end where it does.
    """

    cluster: Cluster
    world: World
    site: Comm
    leaders: Comm
    cloud: MPI.Comm
    edge: MPI.Comm
    tier: str
    site_name: str
    home: int = 0
    recorder: Recorder | None = None
    sealed: bool = False
    keys: PairKeys | None = field(default=None, repr=False)
    circle: Circle | None = field(default=None, repr=False)

    @property
    def joined(self) -> bool:
        """Whether each site is a job of its own."""
        return self.circle is not None

    @property
    def whole(self) -> Cluster:
        """The cluster with the ranks that do not take part, or not yet."""
        if self.circle is None or self.is_whole:
            return self.cluster
        whole = self.circle.cluster
        return whole.with_overhead(self.cluster.overhead_nbytes - whole.overhead_nbytes)

    @property
    def is_whole(self) -> bool:
        """Whether all ranks of the cluster file take part."""
        return self.circle is None or len(self.circle.ranks) == self.circle.cluster.size

    @property
    def numbers(self) -> Sequence[int]:
        """The number of each rank in the whole cluster."""
        return range(self.cluster.size) if self.circle is None else self.circle.ranks

    @property
    def site_index(self) -> int:
        """Index of this rank's site in the cluster file."""
        return self.cluster.names.index(self.site_name)

    @property
    def ranks_in_ring(self) -> tuple[int, ...]:
        """The ranks of `world` in the order of the ring; those of one site by their numbers."""
        whole = self.world.size == self.cluster.size
        return self.cluster.ranks_in_ring if whole else tuple(range(self.world.size))

    @property
    def device(self) -> str:
        """Where this rank computes: "cpu" or "gpu"."""
        return self.cluster.sites[self.site_index].device

    def through(self, wrap: Callable[[Comm, Sequence[int]], Comm]) -> Self:
        """Return these tiers with every communicator as `wrap` wraps it.

        wrap(comm, ranks): gives a `Comm` around `comm`, whose peers are the cluster ranks `ranks`.
        What it adds to a message between sites is from then on in what the cluster is predicted to take.
        """
        cluster, world, leaders = self.cluster, self.world, self.leaders
        if leaders != MPI.COMM_NULL:
            leaders = wrap(leaders, [cluster.ranks_of_site(name)[0] for name in cluster.names])
        site = wrap(self.site, cluster.ranks_of_site(self.site_name))
        everyone = wrap(world.comm, range(cluster.size))
        far = next(
            (rank for rank, index in enumerate(cluster.site_of_rank) if index != self.site_index), None
        )
        if far is not None:
            cluster = cluster.with_overhead(
                message_nbytes(everyone, 0, far) - message_nbytes(world.comm, 0, far)
            )
        return replace(
            self,
            cluster=cluster,
            site=site,
            leaders=leaders,
            world=world_of(cluster, everyone, world.site, leaders),
        )

    def within_site(self) -> Self:
        """Return these tiers with this rank's site for the world: nothing crosses a link.

        The cluster stays the whole one, so that sites keep their numbers.
        """
        world = World(self.site, self.world.site, None, [0] * self.site.size)
        return replace(self, leaders=MPI.COMM_NULL, world=world)

    def paced(self) -> Self:
        """Return these tiers with links that hold every message as long as the file says."""
        site_of_rank = self.cluster.site_of_rank

        def wrap(comm: Comm, ranks: Sequence[int]) -> Comm:
            sites = [site_of_rank[rank] for rank in ranks]
            return (
                comm
                if {*sites} == {self.site_index}
                else PacedComm(comm, self.cluster, sites, self.site_index)
            )

        return self.through(wrap)

    def sealed_with(self, folder: str | PathLike[str], pinned: bool = True) -> Self:
        """Return these tiers sealed under keys that all ranks agree on now, and no two times the same.

        Collective; folder, pinned, and what is raised: as of `agree_on_keys`.
        """
        return self.sealed_by(agree_on_keys(self.cluster, self.world, self.site, folder, pinned))

    def sealed_by(self, keys: PairKeys) -> Self:
        """Return these tiers with every message between sites sealed; within a site nothing changes."""
        cluster = self.cluster
        others = strangers(cluster, self.site_name)

        def wrap(comm: Comm, ranks: Sequence[int]) -> Comm:
            if not others & {*ranks}:
                return comm
            name = "leaders" if comm is self.leaders else "world"
            return SealedComm(comm, ranks, keys, others, name)

        whole = replace(self.through(wrap), sealed=True, keys=keys)
        of_tier = [
            rank
            for rank, index in enumerate(cluster.site_of_rank)
            if cluster.sites[index].tier == self.tier
        ]
        if others.isdisjoint(of_tier):
            return whole
        mine: Any = SealedComm(getattr(self, self.tier), of_tier, keys, others, self.tier)
        return replace(whole, cloud=mine) if self.tier == "cloud" else replace(whole, edge=mine)

    def traced(self, recorder: Recorder) -> Self:
        """Return these tiers with communicators whose messages `recorder` notes."""
        return replace(
            self.through(lambda comm, ranks: TracedComm(comm, recorder, ranks)), recorder=recorder
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error_type: type[BaseException] | None, *_: object) -> None:
        # Free is collective: freeing while one rank unwinds an exception would hang the others.
        if error_type is not None:
            return
        if self.circle is not None:
            self.circle.close()
        if not _is_revoked(self):  # some rank is gone
            for comm in (self.leaders, self.cloud, self.edge, self.site, self.world):
                if comm != MPI.COMM_NULL:
                    innermost(comm).Free()


@contextmanager
def tiers_of_file(comm: MPI.Comm, path: str | PathLike[str], paced: bool = False) -> Iterator[Tiers]:
    """Give the tiers of the cluster file `path`, as rank 0 reads it; links paced where asked for.

    Collective. Raises on every rank if the file is wrong, does not fit the job's ranks, or names a
    device that is not there.
    """
    cluster = Cluster(from_root(comm, lambda: Cluster.from_toml(path).to_table()), source=path)
    with tiers_of_rank_0(comm, cluster, paced) as tiers:
        yield tiers


@contextmanager
def tiers_of_rank_0(
    comm: MPI.Comm, cluster: Cluster, paced: bool = False, keys: str | PathLike[str] | None = None
) -> Iterator[Tiers]:
    """Give the tiers of a cluster that rank 0 has told, links paced or sealed where asked for.

    Collective. A public key that the cluster names has come over a link, so it is believed only where
    a site's own folder of keys says the same. Raises as `tiers_of_file` and `split_tiers` do.
    """
    with ready(_split(comm, cluster, keys, pinned=True), paced) as tiers:
        yield tiers


@contextmanager
def ready(tiers: Tiers, paced: bool) -> Iterator[Tiers]:
    """Give the tiers once each rank has its device, paced where asked for; free them. Collective."""
    comes_back = tiers.circle is not None and tiers.circle.endpoint.generation > 0
    those = tiers.site if comes_back else tiers.world  # the others have theirs
    with tiers:
        number = number_on_machine(those, tiers.device)
        together(those, lambda: take_device(tiers.device, number))
        yield tiers.paced() if paced else tiers


def number_on_machine(comm: Comm, device: str) -> int:
    """Return this rank's number among those of `comm` on its machine with such a device. Collective."""
    devices = gather_json(comm, device)
    return [rank for rank in ranks_on_host(comm) if devices[rank] == device].index(comm.rank)


def split_tiers(comm: MPI.Comm, cluster: Cluster, keys: str | PathLike[str] | None = None) -> Tiers:
    """Split `comm`, of `cluster.size` ranks in any order, into the communicators of `cluster`.

    A site takes the ranks of `comm` that run on its `hosts`, or those of its `world_ranks`; sites
    with neither take what is left, in order. Collective. Raises ClusterError on every rank if the
    ranks do not fit the sites, or if two sites claim one of them.

    keys: the folder with the keys of a site, SITE.key, and of those that it trusts, SITE.pub, which each
    site's leader reads on its own host: then what crosses between sites is sealed. Raises SecurityError
    on every rank if a key is missing, in the wrong hands or another than was agreed on.
    """
    return _split(comm, cluster, keys, pinned=False)


def _split(comm, cluster, keys, pinned):
    """Do as `split_tiers` says; pinned: as `agree_on_keys` says."""
    hosts, seals = zip(*gather_json(comm, [MPI.Get_processor_name(), keys is not None]))
    if len({*seals}) > 1:
        problem = ValueError("some ranks give `keys` and others do not; give it on all, or on none")
        raise_first(comm, problem)
    tiers = tiers_in_order(comm, cluster, together(comm, lambda: cluster_ranks(cluster, hosts)))
    return tiers if keys is None else tiers.sealed_with(keys, pinned)


def tiers_in_order(
    comm: MPI.Comm, cluster: Cluster, order: Sequence[int], made: list[MPI.Comm] | None = None
) -> Tiers:
    """Return the tiers of `comm`, whose rank r is cluster rank `order[r]`. Collective.

    made: a list that is given each communicator as soon as there is one.
    """
    made = [] if made is None else made

    def split(parent: MPI.Comm, color: int, key: int) -> MPI.Comm:
        made.append(parent.Split(color, key))
        return made[-1]

    world = split(comm, 0, order[comm.rank])
    index = cluster.site_of_rank[world.rank]
    site = split(world, index, world.rank)
    leaders = split(world, 0 if site.rank == 0 else MPI.UNDEFINED, index)
    tier = cluster.sites[index].tier
    mine = split(world, 0 if tier == "cloud" else 1, world.rank)
    return Tiers(
        cluster,
        world_of(cluster, world, site, leaders),
        site,
        leaders,
        cloud=mine if tier == "cloud" else MPI.COMM_NULL,
        edge=mine if tier == "edge" else MPI.COMM_NULL,
        tier=tier,
        site_name=cluster.names[index],
        home=order[0],
    )


def _is_revoked(tiers):
    """Whether communicators are of no use any more, since a rank of them has gone."""
    if tiers.circle is not None:
        return tiers.circle.endpoint.generation > 0
    comm = innermost(tiers.world)
    return isinstance(comm, MPI.Comm) and tolerates_faults() and comm.Is_revoked()


def world_of(cluster, comm, site, leaders):
    """Return all ranks: `site` is MPI's, and `leaders` may be COMM_NULL."""
    several = leaders != MPI.COMM_NULL and len(cluster.sites) > 1
    return World(comm, site, leaders if several else None, cluster.site_of_rank, cluster.hub)


def cluster_ranks(cluster: Cluster, hosts: Sequence[str]) -> list[int]:
    """Return the cluster rank of each rank of a job whose rank r runs on `hosts[r]`."""
    if len(hosts) != cluster.size:
        raise ClusterError(
            f"{cluster.source}: the sites have {cluster.size} ranks, this job has {len(hosts)}; "
            f"start it with mpirun -n {cluster.size}, or change `ranks` of a site"
        )
    named = {
        site.name: _named_ranks(cluster, site, hosts)
        for site in cluster.sites
        if site.hosts or site.world_ranks
    }
    site_of: dict[int, str] = {}
    for name, ranks in named.items():
        for rank in ranks:
            if site_of.setdefault(rank, name) != name:
                raise ClusterError(
                    f"{cluster.source}: rank {rank} runs on host {hosts[rank]}, which the sites "
                    f"{site_of[rank]!r} and {name!r} both claim; give whole names of hosts (as in "
                    "n1.edge.org) where a short one is of several, or world_ranks"
                )
    for site in cluster.sites:
        if site.hosts and len(named[site.name]) != site.ranks:
            raise ClusterError(
                f"{cluster.source}: site {site.name!r} wants {site.ranks} ranks on hosts "
                f"{', '.join(site.hosts)}, but {len(named[site.name])} ranks run there (this job's "
                f"hosts: {', '.join(dict.fromkeys(hosts))}); change `hosts` or how ranks are mapped"
            )
    left = iter(rank for rank in range(len(hosts)) if rank not in site_of)
    order = [0] * len(hosts)
    for site in cluster.sites:
        ranks = named.get(site.name) or [next(left) for _ in range(site.ranks)]
        for here, rank in zip(cluster.ranks_of_site(site.name), ranks):
            order[rank] = here
    return order


def _named_ranks(cluster, site, hosts):
    """Return the ranks that `site` names by number or by host."""
    if site.world_ranks:
        beyond = [rank for rank in site.world_ranks if rank >= len(hosts)]
        if beyond:
            raise ClusterError(
                f"{cluster.source}: site {site.name!r}: world_ranks names rank "
                f"{beyond[0]}, this job has ranks 0 to {len(hosts) - 1}"
            )
        return list(site.world_ranks)
    return [
        rank for rank, host in enumerate(hosts) if any(is_same_host(host, name) for name in site.hosts)
    ]
