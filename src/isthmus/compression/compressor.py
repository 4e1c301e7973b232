"""What every compressor offers, and the checks of the arrays that they are given."""

from typing import Protocol, Self

import numpy as np
import numpy.typing as npt

from isthmus.devices import library_name

Vector = npt.NDArray[np.float32]
"""Or CuPy's of that type, which type checkers do not know."""
Wire = npt.NDArray[np.uint8]


class Compressor(Protocol):
    """Two verbs and a size: a wire's length is known beforehand and never travels.

    What has a value of its own below is what most have; a compressor says what differs.
    """

    @property
    def grain(self) -> int | None:
        """A vector cut at multiples of so many entries gives, piece by piece, wires that hold the same
        numbers as the wire of the whole; None where only the whole can be encoded."""

    @property
    def largest(self) -> float:
        """The largest magnitude that a wire holds."""
        return float(np.finfo(np.float32).max)

    @property
    def portable(self) -> bool:
        """Whether all machines write the same wire of one vector, and read the same numbers from it."""
        return True

    @property
    def sparse(self) -> bool:
        """Whether a wire leaves out most entries, which are then 0 where it is read."""
        return False

    def wire_nbytes(self, size: int) -> int:
        """Return the bytes of the wire of a vector of `size` entries."""

    def state_entries(self, size: int) -> int:
        """Return the entries of what `encode` carries from one call to the next; 0 for most."""
        return 0

    def piece(self, part: slice) -> Self:
        """Return the compressor of that part of the vector: itself for most."""
        return self

    def encode(
        self,
        vector: Vector,
        wire: Wire,
        residual: Vector | None = None,
        *,
        key: int = 0,
        first: int = 0,
        state: Vector | None = None,
    ) -> None:
        """Write float32[n] `vector` into uint8[wire_nbytes(n)] `wire`.

        `residual`, float32[n], is added first, and left holding what the wire does not say; `vector` is
        only read. `key` seeds stochastic rounding; `first` is the number of the vector's first entry in
        the whole of which it is a piece, so that a wire does not depend on how the whole was cut.
        `state`, float32[state_entries(n)], zeros before the first call, belongs to the caller and is
        updated in place; without it every call is a first one.
        """

    def decode(self, wire: Wire, vector: Vector) -> None:
        """Overwrite float32[n] `vector` with the numbers that `wire` holds."""

    def add_decoded(self, wire: Wire, total: Vector) -> None:
        """Add the numbers that `wire` holds to float32[n] `total`."""


def check_arrays(
    vector: Vector,
    wire: Wire,
    wire_nbytes: int,
    residual: Vector | None = None,
    state: Vector | None = None,
    state_entries: int = 0,
) -> None:
    """Raise ValueError unless the arrays of an encode or a decode fit each other."""
    _check(vector, "vector", np.float32)
    for name, array in (("wire", wire), ("residual", residual), ("state", state)):
        if array is not None and library_name(array) != library_name(vector):
            raise ValueError(
                f"{name} is an array of {library_name(array)}, the vector of "
                f"{library_name(vector)}; all must be on one device"
            )
    if residual is not None:
        _check(residual, "residual", np.float32)
        if residual.size != vector.size:
            raise ValueError(f"residual has {residual.size} entries, the vector {vector.size}")
    if state is not None:
        _check(state, "state", np.float32)
        if state.size != state_entries:
            raise ValueError(f"state has {state.size} entries; this compressor carries {state_entries}")
    _check(wire, "wire", np.uint8)
    if wire.size != wire_nbytes:
        raise ValueError(
            f"wire has {wire.size} bytes; a vector of {vector.size} entries takes {wire_nbytes}"
        )


def _check(array, name, dtype):
    if array.dtype != dtype or array.ndim != 1 or not array.flags.c_contiguous:
        raise ValueError(
            f"{name} must be a contiguous {np.dtype(dtype).name} vector, not "
            f"{array.dtype} with shape {array.shape}"
        )
