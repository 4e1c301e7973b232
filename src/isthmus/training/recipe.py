"""How to train: the numbers of one job."""

import math
from dataclasses import dataclass, field

from isthmus.training.optimisers.of_torch import OfTorch
from isthmus.training.optimisers.optimiser import Optimiser
from isthmus.training.optimisers.sgd import SGD


@dataclass(frozen=True)
class Recipe:
    """`steps` an epoch on every rank; a checkpoint and a look at the replicas every so many.

    stop_after: epochs that the validation set finds no better than the best, after which the run ends.
    schedule: "constant", "linear" for a learning rate that falls to 0 with the last step, or "cosine"
    for one that does so along half a cosine (Loshchilov and Hutter 2017, arXiv:1608.03983).
    warmup_steps: in which it first rises, by equal parts, to `learning_rate`. clip_norm: the largest
    norm that a mean gradient counts with; None for any.
    """

    epochs: int
    steps: int
    learning_rate: float
    schedule: str = "constant"
    warmup_steps: int = 0
    optimiser: Optimiser | OfTorch = field(default_factory=SGD)
    clip_norm: float | None = None
    seed: int = 0
    on_non_finite: str = "stop"
    compare_replicas_every: int = 50
    checkpoint_every: int | None = None
    report_every: int = 100
    stop_after: int | None = None

    @property
    def total_steps(self):
        return self.epochs * self.steps

    def learning_rate_of(self, step):
        """Return the learning rate of step number `step`, counted from 0."""
        if step < self.warmup_steps:
            return self.learning_rate * ((step + 1) / self.warmup_steps)
        if self.schedule == "constant":
            return self.learning_rate
        done = (step - self.warmup_steps) / (self.total_steps - self.warmup_steps)
        return self.learning_rate * (1 - done if self.schedule == "linear" else half_cosine(done))


def half_cosine(share):
    """Return (1 + cos(pi share)) / 2 for a share between 0 and 1, of the same bits on every machine.

    It is the square of cos(pi share / 2), whose series is summed: libraries' cosines differ in the last
    bit, and ranks make equal steps.
    """
    angle, cosine = share * math.pi / 2, 1.0
    for term in range(24, 0, -2):
        cosine = 1 - angle * angle / (term * (term - 1)) * cosine
    return cosine * cosine
