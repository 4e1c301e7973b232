"""Stochastic gradient descent with momentum."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from isthmus import kernels
from isthmus.devices import library_of
from isthmus.training.optimisers.optimiser import Optimiser


@dataclass(frozen=True)
class SGD(Optimiser):
    """m = momentum m + g; parameters -= learning rate m."""

    LEARNING_RATE: ClassVar[float] = 0.1
    momentum: float = 0.9

    def __post_init__(self):
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), not {self.momentum}")

    def begin(self, size: int, like: Any) -> dict[str, Any]:
        return {"momentum": library_of(like).zeros(size, np.float32)}

    def step(self, parameters: Any, mean: Any, arrays: dict[str, Any], learning_rate: float) -> None:
        kernel, momentum, change = kernels.for_array(mean), arrays["momentum"], mean
        kernel.scale(momentum, np.float32(self.momentum), momentum)
        kernel.add(mean, momentum)
        kernel.scale(momentum, np.float32(-learning_rate), change)
        kernel.add(change, parameters)
