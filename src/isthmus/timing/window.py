"""How far ahead a leader sends: what fills its link, and not the queue before the link.

A queue that is full delays the other way's acknowledgements, and that way then stands still until its
window has grown by as much (Zhang, Shenker and Clark 1991, "Observations on the dynamics of a congestion
control algorithm: the effects of two-way traffic"). Where TCP's windows cannot be set (`links.tcp`)
nothing else prevents it: 16 MB over a star of three sites, 100 Mbit/s each and no latency, TCP as the
kernel has it (bbr), over n b / B, medians of six on a machine that others kept busy:

    SLACK_SECONDS      none     0.03     0.02     0.01    0.005
    float32            1.17     1.10     1.11     1.11     1.09
    int8               1.40     1.17     1.14     1.10     1.11

With reno in the place of bbr all of them take 1.07 and 1.09.
"""

import math

import numpy as np

from isthmus.timing.stages import crossings, link_routes

SLACK_SECONDS = 0.01
"""Of sending beyond a chunk's way there and back, for each level of a tree: for ranks that are late, and
share cores."""


def window_nbytes(cluster, site, chunk_nbytes):
    """Return the most bytes that a site's leader sends up before the first have come back as a sum.

    What the link above it carries while a chunk of `chunk_nbytes` goes up the tree and the sum comes
    down, and SLACK_SECONDS more a level. Infinite for a hub that is alone at the top, which waits for
    all, and where nothing is told of links.
    """
    tree = cluster.tree
    if not cluster.links or tree.above(site) is None:
        return math.inf
    nbytes = chunk_nbytes + cluster.overhead_nbytes
    ways = crossings(link_routes(cluster, tree), nbytes, nbytes)
    levels = tree.height + (tree.partner is not None)
    seconds = sum(float(tree.along(first, sum).max()) for first, _ in ways) + levels * SLACK_SECONDS
    # The hub and its partner share an edge, the partner's.
    below = tree.partner if site == tree.hub else site
    _, each = ways[0 if below == site else 1]
    each = float(np.insert(each, tree.hub, 0.0)[below])
    return nbytes * seconds / each if each else math.inf


def way_nbytes(cluster, here, there, chunk_nbytes):
    """Return the most bytes that a rank of one site sends one of another, by number, before as many have
    come to it: what the way carries while a chunk goes there and one comes back, and SLACK_SECONDS.
    Infinite where nothing is told of links."""
    if not cluster.links:
        return math.inf
    names = cluster.names
    way, back = (cluster.route(names[a], names[b]) for a, b in ((here, there), (there, here)))
    rate = min(link.bytes_per_second for link in way)
    seconds = sum(link.latency_seconds for link in (*way, *back)) + SLACK_SECONDS
    return rate * seconds + 2 * chunk_nbytes
