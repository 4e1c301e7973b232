"""Which tree of sites, and which hub: the least predicted time, money, or bytes over a link.

Up to EXACT_SITES sites all trees are looked at, but for those that a lower bound rules out; beyond,
trees of shortest ways from likely hubs are improved step by step, and what no tree can beat is told.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from isthmus.cluster.aggregation_tree import AggregationTree
from isthmus.compression.chunks import link_chunk_nbytes
from isthmus.compression.compressor import Compressor
from isthmus.planning.prices import price_of
from isthmus.planning.tree_search import best_of_all, best_of_likely
from isthmus.quantities import whole
from isthmus.timing.stages import link_routes
from isthmus.timing.tree_times import TreeTimes

if TYPE_CHECKING:
    from isthmus.cluster.cluster import Cluster

EXACT_SITES = 9
"""Most sites of which all trees count."""

WORTH = 0.01
"""Share of the seconds that another tree than the routes' own must save."""


@dataclass(frozen=True)
class PlannedTree:
    """A tree, what one exchange over it takes, and what no tree can beat."""

    tree: AggregationTree
    seconds: float
    lower_bound_seconds: float  # of any tree that the file allows; of `least` = "seconds" alone
    usual: AggregationTree  # that of the routes to the usual hub
    usual_seconds: float

    @property
    def gap(self) -> float:
        """How much longer than the lower bound it takes, as a share of that."""
        return self.seconds / self.lower_bound_seconds - 1 if self.lower_bound_seconds else 0.0

    def sentence(self, names: tuple[str, ...], exchanges_per_step: float = 1.0) -> str | None:
        """Return what the tree saves over the usual one, for people; None where it is the usual one."""
        if self.tree == self.usual:
            return None
        saved = exchanges_per_step * (self.usual_seconds - self.seconds)
        one, other = names[self.tree.hub], names[self.usual.hub]
        told = f"hub {one}" if one != other else "tree"
        over = other if one != other else self.usual.told(names)
        return f"{told} saves {saved:.3g} s a step over {over}: {self.tree.told(names)}"


def plan_tree(
    cluster: "Cluster",
    size: int,
    compressor: Compressor | None = None,
    *,
    chunk_nbytes: int | None = None,
    least: str = "seconds",
) -> PlannedTree:
    """Return the PlannedTree for vectors of `size` entries in "hierarchical".

    least: "seconds" of an exchange, "money" for what it sends, or the name of a link, what it shares or
    its two sites ("a-b"), for bytes over that; of equals the fastest. What the cluster file says stays
    as it is, its hub, parents, and sites that may not relay.

    Raises ValueError for a link that does not exist.
    """
    usual = cluster.tree
    size = whole("size", size, 0)
    if chunk_nbytes is None:
        chunk_nbytes = link_chunk_nbytes(cluster.links)
    times = TreeTimes(cluster, size, compressor, whole("chunk_nbytes", chunk_nbytes, 1))
    if size == 0 or len(cluster.sites) < 3:
        seconds = times.seconds(usual)
        return PlannedTree(usual, seconds, seconds, usual, seconds)
    times.price_by(price_of(cluster, least))
    search = best_of_all if len(cluster.sites) <= EXACT_SITES else best_of_likely
    tree, bound = search(times)
    before, after = times.seconds(usual), times.seconds(tree)
    if least == "seconds" and before - after <= WORTH * before:
        tree, after = usual, before
    return PlannedTree(tree, after, bound, usual, before)


def price_of_tree(cluster: "Cluster", tree: AggregationTree, wire_nbytes: float) -> float:
    """Return the money that the links ask for one exchange over `tree` in wires of so many bytes."""
    return wire_nbytes * sum(
        link.price_per_byte for way in link_routes(cluster, tree) for route in way for link in route
    )
