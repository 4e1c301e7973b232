"""Tasks, what they pass on to each other, and what ranks and links take for both."""

import heapq
import math
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from isthmus.cluster.cluster import Cluster
from isthmus.errors import PlanError
from isthmus.quantities import real


@dataclass(frozen=True)
class TaskGraph:
    """A graph without circles, on a cluster; tasks and edges are numbers.

    seconds[task][rank]: infinite where it may not run; `allowed[task]`: the ranks where it may.
    inputs[task], outputs[task]: (other task, edge) of each. order: tasks, each after its inputs.
    """

    cluster: Cluster
    names: tuple[str, ...]
    seconds: list[list[float]]
    allowed: list[list[int]]
    nbytes: list[float]
    inputs: list[list[tuple[int, int]]]
    outputs: list[list[tuple[int, int]]]
    order: list[int]
    pipes: tuple[str, ...]
    _ways: dict = field(default_factory=dict)

    @property
    def size(self):
        """Number of tasks."""
        return len(self.names)

    @cached_property
    def alike(self):
        """Return of each rank the first that is like it: of its site, and as fast for every task."""
        columns = zip(self.cluster.site_of_rank, *self.seconds)
        first = {}
        return [first.setdefault(column, rank) for rank, column in enumerate(columns)]

    def way(self, edge, source, target):
        """Return (seconds that it is busy, latency, pipes that it takes) of an edge between two ranks.

        Inside a site no pipe is taken: its network carries all at once.
        """
        sites = self.cluster.site_of_rank
        key = (self.nbytes[edge], sites[source], sites[target])
        found = self._ways.get(key)
        if found is None:
            found = self._ways[key] = self._way(*key)
        return found

    def seconds_between(self, edge, source, target):
        """Return what an edge takes between two ranks where nothing else is on its way."""
        if source == target:
            return 0.0
        busy, latency, _ = self.way(edge, source, target)
        return busy + latency

    def _way(self, nbytes, here, there):
        cluster = self.cluster
        if here == there:
            latency, rate = cluster.sites[here].network.line(nbytes)
            return nbytes / rate, latency, ()
        links = cluster.route(cluster.names[here], cluster.names[there])
        lines = [link.line(nbytes, "messages") for link in links]
        busy = (nbytes + cluster.overhead_nbytes) / min(rate for _, rate in lines)
        pipes = tuple(self.pipes.index(link.pipe) for link in links)
        return busy, sum(latency for latency, _ in lines), pipes


def make_graph(cluster, work, edges, pinned=None, names=None):
    """Return the TaskGraph; ValueError for what makes no sense, PlanError for what cannot be run.

    Arguments as of `schedule_tasks`; names: of the tasks, for messages, their numbers if None.
    """
    seconds = _seconds(cluster, work)
    count = len(seconds)
    names = tuple(map(str, range(count))) if names is None else tuple(names)
    for task, places in (pinned or {}).items():
        _check_task(task, count, "pinned")
        elsewhere = np.ones(cluster.size, bool)
        elsewhere[_ranks(cluster, names[task], places)] = False
        seconds[task, elsewhere] = math.inf
    for task in np.flatnonzero(np.isinf(seconds).all(1)):
        raise PlanError(
            f"no rank may run task {names[task]}; pin it to a rank that takes finite seconds for it"
        )
    inputs, outputs = ([[] for _ in names] for _ in range(2))
    amounts = []
    for ends, nbytes in edges.items():
        for task in ends:
            _check_task(task, count, "edges")
        source, target = map(int, ends)
        inputs[target].append((source, len(amounts)))
        outputs[source].append((target, len(amounts)))
        amounts.append(real(f"edges: bytes from {names[source]} to {names[target]}", nbytes, least=0))
    order = in_order(inputs, outputs, names)
    allowed = [np.flatnonzero(np.isfinite(row)).tolist() for row in seconds]
    pipes = tuple(dict.fromkeys(link.pipe for link in cluster.links))
    return TaskGraph(cluster, names, seconds.tolist(), allowed, amounts, inputs, outputs, order, pipes)


def _seconds(cluster, work):
    try:
        made = np.array(work, np.float64)
    except (TypeError, ValueError):
        raise ValueError("work must be numbers: seconds[tasks, ranks], or units[tasks]") from None
    if made.ndim == 1 and made.size:
        if not np.isfinite(made).all():
            raise ValueError(f"work[{np.isfinite(made).argmin()}] must be finite units")
        made = made[:, None] / np.array(cluster.rates)
    if made.ndim != 2 or not made.size or made.shape[1] != cluster.size:
        raise ValueError(
            f"work must be seconds[tasks, {cluster.size}], a column for each rank, or units[tasks], "
            f"not of shape {np.shape(work)}"
        )
    if not (made >= 0).all():  # a NaN neither
        task, rank = np.argwhere(~(made >= 0))[0]
        raise ValueError(f"work[{task}, {rank}] must be 0 or more seconds, not {made[task, rank]}")
    return made


def _check_task(task, count, where):
    whole = isinstance(task, int | np.integer) and not isinstance(task, bool)
    if not whole or not 0 <= task < count:
        raise ValueError(f"{where}: there is no task {task!r}; tasks are 0 to {count - 1}")


def _ranks(cluster, name, places):
    """Return the ranks that a pin names: a rank, a site, or several of either."""
    if isinstance(places, str):
        if places not in cluster.names:
            raise PlanError(
                f"task {name} is pinned to site {places!r}, which does not exist; "
                f"known sites: {', '.join(cluster.names)}"
            )
        return list(cluster.ranks_of_site(places))
    if isinstance(places, int | np.integer):
        if not 0 <= places < cluster.size:
            raise PlanError(f"task {name} is pinned to rank {places}; ranks are 0 to {cluster.size - 1}")
        return [int(places)]
    return [rank for place in places for rank in _ranks(cluster, name, place)]


def in_order(inputs, outputs, names, what="tasks wait for each other"):
    """Return the numbers of `names`, each after its inputs, the lowest first; PlanError for a circle."""
    waiting = [len(before) for before in inputs]
    free = [task for task, count in enumerate(waiting) if not count]
    order = []
    while free:
        task = heapq.heappop(free)
        order.append(task)
        for after, _ in outputs[task]:
            waiting[after] -= 1
            if not waiting[after]:
                heapq.heappush(free, after)
    if len(order) < len(names):
        task, seen = next(task for task, count in enumerate(waiting) if count), []
        while task not in seen:  # each that waits has an input that waits
            seen.append(task)
            task = next(before for before, _ in inputs[task] if waiting[before])
        circle = [*reversed(seen[seen.index(task) :])]
        told = " > ".join(names[each] for each in [circle[-1], *circle])
        raise PlanError(f"{what} in a circle: {told}; take one of these edges out")
    return order
