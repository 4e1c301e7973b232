"""How to train: the numbers of one job."""

from dataclasses import dataclass, field

from isthmus.training.optimisers.optimiser import Optimiser
from isthmus.training.optimisers.sgd import SGD


@dataclass(frozen=True)
class Recipe:
    """`steps` an epoch on every rank; a checkpoint and a look at the replicas every so many.

    stop_after: epochs that the validation set finds no better than the best, after which the run ends.
    schedule: "constant", or "linear" for a learning rate that falls to 0 with the last step.
    """

    epochs: int
    steps: int
    learning_rate: float
    schedule: str = "constant"
    optimiser: Optimiser = field(default_factory=SGD)
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
        left = 1 - step / self.total_steps if self.schedule == "linear" else 1.0
        return self.learning_rate * left
