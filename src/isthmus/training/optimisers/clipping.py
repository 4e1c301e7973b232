"""Gradient clipping: a gradient whose norm is too large counts less, by the same factor on all ranks."""

import math
from typing import Any

import numpy as np

from isthmus import kernels
from isthmus.devices import library_of, to_host
from isthmus.kernels.reference import SQUARES

MARGIN = 1e-6
"""Added to the norm, as PyTorch's clip_grad_norm_ does, so that factors are the same."""


def global_norm(gradient: Any) -> float:
    """Return the Euclidean norm of float32[size] `gradient`, of the same bits on every device.

    Squares are exact in float64; blocks of them are summed in one order, and the blocks exactly.
    """
    sums = library_of(gradient).empty(-(-gradient.size // SQUARES), np.float64)
    kernels.for_array(gradient).square_sums(gradient, sums)
    return math.sqrt(math.fsum(to_host(sums).tolist()))


def clipping_factor(gradient: Any, clip_norm: float) -> float:
    """Return what `gradient` is to be multiplied by, 1 or less, for a norm of `clip_norm` or less."""
    return min(1.0, clip_norm / (global_norm(gradient) + MARGIN))
