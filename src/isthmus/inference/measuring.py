"""What layers take on this machine: seconds that a split and a stream of requests are planned with."""

import time
from typing import Any

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from isthmus.inference.forward import Run, parts_of
from isthmus.quantities import whole
from isthmus.timing.requests import Seconds

ROUNDS, LEAST_SECONDS = 7, 0.002
"""Measurements of each, of which the median counts, and how long one goes on at least."""


def measure_layers(
    model: Any,
    features: npt.NDArray[Any],
    parameters: npt.NDArray[np.float32] | None = None,
    *,
    batch: int = 1,
) -> list[dict[str, Any]]:
    """Return what `plan_split` asks of one end: the data and then each layer, in order.

    Each is {"name", "seconds", "entries", "nbytes"}: seconds a request on one thread here, in batches of
    `batch`; entries of what it gives. The first is "input", the features themselves, with their bytes;
    those of layers are None, as float32 or what `plan_split`'s `activations` make of it.
    model: what `load_model` gives, or a model with its parameters. features: [n, ...], n >= `batch`.
    Floating-point operations do not foretell these seconds; clocks do. Raises ValueError for fewer
    features than a batch.
    """
    count = whole("batch", batch, least=1)
    if len(features) < count:
        raise ValueError(f"{len(features)} samples are no batch of {count}; give more")
    values = features[:count]
    told = [
        {
            "name": "input",
            "seconds": 0.0,
            "entries": int(values[0].size),
            "nbytes": int(values[0].nbytes),
        }
    ]
    with threadpool_limits(1):
        for part in parts_of(model, parameters):
            seconds = _seconds(part.run, values) / count
            told.append({"name": part.name, "seconds": seconds, "entries": part.entries, "nbytes": None})
            values = part.run(values)
    return told


def seconds_of(run: Run, features: npt.NDArray[Any], batch: int) -> Seconds:
    """Return what batches take here, from one of a request and one of `batch`."""
    rows = np.resize(features, (max(batch, 2), *features.shape[1:]))
    with threadpool_limits(1):
        one, many = _seconds(run, rows[:1]), _seconds(run, rows)
    each = max(0.0, (many - one) / (len(rows) - 1))
    return Seconds(max(0.0, one - each), each)


def _seconds(run, values):
    run(values)  # compiles, and brings what it needs near
    found = []
    for _ in range(ROUNDS):
        began, times = time.perf_counter(), 0
        while times == 0 or time.perf_counter() - began < LEAST_SECONDS:
            run(values)
            times += 1
        found.append((time.perf_counter() - began) / times)
    return float(np.median(found))
