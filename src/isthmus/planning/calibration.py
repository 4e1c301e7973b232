"""From measured times to latencies and rates."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class LinkFit:
    """t = latency_seconds + n / bytes_per_second, and how well it fits where it was measured."""

    latency_seconds: float
    bytes_per_second: float
    largest_relative_error: float
    smallest_nbytes: float
    largest_nbytes: float


def fit_link(nbytes, seconds):
    """Return the LinkFit of times `seconds` of messages of `nbytes` bytes.

    Least squares of the *relative* error, so that short messages count as much as long ones, under
    latency >= 0 and rate > 0 (Lawson and Hanson's non-negative least squares). Several times of one
    size count as their median. Also fits computing: samples for bytes. Raises ValueError for fewer
    than two sizes, and for times that are not positive and finite.
    """
    from scipy.optimize import nnls
    nbytes, seconds = np.asarray(nbytes, float), np.asarray(seconds, float)
    if nbytes.shape != seconds.shape or nbytes.ndim != 1:
        raise ValueError(f"nbytes and seconds must be vectors of one length, not of shapes "
                         f"{nbytes.shape} and {seconds.shape}")
    if not (np.isfinite(seconds).all() and (seconds > 0).all()):
        raise ValueError("seconds must be positive and finite")
    sizes = np.unique(nbytes)
    if sizes.size < 2:
        raise ValueError("a latency and a rate need times of at least two sizes")
    medians = np.array([np.median(seconds[nbytes == size]) for size in sizes])
    # Columns of like magnitude, so that the solver's tolerances mean the same for both.
    scale = np.array([medians.min(), medians.max() / sizes.max()])
    design = np.stack([np.ones_like(sizes), sizes], axis=1) * scale / medians[:, None]
    latency, seconds_per_byte = nnls(design, np.ones_like(medians))[0] * scale
    # Times that do not grow with size bound the rate from below: what would show in the largest.
    seconds_per_byte = max(seconds_per_byte, 1e-6 * medians.max() / sizes.max())
    error = np.abs((latency + sizes * seconds_per_byte) / medians - 1)
    return LinkFit(float(latency), float(1 / seconds_per_byte), float(error.max()),
                   float(sizes[0]), float(sizes[-1]))
