"""What `isthmus calibrate` adds to a cluster file: seconds by size, rather than one rate for all sizes.

Times are kept as multiples of what latency and rate of the same table say. So they follow when the
rate of a link is changed by hand, or to ask what a faster one would save.
"""

import warnings
from bisect import bisect_left
from collections.abc import Callable
from typing import Annotated, Any

import numpy as np
from pydantic import Field, model_validator

from isthmus.toml_files import FrozenModel

VERSION = 1
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class CalibrationRangeWarning(RuntimeWarning):
    """A prediction for sizes that calibration has not measured."""


class _BySize(FrozenModel):
    """Columns of one length, by ascending bytes."""

    nbytes: Annotated[tuple[Annotated[int, Field(gt=0)], ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _columns_agree(self):
        columns = [column for column in self.__dict__.values() if isinstance(column, tuple)]
        if len({len(column) for column in columns}) > 1:
            raise ValueError(
                f"columns must be of one length, not of "
                f"{', '.join(str(len(column)) for column in columns)}"
            )
        if any(after <= before for before, after in zip(self.nbytes, self.nbytes[1:])):
            raise ValueError("nbytes must ascend")
        return self

    def warn_outside(self, nbytes: float) -> None:
        """Warn, once for each range, where `nbytes` was not measured; less than 4 count as 4."""
        if not self.nbytes[0] <= max(nbytes, 4) <= self.nbytes[-1]:
            warnings.warn(
                f"calibration measured {self.nbytes[0]:g} to {self.nbytes[-1]:g} bytes; times of other "
                "lengths are those of the nearest, in proportion",
                CalibrationRangeWarning,
                stacklevel=2,
            )


class SizeTable(_BySize):
    """How many times longer `nbytes` took than a formula says, with 95 % intervals from `low` to `high`.

    Between two sizes the seconds themselves are on a line; outside the range the nearest factor holds.
    """

    factors: tuple[Positive, ...]
    low: tuple[Positive, ...]
    high: tuple[Positive, ...]

    def seconds(self, nbytes: float, formula: Callable[[Any], Any]) -> float:
        """Return the seconds of `nbytes`; formula: bytes -> seconds, both arrays."""
        self.warn_outside(nbytes)
        sizes = np.array(self.nbytes)
        known = np.maximum.accumulate(np.array(self.factors) * formula(sizes))
        nearest = float(np.clip(nbytes, sizes[0], sizes[-1]))
        inside = float(np.interp(nearest, sizes, known))
        if nbytes == nearest:
            return inside
        return inside * float(formula(nbytes) / formula(nearest))


class Coding(_BySize):
    """Seconds that `encode`, and `decode` or `add_decoded`, take for `nbytes` of float32, in all chunks.

    compressor: as Python writes it, with all arguments.
    """

    compressor: str
    encode_seconds: tuple[Positive, ...]
    decode_seconds: tuple[Positive, ...]


class Contender(_BySize):
    """How many times longer an allreduce of `nbytes` took than the time model says.

    name: the algorithm, and the compressor as Python writes it, as `timing.choice` has it.
    """

    name: str
    factors: tuple[Positive, ...]

    def seconds(self, nbytes: int, predicted: Callable[[int], float]) -> float:
        """Return the seconds of `nbytes`: between two sizes on a line, below all by the nearest factor.

        Beyond all a larger factor than 1 grows with the vector, and what was saved stays as it is: a
        queue lets the first few messages through at once. predicted: bytes -> what the model says.
        """
        after = bisect_left(self.nbytes, nbytes)
        if after == 0:
            return self.factors[0] * predicted(nbytes)
        if after == len(self.nbytes):
            saved = (1 - self.factors[-1]) * predicted(self.nbytes[-1])
            return max(self.factors[-1] * predicted(nbytes), predicted(nbytes) - saved)
        (low, here), (high, there) = (
            (self.nbytes[place], self.factors[place] * predicted(self.nbytes[place]))
            for place in (after - 1, after)
        )
        return here + (there - here) * (nbytes - low) / (high - low)


class Update(_BySize):
    """Seconds that an optimiser's step takes for `nbytes` of float32 parameters, all ranks at once.

    optimiser: as Python writes it, with all arguments.
    """

    optimiser: str
    seconds: tuple[Positive, ...]


class Pass(_BySize):
    """Seconds of what else is done to `nbytes`, in all chunks, as `timing.passes` names it."""

    name: str
    seconds: tuple[Positive, ...]


class Host(FrozenModel):
    """A machine of the job: its ranks, in cluster order, and how many of them it lets work at a time."""

    ranks: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]
    cores: Positive


class Calibration(FrozenModel):
    """When, with what, and how MPI's own allreduce was found to be.

    mpi_algorithm: which one MPI says that it uses, or "unknown". allreduce: its seconds over what the
    time model says of algorithm "mpi", for the vector's bytes on `ranks` ranks. overhead_seconds:
    algorithm -> what an allreduce of a few entries took on them beyond what the model says: waking up
    after computing, Python, ranks that share a core. contenders: what `algorithm = "auto"` chooses from,
    where it may be fastest. hosts: where the ranks were.
    """

    version: int = VERSION
    made: str = ""
    mpi_library: str = ""
    mpi_algorithm: str = "unknown"
    ranks: int = 0
    allreduce: SizeTable | None = None
    overhead_seconds: dict[str, Seconds] = Field(default_factory=dict)
    contenders: tuple[Contender, ...] = ()
    hosts: tuple[Host, ...] = ()


def line(way: Any, kind: str, nbytes: float) -> tuple[float, float]:
    """Return latency and rate of a way that give the seconds measured for `nbytes`: exact there.

    The latency is that of the shortest message measured, so that the rate is of bytes alone: messages
    that share a way add up their bytes, not what each of them takes before its first. way: has
    latency_seconds and bytes_per_second, and the SizeTable called `kind` or None, with which they are
    returned as they are.
    """
    latency, rate, table = way.latency_seconds, way.bytes_per_second, getattr(way, kind)
    if table is None or nbytes <= 0:
        return latency, rate
    seconds = table.seconds(nbytes, lambda sizes: latency + sizes / rate)
    latency = min(table.factors[0] * latency, seconds)
    return latency, nbytes / max(seconds - latency, 1e-12)
