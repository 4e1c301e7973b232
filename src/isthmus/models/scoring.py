"""Scores whose bits do not depend on which other samples are scored beside them.

A matrix product sums in an order that depends on the matrices' shapes, so a batch of 7 rows may end
with other last bits than one of 500. Here every product has the same number of rows.
"""

import numpy as np

from isthmus.devices import to_host
from isthmus.models.model import Model

ROWS = 256
"""Of every block: a multiple of what matrix products take at a time, so that all rows are alike."""


def scores_of(model: Model, parameters: np.ndarray, features: np.ndarray) -> np.ndarray:
    """Return `model.scores` of any number of samples, on the host, in blocks of ROWS.

    The last block is filled up with zeros. A row's bits depend on its features and on the threads of
    the matrix products alone.
    """
    parts = []
    for first in range(0, max(len(features), 1), ROWS):
        block = features[first : first + ROWS]
        full = block
        if len(block) < ROWS:
            full = np.zeros((ROWS, *features.shape[1:]), features.dtype)
            full[: len(block)] = block
        parts.append(to_host(model.scores(parameters, full))[: len(block)])
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
