"""Convolutions of 3 x 3 with ReLU and pooling, then one matrix."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from isthmus.devices import library_of
from isthmus.models.flat_model import FlatModel, take_whole


@dataclass(frozen=True)
class Convolutional(FlatModel):
    """3 x 3 convolutions without padding, each with ReLU and 2 x 2 maxima, then a linear layer.

    inputs: (channels, height, width) of an image; without it one channel of `height` x `width`, 28 x 28
    where nothing is said. Features have their channels first, or last: which, their shape says, and
    where it could mean both, or is that of a flat vector, they are first.
    """

    height: int | None = None
    width: int | None = None
    channels: tuple[int, ...] = (8, 16)
    classes: int | None = None
    loss: Any = "cross_entropy"
    outputs: int | None = None
    inputs: tuple[int, int, int] | None = None

    def __post_init__(self):
        self._take_inputs()
        take_whole(self, "channels")
        self._take_outputs()
        height, width = self._last_plane()
        if min(height, width) < 1 or min(*self.channels, self.outputs) < 1:
            raise ValueError(
                f"{len(self.channels)} convolutions leave nothing of "
                f"{self.height} x {self.width}; give fewer channels"
            )

    def _take_inputs(self):
        """Make `inputs`, `height` and `width` whole numbers that agree; else ValueError."""
        take_whole(self, *(name for name in ("height", "width") if getattr(self, name) is not None))
        if self.inputs is None:
            plane = (28 if side is None else side for side in (self.height, self.width))
            object.__setattr__(self, "inputs", (1, *plane))
        if not isinstance(self.inputs, (list, tuple)) or len(self.inputs) != 3:
            raise ValueError(f"inputs must be [channels, height, width], not {self.inputs!r}")
        take_whole(self, "inputs")
        if self.inputs[0] < 1:
            raise ValueError(f"images must have a channel at least, not {self.inputs[0]}")
        for name, found in zip(("height", "width"), self.inputs[1:]):
            if getattr(self, name) not in (None, found):
                raise ValueError(
                    f"{name} = {getattr(self, name)} is not that of inputs = {list(self.inputs)}; leave "
                    "one of them out"
                )
            object.__setattr__(self, name, found)

    @property
    def inputs_shape(self) -> tuple[int, ...]:
        return self.inputs

    def complaint(self, shape: tuple[int, ...]) -> str | None:
        channels, height, width = self.inputs
        known = (self.inputs, (height, width, channels), (math.prod(self.inputs),))
        wrong = super().complaint(shape)
        if wrong or channels == 1 or tuple(shape) in known:
            return wrong
        return (
            f"are {list(shape)} a sample, the model takes {list(self.inputs)} (channels, height, width) "
            f"or {list(known[1])}; change inputs under [model], or pack the axes in that order"
        )

    def _arranged(self, features):
        """Return the batch as [batch, height, width, channels]."""
        channels, height, width = self.inputs
        if wrong := self.complaint(features.shape[1:]):
            raise ValueError(f"features {wrong}")
        if channels == 1 or features.shape[1:] not in (self.inputs, (math.prod(self.inputs),)):
            return features.reshape(len(features), height, width, channels)
        return features.reshape(len(features), *self.inputs).transpose(0, 2, 3, 1)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        shapes, before = {}, self.inputs[0]
        for number, after in enumerate(self.channels):
            shapes[f"convolution{number}.weight"] = (3, 3, before, after)
            shapes[f"convolution{number}.bias"] = (after,)
            before = after
        height, width = self._last_plane()
        shapes["linear.weight"] = (height * width * before, self.outputs)
        shapes["linear.bias"] = (self.outputs,)
        return shapes

    def forward(self, weights: dict[str, np.ndarray], values: np.ndarray) -> tuple[np.ndarray, list]:
        """Return the scores and what the backward pass needs of each layer."""
        trace = []
        for number in range(len(self.channels)):
            patches = patches_of(values)
            kernel = weights[f"convolution{number}.weight"]
            sums = patches @ kernel.reshape(-1, kernel.shape[-1])
            sums += weights[f"convolution{number}.bias"]
            pooled, place = pooled_maxima(library_of(sums).maximum(sums, 0))
            trace.append((values.shape, patches, sums.shape, pooled, place))
            values = pooled
        flat = values.reshape(len(values), math.prod(values.shape[1:]))
        trace.append((values.shape, flat))
        return flat @ weights["linear.weight"] + weights["linear.bias"], trace

    def layers_back(
        self, weights: dict[str, np.ndarray], trace: list, slope: np.ndarray
    ) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        shape, flat = trace[-1]
        yield "linear", flat, slope
        slope = (slope @ weights["linear.weight"].T).reshape(shape)
        for number in reversed(range(len(self.channels))):
            before, patches, sums_shape, pooled, place = trace[number]
            slope = spread_to_maxima(slope * (pooled > 0), place, sums_shape)
            kernel = weights[f"convolution{number}.weight"]
            yield f"convolution{number}", patches, slope
            if number:
                slope = summed_patches(slope @ kernel.reshape(-1, kernel.shape[-1]).T, before)

    def _last_plane(self):
        height, width = self.height, self.width
        for _ in self.channels:
            height, width = (height - 2) // 2, (width - 2) // 2
        return height, width


def patches_of(values):
    """Return [batch, height - 2, width - 2, 9 channels]: the 3 x 3 neighbourhood of each place."""
    height, width = values.shape[1] - 2, values.shape[2] - 2
    return library_of(values).concatenate(
        [values[:, i : i + height, j : j + width] for i in range(3) for j in range(3)], axis=-1
    )


def summed_patches(patches, shape):
    """Return [batch, height, width, channels]: each place's share of all patches it is in."""
    total = library_of(patches).zeros(shape, patches.dtype)
    height, width, channels = shape[1] - 2, shape[2] - 2, shape[3]
    for number in range(9):
        i, j = divmod(number, 3)
        part = patches[..., number * channels : (number + 1) * channels]
        total[:, i : i + height, j : j + width] += part
    return total


def pooled_maxima(values):
    """Return the maxima of 2 x 2 squares (an odd edge is dropped) and which of the four each is."""
    height, width = values.shape[1] // 2, values.shape[2] // 2
    library = library_of(values)
    squares = library.stack(
        [values[:, i : 2 * height : 2, j : 2 * width : 2] for i in range(2) for j in range(2)]
    )
    place = squares.argmax(axis=0)
    return library.take_along_axis(squares, place[None], axis=0)[0], place


def spread_to_maxima(slope, place, shape):
    """Return zeros of `shape` with each entry of `slope` where the maximum was."""
    spread = library_of(slope).zeros(shape, slope.dtype)
    height, width = slope.shape[1:3]
    for number in range(4):
        i, j = divmod(number, 2)
        spread[:, i : 2 * height : 2, j : 2 * width : 2] = slope * (place == number)
    return spread
