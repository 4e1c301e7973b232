"""Changes that arrive one after another: what they do to the vector, and who begins when.

The one engine of jobs, of their replay, of `serial_arrivals` and of what is expected of a strategy.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

Arrival = tuple[int, int]
"""A worker, and the version of the vector that its change began from."""


class Arriving(Protocol):
    """What a strategy says of changes that arrive; see `buffered.Buffered`."""

    @property
    def busy(self) -> int:
        """Workers that may be at work at once."""

    @property
    def every(self) -> int:
        """Steps of a change."""

    @property
    def mixing(self) -> float | None:
        """How far the vector goes towards a worker; None: it moves by what workers changed."""

    def counts(self, staleness: int) -> float:
        """Return what a change is multiplied by."""

    def drops(self, staleness: int) -> bool:
        """Return whether a change is thrown away."""

    def holds(self, version: int, oldest: float) -> bool:
        """Return whether a move would make a change too old that is still to come.

        oldest: the version that the oldest of these began from; infinity where there is none.
        """

    def moves(self, waiting: int, version: int, oldest: float) -> bool:
        """Return whether the vector moves to version + 1, now that so many changes wait for it."""


class Server:
    """The vector that workers have in common, moved by their changes. Versions are counted from 0.

    A vector that was given out is never changed in place. weights: of each worker.
    """

    def __init__(self, strategy: Arriving, vector: Any, weights: Sequence[float]):
        self.strategy, self.vector, self.weights = strategy, vector, weights
        self.version = 0
        self.buffer: list[tuple[int, float, Any]] = []  # worker, weight, change or end

    def take(self, worker: int, version: int, start: Any, change: Any) -> None:
        """Take a change of `worker`, who began from `start`, which was of that version."""
        staleness = self.version - version
        if not self.strategy.drops(staleness):
            kept = change if self.strategy.mixing is None else start - change
            self.buffer.append((worker, self.strategy.counts(staleness), kept))

    def move(self) -> None:
        """Make the next version of all that has come, whatever the order in which it came."""
        mixing, number = self.strategy.mixing, self.vector.dtype.type
        total, step = sum(self.weights[worker] for worker, *_ in self.buffer), 0
        for worker, weight, kept in sorted(self.buffer, key=lambda each: each[0]):
            share = number(self.weights[worker] / total * weight * (mixing or 1.0))
            step = step + share * (kept if mixing is None else self.vector - kept)
        self.vector = self.vector - step
        self.version += 1
        self.buffer = []


class Turns:
    """Who is at work since which version, and whose turn it is, until `changes` have begun in all.

    Who is fast makes more of them. Each worker that waits for its first turn has it before any has its
    second: where there are as many changes as workers, each makes one at least.
    """

    def __init__(self, strategy: Arriving, workers: int, changes: float):
        self.strategy, self.left = strategy, changes
        self.at_work: dict[int, int] = {}
        self.idle = list(range(workers))
        self.last = [-1] * workers

    def begin(self, version: int) -> list[int]:
        """Return the workers that begin now, from `version`: in the order in which they became idle."""
        holds, begun = self.strategy.holds(version, self.oldest), []
        for worker in self.idle:
            if not self.left or len(self.at_work) == self.strategy.busy:
                break
            if not (holds and self.last[worker] == version):
                self.left -= 1
                self.at_work[worker] = self.last[worker] = version
                begun.append(worker)
        self.idle = [worker for worker in self.idle if worker not in begun]
        return begun

    def may_arrive(self, worker: int) -> bool:
        return worker in self.at_work

    def arrive(self, worker: int) -> int:
        """Return from which version the change of `worker` began that is here now."""
        self.idle.append(worker)
        return self.at_work.pop(worker)

    @property
    def oldest(self) -> float:
        """The oldest version that a change began from which is still to come."""
        return min(self.at_work.values(), default=math.inf)


class Recorded:
    """Turns as they were taken once: `trace` has the arrivals, in order."""

    def __init__(self, trace: Sequence[Arrival]):
        self.trace, self.later, self.done = trace, oldest_later(trace), 0
        self.starts: dict[int, list[int]] = {}
        for worker, version in reversed(trace):
            self.starts.setdefault(worker, []).append(version)
        self.at_work: dict[int, int] = {}

    def begin(self, version: int) -> list[int]:
        begun = [
            worker
            for worker, starts in sorted(self.starts.items())
            if worker not in self.at_work and starts and starts[-1] == version
        ]
        self.at_work |= {worker: self.starts[worker].pop() for worker in begun}
        return begun

    def may_arrive(self, worker: int) -> bool:
        return worker in self.at_work and worker == self.trace[self.done][0]

    def arrive(self, worker: int) -> int:
        self.done += 1
        return self.at_work.pop(worker)

    @property
    def oldest(self) -> float:
        return self.later[self.done - 1] if self.done else -1


def check_trace(
    strategy: Arriving,
    trace: Sequence[Arrival],
    workers: int,
    changes: int,
    version: int,
    told: Mapping[str, Any],
) -> None:
    """Raise ValueError unless `workers` that make so many `changes` in all can arrive as `trace` says.

    version: what they begin with. told: of the trace, the `version` that it leads to, and how many
    changes were `lost`, because they were not finite: what they came to cannot be checked.
    """
    wrong = (
        f"the arrivals that lead to version {told['version']} are not of this run's strategy and steps"
    )
    if len(trace) != changes or {worker for worker, _ in trace} != {*range(workers)}:
        raise ValueError(wrong)
    turns, waiting = Recorded(trace), 0
    if not {*range(min(strategy.busy, workers))} <= {*turns.begin(version)}:
        raise ValueError(wrong)
    for worker, start in trace:
        if not turns.may_arrive(worker):
            raise ValueError(wrong)
        turns.arrive(worker)
        waiting += not strategy.drops(version - start)
        if strategy.moves(waiting, version, turns.oldest):
            version, waiting = version + 1, 0
        turns.begin(version)
    if not told["lost"] and version + (waiting > 0) != told["version"]:
        raise ValueError(wrong)


def oldest_later(trace: Sequence[Arrival]) -> list[float]:
    """Return for each arrival the oldest version that one after it began from."""
    later, oldest = [], math.inf
    for _, version in reversed(trace):
        later.append(oldest)
        oldest = min(oldest, version)
    return later[::-1]
