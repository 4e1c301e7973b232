"""What compression has tried: models beside the one that they are made from, and which of them pass."""

import math
import os
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from isthmus.folders.model_file import NAME, Kept, write_model
from isthmus.folders.stored_weights import StoredWeights
from isthmus.folders.trained_model import TrainedModel
from isthmus.models.model import Model


@dataclass(frozen=True, eq=False)
class Student:
    """A model that may become a rung, with float32 parameters.

    keep: the share of units that it has of the original's. taught: whether it has learnt from a teacher.
    widths: its arguments that are others.
    """

    model: Model
    parameters: npt.NDArray[np.float32]
    buffers: dict[str, np.ndarray]
    keep: float = 1.0
    taught: bool = False
    widths: dict[str, tuple[int, ...]] | None = None


@dataclass(frozen=True, eq=False)
class Rung:
    """A model on the ladder.

    weights: "float32", or how they are stored. student: it as it answers, out of what is stored. nbytes:
    of all that is stored. merits: a number for each sample of the validation set, whose mean is what the
    model is judged by: bool, whether it is right, or of a regression 1 - its squared error over the
    targets' variance. change: of the mean, with its bounds. seconds_per_sample: on this machine, the
    least of a few rounds. verdict: "as it was", "passes", "loses", or "open" where the samples are too
    few to say.
    """

    weights: str
    student: Student
    stored: dict[str, StoredWeights]
    nbytes: int
    merits: npt.NDArray[np.bool_] | npt.NDArray[np.float64]
    change: float = 0.0
    low: float = 0.0
    high: float = 0.0
    seconds_per_sample: float = math.nan
    verdict: str = "as it was"

    @property
    def name(self) -> str:
        """What the rung is, in words."""
        units = f"{100 * self.student.keep:g} % of the units, " if self.student.keep < 1 else ""
        return f"{units}{self.weights}{', taught' if self.student.taught else ''}"

    @property
    def metric(self) -> str:
        """What it is judged by: "accuracy", or "r2" of a regression."""
        return "accuracy" if self.merits.dtype == bool else "r2"

    @property
    def accuracy(self) -> float:
        """The share of the validation set that it is right on; of a regression r2, what it explains."""
        return float(self.merits.mean())

    @property
    def passes(self) -> bool:
        """Whether it may be taken."""
        return self.verdict in ("as it was", "passes")

    def to_json(self) -> dict[str, Any]:
        """Return what is told of it."""
        names = ("name", "weights", "nbytes", "change", "low", "high", "seconds_per_sample", "verdict")
        told = {name: getattr(self, name) for name in names} | {self.metric: self.accuracy}
        return told | {"keep": self.student.keep, "taught": self.student.taught}


@dataclass(frozen=True, eq=False)
class Ladder:
    """The model as it was, and then all that were made of it.

    notes: what was left out, and why. told: what they were made with. trained: what `load_model` gave.
    """

    rungs: tuple[Rung, ...]
    notes: tuple[str, ...]
    told: dict[str, Any]
    trained: TrainedModel | None

    @property
    def best(self) -> Rung:
        """The smallest rung that passes; of two that are as small the one of the higher metric."""
        passing = (each for each in self.rungs if each.passes)
        return min(passing, key=lambda rung: (rung.nbytes, -rung.accuracy))

    def write(
        self,
        folder: str | os.PathLike[str],
        metrics: dict[str, dict[str, float]] | None = None,
        sealed: bool = False,
    ) -> Path:
        """Write `best` to model.h5 in `folder`, for `load_model`; return that path.

        metrics: what sets say of it, set -> name -> number. sealed: whether the run's links were, which
        the file tells. ValueError unless `load_model` gave the model; OutputError where the file cannot
        be written.
        """
        trained, best = self.trained, self.best
        if trained is None:
            raise ValueError("compress what load_model gives: a file tells of a run")
        table = dict(trained.table)
        table["model"] = dict(table["model"])
        table["model"]["arguments"] = table["model"]["arguments"] | (best.student.widths or {})
        table["compressed"] = self.told | best.to_json() | {"sealed": sealed}
        del table["compressed"]["seconds_per_sample"]  # the same seed, the same table
        kept = Kept(
            trained.step,
            trained.epoch,
            metrics or {},
            best.student.model.views(best.student.parameters),
            best.student.buffers,
            best.stored,
        )
        scale = trained.scale and (trained.scale.mean, trained.scale.std)
        write_model(Path(folder, NAME), table, {"last": kept}, scale)
        return Path(folder, NAME)


def paired_change(
    before: npt.NDArray[Any], after: npt.NDArray[Any], beyond: float = 0.025
) -> tuple[float, float, float]:
    """Return how much more the mean of `after` is than that of `before`, and two bounds of that.

    before, after: the merits of two models on the same samples. beyond: how often the truth may be below
    the lower bound, and above the upper one. Of bool only those count on which both differ; half a
    sample more is taken of either kind, so that the bounds of small counts hold (Agresti and Min 2005,
    Statistics in Medicine 24: 729). Of other numbers the bounds are Student's, of the differences.
    """
    samples = len(before)
    if before.dtype != bool:
        from scipy.special import stdtrit

        change = after - before
        middle = float(change.mean())
        spread = float(change.std(ddof=1)) if samples > 1 else math.inf
        half = spread / math.sqrt(samples) * float(stdtrit(max(samples - 1, 1), 1 - beyond))
        return middle, middle - half, middle + half
    gained, lost = np.sum(after & ~before), np.sum(before & ~after)
    middle = (gained - lost) / (samples + 2)
    spread = (gained + lost + 1) / (samples + 2) - middle**2
    half = NormalDist().inv_cdf(1 - beyond) * math.sqrt(spread / (samples + 2))
    return float(gained - lost) / samples, float(middle - half), float(middle + half)
