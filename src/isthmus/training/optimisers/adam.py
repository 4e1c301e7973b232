"""Adam, and AdamW, whose weight decay does not go through the moments."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from isthmus.devices import library_of
from isthmus.training.optimisers.optimiser import Optimiser

SMALLEST_EPSILON = 1e-37
"""Below it a float32 has not all its digits, or is 0."""


@dataclass(frozen=True)
class Adam(Optimiser):
    """Steps along the mean of past gradients over the root of the mean of their squares.

    After Kingma and Ba 2015, "Adam: A Method for Stochastic Optimization" (arXiv:1412.6980), with their
    correction of the first steps; the gradient is that of the loss + weight_decay parameters² / 2.
    A step that is left out does not count.
    """

    LEARNING_RATE: ClassVar[float] = 0.001

    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be 0 or more and less than 1, not {getattr(self, name)}")
        if not SMALLEST_EPSILON <= self.epsilon < np.inf:
            raise ValueError(f"epsilon must be {SMALLEST_EPSILON} or more, not {self.epsilon}")

    def begin(self, size: int, like: Any) -> dict[str, Any]:
        """Return both moments, and `powers`: float64[2], beta1 and beta2 to the number of steps made.

        They are multiplied anew in each step: the bits of a library's power differ by machine.
        """
        zeros = library_of(like).zeros
        return {"mean": zeros(size, np.float32), "square": zeros(size, np.float32), "powers": np.ones(2)}

    def _begin_step(self, arrays: dict[str, Any]) -> None:
        arrays["powers"] *= self.beta1, self.beta2

    def _decay(self, learning_rate: float, weight_decay: float) -> tuple[float, float]:
        """Return how much of the parameters is added to the gradient, and what is left of them."""
        return weight_decay, 1.0

    def _change(self, kernel, parameters, mean, arrays, learning_rate, scale, weight_decay):  # type: ignore[no-untyped-def]
        power1, power2 = arrays["powers"].tolist()
        decay, shrink = self._decay(learning_rate, weight_decay)
        kernel.step_adam(
            mean,
            scale,
            np.float32(decay),
            np.float32(shrink),
            float(self.beta1),
            float(self.beta2),
            np.float32(learning_rate / (1 - power1)),
            np.float32(1 / math.sqrt(1 - power2)),
            np.float32(self.epsilon),
            arrays["mean"],
            arrays["square"],
            parameters,
        )


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam, with parameters that are also multiplied by 1 - rate weight_decay in each step.

    After Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization" (arXiv:1711.05101).
    """

    weight_decay: float = 0.01

    def _decay(self, learning_rate: float, weight_decay: float) -> tuple[float, float]:
        return 0.0, 1 - learning_rate * weight_decay
