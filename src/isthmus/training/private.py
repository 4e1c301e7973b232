"""Training that tells little of any one sample: sampled by chance, clipped, and with noise (DP-SGD).

Abadi et al. 2016 (arXiv:1607.00133). A site's noise is in its sum before that is encoded, so that wires,
residuals and all that follows are made of what may be told.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from isthmus.privacy.draws import Draws
from isthmus.training.loop import MEASURED, Training

TIMES = slice(MEASURED.index("compute"), MEASURED.index("sent_site_nbytes"))


@dataclass(frozen=True)
class Protection:
    """What a rank does for its samples.

    clip: the norm to which each sample's gradient is scaled down. noise: its deviation over `clip`.
    sampling: draws who is in a step. noising: draws the noise of this rank's site; None: another rank
    of the site does. told: what the whole run may tell of a sample, and by which account.
    """

    clip: float
    noise: float
    sampling: Draws
    noising: Draws | None
    told: dict[str, Any]


class PrivateTraining(Training):
    """One rank's part in a job whose model tells little of any one sample. See `Training` for the rest.

    Every sample is in a step with the same probability, one by the steps of an epoch, whoever else is;
    the sum is divided by how many are expected. The loss of batches is told to nobody, and seconds are
    means over the steps between two reports, for what a batch takes tells how many are in it.
    """

    def __init__(self, *arguments, protection: Protection, **named):
        super().__init__(*arguments, **named)
        self.protection = protection

    def _batches_of(self, epoch: int, done: int) -> Iterator[tuple[np.ndarray, ...]]:
        steps = self.recipe.steps
        for number in range(epoch * steps + done, (epoch + 1) * steps):
            yield self.local.at(self.protection.sampling.sampled(number, self.local.samples, 1 / steps))

    def _gradient(self, features, targets, ready):
        kept, gradient = self.protection, self.gradient
        self.model.clipped_gradient(self.state.parameters, features, targets, kept.clip, gradient)
        if kept.noising is not None:
            noise = kept.noising.noise(self.member.walked, gradient.size)
            noise *= np.float32(kept.noise * kept.clip)
            gradient += noise
        ready(0)
        return np.nan

    def _note(self, loss, samples, measured, before):
        super()._note(np.nan, 0, measured, before)

    def gather_rows(self):
        if self.rows:
            rows = np.array(self.rows)
            rows[:, TIMES] = rows[:, TIMES].mean(axis=0)
            self.rows[:] = rows.tolist()
        return super().gather_rows()
