"""The weighted mean of what ranks hold, with the same bits on every rank."""

from typing import Any

import numpy as np
import numpy.typing as npt

from isthmus.links.comm import Comm
from isthmus.links.world import all_gather

PIECE_ENTRIES = 1 << 18
"""Entries that are gathered from all ranks at once: memory does not grow with the vector."""


def shares_of(comm: Comm, weight: float) -> npt.NDArray[np.float64]:
    """Return float64[ranks]: each rank's part of all weights; equal ones if nobody has any.

    weight: of this rank, 0 or more. Collective.
    """
    weights = np.concatenate(all_gather(comm, np.array([weight], np.float64)))
    return weights / weights.sum() if weights.sum() else np.full(weights.size, 1 / weights.size)


def mean_over_ranks(comm: Comm, flat: npt.NDArray[Any], shares: npt.NDArray[np.float64]) -> Any:
    """Return the weighted mean of all ranks' `flat`, of one dimension, in its dtype. Collective.

    shares: what `shares_of` gave. Real and complex numbers are summed in float64 or more in rank order,
    and what all ranks have alike stays as it is. Of whole numbers, which are counts, it is the largest
    of the ranks with a share.
    """
    mean = np.empty_like(flat)
    for first in range(0, flat.size, PIECE_ENTRIES):
        part = slice(first, first + PIECE_ENTRIES)
        everyone = np.stack(all_gather(comm, np.ascontiguousarray(flat[part])))
        if flat.dtype.kind in "fc":
            wide = everyone.astype(np.result_type(flat, np.float64), copy=False)
            total = sum(share * each for share, each in zip(shares.tolist(), wide))
            mean[part] = np.where((everyone == everyone[0]).all(axis=0), everyone[0], total)
        else:
            mean[part] = everyone[shares > 0].max(axis=0)
    return mean
