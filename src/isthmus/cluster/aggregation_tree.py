"""Which site adds up for which: a spanning tree of the sites."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from isthmus.errors import ClusterError


@dataclass(frozen=True)
class AggregationTree:
    """The parent of each site, by number; None for the hub, and for a site that exchanges with the hub.

    A site adds what its children sent to its own sum and sends that to its parent. At the top is the
    hub, or the hub and its partner, who send each other their sums at the same time.
    """

    parents: tuple[int | None, ...]
    hub: int

    @classmethod
    def star(cls, hub: int, sites: int) -> "AggregationTree":
        """Return the tree in which all sites send to the hub; two exchange."""
        if sites == 2:
            return cls((None, None), hub)
        return cls(tuple(None if site == hub else hub for site in range(sites)), hub)

    @cached_property
    def partner(self) -> int | None:
        """The other site at the top; None where the hub is alone there."""
        return next((site for site in self._tops if site != self.hub), None)

    @cached_property
    def children(self) -> tuple[tuple[int, ...], ...]:
        """The children of each site, by rising number."""
        children: list[list[int]] = [[] for _ in self.parents]
        for site, parent in enumerate(self.parents):
            if parent is not None:
                children[parent].append(site)
        return tuple(map(tuple, children))

    @cached_property
    def downwards(self) -> tuple[int, ...]:
        """All sites, each after its parent."""
        order = [self.hub, *(site for site in self._tops if site != self.hub)]
        for site in order:
            order += self.children[site]
        return tuple(order)

    @cached_property
    def beyond(self) -> npt.NDArray[np.bool_]:
        """Whether each site's sum reaches the top at the hub's partner."""
        beyond = np.zeros(len(self.parents), bool)
        for site in self.downwards:
            parent = self.parents[site]
            beyond[site] = site == self.partner if parent is None else beyond[parent]
        return beyond

    def above(self, site: int) -> int | None:
        """Return the site that `site` sends its sum to: its parent, or the other one at the top."""
        parent = self.parents[site]
        if parent is not None or self.partner is None:
            return parent
        return self.hub if site == self.partner else self.partner

    @property
    def height(self) -> int:
        """Most edges from a site up to the top."""
        depth = [0] * len(self.parents)
        for site in self.downwards:
            parent = self.parents[site]
            depth[site] = 0 if parent is None else depth[parent] + 1
        return max(depth)

    @property
    def retells(self) -> bool:
        """Whether two sites at the top encode their common sum once more, for others below them."""
        return self.partner is not None and len(self.parents) > 2

    @property
    def quantisations(self) -> int:
        """How often a sum is encoded on its way: once a level up, and once for the way down.

        Two sites alone encode once, because both add the same two wires.
        """
        if len(self.parents) == 1:
            return 0
        return self.height + 1 + self.retells

    def along(
        self, seconds: npt.NDArray[np.float64], fold: Callable[..., float]
    ) -> npt.NDArray[np.float64]:
        """Return float64[sites]: `fold`, max or sum, of what edges take on the way to the hub; 0 there.

        seconds: float64[sites but the hub], of the edge above each.
        """
        of_site = np.insert(seconds, self.hub, 0.0)
        folded = np.zeros(of_site.size)
        for site in self.downwards[1:]:
            parent = self.parents[site]
            folded[site] = fold((of_site[site], folded[self.hub if parent is None else parent]))
        return folded

    def with_one_at_the_top(self) -> "AggregationTree":
        """Return this tree with its hub's partner as a child of the hub; two sites stay as they are."""
        if not self.retells:
            return self
        parents = list(self.parents)
        parents[self.partner] = self.hub
        return AggregationTree(tuple(parents), self.hub)

    def told(self, names: Sequence[str]) -> str:
        """Return the tree in words: the hub, and who sends to whom where that is not the hub."""
        text = names[self.hub]
        if self.partner is not None:
            text += f" with {names[self.partner]}"
        below: dict[int, list[str]] = {}
        for site, parent in enumerate(self.parents):
            if parent not in (None, self.hub):
                below.setdefault(parent, []).append(names[site])
        return "; ".join(
            [text, *(f"{', '.join(sites)} by {names[parent]}" for parent, sites in below.items())]
        )

    @property
    def _tops(self):
        return [site for site, parent in enumerate(self.parents) if parent is None]


def tree_of_file(cluster: Any) -> AggregationTree:
    """Return the tree that the file of a Cluster says; what is left open follows the routes to the hub.

    A site's parent is the next site on its way to the hub that may add up for others. Raises
    ClusterError, with the key and the cure, for what is no tree.
    """
    sites, names = cluster.sites, cluster.names
    index = {name: number for number, name in enumerate(names)}
    parents = [None if site.parent is None else index[site.parent] for site in sites]
    _check_parents(cluster, parents)
    hub, partner = _top(cluster, parents, [index[name] for name in cluster.told_hub])
    if len(sites) == 2:
        return AggregationTree((None, None), hub)
    for site in range(len(sites)):
        if parents[site] is None and site not in (hub, partner):
            ways = (index[link.target] for link in cluster.route(names[site], names[hub]))
            parents[site] = next(
                (each for each in ways if sites[each].relay and not _is_below(parents, each, site)), hub
            )
    return AggregationTree(tuple(parents), hub)


def _check_parents(cluster, parents):
    """Raise ClusterError where `parents` go round in a circle, or one of them may not relay."""
    for site, parent in enumerate(parents):
        if parent is None:
            continue
        key = f"{cluster.source}: site[{site}].parent"
        if _is_below(parents, parent, site):
            circle, at = [cluster.names[site]], parent
            while at != site:
                circle.append(cluster.names[at])
                at = parents[at]
            raise ClusterError(
                f"{key}: {' > '.join(map(repr, [*circle, circle[0]]))} is a circle, out of which no sum "
                "comes; take `parent` out of one of them"
            )
        if not cluster.sites[parent].relay and len(parents) > 2:
            raise ClusterError(
                f"{key}: {cluster.names[parent]!r} has relay = false, so it adds up for no other site; "
                "name another parent, or take that out"
            )


def _top(cluster, parents, told):
    """Return the hub and its partner, or None."""
    sites, names, source = cluster.sites, cluster.names, cluster.source
    free = [site for site, parent in enumerate(parents) if parent is None]
    for site in told:
        if parents[site] is not None:
            raise ClusterError(
                f"{source}: hub: site {names[site]!r} has a parent, {sites[site].parent!r}; what is at "
                "the top has none: take one of the two out"
            )
    if told:
        hub, partner = told[0], told[1] if len(told) == 2 else None
        if len(sites) > 2 and not sites[hub].relay:
            raise ClusterError(
                f"{source}: hub: {names[hub]!r} has relay = false, so it adds up for no other site; "
                "name another hub, or take that out"
            )
        return hub, partner
    relays = [site for site in free if sites[site].relay or len(sites) < 3]
    if not relays:
        raise ClusterError(
            f"{source}: site: relay = false of all that could be the hub, so nobody adds up; "
            "take it out of one of them, or name a hub"
        )
    hub = cluster.central(relays)
    at_top = len(free) == 2 < len(sites)  # the file has given all others a parent
    return hub, next(site for site in free if site != hub) if at_top else None


def _is_below(parents, site, other):
    """Return whether `site` is `other`, or a site that it sends to is, however far up."""
    seen = set()
    while site is not None and site not in seen:
        if site == other:
            return True
        seen.add(site)
        site = parents[site]
    return False
