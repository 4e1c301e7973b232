"""Only the largest entries travel, with their places."""

from dataclasses import dataclass
from typing import ClassVar

from isthmus import kernels
from isthmus.compression.compressor import check_arrays

BLOCK = 65536  # positions inside a block fit in 16 bits


@dataclass(frozen=True)
class TopK:
    """Send the `ratio` largest entries, by magnitude: 48 bits for each that is sent.

    Exact selection, ties to the first. Biased; contraction factor `ratio` (Stich, Cordonnier and
    Jaggi 2018, arXiv:1809.07599), so that it needs error feedback to converge. A NaN counts as
    larger than anything: it is always sent.

    The wire: uint32 counts of each block of 65536 places, float32 entries in the order of their
    places, uint16 places inside the block.
    """

    ratio: float = 0.01
    grain: ClassVar[None] = None

    def __post_init__(self):
        if not 0 < self.ratio <= 1:
            raise ValueError(f"ratio must be in (0, 1], not {self.ratio}")

    def entries(self, size):
        """Return how many of `size` entries travel."""
        return min(size, max(1, round(self.ratio * size)))

    def wire_nbytes(self, size):
        return 4 * self._blocks(size) + 6 * self.entries(size)

    def encode(self, vector, wire, residual=None, *, key=0, first=0):
        check_arrays(vector, wire, self.wire_nbytes(vector.size), residual)
        kernels.for_array(vector).encode_top_k(vector, residual, *self._parts(wire, vector.size))

    def decode(self, wire, vector):
        vector[:] = 0
        self.add_decoded(wire, vector)

    def add_decoded(self, wire, total):
        check_arrays(total, wire, self.wire_nbytes(total.size))
        kernels.for_array(total).add_top_k(*self._parts(wire, total.size), total)

    def _blocks(self, size):
        return -(-size // BLOCK)

    def _parts(self, wire, size):
        counts, entries = 4 * self._blocks(size), 4 * self.entries(size)
        return (wire[:counts].view("u4"), wire[counts:counts + entries].view("f4"),
                wire[counts + entries:].view("u2"))
