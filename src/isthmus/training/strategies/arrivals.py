"""Changes that arrive one after another: what they do to the vector, and who begins when.

The one engine of jobs, of their replay, of `serial_arrivals` and of what is expected of a strategy.
"""

import heapq
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from isthmus.errors import NonFiniteError
from isthmus.quantities import real, whole
from isthmus.training.strategies.serial import Vector, start_of

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
    """Who is at work since which version, and whose turn it is, until each has made its `changes`."""

    def __init__(self, strategy: Arriving, changes: Sequence[float]):
        self.strategy, self.left = strategy, list(changes)
        self.at_work: dict[int, int] = {}
        self.idle = [worker for worker, number in enumerate(self.left) if number]
        self.last = [-1] * len(self.left)

    def begin(self, version: int) -> list[int]:
        """Return the workers that begin now, from `version`: in the order in which they became idle."""
        holds, begun = self.strategy.holds(version, self.oldest), []
        for worker in self.idle:
            if len(self.at_work) < self.strategy.busy and not (holds and self.last[worker] == version):
                self.at_work[worker] = self.last[worker] = version
                begun.append(worker)
        self.idle = [worker for worker in self.idle if worker not in begun]
        return begun

    def may_arrive(self, worker: int) -> bool:
        return worker in self.at_work

    def arrive(self, worker: int) -> int:
        """Return from which version the change of `worker` began that is here now."""
        self.left[worker] -= 1
        if self.left[worker]:
            self.idle.append(worker)
        return self.at_work.pop(worker)

    @property
    def oldest(self) -> float:
        """The oldest version that a change began from which is still to come."""
        return min(self.at_work.values(), default=math.inf)


class Recorded:
    """Turns as they were taken once: `trace` has the arrivals, in order."""

    def __init__(self, trace: Sequence[Arrival]):
        self.trace, self.later, self.done = trace, _oldest_later(trace), 0
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
    changes: Sequence[int],
    version: int,
    told: Mapping[str, Any],
) -> None:
    """Raise ValueError unless workers that make so many `changes` can arrive as `trace` says.

    version: what they begin with. told: of the trace, the `version` that it leads to, and how many
    changes were `lost`, because they were not finite: what they came to cannot be checked.
    """
    wrong = (
        f"the arrivals that lead to version {told['version']} are not of this run's strategy and steps"
    )
    if Counter(worker for worker, _ in trace) != Counter(dict(enumerate(changes))):
        raise ValueError(wrong)
    turns, waiting = Recorded(trace), 0
    if turns.begin(version) != list(range(min(strategy.busy, len(changes)))):
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


def serial_arrivals(
    strategy: Arriving,
    change: Callable[[int, Vector], Any],
    initial: Any,
    trace: Iterable[Arrival],
    *,
    weights: Sequence[float] | None = None,
    ends: bool = False,
) -> list[Vector]:
    """Return the vector that workers have in common after each arrival of `trace`.

    change(worker, x): how far worker 0, 1, ... comes from its start x, which it may not change:
    x_start - x_end. It is called once an arrival, in order.
    initial: the vector that all begin with. float32 stays float32, all else is float64.
    trace: (worker, version that it started from) of each arrival; version 0 is `initial`, and each move
    of the vector makes the next. Where "wait" is what the strategy does, the vector waits for changes
    that come later in the trace. weights: of each worker; None: all count alike.
    ends: the trace is that of a run, whose last changes are applied however few they are.

    Raises ValueError for arguments that make no sense, and for a trace that cannot have been;
    NonFiniteError where a change is not finite.
    """
    vector = start_of(initial)
    trace = [(whole("worker", worker, 0), whole("version", version, 0)) for worker, version in trace]
    workers = max((worker for worker, _ in trace), default=0) + 1
    weights = [1.0] * workers if weights is None else [real("weights", each, 0) for each in weights]
    if len(weights) < workers or not all(weights):
        raise ValueError(f"weights must be a positive number for each of {workers} workers")
    server, later = Server(strategy, vector, weights), _oldest_later(trace)
    versions, began, history = {0: vector}, [0] * workers, []
    for number, (worker, version) in enumerate(trace):
        if not began[worker] <= version <= server.version:
            raise ValueError(
                f"trace[{number}]: worker {worker} cannot have started from version {version}: it had "
                f"started from {began[worker]} before, and the vector is at version {server.version}"
            )
        began[worker] = version
        start = versions[version].view()
        start.flags.writeable = False
        made = np.asarray(change(worker, start), vector.dtype)
        if made.shape not in (vector.shape, ()):
            raise ValueError(f"change must return {vector.size} entries, not shape {made.shape}")
        if not np.isfinite(made).all():
            raise NonFiniteError(f"trace[{number}]: the change of worker {worker} is not finite")
        server.take(worker, version, start, np.broadcast_to(made, vector.shape))
        oldest = later[number]
        ended = server.version < oldest < math.inf or (ends and oldest == math.inf)
        if strategy.moves(len(server.buffer), server.version, oldest) or (server.buffer and ended):
            server.move()
            versions[server.version] = server.vector
            versions = {
                each: kept for each, kept in versions.items() if each >= min(oldest, server.version)
            }
        history.append(server.vector.copy())
    return history


def _oldest_later(trace):
    """Return for each arrival the oldest version that one after it began from."""
    later, oldest = [], math.inf
    for _, version in reversed(trace):
        later.append(oldest)
        oldest = min(oldest, version)
    return later[::-1]


@dataclass(frozen=True)
class Expected:
    """What is expected of workers that are as fast as they are.

    staleness_of_worker: versions that the changes of each are old, on average. dropped: the share of
    changes that is thrown away. trace: the arrivals that were played.
    """

    arrivals_per_second: float
    moves_per_second: float
    staleness: float
    staleness_of_worker: tuple[float, ...]
    dropped: float
    trace: tuple[Arrival, ...]


def expected_arrivals(strategy: Arriving, seconds: Sequence[float], changes: int) -> Expected:
    """Play `changes` arrivals of each of the fastest of workers, that take so many seconds for one.

    seconds: of a change, from when it begins until its worker may begin again. The second half counts.
    """
    seconds = [real("seconds", each, least=0) for each in seconds]
    if not seconds or not all(seconds):
        raise ValueError("seconds must be a positive number for each worker")
    turns, version, waiting, now = Turns(strategy, [math.inf] * len(seconds)), 0, 0, 0.0
    due = [(seconds[worker], worker) for worker in turns.begin(0)]
    heapq.heapify(due)
    trace: list[Arrival] = []
    times: list[tuple[float, int]] = []
    stale: list[int] = []
    total = whole("changes", changes, least=2) * len(seconds)
    while len(trace) < total:
        now, worker = heapq.heappop(due)
        start = turns.arrive(worker)
        trace.append((worker, start))
        stale.append(version - start)
        times.append((now, version))
        waiting += not strategy.drops(version - start)
        if strategy.moves(waiting, version, turns.oldest):
            version, waiting = version + 1, 0
        for other in turns.begin(version):
            heapq.heappush(due, (now + seconds[other], other))
    half = total // 2
    (half_way, before), (end, after) = times[half - 1], (now, version)
    of_worker = [
        [old for (worker, _), old in list(zip(trace, stale))[half:] if worker == each]
        for each in range(len(seconds))
    ]
    return Expected(
        (total - half) / (end - half_way),
        (after - before) / (end - half_way),
        float(np.mean(stale[half:])),
        tuple(float(np.mean(each)) if each else float(version) for each in of_worker),
        float(np.mean([strategy.drops(old) for old in stale[half:]])),
        tuple(trace),
    )
