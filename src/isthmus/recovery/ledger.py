"""The ledger of a run: which ranks made which steps with which shards, and so which samples they took.

What a rank takes in a step follows from (shards, seed, epoch, step) alone. Ranks and shards may change
within an epoch: those who are there then share what nobody has taken yet, so that at its end every
sample has been taken once.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

from isthmus.shards.batches import order_of
from isthmus.vectors import part_bounds


@dataclass(frozen=True)
class Part:
    """Steps that one set of ranks makes with one placement: those after step `first`.

    cluster: the table of a cluster file, with the tree of sites. shards_of_rank: of its ranks.
    came_from: which rank of the part before each was, None for one that is new; None: they are the same.
    resumed: whether all began anew, with the arrays of a checkpoint. residual_steps: of each rank, after
    which step the one that led its site had the residual that it begins with; None: its own, or none.
    """

    first: int
    cluster: dict[str, Any]
    shards_of_rank: Sequence[Sequence[int]]
    came_from: Sequence[int | None] | None = None
    resumed: bool = False
    residual_steps: Sequence[int | None] | None = None

    @classmethod
    def of_line(cls, line: dict[str, Any]) -> Self:
        """Return what a line of kind "members" of metrics.jsonl tells."""
        more = {name: line[name] for name in ("came_from", "resumed", "residual_steps") if name in line}
        return cls(line["step"], line["cluster"], line["shards_of_rank"], **more)

    def told(self) -> dict[str, Any]:
        """Return the values of that line."""
        told = {"step": self.first, "cluster": self.cluster, "shards_of_rank": self.shards_of_rank}
        if self.came_from is not None:
            told |= {"came_from": self.came_from, "resumed": self.resumed}
        if self.residual_steps is not None:
            told |= {"residual_steps": self.residual_steps}
        return told


@dataclass(frozen=True)
class Rest:
    """What is left of an epoch that began with other ranks, for one of those who are there now.

    since: steps of the epoch that were made before. rows: of this rank's samples, those that nobody has
    taken, ascending.
    """

    epoch: int
    since: int
    rows: np.ndarray


@dataclass
class Ledger:
    """All parts of a run so far, in order.

    samples: of each shard. steps: of an epoch. seed: of the order of samples.
    """

    samples: Sequence[int]
    steps: int
    seed: int
    parts: list[Part] = field(default_factory=list)

    def add(self, part: Part) -> None:
        """Take note of a part, and forget those that began later."""
        self.parts = [each for each in self.parts if each.first <= part.first]
        self.parts.append(part)

    @property
    def never(self) -> list[int]:
        """The shards that no rank of the last part holds."""
        held = {shard for shards in self.parts[-1].shards_of_rank for shard in shards}
        return [shard for shard in range(len(self.samples)) if shard not in held]

    def rest_of(self, rank: int) -> Rest | None:
        """Return what the last part leaves to one of its ranks; None where an epoch begins with it."""
        part = self.parts[-1]
        epoch, since = divmod(part.first, self.steps)
        if not since:
            return None
        taken = self.taken(epoch, part.first)
        return Rest(epoch, since, np.flatnonzero(taken[self.samples_of(part, rank)] == 0))

    def taken(self, epoch: int, step: int | None = None) -> np.ndarray:
        """Return how often each sample was taken in an epoch, int64[samples], until after `step`."""
        start = epoch * self.steps
        end = start + self.steps if step is None else step
        taken = np.zeros(sum(self.samples), np.int64)
        for part, last in self._spans(start, end):
            since, before = max(part.first - start, 0), taken.copy()
            for rank in range(len(part.shards_of_rank)):
                numbers = self.samples_of(part, rank)
                if since:
                    numbers = numbers[before[numbers] == 0]
                if last < start + self.steps:  # else it has taken them all, in whatever order
                    order = order_of(len(numbers), self.seed, epoch, since)
                    bounds = part_bounds(len(numbers), self.steps - since)
                    numbers = numbers[order[: bounds[last - start - since]]]
                np.add.at(taken, numbers, 1)
        return taken

    def account(self, epoch: int) -> dict[str, Any]:
        """Return how many samples an epoch took once and more often, and the rest by shard, for JSON."""
        taken = self.taken(epoch)
        firsts = np.cumsum([0, *self.samples])
        lost = {
            str(shard): missing
            for shard, (first, last) in enumerate(itertools.pairwise(firsts))
            if (missing := int((taken[first:last] == 0).sum()))
        }
        return {"once": int((taken == 1).sum()), "again": int((taken > 1).sum()), "lost": lost}

    def _spans(self, start: int, end: int) -> Iterator[tuple[Part, int]]:
        """Yield each part that has steps between two, and the step where it ends."""
        ends = [*(part.first for part in self.parts[1:]), end]
        for part, last in zip(self.parts, ends):
            if min(last, end) > max(part.first, start):
                yield part, min(last, end)

    def samples_of(self, part: Part, rank: int) -> np.ndarray:
        """Return the numbers of the samples that a rank holds, in the order in which it has them."""
        firsts = np.cumsum([0, *self.samples])
        shards = [np.arange(firsts[shard], firsts[shard + 1]) for shard in part.shards_of_rank[rank]]
        return np.concatenate([np.empty(0, np.int64), *shards])
