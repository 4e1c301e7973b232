"""What features are scaled by: a mean and a standard deviation, for each column or channel."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

CHANNELS = (1, 2, 3, 4)


@dataclass(frozen=True, eq=False)
class Scale:
    """What brings features to (features - mean) / std.

    mean, std: float64 arrays that NumPy broadcasts to the shape of a sample's features: a column of
    times in seconds is far from 0 and narrow, and float32 would not find its middle.
    """

    mean: npt.NDArray[np.float64]
    std: npt.NDArray[np.float64]

    @classmethod
    def of(cls, mean: npt.ArrayLike, std: npt.ArrayLike, shape: tuple[int, ...]) -> "Scale":
        """Return the Scale of `mean` and `std`, single numbers or one a column or channel.

        shape: of a sample's features. ValueError if they do not fit it, or if std is not positive.
        """
        axis = kept_axis(shape)
        arrays = []
        for name, value in (("mean", mean), ("std", std)):
            array = np.asarray(value, np.float64)
            if array.size == 1:
                array = array.reshape(())
            elif array.ndim == 1 and axis is not None and len(array) == shape[axis]:
                array = array.reshape([-1 if each == axis else 1 for each in range(len(shape))])
            elif not _broadcasts(array.shape, tuple(shape)):
                wanted = "one" if axis is None else f"one, {shape[axis]}"
                raise ValueError(
                    f"{name} has {array.size} numbers, features of shape {list(shape)} take {wanted} or "
                    f"{math.prod(shape)}"
                )
            with np.errstate(over="ignore", under="ignore"):
                kept = array.astype(np.float32)
            if not np.isfinite(kept).all() or (name == "std" and (kept <= 0).any()):
                raise ValueError(
                    f"{name} must be {'positive' if name == 'std' else 'finite'} in float32"
                )
            arrays.append(array)
        return cls(*arrays)

    def apply(self, features: np.ndarray) -> npt.NDArray[np.float32]:
        """Return float32[samples, ...] of `features`, scaled in float64 and rounded once."""
        scaled = np.subtract(features, self.mean)
        scaled /= self.std
        return scaled.astype(np.float32, copy=False)


def _broadcasts(shape, whole):
    try:
        return np.broadcast_shapes(shape, whole) == whole and len(shape) == len(whole)
    except ValueError:
        return False


def kept_axis(shape: tuple[int, ...]) -> int | None:
    """Return the axis along which a sample's numbers are scaled apart; None where all are scaled alike.

    A row of a table: each column. An image of several channels: each channel, which come first, or last
    where only the last are as few as channels are. One without channels: all its pixels alike.
    """
    if len(shape) == 1:
        return 0
    if len(shape) < 3:
        return None
    return len(shape) - 1 if shape[-1] in CHANNELS and shape[0] not in CHANNELS else 0
