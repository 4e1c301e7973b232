"""What a change still counts when it began from an older version of the vector than the newest.

Staleness is the number of times that the vector has moved since, 0 for none. `Polynomial(0.5)` is
FedBuff's (Nguyen et al. 2022, arXiv:2106.06639); all three are FedAsync's (Xie et al. 2019,
arXiv:1903.03934), which counts from 1 where this counts from 0.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

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
    if callable(value) and not isinstance(value, type):
        return value
    if not isinstance(value, str | Mapping):
        raise ValueError(
            f"weight must be one of isthmus.staleness, as in staleness.Constant(), not {value!r:.80}"
        )
    arguments = {"kind": value} if isinstance(value, str) else dict(value)
    kind = arguments.pop("kind", None)
    if kind not in WEIGHTS:
        raise ValueError(f"kind of weight must be one of {', '.join(WEIGHTS)}, not {kind!r:.80}")
    names = [field.name for field in fields(WEIGHTS[kind])]
    if unknown := [name for name in arguments if name not in names]:
        takes = f"takes {', '.join(names)}" if names else "takes no arguments"
        raise ValueError(f"weight {kind!r} {takes}; there is no {unknown[0]!r}")
    return WEIGHTS[kind](**arguments)
