"""Outer optimisers: what is made of how far sites have come, where they meet.

They work on flat vectors, in place and in the vector's own dtype, with the change g = anchor -
parameters, averaged over sites, in the place of a gradient. `Average` is local SGD (Stich 2019,
arXiv:1805.09767) and model averaging, `Momentum` is FedAvgM (Hsu et al. 2019, arXiv:1909.06335),
`Nesterov` is DiLoCo's (Douillard et al. 2023, arXiv:2311.08105), `SparseLoCo` has none (Sarfi et al.
2025, arXiv:2508.15706): what its sparse wires leave out stands in for momentum. `Adam`, `Adagrad` and
`Yogi` are Reddi et al.'s Algorithm 2 (2021, arXiv:2003.00295), without a bias correction.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Protocol

from isthmus.devices import library_of
from isthmus.kinds import of_kind
from isthmus.quantities import real

__all__ = ["Adagrad", "Adam", "Average", "Momentum", "Nesterov", "Outer", "SparseLoCo", "Yogi"]


class Outer(Protocol):
    """What moves the anchor: the parameters that all sites have in common."""

    def begin(self, like: Any) -> dict[str, Any]:
        """Return name -> array: what is kept from one exchange to the next, for a vector as `like`."""

    def move(self, anchor: Any, change: Any, kept: dict[str, Any]) -> None:
        """Move `anchor` against the mean `change` in place; `change` may be overwritten."""


@dataclass(frozen=True)
class Average:
    """Go to where the sites are on average."""

    def begin(self, like: Any) -> dict[str, Any]:
        return {}

    def move(self, anchor: Any, change: Any, kept: dict[str, Any]) -> None:
        anchor -= change


@dataclass(frozen=True)
class Momentum:
    """v = momentum v + g; anchor -= learning_rate v."""

    learning_rate: float = 1.0
    momentum: float = 0.9

    def __post_init__(self) -> None:
        _check(self)

    def begin(self, like: Any) -> dict[str, Any]:
        return {"velocity": like * 0}

    def move(self, anchor: Any, change: Any, kept: dict[str, Any]) -> None:
        velocity = kept["velocity"]
        velocity *= anchor.dtype.type(self.momentum)
        velocity += change
        anchor -= anchor.dtype.type(self.learning_rate) * velocity


@dataclass(frozen=True)
class Nesterov(Momentum):
    """v = momentum v + g; anchor -= learning_rate (g + momentum v)."""

    learning_rate: float = 0.7

    def move(self, anchor: Any, change: Any, kept: dict[str, Any]) -> None:
        velocity, momentum = kept["velocity"], anchor.dtype.type(self.momentum)
        velocity *= momentum
        velocity += change
        change += momentum * velocity
        anchor -= anchor.dtype.type(self.learning_rate) * change


@dataclass(frozen=True)
class SparseLoCo:
    """residual = decay residual + g; anchor -= learning_rate times the mean of what wires say of it.

    For a compressor with error feedback, as in `isthmus.TopK(0.02, bits=2)`: each site keeps what its
    wire does not say, and of that only `decay` by the next exchange.
    """

    decay: float = 0.95
    learning_rate: float = 1.0

    def __post_init__(self) -> None:
        _check(self)

    def begin(self, like: Any) -> dict[str, Any]:
        return {}

    def move(self, anchor: Any, change: Any, kept: dict[str, Any]) -> None:
        anchor -= anchor.dtype.type(self.learning_rate) * change


class _Adaptive:
    """m = b1 m + (1 - b1) g; anchor -= learning_rate m / (sqrt(v) + tau).

    v begins as tau^2 and is brought up to date by `_second`.
    """

    learning_rate: float
    b1: float
    tau: float

    def __post_init__(self) -> None:
        _check(self)

    def begin(self, like: Any) -> dict[str, Any]:
        return {"first": like * 0, "second": like * 0 + like.dtype.type(self.tau**2)}

    def move(self, anchor: Any, change: Any, kept: dict[str, Any]) -> None:
        number, first, second = anchor.dtype.type, kept["first"], kept["second"]
        first *= number(self.b1)
        first += number(1 - self.b1) * change
        self._second(second, change * change)
        step = number(self.learning_rate) * first
        step /= library_of(anchor).sqrt(second) + number(self.tau)
        anchor -= step

    def _second(self, second: Any, square: Any) -> None:
        """Bring `second` up to date in place, with the squares of the change."""
        raise NotImplementedError


@dataclass(frozen=True)
class Adagrad(_Adaptive):
    """v += g^2."""

    learning_rate: float = 0.01
    b1: float = 0.9
    tau: float = 1e-3

    def _second(self, second: Any, square: Any) -> None:
        second += square


@dataclass(frozen=True)
class Adam(_Adaptive):
    """v = b2 v + (1 - b2) g^2."""

    learning_rate: float = 0.01
    b1: float = 0.9
    b2: float = 0.99
    tau: float = 1e-3

    def _second(self, second: Any, square: Any) -> None:
        second *= second.dtype.type(self.b2)
        second += second.dtype.type(1 - self.b2) * square


@dataclass(frozen=True)
class Yogi(_Adaptive):
    """v -= (1 - b2) g^2 sign(v - g^2)."""

    learning_rate: float = 0.01
    b1: float = 0.9
    b2: float = 0.99
    tau: float = 1e-3

    def _second(self, second: Any, square: Any) -> None:
        sign = library_of(second).sign(second - square)
        second -= second.dtype.type(1 - self.b2) * square * sign


OUTERS: dict[str, Any] = {
    "average": Average,
    "momentum": Momentum,
    "nesterov": Nesterov,
    "adam": Adam,
    "adagrad": Adagrad,
    "yogi": Yogi,
    "sparse_loco": SparseLoCo,
}
"""Name in a settings file -> class."""


def check_feedback(outer: Any, keeps: bool) -> None:
    """Raise ValueError where `outer` goes by what wires leave out, and nobody `keeps` that."""
    if hasattr(outer, "decay") and not keeps:
        raise ValueError(
            "outer SparseLoCo goes by what wires leave out: give a compressor, as in "
            '{ kind = "top_k", ratio = 0.02, bits = 2 }, with error feedback'
        )


def outer_of(value: Any) -> Any:
    """Return the outer optimiser that `value` is or, as a name or a table with `kind`, tells.

    ValueError for a name or an argument that does not exist.
    """
    if isinstance(value, str | Mapping):
        return of_kind("outer", value, OUTERS)
    if hasattr(value, "move") and hasattr(value, "begin") and not isinstance(value, type):
        return value
    raise ValueError(
        f"outer must be an outer optimiser, as in isthmus.outer.Average(), not {value!r:.80}"
    )


def _check(outer):
    """Raise ValueError unless the numbers of an outer optimiser are what they may be."""
    for field in fields(outer):
        number = real(field.name, getattr(outer, field.name), least=0)
        if field.name in ("learning_rate", "tau") and not number:
            raise ValueError(f"{field.name} must be greater than 0, not 0")
        if field.name not in ("learning_rate", "tau") and number >= 1:
            raise ValueError(f"{field.name} must be less than 1, not {number:g}")
        object.__setattr__(outer, field.name, number)
