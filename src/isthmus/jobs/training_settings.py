"""The settings of a run's training: [training] of its file."""

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from isthmus.jobs.kinds import KindSettings
from isthmus.toml_files import FrozenModel
from isthmus.training.optimisers import OPTIMISERS, optimiser_of
from isthmus.training.optimisers.of_torch import PREFIX

Count = Annotated[int, Field(ge=1)]


class TrainingSettings(FrozenModel):
    """How the model learns.

    learning_rate, momentum: where they are not given, those of the optimizer; None where it has none.
    """

    epochs: Count = 1
    batch_size: Count = 256
    optimizer: KindSettings = KindSettings(kind="sgd", arguments={})
    learning_rate: Annotated[float, Field(gt=0)] | None = Field(default=None, validate_default=True)
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    momentum: Annotated[float, Field(ge=0, lt=1)] | None = Field(default=None, validate_default=True)
    seed: Annotated[int, Field(ge=0)] = 0
    on_non_finite: Literal["stop", "skip"] = "stop"
    compare_replicas_every: Count = 50
    on_replica: Literal["stop", "repair"] = "stop"  # that differs from the others
    stop_after: Count | None = None  # epochs that the validation set finds no better

    @field_validator("optimizer", mode="before")
    @classmethod
    def _by_name(cls, value):
        if isinstance(value, KindSettings):
            return value
        kind = value.get("kind") if isinstance(value, dict) else value
        if isinstance(kind, str) and kind.startswith(PREFIX):
            given = {} if kind is value else {key: each for key, each in value.items() if key != "kind"}
            optimiser_of(kind, given)
            return KindSettings(kind=kind, arguments=given)
        return KindSettings.of(value, OPTIMISERS, "optimizer")

    @field_validator("learning_rate")
    @classmethod
    def _of_the_optimizer(cls, value, found: ValidationInfo):
        optimizer = found.data.get("optimizer")
        if optimizer is None or value is not None:
            return value
        return optimiser_of(optimizer.kind, optimizer.arguments).LEARNING_RATE

    @field_validator("momentum")
    @classmethod
    def _once_and_of_sgd_alone(cls, value, found: ValidationInfo):
        optimizer = found.data.get("optimizer")
        if optimizer is None:  # it is wrong, and told
            return value
        if optimizer.kind != "sgd":
            if value is not None:
                raise ValueError(
                    f'is of optimizer = "sgd", not of {optimizer.kind!r}; leave it out here'
                )
            return None
        own = optimizer.arguments.get("momentum", value)
        if value is not None and own != value:
            raise ValueError(
                f"is given twice, {value} here and {own} of the optimizer; leave it out here"
            )
        value = OPTIMISERS["sgd"].momentum if own is None else own
        OPTIMISERS["sgd"](**optimizer.arguments | {"momentum": value})
        return value

    def make_optimiser(self):
        momentum = {} if self.momentum is None else {"momentum": self.momentum}
        return optimiser_of(self.optimizer.kind, self.optimizer.arguments | momentum)


def check_replicas(settings):
    """Raise ValueError where ranks that differ could not make the same steps again."""
    if settings.training.on_replica != "repair":
        return
    wrong = {
        'strategy = "synchronous"': settings.strategy.kind != "synchronous",
        "no [privacy]": settings.privacy.secure_sum != "off" or settings.privacy.unit is not None,
    }
    if needs := [cure for cure, is_wrong in wrong.items() if is_wrong]:
        raise ValueError(f'training.on_replica = "repair" needs {", ".join(needs)}')
