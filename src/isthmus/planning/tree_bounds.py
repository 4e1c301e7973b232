"""What no tree of many sites beats: how far sites are apart, the slowest link, and both at once."""

import numpy as np

from isthmus.timing.tree_times import shortest

LOOKED_UP = 1500
"""Most pairs of sites without a link whose routes are looked up."""
SITES = 128
"""Most sites of which every two are tried at the top: some tenths of a second."""
LEVELS = 12
"""How slow the slowest link may be, from as fast as it can be to as slow as pays."""


def least_by_tops(times, ends, narrow, most):
    """Return seconds that no tree beats, whatever is at its top, or `most` if that is less; 0 for too
    many sites.

    ends: int[links, 2], of the links. narrow: of the slowest link of any tree, at least. A tree whose
    slowest link is no slower than a level's uses the links up to that alone: on these the ways to what
    is at the top and back are as short as they can be. One between two levels counts as slow as the
    faster of them.
    """
    sites, cluster = len(times.cluster.sites), times.cluster
    if sites > SITES or sites * (sites - 1) - len(ends) > LOOKED_UP:
        return 0.0
    latency, chunk = times.pairs()
    first, each = latency + chunk, np.maximum(chunk, chunk.T)
    relays = [site for site in range(sites) if cluster.sites[site].relay]
    slow = np.unique(each[(each >= narrow) & ~np.eye(sites, dtype=bool)])
    least, faster = most, narrow
    for level in np.unique(np.linspace(0, slow.size - 1, LEVELS).astype(int) if times.rest else [-1]):
        some = np.where(each <= slow[level], first, np.inf)
        ways = shortest(some, relays)
        alone, two = _first_chunk(ways, some, relays, times.portable)
        for seconds, together in ((alone, False), (two, True)):
            if np.isfinite(seconds):
                height = 0 if together else 1
                least = min(least, times.least_seconds(seconds, faster, height, 1, together))
        faster = slow[min(level + 1, slow.size - 1)]
        if times.least_seconds(0.0, faster, 0, 1, False) >= least:
            break
    return least


def _first_chunk(ways, first, relays, portable):
    """Return the seconds of the first chunk up and down, at least: with one site at the top, and two.

    ways, first: float64[sites, sites], the shortest ways from site to site, and what an edge takes.
    """
    alone = min((ways[:, hub].max() + ways[hub].max() for hub in relays), default=np.inf)
    two = np.inf
    for hub in relays if portable else ():
        # Of each other site as its partner: when both have the whole sum, and then all the others.
        there, back = first[:, hub, None], first[hub][:, None]
        to_hub, to_other = ways[:, hub], ways.T
        here = np.minimum(to_hub, to_other + there).max(axis=1, keepdims=True)
        beyond = np.minimum(to_other, to_hub + back).max(axis=1, keepdims=True)
        whole = np.minimum(here + ways[hub], beyond + ways).max(axis=1)
        whole[hub] = np.inf
        two = min(two, whole.min())
    return float(alone), float(two)


def far_apart(sites, ends, latency):
    """Return how far two sites are apart, far ones, and float64[2, sites]: from two such to all others.

    What one sends reaches the other on some way in any tree, so none is faster.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import dijkstra

    graph = coo_matrix((latency + 1e-12, ends.T), (sites, sites)).tocsr()
    one = int(np.argmax(dijkstra(graph, indices=0)))
    away = dijkstra(graph, indices=one)
    back = dijkstra(graph.T, indices=int(np.argmax(away)))
    return max(0.0, float(max(away.max(), back.max())) - 1e-12 * sites), np.stack([away, back])


def narrowest(sites, ends, chunk):
    """Return the least that a chunk takes on the slowest link of any tree.

    Of the two ways of a link the faster counts. Every site takes a wire in and sends one, and links
    that join all sites are as slow as those of the tree whose slowest is fastest (Kruskal 1956).
    """
    ways = np.full((2, sites), np.inf)
    np.minimum.at(ways[0], ends[:, 0], chunk)
    np.minimum.at(ways[1], ends[:, 1], chunk)
    group = list(range(sites))

    def root(site):
        while group[site] != site:
            group[site] = group[group[site]]
            site = group[site]
        return site

    slowest = float(ways.max())
    for number in np.argsort(chunk, kind="stable").tolist():
        one, other = map(root, ends[number].tolist())
        if one != other:
            group[one], slowest = other, max(slowest, float(chunk[number]))
    return slowest
