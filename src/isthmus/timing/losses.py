"""What is left of a run's time where ranks and sites fail: with checkpoints, and without.

Failures come one after another as if by chance, each rank's and each site's once in its mean time
between failures (MTBF): those of a cluster come with the sum of their rates. With checkpoints a failure
costs the start and all that was made since the last one. A run that survives redoes its step, or its
round.
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Checkpoints:
    """What a run with checkpoints comes to; seconds of computing between two of them.

    goodput: seconds of computing that count, of a second.
    """

    interval_seconds: float
    goodput: float


def failure_seconds(
    ranks: int, sites: int, rank_mtbf_seconds: float | None, site_mtbf_seconds: float | None
) -> float:
    """Return the mean seconds from one failure of any rank or site to the next; None: none fails."""
    rate = sum(
        count / seconds
        for count, seconds in ((ranks, rank_mtbf_seconds), (sites, site_mtbf_seconds))
        if seconds is not None
    )
    return 1 / rate if rate else math.inf


def young_seconds(checkpoint_seconds: float, mtbf_seconds: float) -> float:
    """Return Young's interval between checkpoints (1974, doi:10.1145/361147.361115)."""
    return math.sqrt(2 * checkpoint_seconds * mtbf_seconds)


def daly_seconds(checkpoint_seconds: float, mtbf_seconds: float) -> float:
    """Return Daly's, of higher order (2006, doi:10.1016/j.future.2004.11.016)."""
    if checkpoint_seconds >= 2 * mtbf_seconds:
        return mtbf_seconds
    half = checkpoint_seconds / (2 * mtbf_seconds)
    young = young_seconds(checkpoint_seconds, mtbf_seconds)
    return young * (1 + math.sqrt(half) / 3 + half / 9) - checkpoint_seconds


def with_checkpoints(
    interval_seconds: float, checkpoint_seconds: float, restart_seconds: float, mtbf_seconds: float
) -> Checkpoints:
    """Return what checkpoints at this interval leave, by Daly's complete model (2006).

    A restart and a checkpoint may fail as well.
    """
    try:
        segment = math.expm1((interval_seconds + checkpoint_seconds) / mtbf_seconds)
        taken = mtbf_seconds * math.exp(restart_seconds / mtbf_seconds) * segment
    except OverflowError:
        taken = math.inf
    return Checkpoints(interval_seconds, interval_seconds / taken)


def surviving(recovery_seconds: float, round_seconds: float, mtbf_seconds: float) -> float:
    """Return the seconds of computing that count, of a second, where a failure costs its round alone.

    That is a run with a checkpoint after each round, which may be a step, that takes no time.
    """
    return with_checkpoints(round_seconds, 0.0, recovery_seconds, mtbf_seconds).goodput
