"""Buffered: no site waits for another; the vector moves whenever enough changes have come."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from isthmus.quantities import real, whole
from isthmus.staleness import Polynomial, Weight, largest_rate, weight_of
from isthmus.training.strategies.serial_arrivals import Expected, expected_arrivals, play
from isthmus.training.strategies.strategy import Exchange, ExpectedEpoch, Member, Strategy

if TYPE_CHECKING:  # plans are made where there is no MPI
    from isthmus.training.strategies.sums import Sums

BEYOND = ("wait", "drop")
FEDBUFF = Polynomial(0.5)


@dataclass(frozen=True)
class Buffered(Strategy):
    """Each site sends the hub how far it has come from its start, and goes on from the newest vector.

    FedBuff (Nguyen et al. 2022, arXiv:2106.06639); with `arrivals = 1` and `mixing` FedAsync (Xie et al.
    2019, arXiv:1903.03934). A site is one worker, inside which gradients are averaged exactly. A run
    has as many changes as if each site made all its steps; who is fast makes more of them.

    arrivals: changes after which the vector moves, by their mean: a new version. busy: workers that may
    be at work at once; others wait for their turn. weight: what a change counts that began from an older
    version, one of `isthmus.staleness`, or its name or table. bound: the most versions that a change may
    be old. beyond: "wait": the vector does not move, and workers that have worked on it do not begin
    again, while that would make a change of others older; with bound 0 all change each version, as
    synchronous sites do. "drop": what is older is thrown away; with bound 0, synchronous with so many
    workers to spare. mixing: None, or FedAsync's: the vector goes so far, times the weight, towards
    where the workers are, not by what they changed. every: steps of a change. ValueError for what makes
    no sense.
    """

    without_rounds: ClassVar[bool] = True

    arrivals: int = 3
    busy: int = 5
    weight: Weight | str | dict[str, Any] = FEDBUFF
    bound: int = 8
    beyond: str = "wait"
    mixing: float | None = None
    every: int = 1

    def __post_init__(self):
        for name, least in (("arrivals", 1), ("busy", 1), ("bound", 0), ("every", 1)):
            object.__setattr__(self, name, whole(name, getattr(self, name), least))
        object.__setattr__(self, "weight", weight_of(self.weight))
        if self.beyond not in BEYOND:
            raise ValueError(f"beyond must be one of {', '.join(BEYOND)}, not {self.beyond!r:.80}")
        if self.mixing is not None:
            object.__setattr__(self, "mixing", real("mixing", self.mixing, least=0, most=1))
            if not self.mixing:
                raise ValueError("mixing must be greater than 0, or nothing is learnt")

    def exchanges(self, steps: float) -> Iterator[Exchange]:
        number = self.every
        while number < steps:
            yield Exchange(number)
            number += self.every
        if 0 < steps < math.inf:
            yield Exchange(int(steps))

    def join(self, sums: "Sums", steps: float) -> Member:
        from isthmus.training.strategies.worker import Worker

        return Worker(sums, self, steps)

    def counts(self, staleness: int) -> float:
        return weight_of(self.weight)(staleness)

    def moves(self, waiting: int, version: int, oldest: float) -> bool:
        needed = 1 if self.beyond == "wait" and not self.bound else self.arrivals
        return waiting >= needed and not self.holds(version, oldest)

    def holds(self, version: int, oldest: float) -> bool:
        return self.beyond == "wait" and version + 1 - oldest > self.bound

    def drops(self, staleness: int) -> bool:
        return self.beyond == "drop" and staleness > self.bound

    def expected(self, seconds: Sequence[float], changes: int = 200) -> Expected:
        """Return what comes of workers that take so many seconds for a change, sent and answered."""
        return expected_arrivals(self, seconds, changes)

    def expected_epoch(self, seconds: Sequence[float], steps: int) -> ExpectedEpoch:
        of_a_walk = -(-steps // self.every)
        played = [*play(self, seconds, of_a_walk * len(seconds))]
        made = Counter(arrival.worker for arrival in played)
        walks = tuple(made[worker] / of_a_walk for worker in range(len(seconds)))
        return ExpectedEpoch(played[-1].seconds, walks)

    def outlook(self, seconds: Sequence[float]) -> tuple[str, str | None]:
        """Return what is expected, in words, and why it may not converge; None where it does.

        seconds: what each worker takes for a change, sent and answered.
        """
        expected = self.expected(seconds)
        words = (
            f"{expected.arrivals_per_second:.3g} changes a second are expected, "
            f"{expected.staleness:.2f} versions old on average, and {expected.moves_per_second:.3g} "
            "versions a second"
        )
        stale = max(expected.staleness_of_worker)
        weight, most = self.counts(math.ceil(stale)), largest_rate(stale)
        if weight <= most:
            return words, None
        return words, (
            f"changes of the slowest site will be {stale:.1f} versions old on average and count "
            f"{weight:.2f} times, where learning rates converge up to {most:.2f} times the best one of "
            f"no staleness (2 cos(s pi / (2 s + 1))); lower training.learning_rate to "
            f"{most / weight:.2f} times that, or strategy.bound, or take more arrivals"
        )
