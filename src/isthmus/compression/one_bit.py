"""Only the signs travel, with one magnitude a block."""

from dataclasses import dataclass

from isthmus import kernels
from isthmus.compression.compressor import Compressor, Vector, Wire, check_arrays
from isthmus.quantities import whole


@dataclass(frozen=True)
class OneBit(Compressor):
    """Send 1 bit an entry and a float32 mean magnitude a block: 1 + 32 / block bits an entry.

    Sign with the L1 mean as scale (Karimireddy et al. 2019, arXiv:1901.09847, after Seide et al.
    2014). Biased: needs error feedback. On a block x of n entries the contraction factor is
    |x|_1^2 / (n |x|_2^2), at least 1 / n; the root mean square as scale would have none on sparse
    vectors. Constant full blocks come back exactly.

    The wire: float32 scales, then the bits of each block. A block with a NaN or an infinity decodes
    to NaN. block: a power of two, at least 8.
    """

    block: int = 1024

    def __post_init__(self):
        object.__setattr__(self, "block", whole("block", self.block))
        if self.block < 8 or self.block & (self.block - 1):
            raise ValueError(f"block must be a power of two, at least 8, not {self.block}")

    @property
    def grain(self) -> int:
        return self.block

    def wire_nbytes(self, size: int) -> int:
        return 4 * self._blocks(size) + -(-size // 8)

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
        kernels.for_array(vector).encode_one_bit(
            vector, residual, self.block, *self._parts(wire, vector.size)
        )

    def decode(self, wire: Wire, vector: Vector) -> None:
        check_arrays(vector, wire, self.wire_nbytes(vector.size))
        scales, codes = self._parts(wire, vector.size)
        kernels.for_array(vector).decode_one_bit(scales, codes, self.block, vector)

    def add_decoded(self, wire: Wire, total: Vector) -> None:
        check_arrays(total, wire, self.wire_nbytes(total.size))
        scales, codes = self._parts(wire, total.size)
        kernels.for_array(total).add_one_bit(scales, codes, self.block, total)

    def _blocks(self, size):
        return -(-size // self.block)

    def _parts(self, wire, size):
        scales = 4 * self._blocks(size)
        return wire[:scales].view("f4"), wire[scales:]
