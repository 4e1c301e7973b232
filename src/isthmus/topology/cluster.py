"""A cluster file: the sites, their ranks and rates, and the links between them.

Ranks are numbered in the order of the file: the ranks of the first site come first. This *cluster
rank* is what plans speak of, and what `tiers.world.rank` is in a job.
"""

import math
from collections import deque
from functools import cached_property
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import Field, field_validator, model_validator

from isthmus.errors import ClusterError
from isthmus.files import write_text
from isthmus.toml_files import FrozenModel, check_table, read_toml

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
PositiveOrInfinite = Annotated[float, Field(gt=0, allow_inf_nan=True)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Network(FrozenModel):
    """What joins the ranks of one site."""

    latency_seconds: NotNegative = 0.0
    bytes_per_second: PositiveOrInfinite = math.inf


class Site(FrozenModel):
    """Ranks joined by a fast network; the first is the leader."""

    name: Annotated[str, Field(min_length=1)]
    tier: Literal["cloud", "edge"]
    ranks: Annotated[int, Field(ge=1)]
    samples_per_second: tuple[Positive, ...]
    storage_nbytes: PositiveOrInfinite = math.inf
    device: Literal["cpu", "gpu"] = "cpu"
    hosts: tuple[str, ...] = ()
    world_ranks: tuple[Annotated[int, Field(ge=0)], ...] = ()
    network: Network = Network()
    price_per_second: NotNegative = 0.0  # money, for a second of computing on one rank
    # Written by `isthmus calibrate`; an unmeasured cost counts as nothing.
    fixed_seconds: NotNegative = 0.0
    message_seconds: NotNegative = 0.0
    add_bytes_per_second: PositiveOrInfinite = math.inf
    encode_bytes_per_second: PositiveOrInfinite = math.inf
    decode_bytes_per_second: PositiveOrInfinite = math.inf
    host_copy_bytes_per_second: PositiveOrInfinite = math.inf  # from a GPU's memory and to it

    @field_validator("samples_per_second", mode="before")
    @classmethod
    def _one_number_or_a_list(cls, value: Any) -> Any:
        return value if isinstance(value, (list, tuple)) else (value,)

    @model_validator(mode="after")
    def _one_rate_a_rank(self):
        rates = self.samples_per_second
        if len(rates) == 1 and self.ranks > 1:
            object.__setattr__(self, "samples_per_second", rates * self.ranks)
        elif len(rates) != self.ranks:
            raise ValueError(f"site {self.name!r}: samples_per_second has {len(rates)} numbers for "
                             f"{self.ranks} ranks; give one number, or one a rank")
        if self.world_ranks and len(set(self.world_ranks)) != self.ranks:
            raise ValueError(f"site {self.name!r}: world_ranks must name {self.ranks} different "
                             f"ranks, not {list(self.world_ranks)}")
        if self.hosts and self.world_ranks:
            raise ValueError(f"site {self.name!r}: give hosts or world_ranks, not both")
        return self


class Link(FrozenModel):
    """One direction of what joins two sites; links of one `pipe` share its bytes per second."""

    source: str
    target: str
    latency_seconds: float
    bytes_per_second: float
    pipe: str
    price_per_byte: float = 0.0


class _LinkTable(FrozenModel):
    """One `[[link]]` of a cluster file: both directions alike (`between`) or one (`from`, `to`)."""

    between: tuple[str, str] | None = None
    source: str | None = Field(None, alias="from")
    target: str | None = Field(None, alias="to")
    latency_seconds: NotNegative
    bytes_per_second: Positive
    shared: str | None = None
    price_per_byte: NotNegative = 0.0  # money

    @model_validator(mode="after")
    def _one_way_of_naming_ends(self):
        directed = self.source is not None and self.target is not None
        half = (self.source is None) != (self.target is None)
        if half or directed == (self.between is not None):
            raise ValueError('give either between = ["a", "b"] or both from = "a" and to = "b"')
        return self

    @property
    def ends(self):
        """The one or two (source, target) pairs that this table stands for."""
        if self.between is None:
            return [(self.source, self.target)]
        return [self.between, self.between[::-1]]


class _ClusterTable(FrozenModel):
    """A cluster file as it is written."""

    site: Annotated[tuple[Site, ...], Field(min_length=1)]
    link: tuple[_LinkTable, ...] = ()

    @model_validator(mode="after")
    def _names_agree(self):
        names = [site.name for site in self.site]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two sites are called {name!r}; give each its own name")
        hosts = [host for site in self.site for host in site.hosts]
        for host in hosts:
            if hosts.count(host) > 1:
                raise ValueError(f"host {host!r} is listed twice; a host belongs to one site")
        placed = [rank for site in self.site for rank in site.world_ranks]
        if len(set(placed)) != len(placed):
            raise ValueError("world_ranks of two sites name the same rank; a rank is in one site")
        known = set(names)
        seen = set()
        for number, table in enumerate(self.link):
            for ends in table.ends:
                for name in ends:
                    if name not in known:
                        raise ValueError(f"link[{number}]: no site is called {name!r}; "
                                         f"known sites: {', '.join(names)}")
                if ends[0] == ends[1]:
                    raise ValueError(f"link[{number}]: joins {ends[0]!r} to itself; "
                                     "a site's own network goes under [site.network]")
                if ends in seen:
                    raise ValueError(f"link[{number}]: a link from {ends[0]!r} to {ends[1]!r} is "
                                     "given twice; keep one")
                seen.add(ends)
        return self


class Cluster:
    """Sites and the links between them.

    `sites` and `links` are tuples of `Site` and (directed) `Link`; `site_of_rank[r]` is the index
    of the site of cluster rank r, `rates[r]` its samples per second.
    """

    def __init__(self, table, source="cluster"):
        """Build from a dict with the keys of a cluster file; `source` names it in errors."""
        self.source = str(source)
        checked = check_table(_ClusterTable, table, self.source, ClusterError)
        self.sites = checked.site
        self.names = tuple(site.name for site in self.sites)
        self.links = tuple(self._link(table, *ends) for table in checked.link
                           for ends in table.ends)
        self._check_shared_rates()
        for target in self.names[1:]:
            for ends in ((self.names[0], target), (target, self.names[0])):
                self.route(*ends)

    @classmethod
    def from_toml(cls, path):
        """Read a cluster file; raises ClusterError with the file, the key and the cure."""
        table = read_toml(path, ClusterError)
        if "cluster" in table:
            raise ClusterError(f"{path}: is a run's settings; give a cluster file, which has a [[site]] "
                               "for each site")
        return cls(table, source=path)

    @classmethod
    def from_slurm(cls):
        """Return the cluster of the Slurm job around this process; its rates and links are assumed.

        Sites and tiers come from heterogeneous groups, partitions and node features, as
        `isthmus.topology.slurm.cluster_table` says; `isthmus calibrate` measures the rest.
        """
        from isthmus.topology.slurm import cluster_table, read_allocation
        return cls(cluster_table(read_allocation()), source="Slurm")

    def to_table(self):
        """Return the dict that `Cluster(...)` takes, with every key that differs from its default."""
        links = [{"from": link.source, "to": link.target, "latency_seconds": link.latency_seconds,
                  "bytes_per_second": link.bytes_per_second}
                 | ({"shared": link.pipe.rpartition(":")[0]} if ":" in link.pipe else {})
                 | ({"price_per_byte": link.price_per_byte} if link.price_per_byte else {})
                 for link in self.links]
        sites = [site.model_dump(mode="json", exclude_defaults=True) for site in self.sites]
        return {"site": sites} | ({"link": links} if links else {})

    def to_toml(self, path):
        """Write a cluster file that reads back as this cluster."""
        write_text(path, tomli_w.dumps(self.to_table()))

    @property
    def size(self):
        """Number of ranks."""
        return len(self.site_of_rank)

    @cached_property
    def site_of_rank(self):
        return tuple(index for index, site in enumerate(self.sites) for _ in range(site.ranks))

    @cached_property
    def rates(self):
        return tuple(rate for site in self.sites for rate in site.samples_per_second)

    @cached_property
    def hub(self):
        """Index of the site where sums meet: a cloud site if there is one, fewest hops to all."""
        def hops(index):
            return sum(len(self.route(self.names[index], name)) for name in self.names)
        cloud = [i for i, site in enumerate(self.sites) if site.tier == "cloud"]
        return min(cloud or range(len(self.sites)), key=hops)

    def ranks_of_site(self, name):
        """Return the range of cluster ranks of the site called `name`."""
        index = self.names.index(name)
        first = self.site_of_rank.index(index)
        return range(first, first + self.sites[index].ranks)

    def route(self, source, target):
        """Return the links from one site to another, fewest hops first found; () within a site."""
        came_by = {source: None}
        queue = deque([source])
        while queue and target not in came_by:
            here = queue.popleft()
            for link in self._links_from.get(here, ()):
                if link.target not in came_by:
                    came_by[link.target] = link
                    queue.append(link.target)
        if target not in came_by:
            raise ClusterError(f"{self.source}: no link leads from site {source!r} to {target!r}; "
                               f'add a [[link]] with between = ["{source}", "{target}"]')
        path = []
        while target != source:
            path.append(came_by[target])
            target = path[-1].source
        return tuple(reversed(path))

    @cached_property
    def _links_from(self):
        table = {}
        for link in self.links:
            table.setdefault(link.source, []).append(link)
        return table

    def _link(self, table, source, target):
        """Return one direction of `table`; shared links share only with those that go their way."""
        pipe = f"{source}>{target}"
        if table.shared is not None:
            def depth(name):
                index = self.names.index(name)
                return self.sites[index].tier == "edge", index
            pipe = f"{table.shared}:{'up' if depth(source) > depth(target) else 'down'}"
        return Link(source=source, target=target, latency_seconds=table.latency_seconds,
                    bytes_per_second=table.bytes_per_second, pipe=pipe,
                    price_per_byte=table.price_per_byte)

    def _check_shared_rates(self):
        rate_of_pipe = {}
        for link in self.links:
            rate = rate_of_pipe.setdefault(link.pipe, link.bytes_per_second)
            if rate != link.bytes_per_second:
                raise ClusterError(f"{self.source}: links that share {link.pipe!r} give "
                                   f"bytes_per_second {rate:g} and {link.bytes_per_second:g}; "
                                   "what is shared has one rate: give it in each of them")
