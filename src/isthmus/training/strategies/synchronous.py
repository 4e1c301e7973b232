"""Synchronous training: in every step all ranks have the mean gradient of all."""

from dataclasses import dataclass

from isthmus.training.strategies.strategy import Exchange, Member


@dataclass(frozen=True)
class Synchronous:
    """Every step is that of one machine with all ranks' samples: its gradient is summed over all."""

    def exchanges(self, steps):
        return (Exchange(step) for step in range(1, steps + 1))

    def join(self, sums, steps):
        return Member(sums.of_all())
