"""The trees and the recursive halving over the true links, message by message.

Inside a site a rank sends one message at a time, and receives one at a time, at the rate of the
site's network; between sites the messages of all ranks take turns on the links that they share.
"""

import heapq
from collections import defaultdict

from isthmus.topology.schedules import TREE_CHUNKS_AHEAD, core_ranks, halvings, trees


class Pipes:
    """What carries messages: when each pipe is free again, and how long it has been busy.

    stream_nbytes: of what short messages are a part, if they are; links take them as a stream.
    """

    def __init__(self, cluster, stream_nbytes=None):
        self.cluster, self.stream_nbytes, self.ways = cluster, stream_nbytes, {}
        self.free, self.busy = defaultdict(float), defaultdict(float)

    def arrival(self, source, target, nbytes, start):
        """Return when a message that rank `source` has ready at `start` is there."""
        pipes, latency = self._way(source, target, nbytes)
        start = max(start, *(self.free[pipe] for pipe, _ in pipes))
        for pipe, seconds in pipes:
            self.free[pipe] = start + seconds
            self.busy[pipe] += seconds
        return start + max(seconds for _, seconds in pipes) + latency

    def _way(self, source, target, nbytes):
        """Return the pipes between two ranks, with the seconds of `nbytes` in each, and the latency."""
        here, there = (self.cluster.site_of_rank[rank] for rank in (source, target))
        if (here, there, nbytes) not in self.ways:
            self.ways[here, there, nbytes] = self._lines(here, there, nbytes)
        pipes, latency = self.ways[here, there, nbytes]
        if here == there:
            seconds = self.cluster.sites[here].message_seconds + pipes
            return [(("out", source), seconds), (("in", target), seconds)], latency
        return pipes, latency

    def _lines(self, here, there, nbytes):
        """Return the seconds of `nbytes` in a site, or in each pipe between two, and the latency."""
        if here == there:
            latency, rate = self.cluster.sites[here].network.line(nbytes)
            return nbytes / rate, latency
        links = self.cluster.route(self.cluster.names[here], self.cluster.names[there])
        lines = [link.line(self.stream_nbytes) if self.stream_nbytes else link.line(nbytes, "messages")
                 for link in links]
        return ([(link.pipe, nbytes / rate) for link, (_, rate) in zip(links, lines)],
                sum(latency for latency, _ in lines))


def tree_seconds(cluster, size, add_bytes_per_second):
    """Return the seconds until the roots have the sum of `size` entries, and from then to the end.

    Pipelined, (chunks + depth) steps: the first chunk goes all the way up and down; every other one
    then takes what the busiest pipe, or the adding of one rank, needs for a chunk. The first chunks
    go up alone and as many come down alone at the end, because a rank waits for a chunk from above
    only when it is `TREE_CHUNKS_AHEAD` for each level.
    """
    both = trees(cluster.size, size)
    up, down = Pipes(cluster, 4 * size), Pipes(cluster, 4 * size)
    down.free = up.free
    summed, ended, adding = _first_chunk(both, up, down, add_bytes_per_second)
    each_up = max(adding, max(up.busy.values()))
    each_down = max(down.busy.values())
    each = max(adding, max(up.busy[pipe] + down.busy[pipe] for pipe in {*up.busy, *down.busy}))
    # A last chunk that is short counts as the part of a chunk that it is.
    rest = max(tree.entries / _first_entries(tree) for tree in both) - 1
    inner = max(tree.depth(parent) for tree in both for parent in {*tree.parents} - {None})
    alone = min(rest, TREE_CHUNKS_AHEAD * inner)
    return summed + alone * each_up + (rest - alone) * each, ended - summed + alone * each_down


def _first_chunk(both, up, down, add_bytes_per_second):
    """Send the first chunk of each tree up and down.

    Return when the last root has the sum, when the last rank has it, and the longest adding of a rank.
    """
    summed, ended, adding = 0.0, 0.0, defaultdict(float)
    came = [[0.0] * len(tree.parents) for tree in both]
    missing = [[len(below) for below in tree.children] for tree in both]
    events = [(0.0, number, rank, "up") for number, left in enumerate(missing)
              for rank in range(len(left)) if left[rank] == 0]
    while events:                                        # the earliest first
        now, number, rank, way = heapq.heappop(events)
        tree, nbytes = both[number], 4 * _first_entries(both[number])
        parent = tree.parents[rank]
        if way == "up" and parent is not None:
            add_seconds = nbytes / add_bytes_per_second
            adding[parent] += add_seconds
            came[number][parent] = add_seconds + max(
                came[number][parent], up.arrival(rank, parent, nbytes, now))
            missing[number][parent] -= 1
            if missing[number][parent] == 0:
                heapq.heappush(events, (came[number][parent], number, parent, "up"))
            continue
        summed = max(summed, now) if parent is None else summed
        ended = max(ended, now)
        for child in tree.children[rank]:
            heapq.heappush(events, (down.arrival(rank, child, nbytes, now), number, child, "down"))
    return summed, ended, max(adding.values())


def _first_entries(tree):
    return tree.chunks[0].stop - tree.chunks[0].start


def halving_seconds(cluster, size, add_bytes_per_second):
    """Return the seconds of recursive halving, folding included, and of the doubling after it.

    On a uniform cluster of 2^k ranks 2 log2(p) L + 2 (p - 1) / p n / B and the additions; else the
    folding takes 2 (L + n / B) more, and shared links make the ranks of a site take turns.
    """
    core = core_ranks(cluster.size)
    pipes, ready = Pipes(cluster), [0.0] * cluster.size
    folds = [(rank, rank + 1, 4 * size) for rank in sorted(set(range(cluster.size)) - set(core))]
    steps = list(zip(*(halvings(core, position, size) for position in range(len(core)))))

    def exchange(messages, add):
        came = list(ready)
        for source, target, nbytes in sorted(messages, key=lambda message: ready[message[0]]):
            if nbytes:
                arrival = pipes.arrival(source, target, nbytes, ready[source])
                came[target] = max(came[target], arrival) + (nbytes / add_bytes_per_second
                                                             if add else 0.0)
        ready[:] = came

    exchange(folds, add=True)
    for step in steps:
        exchange([(rank, half.peer, 4 * (half.give.stop - half.give.start))
                  for rank, half in zip(core, step)], add=True)
    halved = max(ready)
    for step in reversed(steps):
        exchange([(rank, half.peer, 4 * (half.keep.stop - half.keep.start))
                  for rank, half in zip(core, step)], add=False)
    exchange([(target, source, nbytes) for source, target, nbytes in folds], add=False)
    return halved, max(ready) - halved
