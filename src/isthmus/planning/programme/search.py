"""Local search: as long as the last rank can be done sooner, one of its shards moves or is swapped."""

import numpy as np

from isthmus.planning.programme.classes import order_of
from isthmus.planning.programme.problem import loads

STEPS = 400_000
"""Moves tried are at most this over the number of ranks: a count, so that every machine stops alike."""
EVERY_SHARD = 20_000
"""Shards up to which all ranks are partners for a swap; beyond that the first to be done are."""
PARTNERS = 32
KINDS = 64
"""Most kinds of shards of the critical rank that are tried in one step, evenly over their sizes."""


def improve(problem, objective, rank_of_shard, goal):
    """Move or swap a shard of the critical rank while that rank is done sooner, down to `goal`.

    Where staging takes time, or bytes moved have a weight, shards change places only between ranks
    that the same pipes lead to, so that nothing else of the objective changes. Raises ValueError for an
    objective of which something else would.
    """
    objective.require("swaps")
    if not objective.finishes or rank_of_shard is None or not rank_of_shard.size:
        return rank_of_shard
    state = _State(problem, rank_of_shard)
    rest = objective.value(problem, state.units, state.stored) - state.seconds.max()
    for _ in range(min(10 * problem.ranks + 100, STEPS // problem.ranks)):
        if state.seconds.max() + rest <= goal:
            break
        change = state.best_move() or state.best_swap()
        if change is None:
            break
        for shard, rank in change:
            state.move(shard, rank)
    return state.rank_of_shard


class _State:
    """A plan, what each rank holds, and when it is done."""

    def __init__(self, problem, rank_of_shard):
        self.problem, self.rank_of_shard = problem, rank_of_shard
        self.units, self.stored = loads(problem, rank_of_shard)
        self.waits = problem.waiting_seconds(self.stored)
        self.seconds = problem.seconds_of(self.units) + self.waits
        self.order = order_of(rank_of_shard)
        self.start = np.searchsorted(rank_of_shard[self.order], np.arange(problem.ranks + 1))
        self.held = {}
        self.money = problem.money(self.units, self.stored)

    def shards_of(self, rank):
        """Return the shards of a rank, in ascending order."""
        if rank not in self.held:
            self.held[rank] = np.sort(self.order[self.start[rank] : self.start[rank + 1]])
        return self.held[rank]

    def move(self, shard, rank):
        problem, old = self.problem, self.rank_of_shard[shard]
        for place, sign in ((old, -1.0), (rank, 1.0)):
            mine = self.shards_of(place)
            self.held[place] = (
                mine[mine != shard] if sign < 0 else np.insert(mine, np.searchsorted(mine, shard), shard)
            )
            self.units[place] += sign * problem.sizes[shard]
            self.stored[place] += sign * problem.nbytes[shard]
            self.seconds[place] = (
                problem.fixed_seconds[place]
                + self.waits[place]
                + problem.seconds_per_unit[place] * self.units[place]
            )
        self.rank_of_shard[shard] = rank
        if problem.prices is not None:
            self.money = problem.money(self.units, self.stored)

    def _different(self, shards):
        """Return the first of each kind among `shards` of one rank, at most KINDS of them."""
        problem = self.problem
        kinds = zip(
            *(
                column[shards].tolist()
                for column in (problem.place_of_shard, problem.sizes, problem.nbytes)
            )
        )
        known = {}
        for shard, kind in zip(shards.tolist(), kinds):
            known.setdefault(kind, shard)
        first = np.fromiter(known.values(), int, len(known))
        if first.size > KINDS:
            first = first[np.argsort(problem.sizes[first], kind="stable")]
            first = first[np.linspace(0, first.size - 1, KINDS).astype(int)]
        return first

    def _may_change(self, critical, ranks, size, nbytes):
        """Return whether limits allow `size` and `nbytes` to go from `critical` to `ranks`, net."""
        problem = self.problem
        fits = (
            (self.stored[ranks] + nbytes <= problem.storage[ranks])
            & (self.stored[critical] - nbytes <= problem.storage[critical])
            & (self.units[critical] - size >= problem.least[critical])
            & (self.units[ranks] + size >= problem.least[ranks])
        )
        if problem.pipes.names:
            uses = problem.pipes.uses
            fits &= (uses[:, ranks] == uses[:, critical, None]).all(axis=0)
        if (price := problem.prices) is not None:
            each = price.per_second * problem.seconds_per_unit
            fits &= (
                self.money
                + (each[ranks] - each[critical]) * size
                + (price.per_byte[ranks] - price.per_byte[critical]) * nbytes
                <= price.budget
            )
        return fits

    def best_move(self):
        """Return the move of one shard that leaves both ranks done earliest, or None."""
        problem, critical = self.problem, int(self.seconds.argmax())
        best, change = self.seconds[critical] * (1 - 1e-12), None
        everyone, shards = np.arange(problem.ranks), self._different(self.shards_of(critical))
        finishes = self.seconds + np.outer(problem.sizes[shards], problem.seconds_per_unit)
        finishes[:, critical] = np.inf
        earliest = finishes.min(axis=1)
        for number in np.flatnonzero(earliest < best):
            if earliest[number] >= best:
                continue
            shard, finish = shards[number], finishes[number]
            size = problem.sizes[shard]
            allowed = problem.may_hold(shard) & self._may_change(
                critical, everyone, size, problem.nbytes[shard]
            )
            finish[~allowed] = np.inf
            rank = int(finish.argmin())
            worst = max(finish[rank], self.seconds[critical] - problem.seconds_per_unit[critical] * size)
            if worst < best:
                best, change = worst, [(shard, rank)]
        return change

    def best_swap(self):
        """Return the swap of a shard with a smaller one elsewhere that helps most, or None."""
        problem, critical = self.problem, int(self.seconds.argmax())
        best, change = self.seconds[critical] * (1 - 1e-12), None
        if problem.sizes.size <= EVERY_SHARD:
            others = np.flatnonzero(self.rank_of_shard != critical)
        else:
            count = min(PARTNERS, problem.ranks)
            limit = np.partition(self.seconds, count - 1)[count - 1]
            ranks = np.flatnonzero(self.seconds <= limit)[:count]
            others = np.concatenate([self.shards_of(int(rank)) for rank in ranks if rank != critical])
        ranks, sizes = self.rank_of_shard[others], problem.sizes[others]
        looked_at = np.inf
        for shard in self._different(self.shards_of(critical)):
            if best < looked_at:  # both ranks must be done before the best so far
                looked_at = best
                least = max(0.0, self.seconds[critical] - best) / problem.seconds_per_unit[critical]
                most = ((best - self.seconds) / problem.seconds_per_unit)[ranks]
                may = most > least
                others, ranks, sizes, most = others[may], ranks[may], sizes[may], most[may]
            gain = problem.sizes[shard] - sizes
            worth = np.flatnonzero((gain > least) & (gain < most))
            if not worth.size:
                continue
            there, gained = ranks[worth], gain[worth]
            taken = problem.nbytes[shard] - problem.nbytes[others[worth]]
            fits = (
                self._may_change(critical, there, gained, taken)
                & problem.may_hold(shard)[there]
                & problem.places[problem.place_of_shard[others[worth]], critical]
            )
            worst = np.where(
                fits,
                np.maximum(
                    self.seconds[critical] - problem.seconds_per_unit[critical] * gained,
                    self.seconds[there] + problem.seconds_per_unit[there] * gained,
                ),
                np.inf,
            )
            pick = int(worst.argmin())
            if worst[pick] < best:
                best = worst[pick]
                change = [(int(shard), int(there[pick])), (int(others[worth[pick]]), critical)]
        return change
