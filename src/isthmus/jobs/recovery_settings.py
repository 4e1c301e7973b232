"""`[recovery]` of a run's settings: what a run does when ranks or sites are late, or gone."""

from typing import Annotated

from pydantic import Field

from isthmus.toml_files import FrozenModel

Seconds = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


class RecoverySettings(FrozenModel):
    """wait_seconds: for which sites wait for one another before the start; with `survive` those who are
    there then begin, if they are the majority. deadline_seconds: a site without a sign of life for so
    long is gone: frozen, or cut off; None: half a minute, and with `survive` as long as an unusual step
    takes, if that is less.

    checksums: messages between sites go with a CRC32C. survive: those who are left go on where a rank
    dies. buddies_every: steps from one copy of each leader's residual, to who leads after it or to
    another site, to the next; None: there are none. least_ranks, least_sites: with fewer, the run writes
    a checkpoint and stops.
    """

    wait_seconds: Seconds = 300.0
    deadline_seconds: Seconds | None = None
    checksums: bool = False
    survive: bool = False
    buddies_every: Count | None = None
    least_ranks: Count = 1
    least_sites: Count = 1


def check_recovery(settings):
    """Raise ValueError where a run with these settings could not go on without a rank, or where what
    crosses between sites could not be checked."""
    if settings.recovery.checksums and settings.allreduce.algorithm == "mpi":
        raise ValueError("recovery.checksums needs an algorithm of isthmus' own")
    if settings.recovery.checksums and settings.security.link != "clear":
        raise ValueError("recovery.checksums is for clear links; sealed ones find what has changed")
    if not settings.recovery.survive:
        if settings.data.copies > 1:
            raise ValueError("data.copies = 2 needs recovery.survive = true")
        if settings.recovery.buddies_every is not None:
            raise ValueError("recovery.buddies_every needs recovery.survive = true")
        return
    if settings.make_strategy().redone is None:
        raise ValueError(
            f'recovery.survive: strategy "{settings.strategy.kind}" does not say what is made again '
            "where a rank is gone (`redone` of its class); take "
            '"synchronous", or "local_steps" with late = 0'
        )
    wrong = {
        "an algorithm of isthmus' own": settings.allreduce.algorithm == "mpi",
        "no [privacy]": settings.privacy.secure_sum != "off" or settings.privacy.unit is not None,
        "run.trace = false": settings.run.trace,
        "plan.replan = false": settings.plan.replan,
    }
    if needs := [cure for cure, is_wrong in wrong.items() if is_wrong]:
        raise ValueError(f"recovery.survive needs {', '.join(needs)}")
