"""The contract of an optimiser: what it remembers, and how it changes the parameters.

All ranks have the mean gradient with the same bits, and make the same change: by kernels whose bits are
those of all devices, of numbers that are summed and multiplied alike on every machine.
"""

from dataclasses import dataclass
from typing import Any, ClassVar


@dataclass(frozen=True)
class Optimiser:
    """What a user writes: numbers alone; the arrays that change from step to step are the caller's.

    LEARNING_RATE: the one that settings have where they name none.
    """

    LEARNING_RATE: ClassVar[float]

    def begin(self, size: int, like: Any) -> dict[str, Any]:
        """Return name -> array: all that is remembered between steps.

        size: entries of the parameters. like: an array of the library that makes them.
        """
        raise NotImplementedError

    def step(self, parameters: Any, mean: Any, arrays: dict[str, Any], learning_rate: float) -> None:
        """Change float32[size] `parameters`, and the `arrays` that `begin` gave, in place.

        mean: float32[size], the mean gradient; may be overwritten.
        """
        raise NotImplementedError
