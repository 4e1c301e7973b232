"""The record of a chunk of TopK with few bits: where each part of it lies, in plain arithmetic.

A chunk of `size` entries sends at most k of them. Their places p_0 < p_1 < ... are told as an Elias-Fano
sequence (Elias 1974, Fano 1971) of the d_i = p_i - i, which never fall and are at most size - k:

    marks   k + ((size - k) >> l) bits, of which bit (d_i >> l) + i is 1 for each i
    lows    the lower l bits of each d_i, l = floor(log2((size - k) / k)), or 0
    codes   `bits` bits each: 2^(bits - 1) for minus, and the magnitude less one

Each part starts at a byte, and lower bits come first. Fewer than k entries use the first bits of each
part, and the rest is 0. With l = 0 the marks are a bit an entry.
"""

from typing import NamedTuple

CHUNK = 4096  # entries of a whole chunk


class Layout(NamedTuple):
    """How many entries a chunk sends at most, the bits of a low, and the bytes of each part."""

    kept: int
    low_bits: int
    marks_nbytes: int
    lows_nbytes: int
    codes_nbytes: int

    @property
    def nbytes(self):
        """The bytes of the whole record."""
        return self.marks_nbytes + self.lows_nbytes + self.codes_nbytes


def layout_of(size, kept, bits):
    """Return the Layout of a chunk of 1 to 4096 entries, where a whole one sends at most `kept`."""
    mine = max(1, (kept * size + CHUNK // 2) // CHUNK)
    low_bits = max(0, ((size - mine) // mine).bit_length() - 1)
    marks = mine + ((size - mine) >> low_bits)
    return Layout(mine, low_bits, *(-(-each // 8) for each in (marks, mine * low_bits, mine * bits)))
