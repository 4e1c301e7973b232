"""Strategies without ranks: the engine of jobs, with functions in the place of ranks.

For research on a laptop, and the reference that jobs are tested against: with float32 and dense wires a
job of as many ranks ends with the same bits.
"""

import functools
import math
from collections.abc import Callable, Sequence
from operator import add
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from isthmus.errors import NonFiniteError
from isthmus.quantities import LEAST_WEIGHT, real, whole
from isthmus.training.clients import Clients
from isthmus.training.strategies.client_rounds import Rounds
from isthmus.training.strategies.strategy import Member, Strategy

Vector = npt.NDArray[np.floating]


def serial_rounds(
    strategy: Strategy,
    gradient: Callable[[int, Vector, int], Any],
    initial: Any,
    weights: Sequence[float],
    rounds: int,
    *,
    local_steps: int,
    learning_rate: float,
    groups: Sequence[Any] | None = None,
    ends: bool = False,
    seed: int = 0,
) -> list[Vector]:
    """Return the vector that all workers have in common after each of `rounds` rounds.

    gradient(worker, x, step): the gradient of worker 0, 1, ... at its vector x, which it may not change,
    in step 0, 1, ...; x -= learning_rate * gradient is a step. Of `Federated` workers are the clients,
    each makes `local_steps` of these where it takes part, and groups are sites, each of which has one
    rank that plays its clients; a round ends with the exchange between sites.
    initial: the vector that all begin with. float32 stays float32, all else is float64.
    weights: of each worker, not yet normalised. local_steps: of a round; the strategy says itself when
    workers exchange, so that for rounds of its own these are its `every`.
    groups: workers that average their gradients in every step, as the ranks of a site do: the group of
    each worker, or a list of the workers of each. None: each is on its own.
    ends: the last step is that of a run, which ends with an exchange of all; else there would be more.
    seed: of the clients that are drawn.

    Raises ValueError for arguments that make no sense, NonFiniteError where a gradient or a sum is not
    finite.
    """
    weights = [real("weights", weight, least=0) for weight in weights]
    if not sum(weights):
        raise ValueError("weights must hold a positive number at least")
    learning_rate = real("learning_rate", learning_rate)
    steps = whole("rounds", rounds, least=0) * whole("local_steps", local_steps, least=1)
    start = start_of(initial)
    group_of_worker = _group_of_worker(groups, len(weights))
    if strategy.plays_clients:
        every = cast(Rounds, strategy).edge_rounds
        turns = whole("rounds", rounds) * every
        members = _players(strategy, start, weights, group_of_worker, turns if ends else math.inf, seed)
        play = functools.partial(_play, local_steps=local_steps)
        return _history(members, start, play, gradient, learning_rate, turns, every)
    table = _Table(start.size, start.dtype, weights, group_of_worker)
    members = [
        strategy.join(table.seat(worker), steps if ends else math.inf)  # type: ignore[arg-type]
        for worker in range(len(weights))
    ]
    if any(type(member).after_step is not Member.after_step for member in members):
        raise ValueError(f"{strategy} has after_step do all at once: give its member `acts` instead")
    return _history(members, start, _step, gradient, learning_rate, steps, local_steps)


def _history(members, start, play, gradient, learning_rate, steps, every):
    """Return what all have in common after every so many of `steps` steps, each made by `play`."""
    places = [start.copy() for _ in members]
    for member, place in zip(members, places):
        member.begin(place)
    history = []
    for step in range(steps):
        with np.errstate(all="ignore"):  # what is not finite is told
            play(members, places, gradient, learning_rate, step)
            for together in zip(*(member.acts() for member in members)):
                for act, place in zip(together, places):
                    act(place)
        if not members[0].finite:
            raise NonFiniteError(f"step {step}: what workers exchange holds a NaN or an infinity")
        if (step + 1) % every == 0:
            history.append(members[0].anchor(places[0]).copy())
    return history


def start_of(initial: Any) -> Vector:
    """Return a vector of its own to begin with: float32 stays float32, all else is float64."""
    start = np.atleast_1d(np.array(initial))
    if start.ndim != 1:
        raise ValueError(f"initial must be a vector, not an array of shape {start.shape}")
    return start.astype(start.dtype if start.dtype == np.float32 else np.float64)


def _step(members, places, gradient, learning_rate, step):
    """Make one step of all workers, in place."""
    for worker, (member, place) in enumerate(zip(members, places)):
        member.gradients.start(_slope(gradient, worker, place, step))
    means = [member.gradients.finish() for member in members]
    for mean, place in zip(means, places):
        if not np.isfinite(mean).all():
            raise NonFiniteError(f"step {step}: a gradient holds a NaN or an infinity")
        place += mean * place.dtype.type(-learning_rate)


def _slope(gradient, worker, place, step):
    """Return what `gradient` says of a worker, not to be changed; ValueError for a wrong shape."""
    seen = place.view()
    seen.flags.writeable = False
    slope = np.asarray(gradient(worker, seen, step), place.dtype)
    if slope.shape not in (place.shape, ()):
        raise ValueError(
            f"gradient must return {place.size} entries, as initial has, not shape {slope.shape}"
        )
    return np.broadcast_to(slope, place.shape)


def _players(strategy, start, weights, site_of_client, steps, seed):
    """Return the members of as many ranks as there are sites: each plays the clients of its own."""
    if min(weights) <= 0:
        raise ValueError(
            "weights of clients must be greater than 0: leave out those that have no samples"
        )
    weights, sites = np.array(weights), max(site_of_client) + 1
    mine = [np.flatnonzero(np.equal(site_of_client, site)) for site in range(sites)]
    table = _Table(start.size, start.dtype, [weights[own].sum() for own in mine], list(range(sites)))
    return [
        strategy.join(table.seat(site, Clients(weights, mine[site], mine[site], seed)), steps)
        for site in range(sites)
    ]


def _play(members, places, gradient, learning_rate, step, local_steps):
    """Play a round's clients, one after another in each rank."""
    for member, place in zip(members, places):
        for client in member.draw():
            member.visit(client, place)
            for number in range(step * local_steps, (step + 1) * local_steps):
                slope = _slope(gradient, client, place, number).copy()
                member.correct(slope, place)
                place += slope * place.dtype.type(-learning_rate)
            member.leave(client, place, local_steps * learning_rate)


def _group_of_worker(groups, workers):
    """Return the number of each worker's group."""
    if groups is None:
        return list(range(workers))
    groups = list(groups)
    if groups and all(np.ndim(group) == 1 for group in groups):
        number_of = {int(worker): number for number, group in enumerate(groups) for worker in group}
        if sorted(number_of) != list(range(workers)) or sum(map(len, groups)) != workers:
            raise ValueError(f"groups must hold each of the {workers} workers once, not {groups}")
        return [number_of[worker] for worker in range(workers)]
    if len(groups) != workers:
        raise ValueError(f"groups must tell the group of each of the {workers} workers, not {groups}")
    names = list(dict.fromkeys(groups))
    return [names.index(group) for group in groups]


class _Table:
    """Where workers meet: sums over all and over each group, added in the order of an allreduce."""

    def __init__(self, size, dtype, weights, group_of_worker):
        self.size, self.dtype, self.weights = size, dtype, weights
        self.groups = [
            [worker for worker, other in enumerate(group_of_worker) if other == group]
            for group in range(max(group_of_worker) + 1)
        ]
        self.group_of_worker, self.sums = group_of_worker, {}

    def seat(self, worker, clients=None):
        return _Sums(self, worker, clients)

    def sum_of(self, number, groups, size):
        """Return the sum that these groups' workers ask for as their `number`-th."""
        key = number, tuple(map(tuple, groups))
        if key not in self.sums:
            self.sums[key] = _Sum(groups, self.weights, size, self.dtype)
        return self.sums[key]


class _Sums:
    """What `Sums` is to a rank, to a worker."""

    def __init__(self, table, worker, clients):
        self.table, self.worker, self.size = table, worker, table.size
        self.arguments, self.clients, self.protection = {}, clients, None
        self.made = 0

    def of_all(self, extra=0, **changes):
        return self._make(self.table.groups, self.size + extra)

    def of_part(self, part):
        return self._make(self.table.groups, part.stop - part.start)

    def of_site(self, extra=0):
        own = [self.table.groups[self.table.group_of_worker[self.worker]]]
        return self._make(own, self.size + extra)

    def _make(self, groups, size):
        self.made += 1
        return _Seat(self.table.sum_of(self.made, groups, size), self.worker)


class _Sum:
    """The weighted mean of the vectors of some workers: from the right in a group, then over groups."""

    def __init__(self, groups, weights, size, dtype):
        weight_of = {worker: max(weights[worker], LEAST_WEIGHT) for group in groups for worker in group}
        total = sum(weight_of.values())
        self.groups, self.size = groups, size
        self.share_of = {worker: dtype.type(weight / total) for worker, weight in weight_of.items()}
        self.given, self.mean = {}, None

    def start(self, worker, vector):
        self.given[worker], self.mean = vector * self.share_of[worker], None

    def finish(self):
        if self.mean is None:
            self.mean = functools.reduce(add, map(self._sum_of_group, self.groups))
        return self.mean.copy()

    def _sum_of_group(self, group):
        return functools.reduce(lambda right, own: own + right, [self.given[w] for w in reversed(group)])


class _Seat:
    """What an `Allreduce` is to a rank, to a worker."""

    finite = True

    def __init__(self, whole_sum, worker):
        self.sum, self.worker, self.buckets = whole_sum, worker, [slice(None)]

    def start(self, vector):
        self.sum.start(self.worker, vector)

    def finish(self):
        return self.sum.finish()

    def advance(self):
        """Nothing is ever on its way."""
