"""A cluster file: the sites, their ranks and rates, and the links between them.

Ranks are numbered in the order of the file: the ranks of the first site come first. This *cluster
rank* is what plans speak of, and what `tiers.world.rank` is in a job.
"""

from collections import Counter, deque
from collections.abc import Collection, Sequence
from copy import copy
from functools import cached_property
from itertools import accumulate
from os import PathLike
from typing import Any, Self

import tomli_w

from isthmus.cluster.aggregation_tree import AggregationTree, tree_of_file
from isthmus.cluster.cluster_file import ClusterTable, LinkTable, Site
from isthmus.cluster.measured import Calibration, SizeTable, line
from isthmus.errors import ClusterError
from isthmus.files import write_text
from isthmus.json_text import quoted
from isthmus.toml_files import FrozenModel, check_table, read_toml


class Link(FrozenModel):
    """One direction of what joins two sites; links of one `pipe` share its bytes per second.

    shared: the file's name of what is shared; None where the link has its rate for itself. name: of
    what its rate belongs to, both directions: what is shared, or its two sites.
    """

    source: str
    target: str
    latency_seconds: float
    bytes_per_second: float
    pipe: str
    name: str
    shared: str | None = None
    price_per_byte: float = 0.0
    streams: SizeTable | None = None
    messages: SizeTable | None = None

    def line(self, nbytes: float, kind: str = "streams") -> tuple[float, float]:
        """Return the latency in seconds and the bytes per second that hold for `nbytes` bytes.

        kind: "streams", of short messages; "messages", one. Those of the file where it has no table.
        """
        return line(self, kind, nbytes)


def _owner(table):
    """Return what the rate of a `[[link]]` belongs to: the name of what is shared, or its two sites."""
    return (table.shared,) if table.shared is not None else tuple(sorted(table.ends[0]))


def _link_names(tables):
    """Return owner -> its name; in quotes where it would be that of another owner too."""
    plain = {owner: "-".join(owner) for owner in map(_owner, tables)}
    told = Counter(plain.values())
    return {
        owner: name if told[name] == 1 and '"' not in name else "-".join(map(quoted, owner))
        for owner, name in plain.items()
    }


def _part(name):
    """Return a name as a part of a pipe's: in quotes where it has what parts are put together with."""
    return quoted(name) if set(name) & set('>:"') else name


def _by_end(cluster, end):
    """Return site -> the links that have it as their `end`, "source" or "target"."""
    table = {name: [] for name in cluster.names}
    for link in cluster.links:
        table[getattr(link, end)].append(link)
    return table


class Cluster:
    """Sites and the links between them.

    `sites` and `links` are tuples of `Site` and (directed) `Link`; `site_of_rank[r]` is the index
    of the site of cluster rank r, `rates[r]` its samples per second. `overhead_nbytes` is what each
    message between sites grows by in a job that wraps its links; no file has it. `told_hub` names the
    site or the two at the top of the `tree`, and `told_ring` all sites in the order of the `ring`, where
    these are told.
    """

    sites: tuple[Site, ...]
    links: tuple[Link, ...]
    names: tuple[str, ...]
    source: str
    calibration: Calibration | None
    overhead_nbytes: int = 0
    told_hub: tuple[str, ...]
    told_ring: tuple[str, ...]

    def __init__(self, table: dict[str, Any], source: str | PathLike[str] = "cluster"):
        """Build from a dict with the keys of a cluster file; `source` names it in errors."""
        self.source = str(source)
        checked = check_table(ClusterTable, table, self.source, ClusterError)
        self.sites, self.calibration = checked.site, checked.calibration
        self.told_hub, self.told_ring = checked.hub, checked.ring
        self.names = tuple(site.name for site in self.sites)
        names = _link_names(checked.link)
        self.links = tuple(
            self._link(table, names[_owner(table)], *ends)
            for table in checked.link
            for ends in table.ends
        )
        self._check_shared_rates()
        first = self.names[0]
        there, back = self._reach(first), self._reach(first, backwards=True)
        for name in self.names:
            if name not in there or name not in back:
                self.route(*((first, name) if name not in there else (name, first)))
        if self.told_hub or any(site.parent or not site.relay for site in self.sites):
            tree_of_file(self)  # raises what is wrong with it

    @classmethod
    def from_toml(cls, path: str | PathLike[str]) -> Self:
        """Read a cluster file; raises ClusterError with the file, the key and the cure."""
        table = read_toml(path, ClusterError)
        if "cluster" in table:
            raise ClusterError(
                f"{path}: is a run's settings; give a cluster file, which has a [[site]] for each site"
            )
        return cls(table, source=path)

    @classmethod
    def from_slurm(cls) -> Self:
        """Return the cluster of the Slurm job around this process; its rates and links are assumed.

        Sites and tiers come from heterogeneous groups, partitions and node features, as
        `isthmus.cluster.slurm.cluster_table` says; `isthmus calibrate` measures the rest.
        """
        from isthmus.cluster.slurm import cluster_table, read_allocation

        return cls(cluster_table(read_allocation()), source="Slurm")

    def to_table(self) -> dict[str, Any]:
        """Return the dict that `Cluster(...)` takes, with every key that differs from its default."""
        links = [
            {
                "from": link.source,
                "to": link.target,
                "latency_seconds": link.latency_seconds,
                "bytes_per_second": link.bytes_per_second,
            }
            | ({} if link.shared is None else {"shared": link.shared})
            | ({"price_per_byte": link.price_per_byte} if link.price_per_byte else {})
            | link.model_dump(mode="json", include={"streams", "messages"}, exclude_none=True)
            for link in self.links
        ]
        sites = [site.model_dump(mode="json", exclude_defaults=True) for site in self.sites]
        made = self.calibration and self.calibration.model_dump(mode="json", exclude_none=True)
        hub = self.told_hub[0] if len(self.told_hub) == 1 else list(self.told_hub)
        return (
            ({"hub": hub} if hub else {})
            | ({"ring": list(self.told_ring)} if self.told_ring else {})
            | {"site": sites}
            | ({"link": links} if links else {})
            | ({"calibration": made} if made else {})
        )

    def with_overhead(self, nbytes: int) -> Self:
        """Return this cluster, with messages between sites that grow by `nbytes` more."""
        other = copy(self)
        other.overhead_nbytes = self.overhead_nbytes + nbytes
        return other

    def to_toml(self, path: str | PathLike[str]) -> None:
        """Write a cluster file that reads back as this cluster."""
        write_text(path, tomli_w.dumps(self.to_table()))

    @property
    def size(self) -> int:
        """Number of ranks."""
        return len(self.site_of_rank)

    @cached_property
    def site_of_rank(self) -> tuple[int, ...]:
        return tuple(index for index, site in enumerate(self.sites) for _ in range(site.ranks))

    @cached_property
    def rates(self) -> tuple[float, ...]:
        return tuple(rate for site in self.sites for rate in site.samples_per_second)

    @cached_property
    def tree(self) -> AggregationTree:
        """Which site adds up for which in "hierarchical"."""
        return tree_of_file(self)

    @property
    def hub(self) -> int:
        """Index of the site where sums meet."""
        return self.tree.hub

    def with_tree(self, tree: AggregationTree) -> Self:
        """Return this cluster with another tree, which its file tells."""
        other = copy(self)
        other.__dict__.pop("tree", None)
        tops = (tree.hub,) if tree.partner is None else (tree.hub, tree.partner)
        other.told_hub = tuple(self.names[site] for site in tops)
        other.sites = tuple(
            site.model_copy(update={"parent": None if parent is None else self.names[parent]})
            for site, parent in zip(self.sites, tree.parents)
        )
        return other

    @property
    def ring(self) -> tuple[int, ...]:
        """The sites, by number, in the order in which "ring" goes through them; untold, the file's."""
        return tuple(self._index[name] for name in self.told_ring) or tuple(range(len(self.sites)))

    @property
    def ranks_in_ring(self) -> tuple[int, ...]:
        """The ranks in the order of the ring: those of a site one after another."""
        return tuple(rank for site in self.ring for rank in self.ranks_of_site(self.names[site]))

    def with_ring(self, ring: Sequence[int]) -> Self:
        """Return this cluster with its sites, by number, in another order of the ring."""
        other = copy(self)
        other.told_ring = tuple(self.names[site] for site in ring)
        return other

    def without(self, ranks: Collection[int]) -> Self:
        """Return this cluster without some of its ranks; a site without any is no more.

        The tree of sites is then that of the routes. ClusterError where sites that are left do not
        reach one another.
        """
        table = self.to_table()
        left = {
            name: [number for number, rank in enumerate(self.ranks_of_site(name)) if rank not in ranks]
            for name in self.names
        }
        gone = {name for name, numbers in left.items() if not numbers}
        if gone:
            table.pop("hub", None), table.pop("ring", None)
        sites = []
        for site in table["site"]:
            numbers, rates = left[site["name"]], site["samples_per_second"]
            several = {"samples_per_second": [rates[n] for n in numbers]} if len(rates) > 1 else {}
            dropped = ("hosts", "world_ranks", *(["parent"] if gone else []))
            kept = {key: value for key, value in site.items() if key not in dropped}
            sites += [kept | {"ranks": len(numbers)} | several] if numbers else []
        links = [link for link in table.get("link", []) if not gone & {link["from"], link["to"]}]
        return type(self)(table | {"site": sites, "link": links}, self.source)

    def central(self, among: Sequence[int]) -> int:
        """Return which of some sites is a cloud site, if any is, with the fewest hops to all."""

        def hops(index):
            return sum(len(self.route(self.names[index], name)) for name in self.names)

        sites = [index for index in among if self.sites[index].tier == "cloud"] or among
        middle = (i for i in sites if len(self._links_from[self.names[i]]) == len(self.sites) - 1)
        found = next(middle, None)  # one hop to each other site: none has fewer
        return min(sites, key=hops) if found is None else found

    def ranks_of_site(self, name: str) -> range:
        """Return the range of cluster ranks of the site called `name`."""
        return self._ranks[self._index[name]]

    def route(self, source: str, target: str) -> tuple[Link, ...]:
        """Return the links from one site to another, fewest hops first found; () within a site."""
        if source == target:
            return ()
        if (source, target) in self._links_between:
            return (self._links_between[source, target],)
        # From the end with fewer links: the way out of a small site is soon found.
        backwards = len(self._links_to[target]) < len(self._links_from[source])
        start, goal = (target, source) if backwards else (source, target)
        came_by = self._reach(start, goal, backwards)
        if goal not in came_by:
            raise ClusterError(
                f"{self.source}: no link leads from site {source!r} to {target!r}; "
                f'add a [[link]] with between = ["{source}", "{target}"]'
            )
        path = []
        while goal != start:
            path.append(came_by[goal])
            goal = path[-1].target if backwards else path[-1].source
        return tuple(path if backwards else reversed(path))

    def _reach(self, start, goal=None, backwards=False):
        """Return site -> link, of the sites met on the way from `start` to `goal`, or of all.

        The link by which a site is reached; backwards, by which it leads to `start`.
        """
        links = self._links_to if backwards else self._links_from
        came_by, queue = {start: None}, deque([start])
        while queue and goal not in came_by:
            for link in links[queue.popleft()]:
                there = link.source if backwards else link.target
                if there not in came_by:
                    came_by[there] = link
                    queue.append(there)
        return came_by

    @cached_property
    def _index(self):
        return {name: index for index, name in enumerate(self.names)}

    @cached_property
    def _ranks(self):
        ends = list(accumulate(site.ranks for site in self.sites))
        return [range(end - site.ranks, end) for site, end in zip(self.sites, ends)]

    @cached_property
    def _links_between(self):
        return {(link.source, link.target): link for link in self.links}

    @cached_property
    def _links_from(self):
        return _by_end(self, "source")

    @cached_property
    def _links_to(self):
        return _by_end(self, "target")

    def _link(self, table: LinkTable, name: str, source: str, target: str) -> Link:
        """Return one direction of `table`; shared links share only with those that go their way."""
        pipe = f"{_part(source)}>{_part(target)}"
        if table.shared is not None:

            def depth(name):
                index = self._index[name]
                return self.sites[index].tier == "edge", index

            pipe = f"{_part(table.shared)}:{'up' if depth(source) > depth(target) else 'down'}"
        return Link(
            source=source,
            target=target,
            latency_seconds=table.latency_seconds,
            bytes_per_second=table.bytes_per_second,
            pipe=pipe,
            name=name,
            shared=table.shared,
            price_per_byte=table.price_per_byte,
            streams=table.streams,
            messages=table.messages,
        )

    def _check_shared_rates(self):
        rate_of_pipe = {}
        for link in self.links:
            rate = rate_of_pipe.setdefault(link.pipe, link.bytes_per_second)
            if rate != link.bytes_per_second:
                raise ClusterError(
                    f"{self.source}: links that share {link.pipe!r} give "
                    f"bytes_per_second {rate:g} and {link.bytes_per_second:g}; "
                    "what is shared has one rate: give it in each of them"
                )
