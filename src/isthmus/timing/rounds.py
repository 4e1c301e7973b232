"""What rounds take where sites do not all wait for each other in every step: late, partial, buffered.

And how a round's samples are best shared out by sites that meet once in it.
"""

import math
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


def partial_round_seconds(seconds: Sequence[float], drawn: int) -> float:
    """Return E[max of k of n]: what a round takes on average that waits for k clients, drawn of n.

    seconds: of each client. Each set of k is as likely as any other, so that the j-th fastest is the
    slowest drawn with probability C(j - 1, k - 1) / C(n, k).
    """
    times = sorted(real("seconds", each, 0) for each in seconds)
    drawn = whole("drawn", drawn, 1)
    if drawn > len(times):
        raise ValueError(f"drawn must be at most {len(times)}, the number of clients, not {drawn}")
    # From the slowest down: p_n = k / n, and p_(j-1) = p_j (j - k) / (j - 1).
    expected, share = 0.0, drawn / len(times)
    for j in range(len(times), drawn - 1, -1):
        expected += share * times[j - 1]
        share *= (j - drawn) / (j - 1) if j > 1 else 0.0
    return expected


@dataclass(frozen=True)
class Flow:
    """Changes that arrive one by one: how many a second, the versions made of them, and how old."""

    arrivals_per_second: float
    versions_per_second: float
    staleness: float  # versions, on average over changes


def buffered_flow(seconds: Sequence[float], arrivals: int = 1) -> Flow:
    """Return the Flow of workers that take so many seconds for a change, and wait for nobody.

    arrivals: changes that make a version. Each of n workers arrives at its own rate, and while one makes
    a change the others make n - 1 on average, weighted by how often each arrives: changes are
    (n - 1) / arrivals versions old, however unequal workers are. A bound on staleness, and workers that
    stand in line, are not counted; `Buffered.expected` plays both.
    """
    times = [real("seconds", each, 0) for each in seconds]
    if not times or not all(times):
        raise ValueError("seconds must be a positive number for each worker")
    arrivals = whole("arrivals", arrivals, 1)
    rate = sum(1 / each for each in times)
    return Flow(rate, rate / arrivals, (len(times) - 1) / arrivals)


@dataclass(frozen=True)
class Shares:
    """How a round's samples are shared out, and what its computing takes: of the slowest site."""

    seconds: float
    steps: tuple[int, ...]  # of each site
    samples: tuple[float, ...]  # of each site, in a step


def unequal_batches(
    samples_per_second: Sequence[float], fixed_seconds: Sequence[float], samples: float, steps: int
) -> Shares:
    """Return the Shares in which all sites make `steps` steps of batches as large as they can.

    samples_per_second, fixed_seconds: of each site, whose step of n samples takes fixed + n / rate.
    samples: of the round, all sites together. A site that cannot be done in time gets none.
    """
    rates, fixed = _sites(samples_per_second, fixed_seconds)
    steps = whole("steps", steps, 1)
    # Sites join in the order of their fixed costs: T with sum of rate (T - fixed) = samples of a step.
    wanted, order = real("samples", samples, 0) / steps, np.argsort(fixed, kind="stable")
    step_seconds = math.inf
    for count in range(1, order.size + 1):
        joined = order[:count]
        step_seconds = (wanted + rates[joined] @ fixed[joined]) / rates[joined].sum()
        if count == order.size or step_seconds <= fixed[order[count]]:
            break
    share = rates * np.maximum(0.0, step_seconds - fixed)
    # A site without samples still makes its steps, of nothing.
    seconds = steps * max(step_seconds, float(fixed.max()))
    return Shares(float(seconds), (steps,) * rates.size, tuple(share.tolist()))


def unequal_steps(
    samples_per_second: Sequence[float], fixed_seconds: Sequence[float], samples: float, steps: int
) -> Shares:
    """Return the Shares in which sites make as many steps as they can, of batches of one size.

    Arguments as in `unequal_batches`; the batch is what a site's would be if all made `steps` steps.
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
