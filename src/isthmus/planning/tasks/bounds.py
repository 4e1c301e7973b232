"""What no schedule can beat, by linear programme.

    min T    subject to
    sum over tasks of w_tg x_tg <= T                      every rank, ranks alike as one g
    sum over edges of busy_ep z_ep <= T                   every pipe p that alone leads from S_p
    z_ep >= x_u(S_p) - x_v(S_p)                           every edge e from u to v: it crosses
    s_v >= s_u + w_u x_u + (busy_ep + latency_p) z_ep     it comes after u and its way
    T >= s_t + w_t x_t,  sum over g of x_tg = 1,  x, z, s >= 0

x_tg is the share of task t on ranks g, x_u(S) that on the sites S.
"""

from collections import Counter

import numpy as np

from isthmus.planning.programme.silence import silent
from isthmus.planning.tasks.lists import Ahead

MOST_WHOLE, MOST = 1_000, 4_000
"""Variables x up to which the whole programme is solved, and that without s: some tenths of a second."""


def lower_bound(graph):
    """Return seconds that no schedule of the graph can beat: the programme's, or the longest path's.

    A large programme is solved without the rows of s, a very large one not at all.
    """
    tail = Ahead(graph).tail
    paths = (min(map(float.__add__, row, after)) for row, after in zip(graph.seconds, tail))
    least = sum(min(row) for row in graph.seconds) / graph.cluster.size
    simple = max(least, *paths)
    size = graph.size * len(set(graph.alike))
    if size > MOST:
        return simple
    from scipy.optimize import linprog

    cost, rows, bounds, equal = _programme(graph, ordered=size <= MOST_WHOLE)
    with silent():
        solved = linprog(
            cost, rows, np.zeros(rows.shape[0]), equal, np.ones(graph.size), bounds, method="highs"
        )
    return max(simple, solved.fun * (1 - 1e-7)) if solved.status == 0 else simple


class _Rows:
    """Rows of a sparse matrix, entry by entry."""

    def __init__(self):
        self.entries, self.count = [], 0

    def add(self, *entries):
        """entries: (column, value) of a new row."""
        self.entries += [(self.count, column, value) for column, value in entries]
        self.count += 1

    def matrix(self, columns):
        from scipy.sparse import csr_array

        row, column, value = map(np.array, zip(*self.entries))
        return csr_array((value, (row.astype(int), column.astype(int))), (self.count, columns))


def _programme(graph, ordered):
    """Return (cost, rows of A v <= 0, bounds, rows of A v = 1) of v = (T, s, x, z).

    ordered: whether there are rows of s.
    """
    sites, alike = graph.cluster.site_of_rank, graph.alike
    members = Counter(alike)
    count = 1 + graph.size  # of T, and s of each task
    shares = []  # of each task: rank -> column of x
    for ranks in graph.allowed:
        kinds = [rank for rank in ranks if alike[rank] == rank]
        shares.append({rank: count + number for number, rank in enumerate(kinds)})
        count += len(kinds)
    rows, busy = _Rows(), [[(0, -1.0)] for _ in graph.pipes]
    cuts = list(_cuts(graph))
    for task, seconds in enumerate(graph.seconds):
        own = [(column, seconds[rank]) for rank, column in shares[task].items()]
        if ordered:
            rows.add((1 + task, 1.0), (0, -1.0), *own)
        for after, edge in graph.outputs[task]:
            first = (1 + task, 1.0), (1 + after, -1.0), *own
            if ordered:
                rows.add(*first)
            for pipe, within, here, there in cuts:
                taken, latency, _ = graph.way(edge, here, there)
                crossing, count = count, count + 1
                leaves = [(c, 1.0) for rank, c in shares[task].items() if sites[rank] in within]
                stays = [(c, -1.0) for rank, c in shares[after].items() if sites[rank] in within]
                rows.add(*leaves, *stays, (crossing, -1.0))
                if ordered:
                    rows.add(*first, (crossing, taken + latency))
                busy[pipe].append((crossing, taken))
    for row in busy:
        rows.add(*row)
    for rank in sorted(set(alike)):
        computed = [
            (own[rank], graph.seconds[task][rank]) for task, own in enumerate(shares) if rank in own
        ]
        rows.add((0, -float(members[rank])), *computed)
    cost = np.zeros(count)
    cost[0] = 1.0
    whole = _Rows()
    for own in shares:
        whole.add(*((column, 1.0) for column in own.values()))
    return cost, rows.matrix(count), (0, None), whole.matrix(count)


def _cuts(graph):
    """Yield (pipe, sites on its near side, a rank there, a rank beyond) of pipes that all who leave
    those sites must take, where such a way is no longer than the pipe itself."""
    cluster, names = graph.cluster, graph.cluster.names
    if len(names) > 16:
        return
    takes = {}
    for here, source in enumerate(names):
        for there, target in enumerate(names):
            for link in cluster.route(source, target):
                takes.setdefault(link.pipe, {})[here, there] = link
    for pipe, pairs in takes.items():
        near, far = {here for here, _ in pairs}, {there for _, there in pairs}
        if near & far or len(pairs) < len(near) * (len(names) - len(near)):
            continue
        direct = [(link.source, link.target) for link in pairs.values()]
        if len(set(direct)) == 1:
            here, there = (cluster.ranks_of_site(name)[0] for name in direct[0])
            yield graph.pipes.index(pipe), near, here, there
