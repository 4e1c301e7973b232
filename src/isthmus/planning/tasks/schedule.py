"""Which rank runs which task, and when: numbers in, numbers out."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from isthmus.cluster.cluster import Cluster
from isthmus.planning.tasks import lists
from isthmus.planning.tasks.booking import Message, book
from isthmus.planning.tasks.bounds import lower_bound
from isthmus.planning.tasks.graph import TaskGraph, make_graph
from isthmus.planning.tasks.search import EXACT, FEW, Exact, annealed, genetic


def link_aware(graph: TaskGraph) -> Any:
    """Return the best of the lists that book the links, after some tries to make it shorter."""
    return annealed(graph, [lists.link_aware(graph)], FEW)


METHODS: dict[str, Callable[[TaskGraph], Any]] = {
    "link_aware": link_aware,
    "heft": lists.heft,
    "cpop": lists.cpop,
    "min_load": lists.min_load,
    "greedy": lists.greedy,
    "genetic": genetic,
}
"""Name -> what gives the (order, rank of each task) of a graph; "best" searches on from these."""

Place = int | str
"""A rank or a site's name."""


@dataclass(frozen=True)
class Schedule:
    """Where and when tasks run, under links that carry one message after another.

    promised_seconds: what the same tasks on the same ranks would take if the links carried all messages
    at once, as the literature's methods think. proved: whether no list of tasks is shorter.
    messages: those between ranks, in the order in which links take them.
    """

    method: str
    seconds: float
    lower_bound_seconds: float
    gap: float
    proved: bool
    promised_seconds: float
    rank_of: tuple[int, ...]
    start: tuple[float, ...]
    end: tuple[float, ...]
    messages: tuple[Message, ...]


def schedule_tasks(
    cluster: Cluster,
    work: npt.ArrayLike,
    edges: Mapping[tuple[int, int], float],
    pinned: Mapping[int, Place | Collection[Place]] | None = None,
    method: str = "best",
) -> Schedule:
    """Return the Schedule that has a graph of tasks done soonest.

    work: seconds, float64[tasks, ranks], infinite where a task may not run; or units (samples),
        float64[tasks], of which ranks do their `samples_per_second`.
    edges: {(task, task): bytes} that the first passes on to the second.
    pinned: {task: a rank, a site, or several of them} that it must run on.
    method: "best" is exact up to 10 tasks, and beyond that the best of a search that starts from the
        lists; "link_aware" is the shortest of some lists that book messages on the links, and a short
        search from it; "heft" and "cpop" are those of Topcuoglu et al. 2002, "min_load" takes the least
        loaded rank, "greedy" the least sum of T_ij, and "genetic" is a genetic search. All are judged by
        the same links: each carries one message at a time, and the networks inside sites carry all at
        once.

    Raises ValueError for numbers that make no sense, and PlanError for tasks in a circle and for one
    that no rank may run.
    """
    if method not in ("best", *METHODS):
        raise ValueError(f"method must be one of best, {', '.join(METHODS)}, not {method!r}")
    return schedule_graph(make_graph(cluster, work, edges, pinned), method)


def schedule_graph(graph: TaskGraph, method: str) -> Schedule:
    """Return the Schedule of a graph that is made already."""
    bound, proved = lower_bound(graph), False
    if method == "best":
        found = annealed(graph, [make(graph) for name, make in METHODS.items() if name != "genetic"])
        if graph.size <= EXACT:
            search = Exact(graph, *found)
            found, proved = search.best, search.proved
    else:
        found = METHODS[method](graph)
    order, rank_of = found
    messages: list[Message] = []
    booking = book(graph, order, rank_of, messages=messages)
    seconds = booking.seconds
    assert bound <= seconds * (1 + 1e-6), f"a bound {bound} above a schedule {seconds} is no bound"
    bound = seconds if proved else min(bound, seconds)
    return Schedule(
        method=method,
        seconds=seconds,
        lower_bound_seconds=bound,
        gap=seconds / bound - 1 if bound > 0 else 0.0 if seconds == 0 else np.inf,
        proved=proved or bound == seconds,
        promised_seconds=book(graph, order, rank_of, shared=False).seconds,
        rank_of=tuple(booking.rank_of),
        start=tuple(booking.start),
        end=tuple(booking.end),
        messages=tuple(messages),
    )
