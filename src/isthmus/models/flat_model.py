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
from collections.abc import Callable
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


def take_whole(model, *names):
    """Take the model's fields `names`, numbers or tuples of them, as whole numbers; else ValueError."""
    for name in names:
        given = getattr(model, name)
        several = isinstance(given, (list, tuple, np.ndarray)) and np.ndim(given)
        object.__setattr__(
            model, name, tuple(whole(name, each) for each in given) if several else whole(name, given)
        )
