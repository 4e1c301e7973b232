"""Arrivals without ranks: what a trace of them comes to, and what is expected of workers of some speed.

For research on a laptop, and the reference that jobs are tested against.
"""

import heapq
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from isthmus.errors import NonFiniteError
from isthmus.quantities import real, whole
from isthmus.training.strategies.arrivals import Arrival, Arriving, Server, Turns, oldest_later
from isthmus.training.strategies.serial import Vector, start_of


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
    server, later = Server(strategy, vector, weights), oldest_later(trace)
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
    total = whole("changes", changes, least=2) * max(1, len(seconds))
    played = [*itertools.islice(play(strategy, seconds, math.inf), total)]
    stale = [each.staleness for each in played]
    half = total // 2
    first, last = played[half - 1], played[-1]
    span, later = last.seconds - first.seconds, played[half:]
    of_worker = [
        [each.staleness for each in later if each.worker == worker] for worker in range(len(seconds))
    ]
    return Expected(
        (total - half) / span,
        (last.version - first.version) / span,
        float(np.mean(stale[half:])),
        tuple(float(np.mean(each)) if each else float(last.version) for each in of_worker),
        float(np.mean([strategy.drops(old) for old in stale[half:]])),
        tuple((each.worker, each.version - each.staleness) for each in played),
    )


@dataclass(frozen=True)
class Played:
    """An arrival: when, whose, at which version of the vector, and how many it was old."""

    seconds: float
    worker: int
    version: int
    staleness: int


def play(strategy: Arriving, seconds: Sequence[float], changes: float) -> Iterator[Played]:
    """Yield arrivals of workers that take so many seconds for one, until `changes` have come in all.

    seconds: of a change, from when it begins until its worker may begin again.
    """
    seconds = [real("seconds", each, least=0) for each in seconds]
    if not seconds or not all(seconds):
        raise ValueError("seconds must be a positive number for each worker")
    turns, version, waiting = Turns(strategy, len(seconds), changes), 0, 0
    due = [(seconds[worker], worker) for worker in turns.begin(0)]
    heapq.heapify(due)
    while due:
        now, worker = heapq.heappop(due)
        staleness = version - turns.arrive(worker)
        yield Played(now, worker, version, staleness)
        waiting += not strategy.drops(staleness)
        if strategy.moves(waiting, version, turns.oldest):
            version, waiting = version + 1, 0
        for other in turns.begin(version):
            heapq.heappush(due, (now + seconds[other], other))
