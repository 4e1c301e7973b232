"""Synchronous training: in every step all ranks have the mean gradient of all."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from isthmus.training.strategies.strategy import Exchange, Member, Strategy

if TYPE_CHECKING:  # plans are made where there is no MPI
    from isthmus.training.strategies.sums import Sums


@dataclass(frozen=True)
class Synchronous(Strategy):
    """Every step is that of one machine with all ranks' samples: its gradient is summed over all."""

    redone = "step"

    def exchanges(self, steps: float) -> Iterator[Exchange]:
        return (Exchange(step, bucketed=True) for step in range(1, int(steps) + 1))

    def join(self, sums: "Sums", steps: float) -> Member:
        return Member(sums.of_all())
