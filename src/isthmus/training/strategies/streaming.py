"""Streaming: the vector goes in fragments, one after another, so that links are never idle for long."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from isthmus.compression.compressor import Compressor
from isthmus.outer import Nesterov, Outer, check_feedback, outer_of
from isthmus.quantities import real, whole
from isthmus.training.strategies.rounds import Traveller
from isthmus.training.strategies.strategy import Exchange, Strategy
from isthmus.vectors import part_bounds

if TYPE_CHECKING:  # plans are made where there is no MPI
    from isthmus.training.strategies.sums import Sums


DILOCO = Nesterov(0.7, 0.9)


@dataclass(frozen=True)
class Streaming(Strategy):
    """Sites exchange how far each has come, a fragment of the parameters at a time.

    Streaming DiLoCo (Douillard et al. 2025, arXiv:2501.18512). Inside a site gradients are averaged
    exactly in every step; the last step ends with an exchange of all fragments.

    fragments: slices of the vector of like size. every: steps from one exchange of a fragment to its
    next; they take turns. late: steps that are made while a fragment is under way: it is sent so many
    steps before its turn is over. mixing: how much of a site's own parameters is kept when its fragment
    comes back, from 0 (it goes on from the anchor) to 1. outer: what is made of the mean change, or its
    name or table. ValueError for what makes no sense.
    """

    fragments: int = 4
    every: int = 64
    late: int = 5
    mixing: float = 0.5
    outer: Outer | str | dict[str, Any] = DILOCO

    def __post_init__(self):
        for name, least in (("fragments", 1), ("every", 1), ("late", 0)):
            object.__setattr__(self, name, whole(name, getattr(self, name), least))
        object.__setattr__(self, "mixing", real("mixing", self.mixing, least=0, most=1))
        object.__setattr__(self, "outer", outer_of(self.outer))
        if self.fragments > self.every:
            raise ValueError(
                f"every must be {self.fragments} or more, one step for each of the fragments, not "
                f"{self.every}"
            )
        if self.late >= self.every // self.fragments:
            raise ValueError(
                f"late must be less than {self.every // self.fragments}, the steps from one fragment's "
                f"turn to the next's, not {self.late}"
            )

    def exchanges(self, steps: float) -> Iterator[Exchange]:
        number = 1
        while (turn := number * self.every // self.fragments) < steps:
            part = (number - 1) % self.fragments
            yield Exchange(turn - self.late, 1 / self.fragments, self.late, part)
            number += 1
        if 0 < steps < math.inf:
            yield Exchange(int(steps))

    def join(self, sums: "Sums", steps: float) -> Traveller:
        self.fits(sums.size, sums.arguments.get("compressor"))
        return Traveller(sums, self, steps, outer_of(self.outer), self.fragments, after=0)

    def merged(self, anchor: Any, here: Any, sent: Any) -> Any:
        """Go on from between the anchor and where the site is now."""
        return anchor + here.dtype.type(self.mixing) * (here - anchor)

    def fits(self, size: int, compressor: Compressor | None, error_feedback: bool = True) -> None:
        """Raise ValueError for more fragments than entries, and for a compressor that none may cut."""
        if self.fragments > max(1, size):
            raise ValueError(
                f"fragments must be at most {size}, the number of parameters, not {self.fragments}"
            )
        check_feedback(self.outer, compressor is not None and error_feedback)
        if compressor is not None:
            for ends in pairwise(part_bounds(size, self.fragments)):
                compressor.piece(slice(*ends))
