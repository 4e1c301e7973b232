"""Every entry travels as a small integer; each block of entries has a scale of its own."""

from dataclasses import dataclass

import numpy as np

from isthmus import kernels
from isthmus.compression.compressor import Compressor, check_arrays


@dataclass(frozen=True)
class Int8(Compressor):
    """Send 8 bits an entry and a float32 maximum a block: 8 + 32 / block bits an entry.

    Linear quantisation to 255 levels of each block's largest magnitude M (block-wise absmax, as in
    Dettmers 2015, arXiv:1511.04561): an error of at most M / 254 an entry, so the contraction factor
    is at least 1 - block / 254^2. Constant blocks and zeros come back exactly. "nearest" is biased,
    "stochastic" is unbiased up to the clipping at M.

    The wire: float32 maxima, then int8 codes. A block with a NaN or an infinity decodes to NaN.
    """

    block: int = 256
    rounding: str = "nearest"

    def __post_init__(self):
        if self.block < 1:
            raise ValueError(f"block must be at least 1, not {self.block}")
        if self.rounding not in ("nearest", "stochastic"):
            raise ValueError(f"rounding must be 'nearest' or 'stochastic', not {self.rounding!r}")

    @property
    def grain(self):
        return self.block

    def wire_nbytes(self, size):
        return 4 * self._blocks(size) + size

    def encode(self, vector, wire, residual=None, *, key=0, first=0, state=None):
        check_arrays(vector, wire, self.wire_nbytes(vector.size), residual)
        # As uint64: numba takes the type of the first int that it sees for that of all ints.
        key = np.uint64(key & 0xFFFFFFFFFFFFFFFF) if self.rounding == "stochastic" else None
        maxima, codes = self._parts(wire, vector.size)
        kernels.for_array(vector).encode_int8(vector, residual, self.block, key, first,
                                              maxima, codes)

    def decode(self, wire, vector):
        check_arrays(vector, wire, self.wire_nbytes(vector.size))
        maxima, codes = self._parts(wire, vector.size)
        kernels.for_array(vector).decode_int8(maxima, codes, self.block, vector)

    def add_decoded(self, wire, total):
        check_arrays(total, wire, self.wire_nbytes(total.size))
        maxima, codes = self._parts(wire, total.size)
        kernels.for_array(total).add_int8(maxima, codes, self.block, total)

    def _blocks(self, size):
        return -(-size // self.block)

    def _parts(self, wire, size):
        scales = 4 * self._blocks(size)
        return wire[:scales].view("f4"), wire[scales:].view("i1")
