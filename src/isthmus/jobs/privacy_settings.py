"""`[privacy]` of a run's settings: what is kept from those who take part."""

from typing import Literal

from isthmus.collectives.masked import SecureSum
from isthmus.compression.fixed_point import FixedPoint
from isthmus.errors import SettingsError
from isthmus.toml_files import FrozenModel

STRATEGIES_WITH_SECRETS = ("synchronous", "local_steps", "streaming")
"""Whose every exchange is a sum over sites of vectors alone."""


class PrivacySettings(FrozenModel):
    """What is kept from those who take part.

    secure_sum: "repeat", "reveal": the hub learns the sum of all sites, and not what each has sent; the
    two differ in what is done where a site's sum is not finite. bits: of an entry of such sums.
    """

    secure_sum: Literal["off", "repeat", "reveal"] = "off"
    bits: Literal[8, 16] = 8

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
        return SecureSum(self.secure_sum, self.bits, settings.training.on_non_finite == "skip")


def check_privacy(settings):
    """Raise ValueError where a run's settings cannot keep what their [privacy] asks for."""
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


def check_sites(settings, cluster):
    """Raise SettingsError where a secure sum of the sites of `cluster` would tell what one has sent."""
    secure = settings.privacy.sum_of(settings)
    if secure is not None:
        try:
            secure.wires(len(cluster.sites))
        except ValueError as problem:
            raise SettingsError(f"[privacy] with {cluster.source}: {problem}") from None
