"""Local steps: sites train on their own, and now and then go on from where they are together."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from isthmus.compression.compressor import Compressor
from isthmus.outer import Average, Outer, check_feedback, outer_of
from isthmus.quantities import whole
from isthmus.timing.rounds import late_round_seconds
from isthmus.training.strategies.rounds import Traveller
from isthmus.training.strategies.strategy import Exchange, Strategy

if TYPE_CHECKING:  # plans are made where there is no MPI
    from isthmus.training.strategies.sums import Sums

AVERAGE = Average()
LINK_SHARE = 0.1
"""Of a round, that `every = "auto"` leaves to the links."""
MOST_STEPS, MOST_STEPS_OF_UNLIKE = 64, 4
"""That it chooses: for sites whose data are alike, and for those that hold other classes."""


@dataclass(frozen=True)
class LocalSteps(Strategy):
    """Sites exchange how far each has come, after every so many steps and the last.

    Local SGD (Stich 2019, arXiv:1805.09767) with `outer.Average()`, DiLoCo (Douillard et al. 2023,
    arXiv:2311.08105) with `outer.Nesterov(0.7, 0.9)`. Inside a site gradients are averaged exactly in
    every step.

    every: steps of a round; "auto" in a run's settings: as few as leave a tenth of it to the links.
    outer: what is made of the mean change, or its name or table.
    after: steps that are synchronous first (post-local SGD, Lin et al. 2020, arXiv:1808.07217).
    late: steps that are made while an exchange is under way; what a site has learnt meanwhile is kept
    (CoCoD-SGD, Shen et al. 2019, arXiv:1906.12043). ValueError for what makes no sense.
    """

    every: int | str = 16
    outer: Outer | str | dict[str, Any] = AVERAGE
    after: int = 0
    late: int = 0

    def __post_init__(self):
        if self.every != "auto":
            object.__setattr__(self, "every", whole("every", self.every, least=1))
        object.__setattr__(self, "outer", outer_of(self.outer))
        for name in ("after", "late"):
            object.__setattr__(self, name, whole(name, getattr(self, name), least=0))
        if self.late >= (MOST_STEPS if self.every == "auto" else self.every):
            raise ValueError(
                f"late must be less than every: an exchange that is {self.late} steps late is under "
                f"way when the next one is due (every = {self.every!r})"
            )

    def exchanges(self, steps: float) -> Iterator[Exchange]:
        every = self._steps_of_a_round()
        synchronous = min(self.after, steps)
        number = 1
        while number <= synchronous:
            yield Exchange(number, bucketed=True)
            number += 1
        number = self.after + every
        while number + self.late < steps:
            yield Exchange(number, late=self.late)
            number += every
        if self.after < steps < math.inf:
            yield Exchange(int(steps))

    def join(self, sums: "Sums", steps: float) -> Traveller:
        self._steps_of_a_round()
        return Traveller(sums, self, steps, outer_of(self.outer), fragments=1, after=self.after)

    def fits(self, size: int, compressor: Compressor | None, error_feedback: bool = True) -> None:
        """Raise ValueError where the outer optimiser needs a compressor, and there is none."""
        check_feedback(self.outer, compressor is not None and error_feedback)

    def merged(self, anchor: Any, here: Any, sent: Any) -> Any:
        """Go on from the anchor by what was learnt while the exchange was under way."""
        return anchor + (here - sent)

    @property
    def redone(self) -> str | None:
        """The round; with `late` ranks do not have the same parameters before the run's end."""
        return None if self.late else "round"

    @property
    def leaves_open(self) -> bool:
        return self.every == "auto"

    def settled(
        self, computing_seconds: float, exchange_seconds: float, classes_differ: bool | None
    ) -> tuple["LocalSteps", str]:
        """Return the strategy with the number of steps that `every = "auto"` stands for, and why."""
        most = MOST_STEPS_OF_UNLIKE if classes_differ else MOST_STEPS
        left = max(0.0, exchange_seconds - self.late * computing_seconds)
        wanted = (1 / LINK_SHARE - 1) * left / computing_seconds if computing_seconds else most
        every = max(self.late + 1, min(most, max(1, math.ceil(wanted))))
        seconds = late_round_seconds(every, computing_seconds, exchange_seconds, self.late)
        share = left / seconds if left else 0.0
        why = (
            f"every = {every}: a step computes {1e3 * computing_seconds:.3g} ms and an exchange takes "
            f"{1e3 * left:.3g} ms beyond it, {100 * share:.0f} % of a round"
        )
        if wanted > every:
            why += f"; {most} steps at most" + (
                " where sites hold other classes" if classes_differ else ""
            )
        return replace(self, every=every), why

    def _steps_of_a_round(self) -> int:
        if isinstance(self.every, str):
            raise ValueError('every = "auto" is for a run\'s settings; give a number of steps')
        return self.every
