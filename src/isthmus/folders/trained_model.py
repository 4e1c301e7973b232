"""A model as a run has left it: loaded from the run's folder, asked for predictions, and judged."""

import logging
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
from isthmus.models.own import make_own, references
from isthmus.models.own_code import OwnCode, is_own
from isthmus.models.scoring import scores_of
from isthmus.shards.scale import Scale
from isthmus.shards.shard_file import ShardSet

NON_FINITE_SHOWN = 5
SAMPLE = ("features", "targets")


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
        self.kept = kept
        self.parameters: npt.NDArray[np.float32] = np.concatenate(
            [kept.parameters[name].reshape(-1) for name in model.shapes]
        ).astype(np.float32, copy=False)
        self.features = tuple(table["features"]["shape"]), np.dtype(table["features"]["dtype"])

    def __getattr__(self, name: str) -> Any:
        if name == "model":  # before there is one
            raise AttributeError(name)
        return getattr(self.model, name)

    def views(self, vector: npt.NDArray[Any]) -> dict[str, npt.NDArray[Any]]:
        """Return name -> view of a flat vector, `parameters` or another, with that tensor's shape."""
        return self.model.views(vector)

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
        features = self.prepared(features)
        with threadpool_limits(self.table["threads"]):  # a product's bits depend on its threads
            return scores_of(self.model, parameters, features)

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
        packed, shape = self.features, np.shape(features)
        told = f"features are of shape {list(shape)}, the model takes [samples, {_words(packed[0])}]"
        if not shape:
            raise ValueError(told)
        if shape[1:] not in (packed[0], (math.prod(packed[0]),)):
            arranges = self.scale is None and self.model.inputs_shape is not None
            if not arranges or self.model.complaint(shape[1:]):
                raise ValueError(told)
        if features.dtype.kind not in "iuf":
            raise ValueError(f"features are of dtype {features.dtype}; give integers or floats")
        if self.scale is None and (features.dtype == np.uint8) != (packed[1] == np.uint8):
            raise ValueError(
                f"features are of dtype {features.dtype}, the model learnt from {packed[1]}, and uint8 "
                f"means other numbers than all else; give {packed[1]}"
            )

    def prepared(self, features: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return features as training gave them to `model`, standardised; ValueError as of `scores`."""
        self.check_features(features)
        if features.ndim == 2 or self.scale is not None:  # flat: as a sample was packed
            features = features.reshape(len(features), *self.features[0])
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
    model = _make_model(path, kind, table)
    _check_tensors(path, model, chosen.parameters, kind["kind"])
    scale = _make_scale(path, scale, table)
    features, targets = (np.empty((0, *table[name]["shape"]), table[name]["dtype"]) for name in SAMPLE)
    model.try_out(features if scale is None else scale.apply(features), targets)
    if chosen.buffers:
        _set_buffers(path, model, chosen.buffers)
    return TrainedModel(model, chosen, which, table, scale)


def _make_model(path, kind, table):
    """Return the Model that the file tells of; one's own is made by its function, found again."""
    if is_own(kind["kind"]):
        return _make_own(kind, table["threads"])
    if kind["kind"] not in MODELS:
        raise SettingsError(
            f"{path}: is of kind {kind['kind']!r:.80}, this program knows {', '.join(MODELS)}; use the "
            f"isthmus that wrote it ({table['version']:.40})"
        )
    try:
        return MODELS[kind["kind"]](**kind["arguments"])
    except (TypeError, ValueError) as problem:
        raise SettingsError(
            f"{path}: its model cannot be made: {problem}; use the isthmus that wrote it "
            f"({table['version']:.40})"
        ) from None


def _make_scale(path, scale, table):
    """Return the Scale of what the file tells of it, None where features were not scaled."""
    try:
        return scale and Scale.of(*scale, tuple(table["features"]["shape"]))
    except (TypeError, ValueError) as problem:
        raise SettingsError(
            f"{path}: what features were scaled by is damaged: {problem}; train again"
        ) from None


def _make_own(kind, threads):
    folder = Path(kind["folder"]) if kind.get("folder") else None
    loss, metrics = kind.get("loss", "cross_entropy"), kind.get("metrics", ())
    now = OwnCode(folder).sources(*references(kind["kind"], loss, metrics))
    if changed := [name for name, digest in kind.get("sources", {}).items() if now.get(name) != digest]:
        logging.getLogger("isthmus").warning(
            f"{', '.join(changed)}: not what it was when the run learnt; what the model says may be "
            "other than it was"
        )
    arguments = {
        name: tuple(given) if isinstance(given, list) else given
        for name, given in kind["arguments"].items()
    }
    return make_own(
        kind["kind"],
        arguments,
        folder=folder,
        loss=loss,
        metrics=metrics,
        inputs=kind.get("inputs"),
        threads=threads,
    )


def _set_buffers(path, model, kept):
    """Have the model hold the buffers of the file; SettingsError unless they are those that it has."""
    held = {name: (array.shape, array.dtype) for name, array in kept.items()}
    made = {name: (array.shape, array.dtype) for name, array in model.buffers().items()}
    if held != made:
        name = next(name for name in {**made, **held} if held.get(name) != made.get(name))
        raise SettingsError(
            f"{path}: holds another {name} than the model has; load it with the code that the run had"
        )
    model.set_buffers(kept)


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


def _words(shape):
    return ", ".join(map(str, shape))


def _shape(shape):
    return "nothing" if shape is None else f"shape {list(shape)}"
