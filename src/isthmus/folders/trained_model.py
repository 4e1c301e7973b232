"""A model as a run has left it: loaded from the run's folder, asked for predictions, and judged."""

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from isthmus.errors import SettingsError, ShardError
from isthmus.folders.model_file import Kept, model_content, read_model
from isthmus.models import MODELS
from isthmus.models.losses import Loss, Sums
from isthmus.models.model import Model
from isthmus.models.scoring import scores_of
from isthmus.shards.shard_file import ShardSet

NON_FINITE_SHOWN = 5


class TrainedModel:
    """A model that takes features as they were packed, with the parameters that a run ended with.

    It has all that its `Model` has (`shapes`, `views`, `loss`, ...), and features are standardised here
    where the run standardised them.
    model: what was trained. parameters: float32[size]. which: "last" or "best". step, epoch, metrics:
    how far the run was, and what its sets said then. features: (shape, dtype) of a sample as packed.
    table: what else model.h5 tells.
    """

    def __init__(self, model: Model, kept: Kept, which: str, table: dict[str, Any], scale: Any = None):
        self.model, self.which, self.table, self.scale = model, which, table, scale
        self.step, self.epoch, self.metrics = kept.step, kept.epoch, kept.metrics
        self.tensors, self.buffers = kept.parameters, kept.buffers
        self.parameters: npt.NDArray[np.float32] = np.concatenate(
            [kept.parameters[name].reshape(-1) for name in model.shapes]
        ).astype(np.float32, copy=False)
        self.features = tuple(table["features"]["shape"]), np.dtype(table["features"]["dtype"])

    def __getattr__(self, name: str) -> Any:
        if name == "model":  # before there is one
            raise AttributeError(name)
        return getattr(self.model, name)

    @property
    def loss(self) -> Loss:
        """What training made small, and what judges the model."""
        return self.model.loss

    def scores(
        self, parameters: npt.NDArray[np.float32], features: npt.NDArray[Any]
    ) -> npt.NDArray[np.float32]:
        """Return float32[n, outputs] of n samples: the same bits whatever else is asked for beside them.

        ValueError if features are not n samples of what the model takes.
        """
        self.check_features(features)
        with threadpool_limits(self.table["threads"]):  # a product's bits depend on its threads
            return scores_of(self.model, parameters, self._scaled(features))

    def predict(self, features: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return what n samples are taken for: int64[n] classes, or float32[n, outputs] values.

        features: n samples of any shape that has as many numbers as the model takes, as they were
        packed, uint8 where training had uint8. ValueError if not, or where scores are not finite.
        """
        return self.predictions_of(self.scores(self.parameters, features))

    def predictions_of(self, scores: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
        """Return what `predict` does, of scores."""
        wrong = np.flatnonzero(~np.isfinite(scores).all(axis=1))
        if len(wrong):
            more = ", ..." if len(wrong) > NON_FINITE_SHOWN else ""
            raise ValueError(
                f"the scores of {len(wrong)} samples are not finite (rows "
                f"{', '.join(map(str, wrong[:NON_FINITE_SHOWN]))}{more}); look for NaN and infinities "
                "in their features"
            )
        return scores.argmax(axis=1) if "accuracy" in self.loss.metrics else scores

    def evaluate(self, shards: ShardSet | str | os.PathLike[str]) -> dict[str, float]:
        """Return name -> number, "loss" first, over all samples of a packed set or its folder.

        Shards are read one after the other. Raises ShardError if they are damaged or not what the
        model learnt from.
        """
        if not isinstance(shards, ShardSet):
            shards = ShardSet.open(shards)
        self.check_shards(shards)
        total = None
        for number in range(len(shards.samples)):
            sums = self.sums_of(shards, number)
            total = sums if total is None else self.loss.add(total, sums)
        return self.metrics_of(shards, total)

    def sums_of(self, shards: ShardSet, number: int) -> Sums:
        """Return what shard `number` adds to the sums that metrics are made of."""
        features, targets = shards.read(number).values()
        complaint = self.loss.complaint(targets, self.model.outputs)
        if complaint:
            raise ShardError(f"{shards.folder}: targets {complaint}")
        return self.loss.sums(self.scores(self.parameters, features), targets)

    def metrics_of(self, shards: ShardSet, sums: Sums | None) -> dict[str, float]:
        """Return what the sums of all shards come to; ShardError if there were no samples."""
        if sums is None or not sum(shards.samples):
            raise ShardError(f"{shards.folder}: holds no samples; pack some")
        return self.loss.metrics_of(sums)

    def check_shards(self, shards: ShardSet) -> None:
        """Raise ShardError unless the set holds features that the model takes, and targets."""
        if len(shards.arrays) != 2:
            raise ShardError(
                f"{shards.folder}: holds the arrays {', '.join(shards.arrays)}; evaluation takes two, "
                "features and then targets: pack those"
            )
        (shape, dtype), _ = shards.arrays.values()
        try:
            self.check_features(np.empty((0, *shape), dtype))
        except ValueError as problem:
            raise ShardError(f"{shards.folder}: {problem}") from None

    def check_features(self, features: npt.NDArray[Any]) -> None:
        """Raise ValueError unless `features` are samples that the model takes."""
        inputs, packed = self.model.inputs_shape, self.features
        shape = np.shape(features)
        if not shape or math.prod(shape[1:]) != math.prod(inputs):
            raise ValueError(
                f"features are of shape {list(shape)}, the model takes [samples, "
                f"{', '.join(map(str, packed[0]))}]"
            )
        if features.dtype.kind not in "iuf":
            raise ValueError(f"features are of dtype {features.dtype}; give integers or floats")
        if self.scale is None and (features.dtype == np.uint8) != (packed[1] == np.uint8):
            raise ValueError(
                f"features are of dtype {features.dtype}, the model learnt from {packed[1]}, and uint8 "
                f"means other numbers than all else; give {packed[1]}"
            )

    def _scaled(self, features):
        return features if self.scale is None else self.scale.apply(features)


def load_model(
    run_folder: str | os.PathLike[str], best: bool = False
) -> tuple[TrainedModel, npt.NDArray[np.float32]]:
    """Return the model that a run has kept, and its parameters, float32[size].

    run_folder: the folder of a run that has finished, or was stopped by a signal. best: the parameters
    of the epoch that the validation set liked best, in the place of the last.
    The model has `.predict(features)`, `.evaluate(shards)`, and all that it had in training. Raises
    SettingsError where the folder keeps no model, or a damaged one.
    """
    trained = trained_model(run_folder, model_content(run_folder), best)
    return trained, trained.parameters


def trained_model(
    run_folder: str | os.PathLike[str], content: bytes, best: bool = False
) -> TrainedModel:
    """Return the TrainedModel of `content`, the bytes of the model.h5 in `run_folder`."""
    path = Path(run_folder, "model.h5")
    table, kept, scale = read_model(path, content)
    which = "best" if best else "last"
    if which not in kept:
        raise SettingsError(
            f"{path}: keeps no best parameters, as the run had no validation set; set data.validation, "
            "or take the last"
        )
    chosen, kind = kept[which], table["model"]
    if kind["kind"] not in MODELS:
        raise SettingsError(
            f"{path}: is of kind {kind['kind']!r:.80}, this program knows {', '.join(MODELS)}; use the "
            f"isthmus that wrote it ({table['version']:.40})"
        )
    try:
        model = MODELS[kind["kind"]](**kind["arguments"])
    except (TypeError, ValueError) as problem:
        raise SettingsError(
            f"{path}: its model cannot be made: {problem}; use the isthmus that wrote it "
            f"({table['version']:.40})"
        ) from None
    _check_tensors(path, model, chosen.parameters, kind["kind"])
    return TrainedModel(model, chosen, which, table, scale)


def _check_tensors(path, model, tensors, kind):
    """Raise SettingsError unless the file holds the tensors that the model has."""
    held = {name: array.shape for name, array in tensors.items()}
    made = {name: tuple(shape) for name, shape in model.shapes.items()}
    if held == made:
        return
    name = next(name for name in {**made, **held} if held.get(name) != made.get(name))
    raise SettingsError(
        f"{path}: holds {_shape(held.get(name))} for {name}, and {kind} gives "
        f"{_shape(made.get(name))}; load it with the code that the run had"
    )


def _shape(shape):
    return "nothing" if shape is None else f"shape {list(shape)}"
