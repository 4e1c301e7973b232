"""Schedules by list: one task after another, each where it looks best. (order, rank of each task).

HEFT and CPOP: Topcuoglu, Hariri and Wu 2002, doi:10.1109/71.993206. They take the links for as wide as
need be; `link_aware` books them as it books ranks (Sinnen and Sousa 2005, doi:10.1109/TPDS.2005.64).
"""

import math
from bisect import insort
from itertools import pairwise

from isthmus.planning.tasks.booking import Booking

MOST_SITES = 8
"""Sites up to which `link_aware` tries each alone."""


def greedy(graph):
    """Each task where T_ij, its seconds and its inputs' ways, is least: min sum of T_ij x_ij."""
    rank_of = [None] * graph.size
    for task in graph.order:
        rank_of[task] = min(
            graph.allowed[task],
            key=lambda rank: (
                graph.seconds[task][rank]
                + sum(
                    graph.seconds_between(edge, rank_of[source], rank)
                    for source, edge in graph.inputs[task]
                )
            ),
        )
    return graph.order, rank_of


def min_load(graph):
    """Each task on the rank that then has the least to compute."""
    load, rank_of = [0.0] * graph.cluster.size, [None] * graph.size
    for task in graph.order:
        rank = min(graph.allowed[task], key=lambda each: load[each] + graph.seconds[task][each])
        load[rank] += graph.seconds[task][rank]
        rank_of[task] = rank
    return graph.order, rank_of


def heft(graph):
    """Tasks by their upward rank, each where it ends first, also in a gap between others."""
    return _inserted(graph, by_upward_rank(graph), lambda task: graph.allowed[task])


def cpop(graph):
    """Tasks on the critical path on the one rank that is fastest for all of them; others as in HEFT."""
    up, down = upward(graph), downward(graph)
    through = [above + below for above, below in zip(up, down)]
    path, tasks = [], [task for task in range(graph.size) if not graph.inputs[task]]
    while tasks:
        path.append(max(tasks, key=lambda task: through[task]))
        tasks = [after for after, _ in graph.outputs[path[-1]]]
    common = set(range(graph.cluster.size)).intersection(*(graph.allowed[task] for task in path))
    fastest = min(
        sorted(common) or range(graph.cluster.size),
        key=lambda rank: sum(graph.seconds[task][rank] for task in path),
    )
    waiting = [len(before) for before in graph.inputs]
    free, order = [task for task in range(graph.size) if not waiting[task]], []
    while free:
        task = max(free, key=lambda each: through[each])
        free.remove(task)
        order.append(task)
        for after, _ in graph.outputs[task]:
            waiting[after] -= 1
            if not waiting[after]:
                free.append(after)

    def ranks(task):
        return [fastest] if task in path and fastest in graph.allowed[task] else graph.allowed[task]

    return _inserted(graph, order, ranks)


def link_aware(graph):
    """The shortest of some lists that book each input's way on the links as they book ranks.

    Tasks go by their upward rank, by the least that is to follow them (`Ahead`), or by number; to where
    they end first, or where they and what is to follow them do; or stay in one site as far as pins
    let them.
    """
    ahead, everyone = Ahead(graph).tail, set(range(graph.cluster.size))
    least = [min(map(float.__add__, *rows)) for rows in zip(graph.seconds, ahead)]
    for task in reversed(graph.order):  # no input may be less urgent than what it is for
        least[task] = max(least[task], *(least[after] for after, _ in graph.outputs[task]), 0.0)
    following = _most_first(graph, least)
    orders = [by_upward_rank(graph), following, graph.order]
    nothing = [[0.0] * graph.cluster.size] * graph.size
    ways = [(order, everyone, tail) for order in orders for tail in (nothing, ahead)]
    if 1 < len(graph.cluster.names) <= MOST_SITES:
        ways += [
            (following, set(graph.cluster.ranks_of_site(name)), ahead) for name in graph.cluster.names
        ]
    made = [(order, _booked(graph, order, place, tail)) for order, place, tail in ways]
    order, booking = min(made, key=lambda each: each[1].seconds)
    return order, booking.rank_of


def _booked(graph, order, place, tail):
    """Return the Booking of tasks on the ranks of `place` that they may take, or any they may."""
    booking = Booking(graph)
    free = booking.rank_free
    for task in order:
        best, others = None, {}  # of ranks alike that hold no input only the one that is free first
        holding = {booking.rank_of[source] for source, _ in graph.inputs[task]}
        ranks = [rank for rank in graph.allowed[task] if rank in place] or graph.allowed[task]
        for rank in ranks:
            other = others.get(graph.alike[rank])
            if rank not in holding and (other is None or free[rank] < free[other]):
                others[graph.alike[rank]] = rank
        for rank in sorted({*others.values(), *holding.intersection(ranks)}):
            ready, taken = booking.ready(task, rank)
            end = max(ready, booking.rank_free[rank]) + graph.seconds[task][rank]
            if best is None or end + tail[task][rank] < best[0]:
                best = end + tail[task][rank], rank, ready, taken
        booking.add(task, *best[1:])
    return booking


class Ahead:
    """What must follow a task, at the least, where nothing else is on the ranks and links.

    tail[task][rank]: seconds from its end on that rank to the end of all, on the longest path; the
    optimistic cost table of Arabnejad and Barbosa 2014, doi:10.1109/TPDS.2013.57.
    """

    def __init__(self, graph):
        self.tail = [[0.0] * graph.cluster.size for _ in graph.names]
        sites = graph.cluster.site_of_rank
        for task in reversed(graph.order):
            for after, edge in graph.outputs[task]:
                best = {}  # site -> the least from the start of `after` there
                own = {}
                for rank in graph.allowed[after]:
                    own[rank] = graph.seconds[after][rank] + self.tail[after][rank]
                    best[sites[rank]] = min(best.get(sites[rank], (math.inf, 0)), (own[rank], rank))
                for rank in graph.allowed[task]:
                    least = own.get(rank, math.inf)
                    for seconds, there in best.values():
                        if seconds < least and there != rank:
                            least = min(least, graph.seconds_between(edge, rank, there) + seconds)
                    self.tail[task][rank] = max(self.tail[task][rank], least)


def by_upward_rank(graph):
    """Return the tasks by upward rank, the most urgent first, each after its inputs."""
    return _most_first(graph, upward(graph))


def _most_first(graph, urgent):
    """Return the tasks, the most urgent first, of equals in their order."""
    place = {task: number for number, task in enumerate(graph.order)}
    return sorted(range(graph.size), key=lambda task: (-urgent[task], place[task]))


def upward(graph):
    """Return of each task the mean seconds from its start to the end of all, on the longest path."""
    mean, between = _means(graph)
    up = [0.0] * graph.size
    for task in reversed(graph.order):
        after = (between[edge] + up[other] for other, edge in graph.outputs[task])
        up[task] = mean[task] + max(after, default=0.0)
    return up


def downward(graph):
    """Return of each task the mean seconds from the first start to its own, on the longest path."""
    mean, between = _means(graph)
    down = [0.0] * graph.size
    for task in graph.order:
        before = (down[other] + mean[other] + between[edge] for other, edge in graph.inputs[task])
        down[task] = max(before, default=0.0)
    return down


def _means(graph):
    """Return the mean seconds of each task over its ranks, and of each edge over pairs of ranks."""
    mean = [
        sum(graph.seconds[task][rank] for rank in ranks) / len(ranks)
        for task, ranks in enumerate(graph.allowed)
    ]
    cluster, known = graph.cluster, {}
    ranks = [cluster.ranks_of_site(name) for name in cluster.names]
    pairs = cluster.size * (cluster.size - 1)
    for edge, nbytes in enumerate(graph.nbytes):
        if nbytes not in known:
            known[nbytes] = sum(
                len(here)
                * (len(there) - (here is there))
                * graph.seconds_between(edge, here[0], there[-1] if len(there) > 1 else there[0])
                for here in ranks
                for there in ranks
            ) / (pairs or 1)
    return mean, [known[nbytes] for nbytes in graph.nbytes]


def _inserted(graph, order, ranks_of):
    """Return tasks in the order of their starts, each put into the first gap of the rank where it ends
    first."""
    taken = [[(0.0, 0.0)] for _ in range(graph.cluster.size)]  # (start, end) of what ranks compute
    rank_of, start, end = ([None] * graph.size for _ in range(3))
    for task in order:
        best = None
        for rank in ranks_of(task):
            seconds = graph.seconds[task][rank]
            ready = max(
                (
                    end[source] + graph.seconds_between(edge, rank_of[source], rank)
                    for source, edge in graph.inputs[task]
                ),
                default=0.0,
            )
            first = max(ready, taken[rank][-1][1])
            for (_, before), (after, _) in pairwise(taken[rank]):
                if max(ready, before) + seconds <= after:
                    first = max(ready, before)
                    break
            if best is None or first + seconds < best[0]:
                best = first + seconds, first, rank
        end[task], start[task], rank_of[task] = best
        insort(taken[rank_of[task]], (start[task], end[task]))
    place = {task: number for number, task in enumerate(graph.order)}
    return sorted(range(graph.size), key=lambda task: (start[task], place[task])), rank_of
