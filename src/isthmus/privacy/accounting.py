"""How much a run may tell of one sample: epsilon, by dp-accounting, the extra isthmus[privacy].

A step takes each sample with the same probability, independently (Poisson), and adds Gaussian noise to
the sum of what is clipped; neighbours differ by one sample more or less (add or remove one).
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from isthmus.errors import SettingsError
from isthmus.extras import how_to_install
from isthmus.quantities import real, whole

CONVERSIONS = {
    "pld": "hockey-stick divergence of the composed privacy loss distribution, never too small",
    "rdp": "Renyi divergences by Canonne, Kamath and Steinke 2020 (arXiv:2004.00010), proposition 12",
}
"""How each accountant comes to epsilon and delta."""
INTERVAL = 5e-4
"""To which privacy losses are rounded up: epsilon is at most 0.1 % more than with the library's 1e-4."""
SHARE = 1e-5
"""Of epsilon, to which they are rounded up where that is more: with little noise it is thousands."""
MOST_NOISE = 1e6
ORDERS = [*range(2, 65), 80, 96, 128, 192, 256, 512, 1024]
"""Of Renyi divergences."""


@dataclass(frozen=True)
class Steps:
    """So many steps: the chance of a sample to be in one, and the noise's deviation over the clip."""

    sampling: float
    noise: float
    steps: int

    def __post_init__(self) -> None:
        sampling = real("sampling", self.sampling, least=0)
        if sampling > 1:
            raise ValueError(f"sampling must be a probability, not {sampling}")
        object.__setattr__(self, "sampling", sampling)
        object.__setattr__(self, "noise", real("noise", self.noise, least=0))
        object.__setattr__(self, "steps", whole("steps", self.steps, least=0))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def library() -> Any:
    """Return `dp_accounting`; SettingsError where it is not installed."""
    try:
        import dp_accounting
        import dp_accounting.pld
        import dp_accounting.rdp
    except ImportError as problem:
        raise SettingsError(
            f"epsilon needs the extra isthmus[privacy] ({problem}); {how_to_install('privacy')}"
        ) from None
    return dp_accounting


def epsilon(
    *, sampling: float, noise: float, steps: int, delta: float, accountant: str = "pld"
) -> float:
    """Return the epsilon of (epsilon, delta)-differential privacy after so many steps.

    sampling: probability that a sample is in a step (Poisson, never of a shuffled order). noise:
    deviation of the Gaussian noise on the sum over the norm to which samples are clipped. accountant:
    "pld", which is tight, or "rdp". Infinite without noise. ValueError for what makes no sense.
    """
    return epsilon_of([Steps(sampling, noise, steps)], delta, accountant)


def epsilon_of(parts: Sequence[Steps], delta: float, accountant: str = "pld") -> float:
    """Return the epsilon of all `parts` together, in any order; arguments as those of `epsilon`."""
    delta = real("delta", delta, least=0)
    if not 0 < delta < 1:
        raise ValueError(f"delta must be between 0 and 1, not {delta}")
    if accountant not in CONVERSIONS:
        raise ValueError(f"accountant must be one of {', '.join(CONVERSIONS)}, not {accountant!r}")
    telling = [part for part in parts if part.steps and part.sampling]
    if not telling:
        return 0.0
    if any(part.noise == 0 for part in telling):
        return math.inf
    dp = library()

    def told(by: Any) -> float:
        for part in telling:
            event = dp.PoissonSampledDpEvent(part.sampling, dp.GaussianDpEvent(part.noise))
            by.compose(dp.SelfComposedDpEvent(event, part.steps))
        return float(by.get_epsilon(delta))

    loose = told(dp.rdp.RdpAccountant(ORDERS))
    if accountant == "rdp":
        return loose
    return told(dp.pld.PLDAccountant(value_discretization_interval=max(INTERVAL, SHARE * loose)))


def noise_for(epsilon: float, *, sampling: float, steps: int, delta: float) -> float:
    """Return the noise, to three digits and rounded up, with which so many steps tell at most `epsilon`.

    By PLD. ValueError where no noise up to a million does.
    """
    wanted = real("epsilon", epsilon, least=0)
    if not wanted:
        raise ValueError("epsilon must be positive: with 0 nothing could be learnt")

    def told(noise: float) -> float:
        return epsilon_of([Steps(sampling, noise, steps)], delta)

    # Beyond some noise epsilon falls about as a power of it: steps along that line.
    noise, found = 1.0, told(1.0)
    slope = -1.5
    for _ in range(12):
        if not found or abs(found / wanted - 1) < 3e-3:
            break
        following = noise * min(8.0, max(0.125, (wanted / found) ** (1 / slope)))
        if following > MOST_NOISE:
            raise ValueError(f"no noise up to {MOST_NOISE:g} tells so little; take fewer steps")
        value = told(following)
        if value and following != noise:
            slope = min(-0.3, math.log(value / found) / math.log(following / noise))
        noise, found = following, value
    digit = 10.0 ** (math.floor(math.log10(noise)) - 2)
    noise = math.floor(noise / digit) * digit
    while told(noise) > wanted:
        noise += digit
    return float(f"{noise:.4g}")
