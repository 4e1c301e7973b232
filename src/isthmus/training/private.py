"""Training that tells little of any one sample, client or site: clipped, sampled by chance, with noise.

Of samples DP-SGD (Abadi et al. 2016, arXiv:1607.00133), of clients DP-FedAvg (McMahan et al. 2018,
arXiv:1710.06963). A site's noise is in its sum before that is encoded, so that wires, residuals and all
that follows are made of what may be told.
"""

from collections.abc import Iterator

import numpy as np

from isthmus.privacy.protection import Protection
from isthmus.training.loop import MEASURED, Training
from isthmus.training.playing import ClientTraining

TIMES = slice(MEASURED.index("compute"), MEASURED.index("sent_site_nbytes"))


class Untold(Training):
    """Training of whose batches nothing is told. See `Training` for the rest.

    Their loss is told to nobody, and seconds are means over the steps between two reports, for what a
    batch takes tells how many are in it.
    """

    def __init__(self, *arguments, protection: Protection, **named):
        super().__init__(*arguments, **named)
        self.protection = protection

    def _note(self, loss, samples, measured, before):
        super()._note(np.nan, 0, measured, before)

    def gather_rows(self):
        if self.rows:
            rows = np.array(self.rows)
            rows[:, TIMES] = rows[:, TIMES].mean(axis=0)
            self.rows[:] = rows.tolist()
        return super().gather_rows()


class PrivateTraining(Untold):
    """One rank's part in a job whose model tells little of any one sample.

    Every sample is in a step with the same probability, one by the steps of an epoch, whoever else is;
    the sum is divided by how many are expected.
    """

    def _batches_of(self, epoch: int, done: int) -> Iterator[tuple[np.ndarray, ...]]:
        steps, kept = self.recipe.steps, self.protection
        for number in range(epoch * steps + done, (epoch + 1) * steps):
            yield self.local.at(kept.sampling.sampled(number, self.local.samples, kept.probability))

    def _gradient(self, features, targets, ready):
        kept, gradient = self.protection, self.gradient
        self.model.clipped_gradient(self.state.parameters, features, targets, kept.clip, gradient)
        kept.add_noise(gradient, self.member.walked)
        ready(0)
        return np.nan


class PrivateClientTraining(Untold, ClientTraining):
    """One rank's part in a job whose model tells little of any one client. Who was there, and whose
    change was not finite, is told to nobody; what its optimiser remembers is forgotten."""

    def _round(self, phase):
        done = super()._round(phase)
        for name, array in self.state.optimiser.items():
            array[...] = self._fresh[name]
        return done

    def told_of(self, step):
        return {}
