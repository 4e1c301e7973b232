"""Many repetitions in five numbers."""

import numpy as np


def spread_of(samples):
    """Return the least, the quartiles, the median between them, and the most of `samples`."""
    names = ("least", "lower_quartile", "median", "upper_quartile", "most")
    return dict(zip(names, np.quantile(samples, (0, 0.25, 0.5, 0.75, 1)).tolist()))
