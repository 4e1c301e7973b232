"""What each rank measures of its steps, as rows that are gathered now and then."""

import itertools

import numpy as np

from isthmus.registry import ALLREDUCE_STAGES

MEASURED = (
    "loss",
    "samples",
    "compute",
    "allreduce",
    *ALLREDUCE_STAGES,
    "update",
    "step",
    "sent_site_nbytes",
    "sent_link_nbytes",
)
"""What each rank notes of each step: a row of float64, gathered now and then to the job's rank 0."""


def spread(rows, steps):
    """Return `rows`, float64[:, MEASURED], of as many steps as this rank has made, as those of the job.

    Where that is more, several are taken together; where it is less, some have nothing.
    """
    if len(rows) == steps:
        return rows
    ends = [0, *(-(-number * len(rows) // steps) for number in range(1, steps + 1))]
    summed = np.array([rows[slice(*each)].sum(axis=0) for each in itertools.pairwise(ends)])
    summed[:, -2:] = rows[np.array(ends[1:]) - 1, -2:]  # bytes are counted from the start
    return summed
