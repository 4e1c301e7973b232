"""How long requests will take: edge ranks, the links to the cloud, and its ranks, played event by event.

It plays what `inference` does: an edge rank does its part of the requests that have come, in batches,
and sends on what it does not answer while a cloud rank has room; a pipe carries one message after
another, a cloud rank answers one batch after another.
"""

import heapq
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

TERMS = ("edge", "wait", "send", "compute", "back")


class Seconds(NamedTuple):
    """What a batch of k requests takes: first + k * each."""

    first: float
    each: float

    def of(self, count: int) -> float:
        """Return the seconds of a batch of `count`."""
        return self.first + count * self.each


NOTHING = Seconds(0.0, 0.0)


class Rule(Protocol):
    """Which of the servers with free[server] takes the next batch, by what each has not answered yet."""

    def choose(self, free: npt.NDArray[np.bool_], pending: npt.NDArray[np.int64]) -> int: ...


@dataclass(frozen=True)
class Asker:
    """An edge rank: when its requests come, float64[n], and which it answers itself, bool[n].

    part: its share of the work of a request. up, down: (latency, bytes per second) of its link.
    request_nbytes, answer_nbytes: of what is sent for one; heads: of the heads of a batch, both ways.
    """

    arrivals: npt.NDArray[np.float64]
    kept: npt.NDArray[np.bool_]
    part: Seconds
    up: tuple[float, float]
    down: tuple[float, float]
    request_nbytes: float
    answer_nbytes: float
    heads: tuple[float, float] = (32.0, 32.0)


def play_requests(
    askers: Sequence[Asker],
    servers: Sequence[Seconds],
    batch: int,
    window: int,
    rule: Callable[[], Rule],
) -> list[dict[str, npt.NDArray[np.float64]]]:
    """Return, for each edge rank, the seconds of each request by term: float64[n], NaN where none.

    servers: what a batch takes at each cloud rank. rule: makes what says where an edge rank's batches
    go; a cloud rank has at most `window` of them.
    """
    return _Play(askers, servers, batch, window, [rule() for _ in askers]).run()


class _Play:
    """Events, in order of time: an edge rank looks round, a batch comes, is answered, is back."""

    def __init__(self, askers, servers, batch, window, rules):
        self.askers, self.servers, self.batch, self.window = askers, servers, batch, window
        self.rules = rules
        self.events: list = []
        self.terms = [{name: np.full(len(asker.arrivals), np.nan) for name in TERMS} for asker in askers]
        self.come, self.busy_until = [0] * len(askers), [0.0] * len(askers)
        self.queues: list[deque[int]] = [deque() for _ in askers]
        self.decided = [np.zeros(len(asker.arrivals)) for asker in askers]
        self.under_way = np.zeros((len(askers), len(servers)), int)
        self.pending = np.zeros((len(askers), len(servers)), int)
        self.up_free, self.down_free = [0.0] * len(askers), [0.0] * len(askers)
        self.server_free = [0.0] * len(servers)
        self.number = 0

    def run(self):
        for number, asker in enumerate(self.askers):
            if len(asker.arrivals):
                self._at(asker.arrivals[0], self._look, number)
        while self.events:
            now, _, what, arguments = heapq.heappop(self.events)
            what(now, *arguments)
        return self.terms

    def _at(self, when, what, *arguments):
        self.number += 1
        heapq.heappush(self.events, (when, self.number, what, arguments))

    def _look(self, now, number):
        """Have an edge rank take what has come; it looks again once that is done, or the next comes."""
        asker, first = self.askers[number], self.come[number]
        if now < self.busy_until[number]:
            return
        last = min(int(np.searchsorted(asker.arrivals, now, side="right")), first + self.batch)
        if first < last:
            self.come[number], done = last, now + asker.part.of(last - first)
            self.busy_until[number] = done
            self.terms[number]["edge"][first:last] = done - asker.arrivals[first:last]
            self.decided[number][first:last] = done
            self._at(done, self._decide, number, first, last)
        elif first < len(asker.arrivals):
            self._at(asker.arrivals[first], self._look, number)

    def _decide(self, now, number, first, last):
        kept = self.askers[number].kept[first:last]
        self.queues[number].extend(first + np.flatnonzero(~kept))
        self._send(now, number)
        self._look(now, number)

    def _send(self, now, number):
        asker, queue = self.askers[number], self.queues[number]
        while queue and (free := self.under_way[number] < self.window).any():
            server = self.rules[number].choose(free, self.pending[number])
            indices = np.array([queue.popleft() for _ in range(min(len(queue), self.batch))])
            self.under_way[number, server] += 1
            self.pending[number, server] += len(indices)
            self.terms[number]["wait"][indices] = now - self.decided[number][indices]
            nbytes = asker.heads[0] + len(indices) * asker.request_nbytes
            start = max(now, self.up_free[number])
            self.up_free[number] = start + nbytes / asker.up[1]
            self._at(self.up_free[number] + asker.up[0], self._come, number, server, indices, now)

    def _come(self, now, number, server, indices, sent):
        self.terms[number]["send"][indices] = now - sent
        begin = max(now, self.server_free[server])
        self.server_free[server] = begin + self.servers[server].of(len(indices))
        self._at(self.server_free[server], self._answered, number, server, indices, now)

    def _answered(self, now, number, server, indices, came):
        asker = self.askers[number]
        self.terms[number]["compute"][indices] = now - came
        nbytes = asker.heads[1] + len(indices) * asker.answer_nbytes
        self.down_free[number] = max(now, self.down_free[number]) + nbytes / asker.down[1]
        self._at(self.down_free[number] + asker.down[0], self._back, number, server, indices, now)

    def _back(self, now, number, server, indices, done):
        seen = max(now, self.busy_until[number])  # an edge rank at work looks at the link afterwards
        self.terms[number]["back"][indices] = seen - done
        self.under_way[number, server] -= 1
        self.pending[number, server] -= len(indices)
        self._send(now, number)
