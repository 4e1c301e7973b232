"""The best parameters that a run has had, by its validation set, and when to stop for want of better."""

from typing import Any

import numpy as np

from isthmus.devices import to_host
from isthmus.models.model import Model


class Validation:
    """What the validation set has said of each epoch. All ranks have one and decide alike.

    model: its loss says which of two metrics is better. keeps: whether this rank keeps the best
    parameters, and the buffers beside them.
    stop_after: epochs without a better one after which a run ends; None: it makes all its epochs.
    best: {"step", "epoch", "metrics"} of the best epoch so far, None before the first.
    epochs_since: how many have not been better since.
    """

    def __init__(self, model: Model, keeps: bool, stop_after: int | None = None):
        self.loss, self.stop_after = model.loss, stop_after
        self.best: dict[str, Any] | None = None
        self.epochs_since = 0
        self.parameters = np.zeros(model.size if keeps else 0, np.float32)
        self.buffers = {
            name: np.zeros(array.shape if keeps else (0,), array.dtype)
            for name, array in model.buffers().items()
        }

    def take(
        self,
        step: int,
        epoch: int,
        metrics: dict[str, dict[str, float]],
        parameters: Any,
        buffers: dict[str, np.ndarray],
    ) -> bool:
        """Take in what all sets said after an epoch, set -> metrics; return whether it is the best."""
        if self.best is not None and not self.loss.better(
            metrics["validation"], self.best["metrics"]["validation"]
        ):
            self.epochs_since += 1
            return False
        self.best, self.epochs_since = {"step": step, "epoch": epoch, "metrics": metrics}, 0
        if self.parameters.size:  # others are made: `take_back` may want those before
            self.parameters = np.array(to_host(parameters))
            self.buffers = {name: np.array(buffers[name]) for name in self.buffers}
        return True

    @property
    def ends(self) -> bool:
        """Whether a run ends now, as epoch after epoch was no better."""
        return self.stop_after is not None and self.epochs_since >= self.stop_after

    @property
    def why_it_ends(self) -> str | None:
        """Why a run ends before its last epoch, in words; None where it does not."""
        if not self.ends or self.best is None:
            return None
        return (
            f"stopped after epoch {self.best['epoch'] + self.epochs_since}: no improvement for "
            f"{self.epochs_since}; the best was epoch {self.best['epoch']}"
        )

    def arrays(self) -> dict[str, np.ndarray]:
        """Return name -> array for a checkpoint; beside `to_json`, all that is to be known."""
        return {
            "validation/parameters": self.parameters,
            **{f"validation/buffers/{name}": each.reshape(-1) for name, each in self.buffers.items()},
        }

    def to_json(self) -> dict[str, Any]:
        """Return what a checkpoint notes, the same on every rank."""
        return {"best": self.best, "epochs_since": self.epochs_since}

    def load(self, notes: dict[str, Any]) -> None:
        """Go on from what `to_json` gave, where `arrays` have been filled."""
        self.best, self.epochs_since = notes["best"], notes["epochs_since"]

    def take_back(self, notes: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        """Be what it was when `to_json` and `arrays` gave these."""
        self.load(notes)
        self.parameters = arrays["validation/parameters"]
        self.buffers = {
            name: arrays[f"validation/buffers/{name}"].reshape(each.shape)
            for name, each in self.buffers.items()
        }
