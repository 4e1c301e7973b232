"""How to train: the numbers of one job of synchronous stochastic gradient descent."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """`steps` a epoch on every rank; a checkpoint and a look at the replicas every so many."""

    epochs: int
    steps: int
    learning_rate: float
    momentum: float = 0.9
    seed: int = 0
    on_non_finite: str = "stop"
    compare_replicas_every: int = 50
    checkpoint_every: int | None = None
    report_every: int = 50

    @property
    def total_steps(self):
        return self.epochs * self.steps
