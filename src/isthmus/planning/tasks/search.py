"""The best schedule: by branch and bound of few tasks, by annealing of many; and a genetic search.

What is searched are lists, as `booking.book` takes them: every order of tasks on every rank.
"""

import math
import random

from isthmus.planning.tasks.booking import Booking, book
from isthmus.planning.tasks.lists import Ahead, by_upward_rank

EXACT = 10
"""Tasks up to which all lists are searched."""
PAIRS = 8_000_000
"""Pairs of ranks that branch and bound looks at, over all parts of lists, before it gives up."""
BOOKED, FEW = 200_000, 30_000
"""Tasks that a search by trying books, over all its tries, and those that lists are improved with."""


class Bound:
    """What no schedule can beat, by the longest path: of all, and of lists that go on from a Booking."""

    def __init__(self, graph):
        self.graph = graph
        ranks = range(graph.cluster.size)
        self.between = [
            [[graph.seconds_between(edge, here, there) for there in ranks] for here in ranks]
            for edge in range(len(graph.nbytes))
        ]
        self.tail = Ahead(graph).tail

    def of(self, booking, booked):
        """Return the least seconds of a schedule that goes on from a Booking of the tasks `booked`."""
        graph, bound, end = self.graph, booking.seconds, {}
        for task in graph.order:
            if task in booked:
                end[task] = {booking.rank_of[task]: booking.end[task]}
                continue
            ends, least = {}, math.inf
            for rank in graph.allowed[task]:
                ready = booking.rank_free[rank]
                for before, edge in graph.inputs[task]:
                    between = self.between[edge]
                    ready = max(
                        ready, min(when + between[here][rank] for here, when in end[before].items())
                    )
                ends[rank] = ready + graph.seconds[task][rank]
                least = min(least, ends[rank] + self.tail[task][rank])
            end[task] = ends
            bound = max(bound, least)
        return bound


class Exact:
    """All lists, depth first, without those that cannot be shorter, or are behind another one."""

    def __init__(self, graph, order, rank_of, pairs=PAIRS):
        """order, rank_of: the schedule to beat."""
        self.graph, self.left, self.bound = graph, pairs, Bound(graph)
        self.best = order, rank_of
        self.seconds = book(graph, order, rank_of).seconds
        self.known = {}  # where a list may go on from: when its ranks, pipes and outputs are free
        if self.bound.of(Booking(graph), frozenset()) < self._worth():
            self._go_on(Booking(graph), [])

    @property
    def proved(self):
        """Whether all lists were looked at, so that none is shorter."""
        return self.left > 0

    def _worth(self):
        return self.seconds * (1 - 1e-9)

    def _go_on(self, booking, order):
        graph, booked = self.graph, frozenset(order)
        if len(order) == graph.size:
            self.best, self.seconds = (order, booking.rank_of), booking.seconds
            return
        found = []
        for task in range(graph.size):
            if task in booked or any(before not in booked for before, _ in graph.inputs[task]):
                continue
            fresh = set()
            for rank in graph.allowed[task]:
                if not booking.rank_free[rank]:  # of ranks alike that have nothing yet, one
                    if graph.alike[rank] in fresh:
                        continue
                    fresh.add(graph.alike[rank])
                after = _copy(booking)
                after.add(task, rank, *booking.ready(task, rank))
                bound = self.bound.of(after, booked | {task})
                self.left -= graph.cluster.size**2
                found.append((bound, after.end[task], task, rank, after))
        for bound, _, task, _, after in sorted(found, key=lambda each: each[:4]):
            if bound >= self._worth() or self.left <= 0:
                return
            if self._new(after, booked | {task}):
                self._go_on(after, [*order, task])

    def _new(self, booking, booked):
        """Return whether no list of the same tasks is as far everywhere, and keep this one."""
        outputs = self.graph.outputs
        opened = [
            task for task in sorted(booked) if any(after not in booked for after, _ in outputs[task])
        ]
        key = booked, tuple(booking.rank_of[task] for task in opened)
        free = (*booking.rank_free, *booking.pipe_free, *(booking.end[task] for task in opened))
        known = self.known.setdefault(key, [])
        if any(all(map(float.__le__, other, free)) for other in known):
            return False
        known[:] = [other for other in known if not all(map(float.__le__, free, other))]
        known.append(free)
        return True


def _copy(booking):
    after = Booking(booking.graph)
    for name in ("rank_free", "pipe_free", "rank_of", "start", "end"):
        setattr(after, name, getattr(booking, name).copy())
    return after


def annealed(graph, starts, booked=BOOKED, seed=0):
    """Return the best (order, rank of each task) that simulated annealing finds from the best start.

    A try moves a task to another rank, or to another place in the order that its edges leave it.
    Kirkpatrick, Gelatt and Vecchi 1983, doi:10.1126/science.220.4598.671. The same every time. booked:
    tasks to book, over all tries.
    """
    drawn = random.Random(seed)
    seconds, order, rank_of = min(
        ((book(graph, *start).seconds, *start) for start in starts), key=lambda found: found[0]
    )
    best = now = seconds
    kept = order, rank_of = list(order), list(rank_of)
    tries = min(10_000, booked // graph.size)
    movable = [task for task in range(graph.size) if len(graph.allowed[task]) > 1]
    for number in range(tries):
        heat = 0.02 * best * (1 - number / tries) ** 2
        new_order, new_ranks = order, rank_of
        if movable and drawn.random() < 0.6:
            task = drawn.choice(movable)
            new_ranks = rank_of.copy()
            new_ranks[task] = drawn.choice(
                [rank for rank in graph.allowed[task] if rank != rank_of[task]]
            )
        else:
            new_order = _moved(graph, order, drawn)
        seconds = book(graph, new_order, new_ranks).seconds
        if seconds <= now or drawn.random() < math.exp((now - seconds) / max(heat, 1e-300)):
            now, order, rank_of = seconds, new_order, new_ranks
            if now < best:
                best, kept = now, (order, rank_of)
    return kept


def _moved(graph, order, drawn):
    """Return the order with one task elsewhere, still after its inputs and before its outputs."""
    task = drawn.choice(order)
    rest = [each for each in order if each != task]
    place = {each: number for number, each in enumerate(rest)}
    first = max((place[before] + 1 for before, _ in graph.inputs[task]), default=0)
    last = min((place[after] for after, _ in graph.outputs[task]), default=len(rest))
    where = drawn.randint(first, last)
    return [*rest[:where], task, *rest[where:]]


def genetic(graph, population=40, seed=0):
    """Return (order, rank of each task) by a genetic search over ranks, the literature's baseline.

    Tasks go by their upward rank. Parents win tournaments of two, children take ranks from one up to a
    task and from the other after it, one in ten tasks moves, and the best two stay.
    """
    drawn, order = random.Random(seed), by_upward_rank(graph)

    def judged(ranks):
        return book(graph, order, ranks).seconds, ranks

    people = sorted(judged([drawn.choice(ranks) for ranks in graph.allowed]) for _ in range(population))
    for _ in range(min(100, max(10, BOOKED // graph.size // population))):
        children = people[:2]
        while len(children) < population:
            mother, father = (min(drawn.sample(people, 2))[1] for _ in range(2))
            cut = drawn.randint(0, graph.size)
            child = [
                mother[task] if place < cut else father[task]
                for place, task in sorted(enumerate(order), key=lambda pair: pair[1])
            ]
            children.append(
                judged(
                    [
                        drawn.choice(graph.allowed[task]) if drawn.random() < 0.1 else rank
                        for task, rank in enumerate(child)
                    ]
                )
            )
        people = sorted(children)
    return order, people[0][1]
