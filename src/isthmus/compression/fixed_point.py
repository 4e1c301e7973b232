"""Vectors as whole numbers that may be added up modulo 2^bits: what secure sums send.

The range of a block of entries is what all sites know of it: it follows from their last sum. What a code
does not say stays in the residual, so that a range which is too small or too large is made up for.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from isthmus.compression.compressor import Compressor, Vector

BLOCK = 256
FIRST_RANGE = 0.05
"""Of an entry of a site, before anything is known."""
WEIGHT_BITS = 24


@dataclass(frozen=True)
class FixedPoint(Compressor):
    """Codes of 8 or 16 bits, of which those of `sites` sites add up without overflow.

    An entry is brought to the range of its block, at most (2^(bits - 1) - 1) / sites levels each way.
    Behind the entries come the digits of the site's weight. ValueError for more sites than levels.
    """

    bits: int = 8
    sites: int = 3

    def __post_init__(self) -> None:
        if self.bits not in (8, 16):
            raise ValueError(f"bits must be 8 or 16, not {self.bits!r}")
        if self.levels < 1:
            raise ValueError(
                f"{self.sites} sites are more than codes of {self.bits} bits can add up; give bits = 16"
            )

    @property
    def dtype(self) -> type[np.uint8] | type[np.uint16]:
        return np.uint8 if self.bits == 8 else np.uint16

    @property
    def levels(self) -> int:
        """The largest code of a site."""
        return ((1 << (self.bits - 1)) - 1) // self.sites

    @property
    def grain(self) -> int:
        return BLOCK

    @property
    def digits(self) -> int:
        """Codes that a weight takes."""
        return math.ceil(WEIGHT_BITS / math.log2(self._base))

    @property
    def _base(self) -> int:
        return ((1 << self.bits) - 1) // self.sites + 1

    def wire_nbytes(self, size: int) -> int:
        return size * self.bits // 8

    def codes(self, size: int) -> int:
        """Return how many codes a vector of `size` entries and a weight take."""
        return size + self.digits

    def state_entries(self, size: int) -> int:
        return -(-size // BLOCK)

    def encode_codes(
        self,
        vector: Vector,
        residual: Vector | None,
        ranges: Vector,
        codes: npt.NDArray[np.unsignedinteger],
    ) -> None:
        """Write the codes of `vector`, to which `residual` is added first and left with what they do not
        say."""
        from isthmus.compression import fixed_point_loops

        fixed_point_loops.encode(vector, residual, ranges, BLOCK, np.float32(self.levels), codes)

    def decode_codes(
        self, codes: npt.NDArray[np.unsignedinteger], ranges: Vector, vector: Vector
    ) -> None:
        """Overwrite `vector` with what a sum of codes says, and move `ranges` to what it asks for."""
        from isthmus.compression import fixed_point_loops

        signed = codes.view(np.dtype(f"i{codes.itemsize}"))
        fixed_point_loops.decode(signed, ranges, BLOCK, np.float32(self.levels), vector)

    def encode_weight(self, weight: float, codes: npt.NDArray[np.unsignedinteger]) -> None:
        """Write a weight from 0 to 1 as digits whose sums over all sites do not overflow."""
        left = round(weight * (1 << WEIGHT_BITS))
        for place in range(self.digits):
            left, codes[place] = divmod(left, self._base)
        if left:
            codes[:] = self._base - 1

    def decode_weight(self, codes: npt.NDArray[np.unsignedinteger]) -> float:
        """Return the sum of the weights whose digits were added up."""
        return sum(int(code) * self._base**place for place, code in enumerate(codes)) / (
            1 << WEIGHT_BITS
        )
