"""Perceptrons: layers of matrices with ReLU between them."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from isthmus.devices import library_of
from isthmus.models.flat_model import FlatModel, take_whole


@dataclass(frozen=True)
class Perceptron(FlatModel):
    """Layers of matrices with ReLU between them."""

    inputs: int = 784
    hidden: tuple[int, ...] = (128,)
    classes: int | None = None
    loss: Any = "cross_entropy"
    outputs: int | None = None

    def __post_init__(self):
        take_whole(self, "inputs", "hidden")
        self._take_outputs()
        widths = (self.inputs, *self.hidden, self.outputs)
        if min(widths) < 1:
            raise ValueError(f"layers must be at least 1 wide, not {widths}")

    @property
    def inputs_shape(self) -> tuple[int, ...]:
        return (self.inputs,)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        widths = (self.inputs, *self.hidden, self.outputs)
        shapes = {}
        for number, (before, after) in enumerate(itertools.pairwise(widths)):
            shapes[f"layer{number}.weight"] = (before, after)
            shapes[f"layer{number}.bias"] = (after,)
        return shapes

    def forward(self, weights: dict[str, np.ndarray], values: np.ndarray) -> tuple[np.ndarray, list]:
        """Return the scores and what each layer was given."""
        given = []
        layers = len(self.hidden) + 1
        for number in range(layers):
            given.append(values)
            values = values @ weights[f"layer{number}.weight"] + weights[f"layer{number}.bias"]
            if number < layers - 1:
                values = library_of(values).maximum(values, 0)
        return values, given

    def layers_back(
        self, weights: dict[str, np.ndarray], given: list, slope: np.ndarray
    ) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        for number in reversed(range(len(given))):
            yield f"layer{number}", given[number], slope
            if number:
                slope = (slope @ weights[f"layer{number}.weight"].T) * (given[number] > 0)
