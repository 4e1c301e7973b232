"""`[privacy]` of a run's settings: what is kept from those who take part, and what a model may tell."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from isthmus.compression.fixed_point import FixedPoint
from isthmus.errors import SettingsError
from isthmus.toml_files import FrozenModel

Positive = Annotated[float, Field(gt=0)]
STRATEGIES_WITH_SECRETS = ("synchronous", "local_steps", "streaming")
"""Whose every exchange is a sum over sites of vectors alone."""


class PrivacySettings(FrozenModel):
    """What is kept from those who take part, and what a model may tell of one sample.

    secure_sum: "repeat", "reveal": the hub learns the sum of all sites, and not what each has sent; the
    two differ in what is done where a site's sum is not finite. bits: of an entry of such sums.
    unit: "sample": training is differentially private for each sample; "site": for each client of a
    federated strategy, or for each site with local steps. epsilon: what it may tell at
    `delta`; or noise: its deviation over `clip`, the norm to which samples' gradients are scaled down.
    budget: the epsilon that all runs on the set together may tell; None: it is told and not held.
    """

    secure_sum: Literal["off", "repeat", "reveal"] = "off"
    bits: Literal[8, 16] = 8
    unit: Literal["sample", "site"] | None = None
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
            raise ValueError(f'unit = "{self.unit}" needs either epsilon or noise, and not both')
        return self

    def may_stop(self, member):
        """Whether a checkpoint may be written now: what sites hold between exchanges would be in it."""
        return self.unit != "site" or member.agreed

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
        _check_unit(settings)
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


def _check_unit(settings):
    """Raise ValueError where more would be told of samples, clients or sites than is counted."""
    unit = settings.privacy.unit
    needed = (
        (
            settings.security.keys is not None,
            "[security] keys: noise is drawn from a secret of each site",
        ),
        (settings.allreduce.algorithm == "hierarchical", 'allreduce.algorithm = "hierarchical"'),
        (not settings.plan.replan, "plan.replan = false: it moves shards by what batches take"),
        (not settings.run.trace, "run.trace = false: spans tell how many samples are in a batch"),
        *(_needed_of_samples if unit == "sample" else _needed_of_sites)(settings),
    )
    for holds, cure in needed:
        if not holds:
            raise ValueError(f'privacy.unit = "{unit}" needs {cure}')


def _needed_of_samples(settings):
    return ((settings.strategy.kind == "synchronous", 'strategy = "synchronous"'),)


def _needed_of_sites(settings):
    """Return (whether it holds, what to give) of all without which a site's change would tell more."""
    strategy, training = settings.make_strategy(), settings.training
    kind, every = settings.strategy.kind, settings.run.checkpoint_every
    if kind == "federated":
        return (
            (strategy.by == "chance", 'strategy.by = "chance": all clients are as likely'),
            (strategy.edge_rounds == 1, "strategy.edge_rounds = 1: a client's change goes out once"),
            (not strategy.local.controls, 'another strategy.local than "scaffold", which sends more'),
            (settings.clients.available is None, "no clients.available: who is there tells of it"),
        )
    rounds = getattr(strategy, "every", None)
    return (
        (kind == "local_steps", 'strategy = "local_steps" or "federated"'),
        (
            not getattr(strategy, "after", 0),
            "strategy.after = 0: gradients of single steps are not told",
        ),
        (not getattr(strategy, "late", 0), "strategy.late = 0: all that is exchanged is the change"),
        (
            training.on_non_finite == "skip",
            'training.on_non_finite = "skip": the end of a run would tell of a site',
        ),
        (
            (training.optimizer.kind, training.momentum) == ("sgd", 0),
            'training.optimizer = "sgd" and training.momentum = 0.0: what an optimiser remembers of a '
            "site would be in checkpoints",
        ),
        (
            every is None or (rounds != "auto" and every % rounds == 0),
            "run.checkpoint_every to be rounds of strategy.every: else a checkpoint tells of sites",
        ),
    )


def check_sites(settings, cluster):
    """Raise SettingsError where a secure sum of the sites of `cluster` would tell what one has sent."""
    secure = settings.privacy.sum_of(settings)
    if secure is not None:
        try:
            secure.wires(len(cluster.sites))
        except ValueError as problem:
            raise SettingsError(f"[privacy] with {cluster.source}: {problem}") from None
