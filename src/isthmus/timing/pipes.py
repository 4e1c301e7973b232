"""The trees, recursive doubling and recursive halving over the true links, message by message.

Inside a site a rank sends one message at a time, and receives one at a time, at the rate of the
site's network; between sites the messages of all ranks take turns on the links that they share.
"""

import heapq
from collections import Counter, defaultdict
from itertools import product

from isthmus.schedules import TREE_CHUNKS_AHEAD, core_ranks, halvings, trees

PLAYED = 4096
"""Chunks times ranks of a tree that are played, at most: some tenths of a second."""


class Timetable:
    """What carries messages: when each pipe is free again, and how long it has been busy.

    stream_nbytes: of what short messages are a part, if they are; links take them as a stream.
    """

    def __init__(self, cluster, stream_nbytes=None):
        self.cluster, self.stream_nbytes, self.ways = cluster, stream_nbytes, {}
        self.free, self.busy = defaultdict(float), defaultdict(float)

    def arrival(self, source, target, nbytes, start, at_once=1):
        """Return when a message that rank `source` has ready at `start` is there.

        at_once: how many of as many bytes pass a link of its way about then.
        """
        pipes, latency = self._way(source, target, nbytes, at_once)
        end = start
        for pipe, seconds in pipes:  # one after another, the head of the message while its tail is sent
            start = max(start, self.free[pipe])
            self.free[pipe] = start + seconds
            self.busy[pipe] += seconds
            end = max(end, start + seconds)
        return end + latency

    def passing(self, messages):
        """Return (site, site) -> how many `messages`, (source, target, bytes), share a link with it."""
        between = Counter(
            (self.cluster.site_of_rank[source], self.cluster.site_of_rank[target])
            for source, target, nbytes in messages
            if nbytes
        )
        load = Counter()
        for sites, count in between.items():
            for link in self._route(*sites):
                load[link.pipe] += count
        return {
            sites: max((load[link.pipe] for link in self._route(*sites)), default=1) for sites in between
        }

    def _route(self, here, there):
        return self.cluster.route(self.cluster.names[here], self.cluster.names[there])

    def _way(self, source, target, nbytes, at_once):
        """Return the pipes between two ranks, with the seconds of `nbytes` in each, and the latency."""
        here, there = (self.cluster.site_of_rank[rank] for rank in (source, target))
        if (here, there, nbytes, at_once) not in self.ways:
            self.ways[here, there, nbytes, at_once] = self._lines(here, there, nbytes, at_once)
        pipes, latency = self.ways[here, there, nbytes, at_once]
        if here == there:
            seconds = self.cluster.sites[here].message_seconds + pipes
            return [(("out", source), seconds), (("in", target), seconds)], latency
        return pipes, latency

    def _lines(self, here, there, nbytes, at_once):
        """Return the seconds of `nbytes` in a site, or in each pipe between two, and the latency."""
        if here == there:
            latency, rate = self.cluster.sites[here].network.line(nbytes)
            return nbytes / rate, latency
        links = self._route(here, there)
        lines = [link.line(self.stream_nbytes or at_once * nbytes) for link in links]
        whole = nbytes + self.cluster.overhead_nbytes
        return (
            [(link.pipe, whole / rate) for link, (_, rate) in zip(links, lines)],
            sum(latency for latency, _ in lines),
        )


def tree_seconds(cluster, size, add_bytes_per_second):
    """Return the seconds until the roots have the sum of `size` entries, and from then to the end.

    The schedule is played chunk by chunk, up and down, until all ranks are as far ahead as they may be;
    of a longer vector every other chunk then takes what the last of those took, or what the busiest
    pipe, or the adding of one rank, needs for one. Of more ranks fewer chunks are played.
    """
    both, timetable = trees(cluster.size, size), Timetable(cluster, 4 * size)
    deepest = max(tree.depth(rank) for tree in both for rank in {*tree.parents} - {None})
    settled = 2 * (TREE_CHUNKS_AHEAD * (deepest + 1) + 1)
    played = max(1, min(settled, PLAYED // cluster.size, max(len(tree.chunks) for tree in both)))
    summed, ended, adding = _play_trees(both, played, timetable, add_bytes_per_second)
    each = max(*timetable.busy.values(), max(adding.values())) / played
    if played == settled:
        half = played // 2
        each = max(each, (ended[-1] - ended[half - 1]) / (played - half))
    # A last chunk that is short counts as the part of a chunk that it is.
    whole = max(tree.entries / (tree.chunks[0].stop - tree.chunks[0].start) for tree in both)
    rest = max(0.0, whole - played) * each
    return summed + rest, ended[-1] - summed


def _play_trees(both, played, timetable, add_bytes_per_second):
    """Play the first `played` chunks of each tree, as `collectives.tree` sends them.

    Return when the last root has the last sum, when all ranks have each chunk, and each rank's adding.
    """
    ranks = range(len(both[0].parents))
    came = [defaultdict(int) for _ in both]  # (rank, chunk) -> sums of children, so far
    raised, fallen = ([[0 for _ in ranks] for _ in both] for _ in range(2))
    ahead = [[TREE_CHUNKS_AHEAD * tree.depth(rank) for rank in ranks] for tree in both]
    free, adding, ended, summed = defaultdict(float), defaultdict(float), [0.0] * played, 0.0
    events = []

    def raise_chunks(now, number, rank):
        """Add and pass on all that may go up: what has come, and is not too far ahead."""
        tree = both[number]
        while (
            (chunk := raised[number][rank]) < min(played, len(tree.chunks))
            and came[number][rank, chunk] == len(tree.children[rank])
            and (tree.parents[rank] is None or chunk <= fallen[number][rank] + ahead[number][rank])
        ):
            seconds = len(tree.children[rank]) * _nbytes(tree, chunk) / add_bytes_per_second
            adding[rank] += seconds
            free[rank] = max(now, free[rank]) + seconds
            raised[number][rank] += 1
            heapq.heappush(events, (free[rank], number, rank, chunk, "raised"))

    for number, rank in product(range(len(both)), ranks):
        raise_chunks(0.0, number, rank)
    while events:  # the earliest first
        now, number, rank, chunk, what = heapq.heappop(events)
        tree = both[number]
        parent, nbytes = tree.parents[rank], _nbytes(tree, chunk)
        if what == "came":
            came[number][rank, chunk] += 1
        elif what == "raised" and parent is not None:
            arrival = timetable.arrival(rank, parent, nbytes, now)
            heapq.heappush(events, (arrival, number, parent, chunk, "came"))
        else:
            summed = max(summed, now) if parent is None else summed
            ended[chunk] = max(ended[chunk], now)
            fallen[number][rank] += 1
            for child in tree.children[rank]:
                arrival = timetable.arrival(rank, child, nbytes, now)
                heapq.heappush(events, (arrival, number, child, chunk, "fell"))
        raise_chunks(now, number, rank)
    return summed, ended, adding


def _nbytes(tree, chunk):
    return 4 * (tree.chunks[chunk].stop - tree.chunks[chunk].start)


class Steps:
    """Steps in which each rank sends one message at most: when each rank is `ready` for the next.

    core: the ranks that remain when the others have folded their vectors into a neighbour's.
    """

    def __init__(self, cluster, add_bytes_per_second):
        self.cluster, self.add_bytes_per_second = cluster, add_bytes_per_second
        self.timetable, self.ready = Timetable(cluster), [0.0] * cluster.size
        self.core = core_ranks(cluster.size)
        self.folded = sorted(set(range(cluster.size)) - set(self.core))

    def exchange(self, messages, add):
        """Pass `messages` on, (source, target, bytes); add: to what the targets have."""
        came, passing = list(self.ready), self.timetable.passing(messages)
        for source, target, nbytes in sorted(messages, key=lambda message: self.ready[message[0]]):
            if nbytes:
                sites = self.cluster.site_of_rank[source], self.cluster.site_of_rank[target]
                start = self.ready[source]
                arrival = self.timetable.arrival(source, target, nbytes, start, passing[sites])
                came[target] = max(came[target], arrival) + (
                    nbytes / self.add_bytes_per_second if add else 0.0
                )
        self.ready = came

    def fold(self, nbytes):
        """Let what is over a power of two fold vectors of `nbytes` into their neighbours'."""
        self.exchange([(rank, rank + 1, nbytes) for rank in self.folded], add=True)

    def tell(self, nbytes):
        """Let those know the sum."""
        self.exchange([(rank + 1, rank, nbytes) for rank in self.folded], add=False)


def doubling_seconds(cluster, size, add_bytes_per_second):
    """Return the seconds of recursive doubling, folding included, and of telling those that folded.

    On a uniform cluster of 2^k ranks log2(p) (L + n / B) and the additions; else folding takes
    2 (L + n / B) more, and shared links make the ranks of a site take turns.
    """
    steps = Steps(cluster, add_bytes_per_second)
    core = steps.core
    steps.fold(4 * size)
    for bit in range(len(core).bit_length() - 1):
        pairs = [(rank, core[place ^ (1 << bit)], 4 * size) for place, rank in enumerate(core)]
        steps.exchange(pairs, add=True)
    summed = max(steps.ready)
    steps.tell(4 * size)
    return summed, max(steps.ready) - summed


def halving_seconds(cluster, size, add_bytes_per_second):
    """Return the seconds of recursive halving, folding included, and of the doubling after it.

    On a uniform cluster of 2^k ranks 2 log2(p) L + 2 (p - 1) / p n / B and the additions; else the
    folding takes 2 (L + n / B) more, and shared links make the ranks of a site take turns.
    """
    steps = Steps(cluster, add_bytes_per_second)
    core = steps.core
    halves = list(zip(*(halvings(core, position, size) for position in range(len(core)))))
    steps.fold(4 * size)
    for step in halves:
        steps.exchange(
            [
                (rank, half.peer, 4 * (half.give.stop - half.give.start))
                for rank, half in zip(core, step)
            ],
            add=True,
        )
    halved = max(steps.ready)
    for step in reversed(halves):
        steps.exchange(
            [
                (rank, half.peer, 4 * (half.keep.stop - half.keep.start))
                for rank, half in zip(core, step)
            ],
            add=False,
        )
    steps.tell(4 * size)
    return halved, max(steps.ready) - halved
