"""A trained model as functions of features whose answers do not depend on the batch around them.

The built-in models run on `kernels.forward`, layer by layer; every other one, a torch model of one's
own among them, is asked in blocks of one size, as `models.scoring` does.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from isthmus.folders.trained_model import TrainedModel
from isthmus.kernels.forward import convolved, dense
from isthmus.models.convolutional import Convolutional
from isthmus.models.perceptron import Perceptron
from isthmus.models.scoring import scores_of

Run = Callable[[npt.NDArray[Any]], npt.NDArray[np.float32]]


@dataclass(frozen=True)
class Part:
    """A layer of a model, or all of it: a function of what the one before gave, [n, ...].

    shape: of what it gives for one sample, float32.
    """

    name: str
    run: Run
    shape: tuple[int, ...]

    @property
    def entries(self) -> int:
        """Numbers that it gives for one sample."""
        return math.prod(self.shape)


def parts_of(model: Any, parameters: npt.NDArray[np.float32] | None = None) -> list[Part]:
    """Return the parts of a model in order: the layers of a built-in one, else one that is all of it.

    model: what `load_model` gives (then parameters are its own), or any `Model` with its parameters.
    The first part takes features as they were packed. ValueError if parameters are missing.
    """
    inner, prepare = model, lambda features: features
    if isinstance(model, TrainedModel):
        inner, prepare = model.model, model.prepared
        parameters = model.parameters if parameters is None else parameters
    if parameters is None:
        raise ValueError("give the model's parameters beside it")
    if not isinstance(inner, (Perceptron, Convolutional)):
        return [_whole(model, inner, parameters)]
    weights = {
        name: np.ascontiguousarray(view, np.float32) for name, view in inner.views(parameters).items()
    }
    layers = (
        _perceptron(inner, weights) if isinstance(inner, Perceptron) else _convolutional(inner, weights)
    )
    first = layers[0]

    def run(features):
        return first.run(inner.prepared(parameters, prepare(features)))

    return [Part(first.name, run, first.shape), *layers[1:]]


def joined(parts: Sequence[Part]) -> Run:
    """Return the function that runs these parts one after another."""
    runs = [part.run for part in parts]

    def run(values):
        for each in runs:
            values = each(values)
        return values

    return run


def digest_of(model: Any, parameters: npt.NDArray[np.float32] | None = None) -> str:
    """Return the SHA-256 of a model's shapes and parameters: what a threshold is kept with."""
    parameters = model.parameters if parameters is None else parameters
    told = hashlib.sha256(repr([(name, tuple(shape)) for name, shape in model.shapes.items()]).encode())
    told.update(np.ascontiguousarray(parameters, np.float32).tobytes())
    return told.hexdigest()


def _whole(model, inner, parameters):
    if isinstance(model, TrainedModel):
        return Part("model", lambda features: model.scores(parameters, features), (inner.outputs,))
    return Part("model", lambda features: scores_of(inner, parameters, features), (inner.outputs,))


def _dense(name, weight, bias, rectified):
    def run(values):
        sums = np.empty((len(values), len(bias)), np.float32)
        dense(np.ascontiguousarray(values).reshape(len(values), -1), weight, bias, rectified, sums)
        return sums

    return Part(name, run, bias.shape)


def _convolution(name, weight, bias, height, width):
    plane = (height - 2) // 2, (width - 2) // 2

    def run(values):
        pooled = np.empty((len(values), *plane, len(bias)), np.float32)
        images = np.ascontiguousarray(values).reshape(len(values), height, width, -1)
        convolved(images, weight, bias, pooled)
        return pooled

    return Part(name, run, (*plane, len(bias)))


def _perceptron(model, weights):
    count = len(model.hidden) + 1
    return [
        _dense(
            f"layer{number}",
            weights[f"layer{number}.weight"],
            weights[f"layer{number}.bias"],
            number < count - 1,
        )
        for number in range(count)
    ]


def _convolutional(model, weights):
    parts, height, width = [], model.height, model.width
    for number in range(len(model.channels)):
        name = f"convolution{number}"
        parts.append(
            _convolution(name, weights[f"{name}.weight"], weights[f"{name}.bias"], height, width)
        )
        height, width = parts[-1].shape[:2]
    return [*parts, _dense("linear", weights["linear.weight"], weights["linear.bias"], False)]
