"""Every entry travels as a small integer; each block of entries has a scale of its own."""

from dataclasses import dataclass

import numpy as np

from isthmus import kernels
from isthmus.compression.compressor import Compressor, Vector, Wire, check_arrays
from isthmus.kernels.reference import GROUP
from isthmus.quantities import whole


@dataclass(frozen=True)
class Int8(Compressor):
    """Send 8 bits an entry and a float32 maximum a block: 8 + 32 / block bits an entry.

    Linear quantisation to 255 levels of each block's largest magnitude M (block-wise absmax, as in
    Dettmers 2015, arXiv:1511.04561): an error of at most M / 254 an entry, so the contraction factor
    is at least 1 - block / 254^2. Constant blocks and zeros come back exactly. "nearest" is biased,
    "stochastic" is unbiased up to the clipping at M, and independent over entries and over keys, and so
    over steps and sites, as far as statistical tests tell (Philox4x32-10: Salmon et al. 2011).

    The wire: float32 maxima, then int8 codes. A block with a NaN or an infinity decodes to NaN.
    """

    block: int = 256
    rounding: str = "nearest"

    def __post_init__(self):
        object.__setattr__(self, "block", whole("block", self.block, least=1))
        _check_rounding(self.rounding)

    @property
    def grain(self) -> int:
        return self.block

    def wire_nbytes(self, size: int) -> int:
        return 4 * self._blocks(size) + size

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
        check_arrays(vector, wire, self.wire_nbytes(vector.size), residual)
        maxima, codes = self._parts(wire, vector.size)
        kernels.for_array(vector).encode_int8(
            vector, residual, self.block, _dither_key(self, key), first, maxima, codes
        )

    def decode(self, wire: Wire, vector: Vector) -> None:
        check_arrays(vector, wire, self.wire_nbytes(vector.size))
        maxima, codes = self._parts(wire, vector.size)
        kernels.for_array(vector).decode_int8(maxima, codes, self.block, vector)

    def add_decoded(self, wire: Wire, total: Vector) -> None:
        check_arrays(total, wire, self.wire_nbytes(total.size))
        maxima, codes = self._parts(wire, total.size)
        kernels.for_array(total).add_int8(maxima, codes, self.block, total)

    def _blocks(self, size):
        return -(-size // self.block)

    def _parts(self, wire, size):
        scales = 4 * self._blocks(size)
        return wire[:scales].view("f4"), wire[scales:].view("i1")


@dataclass(frozen=True)
class Int4(Compressor):
    """Send 4 bits an entry, 16 bits a block, 32 bits 16 blocks: 4 + 18 / block bits an entry.

    Linear quantisation to 15 levels of each block's largest magnitude M, which travels as a share of
    that of sixteen blocks (scales that are quantised themselves: Dettmers et al. 2023, QLoRA,
    arXiv:2305.14314), rounded up to 1 / 32768 of it: so constant vectors and zeros come back exactly.
    An error of at most M / 14 an entry (and 2^-15 of the sixteen blocks' maximum), so the contraction
    factor is at least 1 - block / 14^2, for a block of 64 about 0.67. "nearest" is biased,
    "stochastic" is as in Int8.

    The wire: float32 maxima, uint16 shares, then codes, two a byte. Sixteen blocks with a NaN or an
    infinity in them decode to NaN. block: even.
    """

    block: int = 64
    rounding: str = "nearest"

    def __post_init__(self):
        object.__setattr__(self, "block", whole("block", self.block))
        if self.block < 2 or self.block % 2:
            raise ValueError(f"block must be even, at least 2, not {self.block}")
        _check_rounding(self.rounding)

    @property
    def grain(self) -> int:
        return GROUP * self.block

    def wire_nbytes(self, size: int) -> int:
        blocks = -(-size // self.block)
        return 4 * -(-blocks // GROUP) + 2 * blocks + -(-size // 2)

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
        check_arrays(vector, wire, self.wire_nbytes(vector.size), residual)
        kernels.for_array(vector).encode_int4(
            vector, residual, self.block, _dither_key(self, key), first, *self._parts(wire, vector.size)
        )

    def decode(self, wire: Wire, vector: Vector) -> None:
        check_arrays(vector, wire, self.wire_nbytes(vector.size))
        kernels.for_array(vector).decode_int4(*self._parts(wire, vector.size), self.block, vector)

    def add_decoded(self, wire: Wire, total: Vector) -> None:
        check_arrays(total, wire, self.wire_nbytes(total.size))
        kernels.for_array(total).add_int4(*self._parts(wire, total.size), self.block, total)

    def _parts(self, wire, size):
        blocks = -(-size // self.block)
        maxima = 4 * -(-blocks // GROUP)
        shares = maxima + 2 * blocks
        return wire[:maxima].view("f4"), wire[maxima:shares].view("u2"), wire[shares:]


def _check_rounding(rounding):
    if rounding not in ("nearest", "stochastic"):
        raise ValueError(f"rounding must be 'nearest' or 'stochastic', not {rounding!r}")


def _dither_key(compressor, key):
    """Return the key that a kernel is given: None for rounding to nearest."""
    # As uint64: numba takes the type of the first int that it sees for that of all ints.
    return np.uint64(key & 0xFFFFFFFFFFFFFFFF) if compressor.rounding == "stochastic" else None
