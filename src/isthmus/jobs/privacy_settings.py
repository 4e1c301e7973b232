"""`[privacy]` of a run's settings: what is kept from those who take part, and what a model may tell."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from isthmus.compression.fixed_point import FixedPoint
from isthmus.errors import SettingsError
from isthmus.models import MODELS
from isthmus.toml_files import FrozenModel

Positive = Annotated[float, Field(gt=0)]
STRATEGIES_WITH_SECRETS = ("synchronous", "local_steps", "streaming")
"""Whose every exchange is a sum over sites of vectors alone."""


class PrivacySettings(FrozenModel):
    """What is kept from those who take part, and what a model may tell of one sample.

    secure_sum: "repeat", "reveal": the hub learns the sum of all sites, and not what each has sent; the
    two differ in what is done where a site's sum is not finite. bits: of an entry of such sums.
    unit: "sample": training is differentially private for each sample. epsilon: what it may tell at
    `delta`; or noise: its deviation over `clip`, the norm to which samples' gradients are scaled down.
    budget: the epsilon that all runs on the set together may tell; None: it is told and not held.
    """

    secure_sum: Literal["off", "repeat", "reveal"] = "off"
    bits: Literal[8, 16] = 8
    unit: Literal["sample"] | None = None
    epsilon: Positive | None = None
    noise: Positive | None = None
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    clip: Positive = 1.0
    budget: Positive | None = None

    @model_validator(mode="after")
    def _is_said_of_samples(self):
        given = [
            name
            for name in ("epsilon", "noise", "delta", "clip", "budget")
            if getattr(self, name) != type(self).model_fields[name].default
        ]
        if self.unit is None and given:
            raise ValueError(f'{given[0]} is of differential privacy: give unit = "sample" too')
        if self.unit is not None and (self.epsilon is None) == (self.noise is None):
            raise ValueError('unit = "sample" needs either epsilon or noise, and not both')
        return self

    @property
    def wires(self):
        """What turns vectors into what crosses sites; None where that is not said here."""
        return None if self.secure_sum == "off" else FixedPoint(self.bits)

    @property
    def of_recipe(self):
        """What it changes of a recipe: whom nobody sees could be given another model than the others."""
        return {} if self.secure_sum == "off" else {"compare_replicas_every": 1}

    def sum_of(self, settings):
        """Return the SecureSum that `settings` ask for; None: sums are not secret."""
        if self.secure_sum == "off":
            return None
        from isthmus.collectives.masked import SecureSum  # which needs MPI: who starts mpirun has none

        return SecureSum(self.secure_sum, self.bits, settings.training.on_non_finite == "skip")


def check_privacy(settings):
    """Raise ValueError where a run's settings cannot keep what their [privacy] asks for."""
    if settings.privacy.unit is not None:
        _check_samples(settings)
    if settings.privacy.secure_sum == "off":
        if settings.privacy.bits != PrivacySettings().bits:
            raise ValueError('privacy.bits is of secure sums: give privacy.secure_sum = "repeat" too')
        return
    allreduce = settings.allreduce
    if settings.security.link != "sealed":
        raise ValueError(
            'privacy.secure_sum needs [security] link = "sealed": masks are made of the keys that sites '
            "have signed"
        )
    if allreduce.algorithm != "hierarchical":
        raise ValueError(
            f'privacy.secure_sum needs allreduce.algorithm = "hierarchical", not "{allreduce.algorithm}"'
        )
    if allreduce.compressor is not None:
        raise ValueError(
            "privacy.secure_sum has wires of its own, 8 or 16 bits an entry: leave out "
            f'allreduce.compressor, here "{allreduce.compressor.kind}"'
        )
    if settings.strategy.kind not in STRATEGIES_WITH_SECRETS:
        raise ValueError(
            f"privacy.secure_sum is for the strategies {', '.join(STRATEGIES_WITH_SECRETS)}: "
            f'"{settings.strategy.kind}" sends more beside its vectors, or to one site alone'
        )


def _check_samples(settings):
    """Raise ValueError where more would be told of samples than is counted."""
    needed = (
        (
            settings.security.keys is not None,
            "[security] keys: noise is drawn from a secret of each site",
        ),
        (settings.strategy.kind == "synchronous", 'strategy = "synchronous"'),
        (settings.allreduce.algorithm == "hierarchical", 'allreduce.algorithm = "hierarchical"'),
        (
            hasattr(MODELS.get(settings.model.kind), "clipped_gradient"),
            f"a model whose gradients are clipped sample by sample: one of {', '.join(MODELS)}",
        ),
        (not settings.plan.replan, "plan.replan = false: it moves shards by what batches take"),
        (not settings.run.trace, "run.trace = false: spans tell how many samples are in a batch"),
    )
    for holds, cure in needed:
        if not holds:
            raise ValueError(f'privacy.unit = "sample" needs {cure}')


def check_sites(settings, cluster):
    """Raise SettingsError where a secure sum of the sites of `cluster` would tell what one has sent."""
    secure = settings.privacy.sum_of(settings)
    if secure is not None:
        try:
            secure.wires(len(cluster.sites))
        except ValueError as problem:
            raise SettingsError(f"[privacy] with {cluster.source}: {problem}") from None
