"""The settings of `isthmus infer`: which models answer which requests, and how."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_serializer, field_validator

from isthmus.compression import COMPRESSORS
from isthmus.errors import SettingsError
from isthmus.inference.dispatch import DISPATCHES
from isthmus.inference.inference import MODES
from isthmus.jobs.kinds import KindSettings
from isthmus.jobs.security_settings import LinkSecurity
from isthmus.planning.cascades import MEASURES
from isthmus.toml_files import FrozenModel, check_table, read_toml

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
ACTIVATIONS = {kind: COMPRESSORS[kind] for kind in ("int8", "int4")}


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
    split_after: the last layer of a split at the edge, None where it answers soonest. recent_seconds: in
    which the link's rates choose the split anew, None where it stays. activations: what crosses the link
    then: float32 where None, or "int8" or "int4", with their arguments in a table.
    dispatch: a list runs the stream once with each. most_waiting: requests that a
    server's queue holds.
    """

    mode: Literal["auto", *MODES] = "cascade"
    accuracy_loss: Annotated[float, Field(ge=0, le=1)] = 0.003
    measure: Literal[*MEASURES] | None = None
    validation: Path | None = None
    split_after: str | None = None
    recent_seconds: Positive | None = None
    activations: KindSettings | None = None
    batch: Count = 32
    window: Count = 8
    hedge: bool = True
    deadline_seconds: Positive | None = None
    queue_seconds: Annotated[float, Field(gt=0, allow_inf_nan=True)] = 0.05
    most_waiting: Count = 1024
    dispatch: Literal[*DISPATCHES] | tuple[Literal[*DISPATCHES], ...] = "least_pending"

    @field_validator("activations", mode="before")
    @classmethod
    def _by_name(cls, value):
        return value and KindSettings.of(value, ACTIVATIONS, "activations")

    @field_serializer("activations")
    def _as_in_a_file(self, value):
        return value and {"kind": value.kind} | value.arguments

    @property
    def compressor(self):
        """The compressor of activations, or None."""
        chosen = self.activations
        return chosen and ACTIVATIONS[chosen.kind](**chosen.arguments)

    @property
    def rules(self):
        """The rules of dispatch, one run of the stream each."""
        return (self.dispatch,) if isinstance(self.dispatch, str) else self.dispatch


class InferSettings(FrozenModel):
    """A file of `isthmus infer`, with paths as they are seen from its folder.

    security: its keys are also those of a site that may read shards with a policy, on a rank's host.
    """

    cluster: ClusterPart
    models: ModelsPart
    requests: RequestsPart | None = None
    answers: AnswersPart = AnswersPart()
    security: LinkSecurity = LinkSecurity()
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
        for key in ("activations", "split_after", "recent_seconds"):
            if getattr(settings.answers, key) and settings.answers.mode != "split":
                raise SettingsError(
                    f"{path}: answers.{key}: is of mode 'split' alone; set that mode, or leave it out"
                )
        if settings.answers.split_after and settings.answers.recent_seconds:
            raise SettingsError(
                f"{path}: answers.recent_seconds: moves the split that split_after holds; leave one out"
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
                "security": settings.security.located(folder),
                "output": absolute(settings.output),
            }
        )
