"""What training asks of a model: parameters in one flat float32 vector, the gradient in another."""

import math
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from isthmus.models.losses import Loss


class Model(Protocol):
    """Sizes, and three verbs on flat vectors, which are NumPy's, or CuPy's of the same type."""

    @property
    def size(self) -> int:
        """Entries of the flat vector."""

    @property
    def loss(self) -> Loss:
        """What training makes small, and what tells how good the model is."""

    @property
    def outputs(self) -> int:
        """How many numbers `scores` gives for a sample; of a classifier, one a class."""

    @property
    def inputs_shape(self) -> tuple[int, ...] | None:
        """The shape of a sample's features; None: any that `try_out` does not refuse."""

    def complaint(self, shape: tuple[int, ...]) -> str | None:
        """Say what is wrong with features of this shape a sample, and the cure; None: nothing.

        Here any shape of as many numbers will do.
        """
        if self.inputs_shape is None:
            return None
        given, taken = math.prod(shape), math.prod(self.inputs_shape)
        if given == taken:
            return None
        return f"have {given} numbers a sample, the model takes {taken}; change [model]"

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of each tensor in the flat vector, in order."""

    @property
    def tensor_slices(self) -> list[slice]:
        """Where each tensor of `shapes` lies in the flat vector."""

    def views(self, vector: np.ndarray) -> dict[str, np.ndarray]:
        """Return name -> view of `vector` with the shape of that tensor."""
        if vector.shape != (self.size,):
            raise ValueError(
                f"this model has {self.size} parameters, the vector has shape {vector.shape}"
            )
        return {
            name: vector[part].reshape(shape)
            for (name, shape), part in zip(self.shapes.items(), self.tensor_slices)
        }

    def initial(self, seed: int) -> npt.NDArray[np.float32]:
        """Return the parameters that training begins with."""

    def gradient(
        self,
        parameters: np.ndarray,
        features: np.ndarray,
        targets: np.ndarray,
        gradient: np.ndarray,
        ready: Callable[[int], Any] | None = None,
    ) -> float:
        """Overwrite `gradient` with that of the batch's summed loss, and return that sum.

        An empty batch gives zeros. `ready(first)` is called whenever the entries from `first` on are
        final, and last with 0.
        """

    def scores(self, parameters: np.ndarray, features: np.ndarray) -> np.ndarray:
        """Return [batch, outputs]; a classifier takes a sample for the class of its largest."""

    def try_out(self, features: np.ndarray, targets: np.ndarray) -> None:
        """Raise ModelError unless the model takes samples of these shapes and dtypes.

        Asked before `outputs`; the arrays may have no rows.
        """
        return None

    def begin_step(self, seed: int, rank: int, step: int) -> None:
        """Draw random numbers (dropout's) from here on as that rank does in that step."""
        return None

    def buffers(self) -> dict[str, np.ndarray]:
        """Return name -> array of what a rank holds besides the parameters, such as batch statistics."""
        return {}

    def set_buffers(self, arrays: dict[str, np.ndarray]) -> None:
        """Take what `buffers` gave, on this rank or as a mean of all, in place."""
        return None
