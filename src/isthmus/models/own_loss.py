"""A user's own loss of PyTorch tensors, and further metrics, by name.

A loss is a function of (scores, targets) that gives a scalar tensor: the mean over the batch's samples,
as PyTorch's own losses do. A metric is such a function too, and is no more than told.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from isthmus.errors import ModelError
from isthmus.models.losses import Loss
from isthmus.models.own_code import OwnCode


def accuracy(scores: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the share of samples whose largest score is that of their target."""
    return (scores.argmax(dim=1) == targets).double().mean()


METRICS: dict[str, Callable[..., Any]] = {"accuracy": accuracy}
"""Metrics that an own loss may be told with, by name."""


class OwnLoss(Loss):
    """What a user's function says of a batch.

    function: the loss. name: what it is called, for messages. code: the user's, whose errors are told.
    metrics: name -> function; they are told beside the loss.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        name: str,
        code: OwnCode,
        metrics: Mapping[str, Callable[..., Any]] = {},
    ):
        self.function, self.name, self.code = function, name, code
        self.functions = {"loss": function, **metrics}

    @property
    def metrics(self) -> tuple[str, ...]:
        return tuple(self.functions)

    def complaint(self, targets: np.ndarray, outputs: int) -> str | None:
        """Say nothing: what targets may be is for the function to say."""
        return None

    def sum_of(self, scores: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the loss times the batch's samples, to go backwards from."""
        return self._scalar("loss", scores, targets) * len(targets)

    def sums(self, scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Return float64[metrics + 1]: each metric times the samples, and the samples."""
        kind = np.int64 if targets.dtype.kind in "iub" else np.float32
        given = torch.from_numpy(np.ascontiguousarray(scores)), torch.from_numpy(targets.astype(kind))
        with torch.no_grad():
            means = [float(self._scalar(name, *given)) for name in self.metrics]
        return np.array([*means, 1.0]) * len(targets) if len(targets) else np.zeros(len(means) + 1)

    def metrics_of(self, sums: np.ndarray) -> dict[str, float]:
        """Return name -> mean over the samples, of `sums` added up over batches and ranks."""
        return {name: float(each / sums[-1]) for name, each in zip(self.metrics, sums)}

    def _scalar(self, metric, scores, targets):
        with self.code.running(f"{self.name if metric == 'loss' else metric}: the {metric}"):
            value = self.functions[metric](scores, targets)
        if not isinstance(value, torch.Tensor):
            value = torch.tensor(float(value)) if metric != "loss" else value
        if not isinstance(value, torch.Tensor) or value.numel() != 1:
            shape = list(value.shape) if isinstance(value, torch.Tensor) else None
            given = f"a tensor of shape {shape}" if shape is not None else f"a {type(value).__name__}"
            raise ModelError(
                f"{self.name}: the {metric} is {given}; return one number, the mean over the batch "
                "(loss.mean())"
            )
        if value.is_complex() or not value.is_floating_point():
            raise ModelError(f"{self.name}: the {metric} is of {value.dtype}; return a real float")
        return value.reshape(())
