"""To which cloud rank the next batch goes: the three rules that the literature knows."""

from collections.abc import Sequence

import numpy as np


class RoundRobin:
    """One rank after another."""

    def __init__(self, rates: Sequence[float]):
        self.turn = 0

    def choose(self, free: np.ndarray, pending: np.ndarray) -> int:
        """Return which of the ranks with free[rank] takes the next batch; some are free.

        pending: the requests that each has not answered yet.
        """
        count = len(free)
        place = next(p for p in range(self.turn, self.turn + count) if free[p % count]) % count
        self.turn = (place + 1) % count
        return place


class Weighted:
    """Each in proportion to its rate, spread evenly (smooth weighted round robin)."""

    def __init__(self, rates: Sequence[float]):
        self.rates = np.asarray(rates, float)
        self.credit = np.zeros(len(rates))

    def choose(self, free: np.ndarray, pending: np.ndarray) -> int:
        """Do as `RoundRobin.choose` says."""
        self.credit[free] += self.rates[free]
        place = int(np.where(free, self.credit, -np.inf).argmax())
        self.credit[place] -= self.rates[free].sum()
        return place


class LeastPending:
    """The one with the fewest requests unanswered, in proportion to its rate; of several the first."""

    def __init__(self, rates: Sequence[float]):
        self.rates = np.asarray(rates, float)

    def choose(self, free: np.ndarray, pending: np.ndarray) -> int:
        """Do as `RoundRobin.choose` says."""
        return int(np.where(free, (pending + 1) / self.rates, np.inf).argmin())


DISPATCHES = {"round_robin": RoundRobin, "weighted": Weighted, "least_pending": LeastPending}
