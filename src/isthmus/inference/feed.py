"""Requests that come from other threads while an edge rank answers: a bounded queue, and tickets."""

import threading
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt


class FullError(Exception):
    """The queue holds as many requests as it may: ask again later."""


class Ticket:
    """The answers to the rows of one `put`, once they are all there.

    answers: [n], as `Answers` has them. from_cloud: bool[n].
    """

    def __init__(self, count: int):
        self.answers: list[Any] = [None] * count
        self.from_cloud = np.zeros(count, bool)
        self._left, self._done = count, threading.Event()

    def give(self, place: int, answer: Any, from_cloud: bool) -> None:
        """Note the answer to row `place`; the last one wakes whoever waits."""
        self.answers[place], self.from_cloud[place] = answer, from_cloud
        self._left -= 1
        if not self._left:
            self._done.set()

    def wait(self, seconds: float) -> bool:
        """Return whether all answers are there, after so many seconds at most."""
        return self._done.wait(seconds)


class Feed:
    """A bounded queue of requests of one shape and dtype, from any thread to the one that answers.

    most: rows that may wait. clock: as the answering rank's.
    """

    def __init__(
        self, shape: tuple[int, ...], dtype: npt.DTypeLike, most: int, clock: Callable[[], float]
    ):
        self.shape, self.dtype, self.most, self.clock = tuple(shape), np.dtype(dtype), most, clock
        self.closed = False
        self._rows: deque = deque()
        self._lock = threading.Lock()

    def put(self, rows: npt.NDArray[Any]) -> Ticket:
        """Queue the requests [n, *shape] and return their Ticket; FullError where they do not fit."""
        ticket = Ticket(len(rows))
        with self._lock:
            now = self.clock()
            if self.closed or len(self._rows) + len(rows) > self.most:
                raise FullError
            self._rows.extend((row, now, ticket, place) for place, row in enumerate(rows))
        return ticket

    def take(self, most: int) -> list[tuple[npt.NDArray[Any], float, Ticket, int]]:
        """Return up to `most` (row, when it came, its ticket, its place there), the oldest first."""
        with self._lock:
            return [self._rows.popleft() for _ in range(min(most, len(self._rows)))]

    def close(self) -> None:
        """Take no more requests; those that wait are still answered."""
        with self._lock:
            self.closed = True

    @property
    def waiting(self) -> int:
        """Rows that have not been taken."""
        return len(self._rows)
