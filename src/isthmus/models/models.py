"""Models of images: layers of matrices, and of convolutions. Each is a frozen `model.Model`.

The first parameters are He's (He et al. 2015, arXiv:1502.01852), the loss is softmax cross-entropy, and
the backward pass goes from the last layer to the first.

Features are images, [batch, ...] of any number type: uint8 is taken as 0 ... 255 and brought to
-1/2 ... 1/2, anything else is taken as it is. Parameters of float64 are computed in float64.

Parameters of CuPy are computed with on their GPU, to which features and targets are copied.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from isthmus.devices import library_of
from isthmus.models.model import Model
from isthmus.quantities import whole


class FlatModel(Model):
    """What the models share: views into flat vectors, and the loss."""

    @property
    def size(self) -> int:
        return sum(int(np.prod(shape)) for shape in self.shapes.values())

    @property
    def matrix_shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shapes in order, inputs of more than one dimension as one: (inputs, outputs)."""
        return tuple((int(np.prod(shape[:-1])), shape[-1]) if len(shape) > 2 else shape
                     for shape in self.shapes.values())

    def views(self, vector: np.ndarray) -> dict[str, np.ndarray]:
        """Return name -> view of `vector` with the shape of that matrix."""
        if vector.shape != (self.size,):
            raise ValueError(f"this model has {self.size} parameters, the vector has shape "
                             f"{vector.shape}")
        return {name: vector[part].reshape(shape)
                for (name, shape), part in zip(self.shapes.items(), self.tensor_slices)}

    @property
    def tensor_slices(self) -> list[slice]:
        """Return where each tensor of `shapes` lies in the flat vector."""
        lasts = list(itertools.accumulate(math.prod(shape) for shape in self.shapes.values()))
        return [slice(first, last) for first, last in itertools.pairwise([0, *lasts])]

    def initial(self, seed: int) -> npt.NDArray[np.float32]:
        draw = np.random.Generator(np.random.PCG64(seed))
        vector = np.zeros(self.size, np.float32)
        for name, view in self.views(vector).items():
            if not name.endswith("bias"):
                inputs = int(np.prod(view.shape[:-1]))
                view[:] = draw.normal(scale=(2 / inputs) ** 0.5, size=view.shape)
        return vector

    def scores(self, parameters: np.ndarray, features: np.ndarray) -> np.ndarray:
        return self.forward(self.views(parameters), self._prepared(parameters, features))[0]

    def gradient(self, parameters: np.ndarray, features: np.ndarray, targets: np.ndarray,
                 gradient: np.ndarray, ready: Callable[[int], Any] | None = None) -> float:
        if len(targets) != len(features):
            raise ValueError(f"{len(features)} features, but {len(targets)} targets")
        parts = self.views(gradient)
        ready = ready or (lambda first: None)
        if len(features) == 0:
            gradient[:] = 0
            ready(0)
            return 0.0
        weights = self.views(parameters)
        scores, trace = self.forward(weights, self._prepared(parameters, features))
        loss, slope = cross_entropy(scores, library_of(scores).asarray(targets, np.intp))
        first = dict(zip(self.shapes, (part.start for part in self.tensor_slices)))
        for name in self.backward(weights, trace, slope, parts):
            ready(first[name])
        return loss

    def _prepared(self, parameters, features):
        """Return the batch as [batch, *inputs] of the parameters' type, uint8 brought to +-1/2."""
        features = library_of(parameters).asarray(features)  # bytes travel, not what they become
        values = features.reshape(len(features), *self.inputs_shape).astype(parameters.dtype)
        if features.dtype == np.uint8:
            values *= parameters.dtype.type(1 / 255)
            values -= parameters.dtype.type(0.5)
        return values


def take_whole(model, *names):
    """Take the model's fields `names`, numbers or tuples of them, as whole numbers; else ValueError."""
    for name in names:
        given = getattr(model, name)
        several = isinstance(given, (list, tuple, np.ndarray)) and np.ndim(given)
        object.__setattr__(model, name, tuple(whole(name, each) for each in given) if several
                           else whole(name, given))


@dataclass(frozen=True)
class Perceptron(FlatModel):
    """Layers of matrices with ReLU between them."""

    inputs: int = 784
    hidden: tuple[int, ...] = (128,)
    classes: int = 10

    def __post_init__(self):
        take_whole(self, "inputs", "hidden", "classes")
        widths = (self.inputs, *self.hidden, self.classes)
        if min(widths) < 1:
            raise ValueError(f"layers must be at least 1 wide, not {widths}")

    @property
    def inputs_shape(self) -> tuple[int, ...]:
        return (self.inputs,)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        widths = (self.inputs, *self.hidden, self.classes)
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

    def backward(self, weights: dict[str, np.ndarray], given: list, slope: np.ndarray,
                 parts: dict[str, np.ndarray]) -> Iterator[str]:
        """Write gradients into `parts`, from the last layer to the first; yield each finished one."""
        for number in reversed(range(len(given))):
            library_of(slope).matmul(given[number].T, slope, out=parts[f"layer{number}.weight"])
            slope.sum(axis=0, out=parts[f"layer{number}.bias"])
            yield f"layer{number}.weight"
            if number:
                slope = (slope @ weights[f"layer{number}.weight"].T) * (given[number] > 0)


@dataclass(frozen=True)
class Convolutional(FlatModel):
    """3 x 3 convolutions without padding, each with ReLU and 2 x 2 maxima, then a linear layer."""

    height: int = 28
    width: int = 28
    channels: tuple[int, ...] = (8, 16)
    classes: int = 10

    def __post_init__(self):
        take_whole(self, "height", "width", "channels", "classes")
        height, width = self._last_plane()
        if min(height, width) < 1 or min(*self.channels, self.classes) < 1:
            raise ValueError(f"{len(self.channels)} convolutions leave nothing of "
                             f"{self.height} x {self.width}; give fewer channels")

    @property
    def inputs_shape(self) -> tuple[int, ...]:
        return (self.height, self.width, 1)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        shapes, before = {}, 1
        for number, after in enumerate(self.channels):
            shapes[f"convolution{number}.weight"] = (3, 3, before, after)
            shapes[f"convolution{number}.bias"] = (after,)
            before = after
        height, width = self._last_plane()
        shapes["linear.weight"] = (height * width * before, self.classes)
        shapes["linear.bias"] = (self.classes,)
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
        flat = values.reshape(len(values), -1)
        trace.append((values.shape, flat))
        return flat @ weights["linear.weight"] + weights["linear.bias"], trace

    def backward(self, weights: dict[str, np.ndarray], trace: list, slope: np.ndarray,
                 parts: dict[str, np.ndarray]) -> Iterator[str]:
        """Write gradients into `parts`, from the last layer to the first; yield each finished one."""
        (shape, flat), library = trace[-1], library_of(slope)
        library.matmul(flat.T, slope, out=parts["linear.weight"])
        slope.sum(axis=0, out=parts["linear.bias"])
        yield "linear.weight"
        slope = (slope @ weights["linear.weight"].T).reshape(shape)
        for number in reversed(range(len(self.channels))):
            before, patches, sums_shape, pooled, place = trace[number]
            slope = spread_to_maxima(slope * (pooled > 0), place, sums_shape)
            kernel = weights[f"convolution{number}.weight"]
            rows = slope.reshape(-1, kernel.shape[-1])
            matrix = parts[f"convolution{number}.weight"].reshape(-1, kernel.shape[-1])
            library.matmul(patches.reshape(-1, matrix.shape[0]).T, rows, out=matrix)
            rows.sum(axis=0, out=parts[f"convolution{number}.bias"])
            yield f"convolution{number}.weight"
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
    return library_of(values).concatenate([values[:, i:i + height, j:j + width]
                                           for i in range(3) for j in range(3)], axis=-1)


def summed_patches(patches, shape):
    """Return [batch, height, width, channels]: each place's share of all patches it is in."""
    total = library_of(patches).zeros(shape, patches.dtype)
    height, width, channels = shape[1] - 2, shape[2] - 2, shape[3]
    for number in range(9):
        i, j = divmod(number, 3)
        part = patches[..., number * channels:(number + 1) * channels]
        total[:, i:i + height, j:j + width] += part
    return total


def pooled_maxima(values):
    """Return the maxima of 2 x 2 squares (an odd edge is dropped) and which of the four each is."""
    height, width = values.shape[1] // 2, values.shape[2] // 2
    library = library_of(values)
    squares = library.stack([values[:, i:2 * height:2, j:2 * width:2]
                             for i in range(2) for j in range(2)])
    place = squares.argmax(axis=0)
    return library.take_along_axis(squares, place[None], axis=0)[0], place


def spread_to_maxima(slope, place, shape):
    """Return zeros of `shape` with each entry of `slope` where the maximum was."""
    spread = library_of(slope).zeros(shape, slope.dtype)
    height, width = slope.shape[1:3]
    for number in range(4):
        i, j = divmod(number, 2)
        spread[:, i:2 * height:2, j:2 * width:2] = slope * (place == number)
    return spread


def cross_entropy(scores, targets):
    """Return the summed softmax cross-entropy and its gradient by the scores."""
    library = library_of(scores)
    shifted = scores - scores.max(axis=1, keepdims=True)
    exponents = library.exp(shifted)
    sums = exponents.sum(axis=1, keepdims=True)
    rows = library.arange(len(targets))
    loss = float((library.log(sums[:, 0]) - shifted[rows, targets]).sum(dtype=np.float64))
    slope = exponents / sums
    slope[rows, targets] -= 1
    return loss, slope


MODELS = {"perceptron": Perceptron, "convolutional": Convolutional}
"""Name in a settings file -> class."""
