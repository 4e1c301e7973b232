"""`[recovery]` of a run's settings: what a run does when ranks or sites are late, or gone."""

from typing import Annotated

from pydantic import Field

from isthmus.toml_files import FrozenModel

Seconds = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


class RecoverySettings(FrozenModel):
    """wait_seconds: for which sites wait for one another before the start. deadline_seconds: a site
    without a sign of life for so long is gone: frozen, or cut off; None: half a minute, and with
    `survive` as long as an unusual step takes, if that is less.

    survive: those who are left go on where a rank dies. least_ranks, least_sites: with fewer, the run
    writes a checkpoint and stops.
    """

    wait_seconds: Seconds = 300.0
    deadline_seconds: Seconds | None = None
    survive: bool = False
    least_ranks: Count = 1
    least_sites: Count = 1


def check_recovery(settings):
    """Raise ValueError where a run with these settings could not go on without a rank."""
    if not settings.recovery.survive:
        return
    wrong = {
        'strategy = "synchronous"': settings.strategy.kind != "synchronous",
        "an algorithm of isthmus' own": settings.allreduce.algorithm == "mpi",
        '[security] link = "clear"': settings.security.link != "clear",
        "no [privacy]": settings.privacy.secure_sum != "off" or settings.privacy.unit is not None,
        "run.trace = false": settings.run.trace,
        "plan.replan = false": settings.plan.replan,
    }
    if needs := [cure for cure, is_wrong in wrong.items() if is_wrong]:
        raise ValueError(f"recovery.survive needs {', '.join(needs)}")
