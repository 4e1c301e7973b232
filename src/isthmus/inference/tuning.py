"""Learning on for a few epochs, alone on one rank, once parts of a model have gone."""

from dataclasses import dataclass

import numpy as np

from isthmus.models.losses import CrossEntropy
from isthmus.training.optimisers.adam import Adam

BATCH_SIZE = 64


def tuned(model, parameters, features, targets, *, epochs, seed, kept=None):
    """Return `parameters` after so many epochs of Adam, whose rate falls from 0.001 to 0.

    kept: bool[size], the entries that may be other than 0; None for all. The same seed, the same bits.
    """
    optimiser, draw = Adam().on(model), np.random.Generator(np.random.PCG64(seed))
    parameters, gradient = parameters.copy(), np.empty_like(parameters)
    memories = optimiser.begin(parameters.size, parameters)
    steps, step = epochs * -(-len(targets) // BATCH_SIZE), 0
    for _ in range(epochs):
        order = draw.permutation(len(targets))
        for first in range(0, len(targets), BATCH_SIZE):
            rows = order[first : first + BATCH_SIZE]
            model.begin_step(seed, 0, step)
            model.gradient(parameters, features[rows], targets[rows], gradient)
            if kept is not None:
                gradient *= kept
            rate = optimiser.LEARNING_RATE * (1 - step / steps)
            optimiser.step(parameters, gradient, memories, rate, 1 / len(rows))
            step += 1
    return parameters


@dataclass(frozen=True)
class Distilled(CrossEntropy):
    """Half the cross-entropy of the targets, half that of a teacher's softened answers.

    After Hinton et al. 2015, "Distilling the Knowledge in a Neural Network" (arXiv:1503.02531), whose
    factor temperature² the second half has. Targets are [batch, 1 + outputs] numbers: the class, and
    the teacher's scores.
    """

    temperature: float = 1.0

    def value_and_slope(self, scores: np.ndarray, targets: np.ndarray) -> tuple[float, np.ndarray]:
        """See `Loss.value_and_slope`."""
        hard, slope = super().value_and_slope(scores, targets[:, 0])
        heat = scores.dtype.type(self.temperature)
        ours, theirs = _softmax(scores / heat), _softmax(targets[:, 1:].astype(scores.dtype) / heat)
        soft = -float((theirs * np.log(ours + np.finfo(ours.dtype).tiny)).sum(dtype=np.float64))
        return (hard + heat**2 * soft) / 2, (slope + heat * (ours - theirs)) / 2


def _softmax(scores):
    exponents = np.exp(scores - scores.max(axis=1, keepdims=True))
    return exponents / exponents.sum(axis=1, keepdims=True)
