"""What the built-in models share: one flat vector, He's first parameters, a loss by name.

They are models of images or of plain numbers, each a frozen `model.Model`.

The first parameters are He's (He et al. 2015, arXiv:1502.01852), the loss is one of `losses.LOSSES`, and
the backward pass goes from the last layer to the first.

Features are images, [batch, ...] of any number type: uint8 is taken as 0 ... 255 and brought to
-1/2 ... 1/2, anything else is taken as it is. Parameters of float64 are computed in float64.

Parameters of CuPy are computed with on their GPU, to which features and targets are copied.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from isthmus.devices import library_of
from isthmus.models.losses import LOSSES, CrossEntropy
from isthmus.models.model import Model
from isthmus.quantities import whole


class FlatModel(Model):
    """What the models share: views into flat vectors, and what the last layer is for.

    classes: of a classifier, 10 where nothing is said; its outputs are as many. outputs: of a loss that
    is not for classes, 1 where nothing is said. loss: a name in `LOSSES`, kept as the `Loss`.
    """

    def _take_outputs(self):
        """Make `loss` a Loss, and `classes` and `outputs` whole numbers that agree; else ValueError."""
        loss, classes, outputs = self.loss, self.classes, self.outputs
        if not hasattr(loss, "value_and_slope"):
            if not isinstance(loss, str) or loss not in LOSSES:
                raise ValueError(f"loss must be one of {', '.join(LOSSES)}, not {loss!r}")
            loss = LOSSES[loss]()
        if isinstance(loss, CrossEntropy):
            classes = next((each for each in (classes, outputs) if each is not None), 10)
            outputs = classes if outputs is None else outputs
            if classes != outputs:
                raise ValueError(f"{classes} classes are as many outputs, not {outputs}")
        elif classes is not None:
            raise ValueError("classes are for cross_entropy; say how many outputs there are instead")
        else:
            outputs = 1 if outputs is None else outputs
        for name, value in (("loss", loss), ("classes", classes), ("outputs", outputs)):
            object.__setattr__(self, name, value)
        take_whole(self, *["classes"] * (classes is not None), "outputs")

    @property
    def size(self) -> int:
        return sum(int(np.prod(shape)) for shape in self.shapes.values())

    @property
    def matrix_shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shapes in order, inputs of more than one dimension as one: (inputs, outputs)."""
        return tuple(
            (int(np.prod(shape[:-1])), shape[-1]) if len(shape) > 2 else shape
            for shape in self.shapes.values()
        )

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
        return self.forward(self.views(parameters), self.prepared(parameters, features))[0]

    def gradient(
        self,
        parameters: np.ndarray,
        features: np.ndarray,
        targets: np.ndarray,
        gradient: np.ndarray,
        ready: Callable[[int], Any] | None = None,
    ) -> float:
        if len(targets) != len(features):
            raise ValueError(f"{len(features)} features, but {len(targets)} targets")
        parts = self.views(gradient)
        ready = ready or (lambda first: None)
        if len(features) == 0:
            gradient[:] = 0
            ready(0)
            return 0.0
        weights = self.views(parameters)
        scores, trace = self.forward(weights, self.prepared(parameters, features))
        loss, slope = self.loss.value_and_slope(scores, targets)
        first = dict(zip(self.shapes, (part.start for part in self.tensor_slices)))
        for name in self.backward(weights, trace, slope, parts):
            ready(first[name])
        return loss

    def layers_back(
        self, weights: dict[str, np.ndarray], trace: Any, slope: np.ndarray
    ) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        """Yield the name of each layer, from the last to the first, what it was given, and the slope of
        the loss by what it gave: [batch, ..., inputs] and [batch, ..., outputs]."""
        raise NotImplementedError

    def backward(
        self, weights: dict[str, np.ndarray], trace: Any, slope: np.ndarray, parts: dict[str, np.ndarray]
    ) -> Iterator[str]:
        """Write gradients into `parts`, from the last layer to the first; yield each finished one."""
        for name, given, slopes in self.layers_back(weights, trace, slope):
            matrix = parts[f"{name}.weight"].reshape(-1, slopes.shape[-1])
            rows = slopes.reshape(-1, slopes.shape[-1])
            library_of(rows).matmul(given.reshape(-1, matrix.shape[0]).T, rows, out=matrix)
            rows.sum(axis=0, out=parts[f"{name}.bias"])
            yield f"{name}.weight"

    def clipped_gradient(
        self,
        parameters: np.ndarray,
        features: np.ndarray,
        targets: np.ndarray,
        clip: float,
        gradient: np.ndarray,
    ) -> None:
        """Overwrite `gradient` with the sum of the samples' gradients, each scaled to at most the norm
        `clip`, on NumPy's vectors.

        Samples whose gradient is not finite count as zeros: then a sample changes the sum by `clip` at
        most, whatever it is.
        """
        gradient[:] = 0
        if len(features) == 0:
            return
        weights = self.views(parameters)
        scores, trace = self.forward(weights, self.prepared(parameters, features))
        _, slope = self.loss.value_and_slope(scores, targets)
        layers = list(self.layers_back(weights, trace, slope))
        norms, of_samples = sample_norms(layers)
        if not (kept := np.isfinite(norms)).all():
            self.clipped_gradient(parameters, features[kept], targets[kept], clip, gradient)
            return
        # A norm is rounded: what it may be too small by is taken off.
        factors = np.minimum(1, clip * (1 - 1e-5) / np.maximum(norms, 1e-30)).astype(gradient.dtype)
        parts = self.views(gradient)
        for name, given, slopes in layers:
            matrix = parts[f"{name}.weight"].reshape(-1, slopes.shape[-1])
            if slopes.ndim == 2:
                scaled = slopes * factors[:, None]
                np.matmul(given.T, scaled, out=matrix)
                scaled.sum(axis=0, out=parts[f"{name}.bias"])
            else:
                matrices, biases = of_samples[name]
                np.matmul(factors, matrices.reshape(len(factors), -1), out=matrix.reshape(-1))
                np.matmul(factors, biases, out=parts[f"{name}.bias"])

    def prepared(self, parameters, features):
        """Return the batch as [batch, *inputs] of the parameters' type, uint8 brought to +-1/2."""
        features = library_of(parameters).asarray(features)  # bytes travel, not what they become
        values = self._arranged(features).astype(parameters.dtype)
        if features.dtype == np.uint8:
            values *= parameters.dtype.type(1 / 255)
            values -= parameters.dtype.type(0.5)
        return values

    def _arranged(self, features):
        """Return the batch in the order of axes that `forward` takes."""
        return features.reshape(len(features), *self.inputs_shape)


def sample_norms(layers):
    """Return float64[batch], the norm of each sample's gradient, and name -> gradients of each sample.

    Those of dense layers follow from what they are given and from slopes, and are never made (Goodfellow
    2015, arXiv:1510.01799); those of convolutions, whose weights are few, are made.
    """
    squares, of_samples = np.zeros(len(layers[0][1])), {}
    for name, given, slopes in layers:
        if slopes.ndim == 2:
            inputs = np.einsum("ij,ij->i", given, given) + 1  # 1 is what a bias is given
            squares += inputs.astype(np.float64) * np.einsum("ij,ij->i", slopes, slopes)
            continue
        rows = slopes.reshape(len(slopes), -1, slopes.shape[-1])
        patches = given.reshape(len(given), -1, given.shape[-1])
        matrices, biases = np.matmul(patches.transpose(0, 2, 1), rows), rows.sum(axis=1)
        of_samples[name] = matrices, biases
        for each in (matrices.reshape(len(rows), -1), biases):
            squares += np.einsum("ij,ij->i", each, each)
    return np.sqrt(squares), of_samples


def take_whole(model, *names):
    """Take the model's fields `names`, numbers or tuples of them, as whole numbers; else ValueError."""
    for name in names:
        given = getattr(model, name)
        several = isinstance(given, (list, tuple, np.ndarray)) and np.ndim(given)
        object.__setattr__(
            model, name, tuple(whole(name, each) for each in given) if several else whole(name, given)
        )
