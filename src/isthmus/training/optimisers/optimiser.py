"""The contract of an optimiser: what it remembers, how it changes the parameters, and which decay.

All ranks have the mean gradient with the same bits, and make the same change: by kernels whose bits are
those of all devices, of numbers that sums, products, quotients and square roots alone have made, which
IEEE 754 defines for every machine.
"""

import copy
import itertools
from dataclasses import dataclass, field, fields
from fnmatch import fnmatchcase
from typing import Any, ClassVar, Self

import numpy as np

from isthmus import kernels
from isthmus.errors import SettingsError
from isthmus.models.model import Model


@dataclass(frozen=True)
class Optimiser:
    """What a user writes: numbers alone; the arrays that change from step to step are the caller's.

    weight_decay: how much of each parameter is taken off a step, as each class has it.
    exclude: patterns as the shell has them ("*.bias") of the tensors that do not decay; None: those of
    less than two dimensions, biases and the scales of normalisations. ValueError for a number out of
    its range.
    LEARNING_RATE: the one that settings have where they name none.
    """

    LEARNING_RATE: ClassVar[float]

    weight_decay: float = 0.0
    exclude: tuple[str, ...] | None = None
    spans: tuple[tuple[int, int | None, bool], ...] = field(
        default=((0, None, True),), init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        if not 0 <= self.weight_decay < np.inf:
            raise ValueError(f"weight_decay must be 0 or more, not {self.weight_decay}")
        given = (self.exclude,) if isinstance(self.exclude, str) else self.exclude
        if not (given is None or all(isinstance(each, str) for each in given)):
            raise TypeError("exclude holds patterns, text in quotes")
        object.__setattr__(self, "exclude", given if given is None else tuple(given))

    @property
    def arguments(self) -> dict[str, Any]:
        """What a user may write, name -> value."""
        return {each.name: getattr(self, each.name) for each in fields(self) if each.init}

    @property
    def moved_nbytes_per_entry(self) -> float:
        """Bytes that a step reads and writes for a parameter: it, its gradient, what is remembered."""
        remembered = self.begin(1, np.empty(0, np.float32)).values()
        return 12.0 + 2 * sum(array.nbytes for array in remembered if array.dtype == np.float32)

    def on(self, model: Model) -> Self:
        """Return the optimiser for that model's tensors; SettingsError where `exclude` names none."""
        for pattern in self.exclude or ():
            if not any(fnmatchcase(name, pattern) for name in model.shapes):
                raise SettingsError(
                    f"training.optimizer: exclude: no tensor of the model is called {pattern!r}; they "
                    f"are {', '.join(model.shapes)}"
                )
        spans: list[tuple[int, int | None, bool]] = []
        tensors = [
            (self._decays(name, shape), part.start, part.stop)
            for (name, shape), part in zip(model.shapes.items(), model.tensor_slices)
        ]
        for decays, group in itertools.groupby(tensors, key=lambda tensor: tensor[0]):
            parts = list(group)
            spans.append((parts[0][1], parts[-1][2], decays))
        bound = copy.copy(self)
        if self.weight_decay:
            object.__setattr__(bound, "spans", tuple(spans))
        return bound

    def _decays(self, name: str, shape: tuple[int, ...]) -> bool:
        if self.exclude is None:
            return len(shape) > 1
        return not any(fnmatchcase(name, pattern) for pattern in self.exclude)

    def begin(self, size: int, like: Any) -> dict[str, Any]:
        """Return name -> array: all that is remembered between steps.

        size: entries of the parameters. like: an array of the library that makes those of that size.
        """
        raise NotImplementedError

    def step(
        self,
        parameters: Any,
        mean: Any,
        arrays: dict[str, Any],
        learning_rate: float,
        scale: float = 1.0,
    ) -> None:
        """Change float32[size] `parameters`, and the `arrays` that `begin` gave, in place.

        mean: float32[size], the mean gradient; it counts times `scale`.
        """
        self._begin_step(arrays)
        kernel = kernels.for_array(parameters)
        for first, last, decays in self.spans:
            self._change(
                kernel,
                parameters[first:last],
                mean[first:last],
                {
                    name: array[first:last] if array.shape == parameters.shape else array
                    for name, array in arrays.items()
                },
                learning_rate,
                np.float32(scale),
                self.weight_decay if decays else 0.0,
            )

    def _begin_step(self, arrays: dict[str, Any]) -> None:
        """Bring up to date what a step changes once, however many entries there are."""

    def _change(
        self,
        kernel: Any,
        parameters: Any,
        mean: Any,
        arrays: dict[str, Any],
        learning_rate: float,
        scale: np.float32,
        weight_decay: float,
    ) -> None:
        """Make the step of some entries, which all decay alike."""
        raise NotImplementedError
