"""From measured times to latencies and rates, and to tables of seconds by size."""

from dataclasses import dataclass

import numpy as np

from isthmus.cluster.measured import SizeTable

CONFIDENCE = 0.99
DIGITS = 4
"""What a measurement is good for."""


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

    nbytes, seconds = _samples(nbytes, seconds)
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
    return LinkFit(
        float(latency),
        float(1 / seconds_per_byte),
        float(error.max()),
        float(sizes[0]),
        float(sizes[-1]),
    )


@dataclass(frozen=True)
class TableFit:
    """Seconds by size, on a line from each size to the next; they never fall as sizes grow."""

    nbytes: np.ndarray  # float64[sizes], ascending, as all of these
    seconds: np.ndarray
    low_seconds: np.ndarray  # from here to high_seconds: by the spread of that size's own samples
    high_seconds: np.ndarray

    def over(self, formula):
        """Return the SizeTable of these seconds over those of `formula`: bytes -> seconds, arrays."""
        expected = formula(self.nbytes)
        return SizeTable(
            nbytes=tuple(self.nbytes.astype(int).tolist()),
            **{
                name: tuple(rounded(factor) for factor in seconds / expected)
                for name, seconds in (
                    ("factors", self.seconds),
                    ("low", self.low_seconds),
                    ("high", self.high_seconds),
                )
            },
        )


def fit_table(nbytes, seconds):
    """Return the TableFit of samples: float[n] bytes, and the seconds that each took.

    seconds(n) = latency + sum_k slope_k x (bytes of n between sizes k and k + 1), latency and slopes not
    negative, by least squares of the relative error at the median of each size: non-negative least
    squares on ramps (Lawson and Hanson). The interval of a size is that of its median by order
    statistics, which needs no distribution: of 99 %, or from the least sample to the most where there
    are too few. Raises ValueError for times that are not positive and finite.
    """
    from scipy.optimize import nnls

    nbytes, seconds = _samples(nbytes, seconds)
    sizes = np.unique(nbytes)
    of_size = [np.sort(seconds[nbytes == size]) for size in sizes]
    medians = np.array([np.median(samples) for samples in of_size])
    ramps = np.tril(np.ones((sizes.size, sizes.size)))  # of each size: latency, then whole slopes
    rises = np.diff(medians, prepend=0.0)
    scale = np.maximum(np.abs(rises), 1e-6 * medians)  # columns of like magnitude for the solver
    heights = nnls(ramps * scale / medians[:, None], np.ones_like(medians))[0] * scale
    fitted = ramps @ heights
    low, high = np.array([_median_interval(samples) for samples in of_size]).T
    return TableFit(sizes, fitted, np.minimum(low, fitted), np.maximum(high, fitted))


def rounded(number):
    """Return `number` with the digits that a measurement is good for."""
    return float(f"{number:.{DIGITS}g}")


def _samples(nbytes, seconds):
    """Return both as float64 vectors; raise ValueError unless they are samples of times."""
    nbytes, seconds = np.asarray(nbytes, float), np.asarray(seconds, float)
    if nbytes.shape != seconds.shape or nbytes.ndim != 1 or nbytes.size == 0:
        raise ValueError(
            f"nbytes and seconds must be vectors of one length, not of shapes "
            f"{nbytes.shape} and {seconds.shape}"
        )
    if not (np.isfinite(seconds).all() and (seconds > 0).all()):
        raise ValueError("seconds must be positive and finite")
    return nbytes, seconds


def _median_interval(ordered):
    """Return the tightest pair of samples, as far from both ends, with the median in 99 % between."""
    from scipy.stats import binom

    outside = int(binom.ppf((1 - CONFIDENCE) / 2, ordered.size, 0.5))
    return ordered[max(0, outside - 1)], ordered[min(ordered.size - 1, ordered.size - outside)]
