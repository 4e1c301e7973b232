"""What clients do beside the steps of their own optimiser: the `local` of `Federated`.

`Plain` is FedAvg (McMahan et al. 2017, arXiv:1602.05629), `Proximal` is FedProx (Li et al. 2020,
arXiv:1812.06127), `Scaffold` is SCAFFOLD with option II (Karimireddy et al. 2020, arXiv:1910.06378).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from isthmus.kinds import of_kind
from isthmus.quantities import real

__all__ = ["Local", "Plain", "Proximal", "Scaffold"]


class Local(Protocol):
    """How a client learns.

    controls: whether each client keeps a control variate from round to round. With it a gradient counts
    as gradient - its own control + that of all, and its own becomes the mean of its gradients in the
    round, which (anchor - parameters) / (sum of learning rates) is for plain gradient descent alone.
    """

    controls: ClassVar[bool]

    def correct(self, gradient: Any, parameters: Any, anchor: Any) -> None:
        """Change the `gradient` of a client at `parameters`, which began at `anchor`, in place."""


@dataclass(frozen=True)
class Plain:
    """Clients follow their own gradients."""

    controls: ClassVar[bool] = False

    def correct(self, gradient: Any, parameters: Any, anchor: Any) -> None:
        pass


@dataclass(frozen=True)
class Proximal:
    """Clients are held back by mu / 2 |parameters - anchor|^2."""

    controls: ClassVar[bool] = False

    mu: float = 0.01

    def __post_init__(self) -> None:
        object.__setattr__(self, "mu", real("mu", self.mu, least=0))

    def correct(self, gradient: Any, parameters: Any, anchor: Any) -> None:
        pull = parameters - anchor
        pull *= anchor.dtype.type(self.mu)
        gradient += pull


@dataclass(frozen=True)
class Scaffold:
    """Clients correct their gradients by how these differ from all clients'.

    Each client's control variate takes as many bytes as the parameters, and as many are exchanged again.
    """

    controls: ClassVar[bool] = True

    def correct(self, gradient: Any, parameters: Any, anchor: Any) -> None:
        pass  # the controls do


LOCALS: dict[str, Any] = {"plain": Plain, "proximal": Proximal, "scaffold": Scaffold}
"""Name in a settings file -> class."""


def local_of(value: Any) -> Any:
    """Return the way to learn that `value` is or, as a name or a table with `kind`, tells.

    ValueError for a name or an argument that does not exist.
    """
    if isinstance(value, str | Mapping):
        return of_kind("local", value, LOCALS)
    if hasattr(value, "correct") and hasattr(value, "controls") and not isinstance(value, type):
        return value
    raise ValueError(f"local must be of isthmus.client, as in client.Plain(), not {value!r:.80}")
