"""What ranks hold besides the parameters, such as BatchNorm's statistics: stored, and averaged.

Each rank goes on with its own; means are made to evaluate with and to keep, and change nothing of the
steps to come.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from isthmus.devices import to_host
from isthmus.links.comm import Comm
from isthmus.links.means import mean_over_ranks, shares_of
from isthmus.models.model import Model

PREFIX = "buffers/"
"""Of a checkpoint's names: one array for each dtype."""


def stored(model: Model) -> dict[str, np.ndarray]:
    """Return name -> flat array of this rank's buffers, those of one dtype after one another."""
    return {f"{PREFIX}{kind}": flat for kind, (flat, _) in _packed(model.buffers()).items()}


def take_stored(model: Model, arrays: dict[str, np.ndarray]) -> None:
    """Have the model go on from what `stored` gave; other names in `arrays` are passed over."""
    own = model.buffers()
    if own:
        flat_of = {kind: arrays[f"{PREFIX}{kind}"] for kind in _packed(own)}
        model.set_buffers(_unpacked(own, flat_of))


def mean_buffers(comm: Comm, model: Model, weight: float) -> dict[str, np.ndarray]:
    """Return name -> mean of all ranks' buffers, the same bits on every rank. Collective.

    weight: of this rank, its samples; ranks without any count nothing, unless nobody has one. Otherwise
    as `mean_over_ranks` has it.
    """
    own = model.buffers()
    if not own:
        return {}
    shares = shares_of(comm, weight)
    means = {kind: mean_over_ranks(comm, flat, shares) for kind, (flat, _) in _packed(own).items()}
    return _unpacked(own, means)


@contextmanager
def averaged(comm: Comm, model: Model, weight: float) -> Iterator[None]:
    """Have the model hold the mean buffers while the block lasts, and then its own again. Collective."""
    own = model.buffers()
    if own:
        model.set_buffers(mean_buffers(comm, model, weight))
    try:
        yield
    finally:
        if own:
            model.set_buffers(own)


def _packed(named: dict[str, np.ndarray]) -> dict[str, tuple[np.ndarray, list[str]]]:
    """Return dtype -> (its arrays in one, their names)."""
    names: dict[str, list[str]] = {}
    for name, array in named.items():
        names.setdefault(str(array.dtype), []).append(name)
    return {
        kind: (np.concatenate([named[name].reshape(-1) for name in group]), group)
        for kind, group in names.items()
    }


def _unpacked(like: dict[str, np.ndarray], flat_of: dict[str, Any]) -> dict[str, np.ndarray]:
    """Return name -> array of each shape in `like`, from one flat array of each dtype."""
    firsts, found = dict.fromkeys(flat_of, 0), {}
    for name, array in like.items():
        kind = str(array.dtype)
        first = firsts[kind]
        firsts[kind] += array.size
        found[name] = flat_of[kind][first : first + array.size].reshape(array.shape)
    return found


def copied(arrays):
    """Return name -> copy of each of `arrays`, on the host."""
    return {name: np.array(to_host(array)) for name, array in arrays.items()}
