"""Only a few entries travel, with their places: the largest, or some drawn by lot."""

import math
from dataclasses import dataclass

import numpy as np

from isthmus import kernels
from isthmus.compression.compressor import Compressor, Vector, Wire, check_arrays
from isthmus.devices import to_host
from isthmus.kernels.chunk_records import CHUNK, layout_of
from isthmus.quantities import real

BLOCK = 65536  # positions inside a block fit in 16 bits
SELECTORS = ("exact", "threshold", "random")
BITS = (2, 4, 8)


@dataclass(frozen=True)
class TopK(Compressor):
    """Send the `ratio` largest entries, by magnitude: 48 bits for each place on the wire, or far fewer.

    Biased; contraction factor `ratio` (Stich, Cordonnier and Jaggi 2018, arXiv:1809.07599), so that
    it needs error feedback to converge. A NaN counts as larger than anything: it is always sent.
    With k = ratio x size, `selector` is

    "exact"      the k largest, ties to the first: three passes
    "threshold"  those over a threshold that the call before has set, in one pass; k of them, or up to
                 a tenth fewer, and then the contraction factor is up to a tenth smaller. A threshold
                 that lets more or fewer through gives way to the exact choice. The next one aims at
                 0.95 k by an exponential fit of the tail (SIDCo: Abdelmoniem et al. 2021,
                 arXiv:2101.10761). Carries the threshold as its state; without a state it is "exact"
    "random"     one of each k-th of the vector, drawn by `key` whatever its size, unscaled: 32 bits
                 each, for places do not travel. Contraction factor `ratio` in expectation. A NaN or an
                 infinity that is not drawn makes the first entry NaN, so that all hear of it

    The wire: uint32 counts of each block of 65536 places, float32 entries in the order of their
    places, uint16 places inside the block; bytes of places that are not used are 0. "random": the
    uint64 key, then float32 entries.

    bits: None, and entries are float32. 2, 4 or 8: each chunk of 4096 entries sends its own k largest,
    k = ratio x 4096 (whole, at least 1; a shorter chunk its share), as SparseLoCo does (Sarfi et al.
    2025, arXiv:2508.15706): one float32 a chunk, its largest magnitude M; places as an Elias-Fano
    sequence, 7.6 bits each for 2 % and at most a bit an entry; and codes of `bits` bits: one of L =
    2^(bits - 1) parts of M and a sign. 2 % take 0.20 bits an entry with 2 bits, 0.25 with 4, 0.33 with
    8. What is nearer to 0 than to M / L is not sent, so that constants and what is sparse come back
    exactly. The contraction factor of a chunk of n is at least min(3 k / 4 n, 1 / (1 + 4 n / 4^bits)).
    Of magnitudes that are equal the first are sent. A chunk with a NaN or an infinity decodes to NaN.
    """

    ratio: float = 0.01
    selector: str = "exact"
    bits: int | None = None

    def __post_init__(self):
        object.__setattr__(self, "ratio", real("ratio", self.ratio))
        if not 0 < self.ratio <= 1:
            raise ValueError(f"ratio must be in (0, 1], not {self.ratio}")
        if self.selector not in SELECTORS:
            raise ValueError(f"selector must be one of {', '.join(SELECTORS)}, not {self.selector!r}")
        if self.bits is None:
            return
        if isinstance(self.bits, bool) or self.bits not in BITS:
            raise ValueError(f"bits must be 2, 4 or 8, or left out for float32, not {self.bits!r:.80}")
        object.__setattr__(self, "bits", int(self.bits))
        if self.selector != "exact":
            raise ValueError(f"selector {self.selector!r} sends float32; with bits it must be 'exact'")

    @property
    def grain(self) -> int | None:
        return None if self.bits is None else CHUNK

    @property
    def sparse(self) -> bool:
        return True

    def entries(self, size: int) -> int:
        """Return how many of `size` entries travel at most."""
        if self.bits is not None:
            return sum(count * layout.kept for count, layout in self._layouts(size))
        return min(size, max(1, round(self.ratio * size)))

    def wire_nbytes(self, size: int) -> int:
        if self.bits is not None:
            return sum(count * (4 + layout.nbytes) for count, layout in self._layouts(size))
        if self.selector == "random":
            return 4 * self.entries(size) + (8 if size else 0)
        return 4 * self._blocks(size) + 6 * self.entries(size)

    def state_entries(self, size: int) -> int:
        return 1 if self.selector == "threshold" else 0

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
        size = vector.size
        check_arrays(vector, wire, self.wire_nbytes(size), residual, state, self.state_entries(size))
        kernel = kernels.for_array(vector)
        if self.bits is not None:
            kernel.encode_top_k_codes(vector, residual, self._kept, self.bits, *self._coded(wire, size))
        elif self.selector == "random":
            wire[:8].view("u8")[:] = np.uint64(key & 0xFFFFFFFFFFFFFFFF)
            kernel.encode_random_k(vector, residual, *self._key_and_entries(wire))
        elif self.selector == "exact" or state is None:
            kernel.encode_top_k(vector, residual, *self._parts(wire, size))
        else:
            counts, entries, positions = self._parts(wire, size)
            threshold = kernel.encode_above(vector, residual, state[0], counts, entries, positions)
            sent = to_host(entries[: int(counts.sum())])  # summed in one order on all devices
            state[0] = _next_threshold(threshold, sent, 0.95 * entries.size)

    def decode(self, wire: Wire, vector: Vector) -> None:
        check_arrays(vector, wire, self.wire_nbytes(vector.size))
        vector[:] = 0
        self.add_decoded(wire, vector)

    def add_decoded(self, wire: Wire, total: Vector) -> None:
        check_arrays(total, wire, self.wire_nbytes(total.size))
        kernel = kernels.for_array(total)
        if self.bits is not None:
            coded = self._coded(wire, total.size)
            kernel.add_top_k_codes(self._kept, self.bits, *coded, total)
        elif self.selector == "random":
            kernel.add_random_k(*self._key_and_entries(wire), total)
        else:
            kernel.add_top_k(*self._parts(wire, total.size), total)

    @property
    def _kept(self):
        """The most entries that a whole chunk sends."""
        return max(1, round(self.ratio * CHUNK))

    def _layouts(self, size):
        """Yield how many chunks are alike, and the Layout of each of them."""
        for count, length in ((size // CHUNK, CHUNK), (1, size % CHUNK)):
            if count and length:
                yield count, layout_of(length, self._kept, self.bits)

    def _coded(self, wire, size):
        scales = 4 * -(-size // CHUNK)
        return wire[:scales].view("f4"), wire[scales:]

    def _blocks(self, size):
        return -(-size // BLOCK)

    def _parts(self, wire, size):
        counts, entries = 4 * self._blocks(size), 4 * self.entries(size)
        return (
            wire[:counts].view("u4"),
            wire[counts : counts + entries].view("f4"),
            wire[counts + entries :].view("u2"),
        )

    def _key_and_entries(self, wire):
        return np.uint64(int(wire[:8].view("u8")[0]) if wire.size else 0), wire[8:].view("f4")


def _next_threshold(threshold, sent, wanted):
    """Return the threshold that should let `wanted` pass, if magnitudes over this one fall off
    exponentially; 0, which chooses nothing, if that is not a number to go by."""
    if sent.size == 0:
        return np.float32(0)
    excess = np.abs(sent).mean(dtype=np.float64) - float(threshold)
    following = float(threshold) + excess * math.log(sent.size / wanted)
    return np.float32(following) if 0 < following < np.finfo(np.float32).max else np.float32(0)
