"""What a change still counts when it began from an older version of the vector than the newest.

Staleness is the number of times that the vector has moved since, 0 for none. `Polynomial(0.5)` is
FedBuff's (Nguyen et al. 2022, arXiv:2106.06639); all three are FedAsync's (Xie et al. 2019,
arXiv:1903.03934), which counts from 1 where this counts from 0.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from isthmus.kinds import of_kind
from isthmus.quantities import real

__all__ = ["Constant", "Hinge", "Polynomial", "largest_rate"]

Weight = Callable[[int], float]
"""Staleness -> what a change is multiplied by, from 0 to 1."""


@dataclass(frozen=True)
class Constant:
    """1, however old."""

    def __call__(self, staleness: int) -> float:
        return 1.0


@dataclass(frozen=True)
class Polynomial:
    """(1 + staleness)^-a."""

    a: float = 0.5

    def __post_init__(self) -> None:
        object.__setattr__(self, "a", real("a", self.a, least=0))

    def __call__(self, staleness: int) -> float:
        return float((1 + staleness) ** -self.a)


@dataclass(frozen=True)
class Hinge:
    """1 up to a staleness of b, then 1 / (1 + a (staleness - b))."""

    a: float = 10.0
    b: float = 4.0

    def __post_init__(self) -> None:
        for name in ("a", "b"):
            object.__setattr__(self, name, real(name, getattr(self, name), least=0))

    def __call__(self, staleness: int) -> float:
        return 1.0 / (1.0 + self.a * max(0.0, staleness - self.b))


WEIGHTS: dict[str, Any] = {"constant": Constant, "polynomial": Polynomial, "hinge": Hinge}
"""Name in a settings file -> class."""


def largest_rate(staleness: float) -> float:
    """Return up to how many times 1 / L a learning rate converges where gradients are so stale.

    x -= rate L x(staleness moves ago) goes to 0 for rates below 2 cos(s pi / (2 s + 1)) / L, and for no
    others: 2 without staleness, 1 for 1, 0.445 for 3. L: the largest curvature.
    """
    return 2 * math.cos(staleness * math.pi / (2 * staleness + 1))


def weight_of(value: Any) -> Weight:
    """Return the weight that `value` is or, as a name or a table with `kind`, tells.

    ValueError for a name or an argument that does not exist.
    """
    if isinstance(value, str | Mapping):
        return of_kind("weight", value, WEIGHTS)
    if callable(value) and not isinstance(value, type):
        return value
    raise ValueError(
        f"weight must be one of isthmus.staleness, as in staleness.Constant(), not {value!r:.80}"
    )
