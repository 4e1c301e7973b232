"""`[recovery]` of a run's settings: how long sites that are jobs of their own are waited for."""

from typing import Annotated

from pydantic import Field

from isthmus.toml_files import FrozenModel

Seconds = Annotated[float, Field(gt=0)]


class RecoverySettings(FrozenModel):
    """wait_seconds: for which sites wait for one another before the start. deadline_seconds: a site
    without a sign of life for so long is gone: frozen, or cut off."""

    wait_seconds: Seconds = 300.0
    deadline_seconds: Seconds = 30.0
