"""The clients of a run: how much each counts, who plays which, and who is drawn in a round.

All random numbers follow from (seed, client, round), so that they are the same wherever a client is
played, and whoever else is.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

DRAW, ORDER = 1, 2  # what random numbers are for


@dataclass(frozen=True, eq=False)
class Clients:
    """All clients, numbered from 0, as one rank sees them.

    weights: float64[clients]. mine: numbers of those that this rank plays, ascending; of_site: of those
    that its site does. speeds: float64[clients], samples a second, for `by = "speed"`; None: not known.
    available: bool[rounds, clients], which of them can be had in each round, again from the start after
    the last; None: all of them, always.
    """

    weights: npt.NDArray[np.float64]
    mine: npt.NDArray[np.int64]
    of_site: npt.NDArray[np.int64]
    seed: int = 0
    speeds: npt.NDArray[np.float64] | None = None
    available: npt.NDArray[np.bool_] | None = None

    @property
    def count(self) -> int:
        return len(self.weights)

    def at_hand(self, number: int) -> npt.NDArray[np.int64]:
        """Return the clients that can be had in round `number`, counted from 0."""
        if self.available is None:
            return np.arange(self.count)
        return np.flatnonzero(self.available[number % len(self.available)])

    def drawn(
        self, number: int, wanted: int, by: str
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """Return who is drawn in round `number`, ascending, and with which probability each was.

        wanted: how many; where fewer are at hand, all of them. by: "chance": all that are at hand have
        the same probability. "speed": it is in proportion to speeds, and 1 at most.
        """
        there = self.at_hand(number)
        if wanted >= len(there):
            return there, np.ones(len(there))
        draw = np.random.Generator(np.random.PCG64([DRAW, self.seed, number]))
        if by == "chance":
            chosen = np.sort(draw.choice(there, wanted, replace=False))
            return chosen, np.full(wanted, wanted / len(there))
        assert self.speeds is not None  # or the settings were refused
        chances = inclusion(self.speeds[there], wanted)
        chosen = systematic(chances, wanted, draw)
        return there[chosen], chances[chosen]

    def order(self, client: int, number: int, epoch: int, samples: int) -> npt.NDArray[np.int64]:
        """Return the order of a client's samples in one of its passes in round `number`."""
        key = [ORDER, self.seed, client, number, epoch]
        return np.random.Generator(np.random.PCG64(key)).permutation(samples)


def inclusion(sizes: npt.NDArray[np.float64], wanted: int) -> npt.NDArray[np.float64]:
    """Return probabilities in proportion to `sizes`, 1 at most, that add up to `wanted`."""
    chances, certain = np.zeros(len(sizes)), np.zeros(len(sizes), bool)
    while True:
        rest = sizes * ~certain
        chances = np.where(certain, 1.0, (wanted - certain.sum()) * rest / (rest.sum() or 1.0))
        if not (beyond := chances > 1).any():
            return chances
        certain |= beyond


def systematic(chances: npt.NDArray[np.float64], wanted: int, draw: Any) -> npt.NDArray[np.int64]:
    """Draw `wanted` numbers, each with its probability, in random order (Madow 1949); ascending."""
    mixed = draw.permutation(len(chances))
    ends = np.cumsum(chances[mixed])
    ends *= wanted / ends[-1]
    places = np.searchsorted(ends, np.arange(wanted) + draw.random(), side="right")
    return np.sort(mixed[np.minimum(places, len(mixed) - 1)])
