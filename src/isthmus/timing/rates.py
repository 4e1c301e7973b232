"""How fast ranks are by now: measured again and again, believed when they differ for long enough."""

import math

import numpy as np

PARTS = 4
"""Parts of a measurement: the median of their means lets one slow moment pass."""
WINDOWS = (3, 5, 9, 17)
"""Measurements whose median is looked at: a great change is seen soon, a small one later."""
BAND = 0.6
"""A median of n measurements counts where it differs by more than this over sqrt(n), in logarithms:
35 % for 3, 15 % for 17. With noise of 10 % that is five standard deviations of the median or more."""


def measured_rates(samples, seconds, fixed_seconds):
    """Return float64[1 or 2, ranks]: samples per second in each half of the steps; NaN for no samples.

    samples, seconds: float64[ranks, steps], what each rank computed in each step and how long it took.
    fixed_seconds: float64[ranks], of a step's computing whatever its samples. A half is the median of
    the means of PARTS parts: means, because a rank that is stopped now and then is slow on average.
    """
    steps = samples.shape[1]
    parts = np.array_split(np.arange(steps), min(steps, 2 * PARTS))
    with np.errstate(divide="ignore", invalid="ignore"):
        rates = np.array(
            [
                samples[:, part].sum(axis=1) / _own_seconds(seconds[:, part], fixed_seconds)
                for part in parts
            ]
        )
    rates[~(rates > 0)] = np.nan
    halves = np.array_split(rates, 2) if len(parts) > 1 else [rates]
    return np.array([[_median(column) for column in half.T] for half in halves])


def _own_seconds(seconds, fixed_seconds):
    """Return what is left without the fixed seconds; at least a tenth, should they be wrong."""
    whole = seconds.sum(axis=1)
    return np.maximum(whole - seconds.shape[1] * fixed_seconds, 0.1 * whole)


def _median(values):
    known = values[np.isfinite(values)]
    return float(np.median(known)) if known.size else np.nan


class RateFilter:
    """The rates that are believed, in samples per second, one a rank.

    A rate is believed until the median of the last few measurements is outside of a band around it
    (hysteresis: the band is then around the new rate). One measurement alone never changes anything. A
    rank that computes nothing is not measured: what was believed of it stands.
    """

    def __init__(self, samples_per_second):
        self.rates = np.array(samples_per_second, float)
        self.seen = [[] for _ in self.rates]  # of each rank since the last change, the newest last

    def add(self, measured):
        """Take in one measurement of every rank (NaN: none); return the ranks that have changed."""
        changed = []
        for rank, rate in enumerate(np.asarray(measured, float).tolist()):
            if math.isfinite(rate) and rate > 0:
                self.seen[rank] = [*self.seen[rank], rate][-WINDOWS[-1] :]
                if self._changes(rank):
                    changed.append(rank)
        return changed

    def _changes(self, rank):
        seen = self.seen[rank]
        for count in WINDOWS:
            if count > len(seen):
                return False
            level = float(np.median(seen[-count:]))
            if abs(math.log(level / self.rates[rank])) > BAND / math.sqrt(count):
                self.rates[rank] = level
                self.seen[rank] = seen[-(count + 1) // 2 :]
                return True
        return False

    def to_json(self):
        return {"rates": self.rates.tolist(), "seen": self.seen}

    @classmethod
    def from_json(cls, table):
        """Return the filter that `to_json` told of."""
        result = cls(table["rates"])
        result.seen = [list(seen) for seen in table["seen"]]
        return result
