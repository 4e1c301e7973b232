"""What rounds take whose exchange is late, and how sites that meet once in one may share it out."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from isthmus.quantities import real, whole


def late_round_seconds(steps: int, step_seconds: float, exchange_seconds: float, late: int = 0) -> float:
    """Return H c + max(0, x - d c): H steps of c, and an exchange of x that is applied d steps late.

    With d = H, an exchange that is under way all the time, it is max(H c, x).
    """
    steps, late = whole("steps", steps, 1), whole("late", late, 0)
    if late > steps:
        raise ValueError(f"late must be at most {steps}, the steps of a round, not {late}")
    step, exchange = real("step_seconds", step_seconds, 0), real("exchange_seconds", exchange_seconds, 0)
    return steps * step + max(0.0, exchange - late * step)


@dataclass(frozen=True)
class Shares:
    """How a round's samples are shared out, and what its computing takes: of the slowest site."""

    seconds: float
    steps: tuple[int, ...]  # of each site
    samples: tuple[float, ...]  # of each site, in a step


def unequal_steps(
    samples_per_second: Sequence[float], fixed_seconds: Sequence[float], samples: float, steps: int
) -> Shares:
    """Return the Shares in which sites make as many steps as they can, of batches of one size.

    samples_per_second, fixed_seconds: of each site, whose step of n samples takes fixed + n / rate.
    samples: of the round, all sites together; the batch is what a site's would be if all made `steps`
    steps. Batches of unequal size, for equal numbers of steps, are what a plan makes.
    """
    rates, fixed = _sites(samples_per_second, fixed_seconds)
    number = whole("steps", steps, 1) * rates.size
    batch = real("samples", samples, 0) / number
    each = fixed + batch / rates
    # The least T with sum of floor(T / each) >= number is a multiple of one of them: deal them out.
    made = np.floor(max(0.0, number / (1 / each).sum()) / each + 1e-9).astype(int)
    while made.sum() < number:
        made[np.argmin((made + 1) * each)] += 1
    while made.sum() > number:
        made[np.argmax(made * each)] -= 1
    return Shares(float((made * each).max()), tuple(made.tolist()), (batch,) * rates.size)


def _sites(samples_per_second, fixed_seconds) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    rates = np.array([real("samples_per_second", each, 0) for each in samples_per_second])
    fixed = np.array([real("fixed_seconds", each, 0) for each in fixed_seconds])
    if rates.size == 0 or rates.size != fixed.size or not (rates > 0).all():
        raise ValueError("samples_per_second and fixed_seconds must have a number for each site")
    return rates, fixed
