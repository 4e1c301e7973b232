"""What the training loop takes beside computing and sums, asked of the loop itself."""

from typing import NamedTuple

import numpy as np
from mpi4py import MPI

from isthmus.cluster.cluster import Cluster
from isthmus.links.tiers import split_tiers
from isthmus.models.model import Model
from isthmus.shards.batches import LocalSamples
from isthmus.training.loop import MEASURED, State, Training
from isthmus.training.recipe import Recipe
from isthmus.training.strategies.strategy import Member
from isthmus.training.strategies.sums import Sums

SMALL = np.float32(1e-3)
"""Each entry of the gradient: what is remembered of it has all its digits."""


class LoopSeconds(NamedTuple):
    """Of a step: the update; what is around a model's gradient; and what is between all phases."""

    update: float
    compute: float
    python: float


class _Idle(Model):
    """A model of so many parameters that computes nothing."""

    size = 0

    def __init__(self, size):
        self.size = size

    def gradient(self, parameters, features, targets, gradient, ready=None):
        ready(0)
        return 0.0


def loop_seconds(size, optimiser, clip_norm, repetitions, library=np):
    """Return the LoopSeconds, medians, of this rank by itself.

    size: of the parameters. optimiser: bound to the run's model. library: of this rank's device.
    """
    steps = repetitions + 1
    site = {"name": "here", "tier": "cloud", "ranks": 1, "samples_per_second": 1.0}
    if library is not np:
        site["device"] = "gpu"
    recipe = Recipe(epochs=1, steps=steps, learning_rate=1e-3, optimiser=optimiser, clip_norm=clip_norm)
    parameters = library.zeros(size, np.float32)
    state = State(parameters, optimiser.begin(size, parameters))
    local = LocalSamples({"features": np.zeros((steps, 1)), "targets": np.zeros(steps)})
    with split_tiers(MPI.COMM_SELF, Cluster({"site": [site]})) as tiers:
        member = Member(Sums(tiers, size, float(steps), like=parameters).of_all())
        training = Training(tiers, _Idle(size), local, member, recipe, state)
        training.gradient[:] = SMALL
        for _ in training.steps():
            pass
        of_phase = dict(zip(MEASURED, training.gather_rows()[0].T))
    python = of_phase["step"] - sum(of_phase[name] for name in ("compute", "allreduce", "update"))
    update, compute, python = (
        float(np.median(seconds[1:])) for seconds in (of_phase["update"], of_phase["compute"], python)
    )
    return LoopSeconds(update, compute, max(0.0, python))
