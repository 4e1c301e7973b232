"""What training makes small, and the numbers by which a model is judged.

`value_and_slope` computes in the scores' own type, on the device where they live. What judges a model
(`sums`, `add`, `metrics_of`) is computed on the host.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from isthmus.devices import library_of

Sums = npt.NDArray[np.float64]


class Loss(Protocol):
    """A function of a model's scores, [batch, outputs], and of the targets, a row a sample."""

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of what `metrics_of` gives: "loss" first, and last what a model is judged by."""

    def complaint(self, targets: np.ndarray, outputs: int) -> str | None:
        """Say what is wrong with targets for a model of so many outputs, and the cure; None: nothing.

        Targets of no rows are asked about their shape and dtype alone.
        """

    def value_and_slope(self, scores: np.ndarray, targets: np.ndarray) -> tuple[float, np.ndarray]:
        """Return the loss, summed over the samples, and its gradient by the scores."""

    def sums(self, scores: np.ndarray, targets: np.ndarray) -> Sums:
        """Return what a batch adds to what `metrics_of` is made from: float64, a few numbers."""

    def add(self, one: Sums, other: Sums) -> Sums:
        """Return the sums of two sets of samples together, over batches as over ranks."""
        return one + other

    def metrics_of(self, sums: Sums) -> dict[str, float]:
        """Return name -> mean over all samples that the sums are of."""

    def better(self, one: dict[str, float], other: dict[str, float]) -> bool:
        """Whether the metrics `one` are of a better model than `other`; a loss of NaN never is."""
        return one["loss"] < other["loss"] or math.isnan(other["loss"]) > math.isnan(one["loss"])


@dataclass(frozen=True)
class CrossEntropy(Loss):
    """Softmax cross-entropy, in nats. Targets are numbers of classes, from 0."""

    metrics = ("loss", "accuracy")

    def complaint(self, targets: np.ndarray, outputs: int) -> str | None:
        if targets.ndim != 1 or targets.dtype.kind not in "iu":
            return (
                f"must be a whole number a sample, not {targets.dtype} of shape "
                f"{list(targets.shape[1:])}; pack class numbers, features first, or set "
                'loss = "mse" under [model]'
            )
        if targets.size and not 0 <= targets.min() <= targets.max() < outputs:
            beyond = targets.min() if targets.min() < 0 else targets.max()
            return (
                f"go beyond 0 ... {outputs - 1}: one is {beyond}; set classes under [model], or "
                "pack other targets"
            )
        return None

    def value_and_slope(self, scores: np.ndarray, targets: np.ndarray) -> tuple[float, np.ndarray]:
        library = library_of(scores)
        targets = library.asarray(targets, np.intp)
        shifted = scores - scores.max(axis=1, keepdims=True)
        exponents = library.exp(shifted)
        sums = exponents.sum(axis=1, keepdims=True)
        rows = library.arange(len(targets))
        loss = float((library.log(sums[:, 0]) - shifted[rows, targets]).sum(dtype=np.float64))
        slope = exponents / sums
        slope[rows, targets] -= 1
        return loss, slope

    def sums(self, scores: np.ndarray, targets: np.ndarray) -> Sums:
        """Return the summed loss, how many are right, and how many there are."""
        top = scores.max(axis=1, keepdims=True)
        logs = scores - top - np.log(np.exp(scores - top).sum(axis=1, keepdims=True))
        return np.array(
            [
                -logs[np.arange(len(targets)), targets].sum(dtype="f8"),
                (scores.argmax(axis=1) == targets).sum(),
                len(targets),
            ]
        )

    def metrics_of(self, sums: Sums) -> dict[str, float]:
        loss, right, samples = sums.tolist()
        return {"loss": loss / samples, "accuracy": right / samples}

    def better(self, one: dict[str, float], other: dict[str, float]) -> bool:
        """By accuracy, and where that is the same by the loss."""
        if one["accuracy"] == other["accuracy"] or math.isnan(one["loss"] + other["loss"]):
            return super().better(one, other)
        return one["accuracy"] > other["accuracy"]


@dataclass(frozen=True)
class MeanSquaredError(Loss):
    """The mean of squared errors, over all outputs. Targets are numbers, one an output.

    r2 is the share of the targets' variance that the scores explain, 1 - residual / total sum of
    squares, both over all outputs; NaN where the targets do not vary.
    """

    metrics = ("loss", "mae", "r2")

    def complaint(self, targets: np.ndarray, outputs: int) -> str | None:
        shape = targets.shape[1:]
        if shape not in ((outputs,), ()) or (not shape and outputs != 1):
            return (
                f"must be {outputs} number{'s' * (outputs > 1)} a sample, not of shape "
                f"{list(shape)}; set outputs under [model], or pack other targets"
            )
        if targets.dtype.kind not in "iuf":
            return f"are of dtype {targets.dtype}; pack integers or floats"
        if not np.isfinite(targets).all():
            return "hold a NaN or an infinity; pack finite targets"
        return None

    def value_and_slope(self, scores: np.ndarray, targets: np.ndarray) -> tuple[float, np.ndarray]:
        error = scores - library_of(scores).asarray(targets, scores.dtype).reshape(scores.shape)
        outputs = scores.shape[1]
        loss = float((error * error).sum(dtype=np.float64)) / outputs
        error *= scores.dtype.type(2 / outputs)
        return loss, error

    def sums(self, scores: np.ndarray, targets: np.ndarray) -> Sums:
        """Return the samples, summed squares and magnitudes of the errors, and of each output's targets
        the mean and the squares about it."""
        targets = np.asarray(targets, "f8").reshape(scores.shape)
        error = scores - targets
        means = targets.mean(axis=0) if len(targets) else np.zeros(scores.shape[1])
        about = ((targets - means) ** 2).sum(axis=0)
        return np.array([len(targets), (error * error).sum(), np.abs(error).sum(), *means, *about])

    def add(self, one: Sums, other: Sums) -> Sums:
        """Add up, each output's squares about the mean of both (Chan, Golub, LeVeque 1983).

        Sums of the targets' own squares would lose the variance of targets that are far from 0.
        """
        outputs = (len(one) - 3) // 2
        total, (samples, more) = one + other, (one[0], other[0])
        if samples and more:
            apart = other[3 : 3 + outputs] - one[3 : 3 + outputs]
            total[3 : 3 + outputs] = one[3 : 3 + outputs] + apart * (more / total[0])
            total[3 + outputs :] += apart**2 * (samples * more / total[0])
        return total

    def metrics_of(self, sums: Sums) -> dict[str, float]:
        outputs = (len(sums) - 3) // 2
        samples, squares, magnitudes = sums[:3].tolist()
        about = float(sums[3 + outputs :].sum())
        return {
            "loss": squares / (samples * outputs),
            "mae": magnitudes / (samples * outputs),
            "r2": 1 - squares / about if about else math.nan,
        }


LOSSES = {"cross_entropy": CrossEntropy, "mse": MeanSquaredError}
"""Name in a settings file -> class."""
