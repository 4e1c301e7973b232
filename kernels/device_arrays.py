"""The checks of the arrays that a kernel of a device is given; a wrong address would end the process."""

import numpy as np

from isthmus.devices import library_name

F4, F8, U1, U2, U4, I1 = (np.dtype(name) for name in ("f4", "f8", "u1", "u2", "u4", "i1"))
MOST_POSITIONS = 2**31 - 1  # entries that TopK counts


def check(device, **arrays):
    """Raise ValueError unless each array, given as name=(array, dtype, shape), is what it must be.

    All on one device, contiguous, starting at a multiple of their entries' size. None is passed over.
    """
    first = None
    for name, (array, dtype, shape) in arrays.items():
        if array is None:
            continue
        if not isinstance(array, device.ndarray):
            raise ValueError(
                f"{name} is an array of {library_name(array)}, not of the device; copy it there first"
            )
        shape = shape if isinstance(shape, tuple) else (shape,)
        if array.dtype != dtype or array.shape != shape:
            raise ValueError(
                f"{name} must be {dtype.name} with shape {shape}, not {array.dtype} with "
                f"shape {array.shape}"
            )
        if not array.flags.c_contiguous:
            raise ValueError(f"{name} is not contiguous; pass a copy")
        if array.size and device.address(array) % dtype.itemsize:
            raise ValueError(
                f"{name} does not start at a multiple of {dtype.itemsize} bytes; pass a copy"
            )
        first = first or (name, array)
        theirs, ours = (getattr(each, "device", None) for each in (array, first[1]))
        if theirs != ours:
            raise ValueError(f"{name} is on device {theirs}, {first[0]} on device {ours}")


def check_chosen(size, wanted):
    """Raise ValueError unless `wanted` of `size` entries can be chosen."""
    if wanted > size:
        raise ValueError(f"{wanted} entries cannot be chosen from {size}")
    if size > MOST_POSITIONS:
        raise ValueError(
            f"a vector of {size} entries is too long to choose from; cut it into pieces of "
            f"at most {MOST_POSITIONS}"
        )
