"""Stochastic gradient descent with momentum."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from isthmus.devices import library_of
from isthmus.training.optimisers.optimiser import Optimiser


@dataclass(frozen=True)
class SGD(Optimiser):
    """m = momentum m + g, where g is the gradient + weight_decay parameters; parameters -= rate m.

    nesterov: parameters -= rate (g + momentum m) instead (Sutskever et al. 2013, "On the importance of
    initialization and momentum in deep learning"). Without momentum nothing is remembered.
    """

    LEARNING_RATE: ClassVar[float] = 0.1

    momentum: float = 0.9
    nesterov: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must be 0 or more and less than 1, not {self.momentum}")
        if not isinstance(self.nesterov, bool):
            raise TypeError("nesterov is true or false")
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov = true needs a momentum above 0")

    def begin(self, size: int, like: Any) -> dict[str, Any]:
        return {"momentum": library_of(like).zeros(size, np.float32)} if self.momentum else {}

    def _change(self, kernel, parameters, mean, arrays, learning_rate, scale, weight_decay):  # type: ignore[no-untyped-def]
        kernel.step_sgd(
            mean,
            scale,
            np.float32(weight_decay),
            np.float32(self.momentum),
            self.nesterov,
            np.float32(learning_rate),
            arrays.get("momentum"),
            parameters,
        )
