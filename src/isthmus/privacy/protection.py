"""What a rank does so that little is told of any one sample, client or site: clip, sample, add noise."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from isthmus.kernels.reference import SQUARES
from isthmus.privacy.draws import Draws


@dataclass(frozen=True)
class Protection:
    """What is kept of a unit, and what is told of it.

    clip: the norm to which what each unit gives is scaled down. noise: its deviation over `clip`.
    probability: with which a unit takes part, independently of all others. sampling: draws who does.
    noising: draws the noise of this rank's site; None: another rank of the site adds it. told: what the
    whole run may tell of a unit, and by which account.
    """

    clip: float
    noise: float
    probability: float
    sampling: Draws
    noising: Draws | None
    told: dict[str, Any]

    def clipped(self, vector: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Scale `vector` down to the norm `clip`, in place, and return it; to zeros where it is not
        finite."""
        from isthmus import kernels

        sums = np.empty(-(-vector.size // SQUARES))
        kernels.for_array(vector).square_sums(vector, sums)
        norm = math.sqrt(math.fsum(sums.tolist())) if np.isfinite(sums).all() else math.inf
        if not math.isfinite(norm):
            vector[:] = 0
        elif norm > self.clip:
            vector *= np.float32(self.clip / norm * (1 - 1e-6))
        return vector

    def add_noise(self, vector: npt.NDArray[np.float32], step: int, share: float = 1.0) -> None:
        """Add the noise of `step` to `vector`, in place, which counts `share` times in a site's sum."""
        if self.noising is not None:
            noise = self.noising.noise(step, vector.size)
            noise *= np.float32(share * self.noise * self.clip)
            vector += noise
