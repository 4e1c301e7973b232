"""When tasks run and messages travel, once it is known where and in which order."""

from typing import NamedTuple


class Message(NamedTuple):
    """What one task passes on to another rank's, from `start` to its `arrival`.

    `busy_seconds` from its start on it has the pipes for itself; inside a site there are none.
    """

    source: int
    target: int
    nbytes: float
    pipes: tuple[str, ...]
    start: float
    busy_seconds: float
    arrival: float


class Booking:
    """Ranks and pipes as far as they are taken, task by task.

    A task's inputs go in the order in which they are ready, each once its pipes are free from what
    was booked before; the task follows once they are there and its rank is free. A message starts
    when the whole way is free, and has all of it until the slowest link has let it through. shared:
    False for links that carry all at once, as the literature's do.
    """

    def __init__(self, graph, shared=True):
        self.graph, self.shared = graph, shared
        self.rank_free = [0.0] * graph.cluster.size
        self.pipe_free = [0.0] * len(graph.pipes)
        self.rank_of, self.start, self.end = ([None] * graph.size for _ in range(3))

    def ready(self, task, rank, messages=None):
        """Return when all inputs of `task` are on `rank`, and until when pipes are taken then.

        messages: a list that each Message is added to.
        """
        graph, latest, taken = self.graph, 0.0, {}
        waiting = [(self.end[source], source, edge) for source, edge in graph.inputs[task]]
        if len(waiting) > 1:
            waiting.sort()
        for start, source, edge in waiting:
            arrival = start
            if self.rank_of[source] != rank:
                busy, latency, pipes = graph.way(edge, self.rank_of[source], rank)
                if self.shared:
                    for pipe in pipes:
                        start = max(start, taken.get(pipe, self.pipe_free[pipe]))
                    for pipe in pipes:
                        taken[pipe] = start + busy
                arrival = start + busy + latency
                if messages is not None:
                    names = tuple(graph.pipes[pipe] for pipe in pipes)
                    messages.append(
                        Message(source, task, graph.nbytes[edge], names, start, busy, arrival)
                    )
            latest = max(latest, arrival)
        return latest, taken

    def add(self, task, rank, ready, taken):
        """Book `task` on `rank`, as `ready` has said."""
        for pipe, until in taken.items():
            self.pipe_free[pipe] = until
        self.rank_of[task] = rank
        self.start[task] = max(ready, self.rank_free[rank])
        self.end[task] = self.rank_free[rank] = self.start[task] + self.graph.seconds[task][rank]

    @property
    def seconds(self):
        """When the last rank is done."""
        return max(self.rank_free)


def book(graph, order, rank_of, shared=True, messages=None):
    """Return the Booking of tasks in that order on their ranks."""
    booking = Booking(graph, shared)
    for task in order:
        booking.add(task, rank_of[task], *booking.ready(task, rank_of[task], messages))
    return booking
