"""The settings of `isthmus infer`: which models answer which requests, and how."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from isthmus.errors import SettingsError
from isthmus.inference.dispatch import DISPATCHES
from isthmus.inference.inference import MODES
from isthmus.planning.cascades import MEASURES
from isthmus.toml_files import FrozenModel, check_table, read_toml

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]


class ClusterPart(FrozenModel):
    """Where it runs. links: "paced" holds messages to the rates of the file, on one machine."""

    file: Path
    links: Literal["real", "paced"] = "real"


class ModelsPart(FrozenModel):
    """Folders of runs, or of models that `compress` has written.

    best: their best parameters. runtime: "own" kernels, whose bits are those of any batch, or "onnx",
    for built-in models, which is quicker for large batches.
    """

    edge: Path
    cloud: Path
    best: bool = False
    runtime: Literal["own", "onnx"] = "own"


class RequestsPart(FrozenModel):
    """The stream: samples of a packed set or a file of arrays, again from the first where they end.

    per_second: of each edge rank, coming by chance (Poisson), or None: all at once. count: of each edge
    rank. data must be there for every edge rank, which takes every so many-th sample.
    """

    data: str
    per_second: Positive | None = None
    count: Count = 1000
    seed: Annotated[int, Field(ge=0)] = 0


class AnswersPart(FrozenModel):
    """How requests are answered: the arguments of `isthmus.Inference`, and what a cascade may lose.

    mode: "auto" takes, of those that lose no more than `accuracy_loss` of the cloud's accuracy, the one
    that is predicted to be soonest in the mean. validation: a packed set that neither model learnt from.
    dispatch: a list runs the stream once with each. most_waiting: requests that a server's queue holds.
    """

    mode: Literal["auto", *MODES] = "cascade"
    accuracy_loss: Annotated[float, Field(ge=0, le=1)] = 0.003
    measure: Literal[*MEASURES] | None = None
    validation: Path | None = None
    batch: Count = 32
    window: Count = 8
    hedge: bool = True
    deadline_seconds: Positive | None = None
    queue_seconds: Annotated[float, Field(gt=0, allow_inf_nan=True)] = 0.05
    most_waiting: Count = 1024
    dispatch: Literal[*DISPATCHES] | tuple[Literal[*DISPATCHES], ...] = "least_pending"

    @property
    def rules(self):
        """The rules of dispatch, one run of the stream each."""
        return (self.dispatch,) if isinstance(self.dispatch, str) else self.dispatch


class InferSettings(FrozenModel):
    """A file of `isthmus infer`, with paths as they are seen from its folder."""

    cluster: ClusterPart
    models: ModelsPart
    requests: RequestsPart | None = None
    answers: AnswersPart = AnswersPart()
    output: Path = Path("runs/inference")

    @classmethod
    def from_toml(cls, path, serves=False):
        """Return the settings in the file; SettingsError in one line where they are wrong.

        serves: whether requests come from outside, so that none need be named.
        """
        settings = check_table(cls, read_toml(path, SettingsError), path, SettingsError)
        if settings.requests is None and (not serves or settings.answers.mode == "auto"):
            raise SettingsError(
                f"{path}: requests: is missing; say what is asked, and how often"
                + (': mode "auto" is chosen by that' if serves else ", or give --serve PORT")
            )
        if settings.answers.mode in ("auto", "cascade") and settings.answers.validation is None:
            raise SettingsError(
                f"{path}: answers.validation: mode {settings.answers.mode!r} judges both models on "
                "samples that neither learnt from; name a packed set"
            )
        folder = Path(path).resolve().parent

        def absolute(each):
            return each and folder / each

        models, answers = settings.models, settings.answers
        return settings.model_copy(
            update={
                "cluster": settings.cluster.model_copy(update={"file": absolute(settings.cluster.file)}),
                "models": models.model_copy(
                    update={"edge": absolute(models.edge), "cloud": absolute(models.cloud)}
                ),
                "requests": settings.requests
                and settings.requests.model_copy(update={"data": str(absolute(settings.requests.data))}),
                "answers": answers.model_copy(update={"validation": absolute(answers.validation)}),
                "output": absolute(settings.output),
            }
        )
